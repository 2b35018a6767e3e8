"""A data set's description, `dataset.yaml`: its classes, and where its images, lists, labels and masks lie.

    name: Five things                             how reports call it (the name of its folder unless given)
    classes: [cup, fork, knife, plate, spoon]     without background, which is label 0; the k-th is label k in masks
    root: photos_of_2024                          optional: where images and ground_truth lie (--voc12_root beats it)
    images: photos                                a folder, or several: [train, val]
    extensions: [.png, .jpg]                      optional
    lists: {train: train.txt, val: val.txt}       files of ids; train or train_aug, and val, test where there are
    labels: labels.csv                            .npy, .csv (`id,class,class`) or a folder of label masks
    ground_truth: masks                           optional: folder of <id>.png, to score with
    mask_values: {background: 0, cup: 10, …}      optional: what ground truth and masks of `labels` store for a class
    ignore: 255                                   optional: what these masks store where a pixel does not count
    palette: {cup: [255, 0, 0], …}                optional: colours of masks and reports, '#ff0000' too

Paths count from the file's folder, those of images and ground_truth from root; absolute ones stand as they are. The
data sets that come with the project are such files, <name>/dataset.yaml.
"""
import collections
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from data.classes import ClassSet, colour_map
from data.images import SUFFIXES, PhotoFolders
from engine.errors import UserError
from engine.files import REPO, save_text
from tool.metrics import IGNORE

BUILT_IN = ('voc12', 'coco14')
KEYS = ('name', 'classes', 'root', 'images', 'extensions', 'lists', 'labels', 'ground_truth', 'mask_values', 'ignore',
        'palette')
LISTS = ('train', 'train_aug', 'val', 'test')
EXTENSIONS = (*SUFFIXES, '.bmp', '.tif', '.tiff', '.webp')
LARGEST = 2 ** 16  # bytes of a description; COCO's 80 classes take two thousand
MOST_CLASSES = 254  # labels 1..254 of 8-bit masks, whose 0 is background and 255 is "ignore"
LONGEST_NAME = 100  # characters
SEE = 'see docs/OWN_DATA.md'


@dataclass(frozen=True)
class DataSet:
    """A data set, as its description says.

    source: its file, or the name of a built-in one. classes: a ClassSet. root: folder of the images and the ground
    truth. images: folders of photos below root; extensions: of photos, in lower case. lists: {name of LISTS: path}.
    labels: path of the image-level labels (data/labels.py). ground_truth: folder below root, or ''.
    """
    source: str
    classes: ClassSet
    root: str
    images: tuple
    extensions: tuple
    lists: dict = field(hash=False)
    labels: str
    ground_truth: str = ''

    def photos(self, root=None):
        """The folders of the photos, a data.images.PhotoFolders, below `root` (its own unless given)."""
        return PhotoFolders(tuple(Path(root or self.root) / folder for folder in self.images), self.extensions)

    def truth(self, root=None):
        """The folder of the ground truth below `root` (its own unless given), as text; '' where there is none."""
        return str(Path(root or self.root) / self.ground_truth) if self.ground_truth else ''

    def list(self, name):
        """The path of a list; train and train_aug stand for each other where one is missing. UserError: none."""
        other = {'train': 'train_aug', 'train_aug': 'train'}.get(name)
        if name in self.lists or other in self.lists:
            return self.lists.get(name, self.lists.get(other))
        raise UserError(self.source, f'names no list {name}', f'add it under lists, or name a list by its flag; {SEE}')


def read_dataset(source):
    """The DataSet of a built-in name (BUILT_IN) or of a description's path.

    UserError: missing, unreadable, larger than LARGEST, no mapping, an alias or a key twice; a key that is unknown or
    missing; a path with `..`, a list that does not exist; a class twice; colours or mask values that do not tell
    classes apart.
    """
    if source in BUILT_IN:
        path = REPO / source / 'dataset.yaml'
        # From any folder: lists are found as <name>/<list> (engine.files.repo_path), the root is the user's.
        return _from_mapping(source, read_mapping(path), Path(source), REPO / source, Path())
    path = Path(source)
    content, folder = read_mapping(path), path.parent
    data = _from_mapping(str(path), content, folder, folder, folder)
    for name, file in data.lists.items():
        if not Path(file).is_file():
            raise UserError(path, f'its list {name} is missing: {file} does not exist', 'write it, or correct the path')
    return data


def trained_classes(path, names):
    """The ClassSet of the class names that stand in the <session>.json beside weights `path`. UserError: no names."""
    return _classes(f'{path}: its <session>.json', {'classes': names}, Path(path).stem)


def save_description(path, **content):
    """Write a description; content: its keys, as in the file."""
    save_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))


# ---------------------------------------------------------------- YAML

class _Loader(yaml.BaseLoader):
    """PyYAML's plainest loader: texts, lists and mappings alone, so that no tag makes an object and a class may be
    called `no` or `1`. Refuses aliases, which can unfold to any size, and keys that are written twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f'has an alias (*{self.peek_event().anchor})')
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = collections.Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [key for key, times in keys.items() if times > 1]
        if twice:
            raise ValueError(f'has the key {twice[0]} twice')
        return super().construct_mapping(node, deep)


def read_mapping(path):
    """The content of a YAML file, a mapping of texts, lists and mappings. UserError, as read_dataset."""
    try:
        with open(path, 'rb') as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f'is larger than {LARGEST} bytes')
        value = yaml.load(content.decode('utf-8-sig'), _Loader)
    except FileNotFoundError:
        raise UserError(path, 'description not found', f'give {", ".join(BUILT_IN)} or the path of a dataset.yaml; '
                                                       f'{SEE}') from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(path, f'description cannot be read ({_words(error)})', f'correct it; {SEE}') from error
    if not isinstance(value, dict):
        raise UserError(path, 'is no mapping (lines of `key: value`)', f'write it as a mapping; {SEE}')
    return value


def _words(error):
    """An exception of the YAML reader in a few words: its problem and line, where it has them."""
    mark = getattr(error, 'problem_mark', None)
    if mark:
        return f'line {mark.line + 1}: {error.problem}'
    return str(getattr(error, 'strerror', None) or error) or type(error).__name__


# ---------------------------------------------------------------- from YAML to DataSet

def _from_mapping(source, content, lists, labels, root):
    """The DataSet of a description's content. lists, labels, root: the folders from which their paths count."""
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise UserError(source, f'has the unknown key {unknown[0]!r}', f'use {", ".join(KEYS)}; {SEE}')
    for key in ('classes', 'images', 'lists', 'labels'):
        if key not in content:
            raise UserError(source, f'has no {key}', f'add it; {SEE}')
    named = _mapping(source, content, 'lists')
    if not {'train', 'train_aug'} & set(named) or set(named) - set(LISTS):
        raise UserError(source, f'names the lists {", ".join(map(str, named)) or "none"}',
                        f'name train or train_aug, and nothing but {", ".join(LISTS)}')
    images = _texts(source, content, 'images')
    return DataSet(
        source=source, classes=_classes(source, content, labels.resolve().name),
        root=str(root / _path(source, 'root', content['root'])) if 'root' in content else str(root),
        images=tuple(_path(source, 'images', folder) for folder in images),
        extensions=_extensions(source, content),
        lists={name: str(lists / _path(source, f'list {name}', file)) for name, file in named.items()},
        labels=str(labels / _path(source, 'labels', content['labels'])),
        ground_truth=_path(source, 'ground_truth', content['ground_truth']) if 'ground_truth' in content else '')


def _path(source, key, value):
    """A path of a description, as text. UserError: no text, empty, with `..`."""
    value = _text(source, key, value)
    if '..' in Path(value.replace('\\', '/')).parts or '\0' in value:
        raise UserError(source, f'{key}: the path {value!r} leads out of its folder', 'write it without ..')
    return value


def _text(source, key, value):
    if not isinstance(value, str) or not value.strip():
        raise UserError(source, f'{key} is {value!r}, no text', f'correct it; {SEE}')
    return value


def _texts(source, content, key):
    """A list of texts; a single text counts as a list of one."""
    values = content[key] if isinstance(content[key], list) else [content[key]]
    if not values:
        raise UserError(source, f'{key} is empty', f'name at least one; {SEE}')
    return [_text(source, key, value) for value in values]


def _mapping(source, content, key):
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise UserError(source, f'{key} is no mapping', f'write it as {{name: value, …}}; {SEE}')
    return value


def _extensions(source, content):
    if 'extensions' not in content:
        return SUFFIXES
    found = tuple(f'.{text.lower().lstrip(".")}' for text in _texts(source, content, 'extensions'))
    wrong = [text for text in found if text not in EXTENSIONS]
    if wrong:
        raise UserError(source, f'extensions names {wrong[0]}', f'use {", ".join(EXTENSIONS)}')
    return found


def _classes(source, content, default_name):
    """The ClassSet of a description."""
    names = _texts(source, content, 'classes')
    if len(names) > MOST_CLASSES:
        raise UserError(source, f'has {len(names)} classes', f'name at most {MOST_CLASSES}: masks have 8 bits')
    for name in names:
        if name != name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            raise UserError(source, f'the class {name[:LONGEST_NAME]!r} is no plain name', 'write a short word or two')
        if names.count(name) > 1:
            raise UserError(source, f'lists the class {name} twice', 'name each class once')
    if 'background' in names:
        raise UserError(source, 'lists background as a class', 'leave it out: it is label 0 of every data set')
    name = _text(source, 'name', content.get('name', default_name))
    return ClassSet(name, tuple(names), _palette(source, content, names), _stored(source, content, names))


def _palette(source, content, names):
    """The 768 integers of a palette: the colour map of VOC, with the colours that the description gives; () for none
    given. UserError: an unknown class, no colour, two labels in one colour."""
    given = _mapping(source, content, 'palette')
    if not given:
        return ()
    palette = colour_map()
    for name, value in given.items():
        if name not in ['background', *names]:
            raise UserError(source, f'palette names the class {name}, which classes lacks', 'correct it')
        label = 1 + names.index(name) if name in names else 0
        palette[3 * label:3 * label + 3] = _colour(source, name, value)
    seen = {}
    for label in [*range(len(names) + 1), IGNORE]:
        colour = tuple(palette[3 * label:3 * label + 3])
        if colour in seen:
            raise UserError(source, f'palette gives the labels {seen[colour]} and {label} one colour, {colour}',
                            'choose another (labels without a colour have that of VOC, 255 has (224, 224, 192))')
        seen[colour] = label
    return tuple(palette)


def _colour(source, name, value):
    if isinstance(value, str) and re.fullmatch('#[0-9a-fA-F]{6}', value):
        return list(bytes.fromhex(value[1:]))
    if not isinstance(value, list) or len(value) != 3:
        raise UserError(source, f'palette: the colour of {name} is {value!r}', "write [255, 0, 0] or '#ff0000'")
    return [_byte(source, f'palette: the colour of {name}', number) for number in value]


def _byte(source, key, value):
    """A number 0..255 of a description. UserError: another content."""
    if not isinstance(value, str) or not re.fullmatch('[0-9]{1,3}', value) or int(value) > 255:
        raise UserError(source, f'{key} is {value!r}', 'write a number 0..255: masks and colours have 8 bits')
    return int(value)


def _stored(source, content, names):
    """The label of each value 0..255 that ground truth may store, −1 for none: 256 integers; () where masks store the
    labels themselves. UserError: a class unknown or missing, one value for two."""
    ignore = _byte(source, 'ignore', content['ignore']) if 'ignore' in content else IGNORE
    given = _mapping(source, content, 'mask_values')
    if not given and ignore == IGNORE:
        return ()
    values = {name: label for label, name in enumerate(['background', *names])}
    if given:
        lacking = set(given).symmetric_difference(values) - {'background'}
        if lacking:
            raise UserError(source, f'mask_values and classes differ in {min(lacking)}', 'give each class its value')
        values = {'background': 0} | {name: _byte(source, f'mask_values: {name}', v) for name, v in given.items()}
    table, labels = [-1] * 256, {name: label for label, name in enumerate(['background', *names])}
    table[ignore] = IGNORE
    for name, value in values.items():
        if table[value] != -1:
            raise UserError(source, f'mask_values: {name} has the value {value} of another class or of ignore',
                            'give each its own')
        table[value] = labels[name]
    return tuple(table)
