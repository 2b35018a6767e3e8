"""Write the lists and image-level labels of PASCAL VOC 2012 from a devkit, and say what is missing in it.

    python voc12/prepare.py --voc12_root VOC2012
    python voc12/prepare.py --voc12_root my_data --classes cup fork --out my_data/lists      (classes of one's own)

Reads:  <voc12_root>/ImageSets/Segmentation/{train,val,test}.txt, Annotations/<id>.xml, and the file names in
        JPEGImages/ and SegmentationClassAug/ (the masks of SBD; train_aug is all of them but val).
        With --saliency_dir also <saliency_dir>/<id>.png of train_aug (for EPS), to check them.
Writes: <out>/{train,val,train_aug,test}.txt, one `/JPEGImages/<id>.jpg /SegmentationClassAug/<id>.png` a line (only the
        id where there is no such mask), and <out>/cls_labels.npy, a pickled dict id → float32 0/1 per foreground class;
        with --classes also <out>/dataset.yaml, for --dataset.
"""
import functools
import sys
from pathlib import Path
from xml.etree import ElementTree

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, whatever the working directory

import numpy as np

from data.classes import ClassSet
from data.description import read_dataset, save_description
from data.images import SUFFIXES, found_files, need_images
from data.labels import save_labels
from data.lists import read_list, save_list
from engine import cli, files, parallel, workers
from engine.errors import UserError
from voc12.classes import VOC

VOC_COUNTS = {'train': 1464, 'val': 1449, 'train_aug': 10582, 'test': 1456}  # ids in the full VOC 2012 with SBD
LONGEST, DEEPEST = 1000, 100  # of an annotation: characters of a name that are looked at, levels of elements
TEST_HINT = 'it comes with the archive of the VOC 2012 test images'


# ---------------------------------------------------------------- lists

def read_splits(root):
    """The ids of each list: dict with 'train', 'val', 'train_aug' and, where the devkit has a test list, 'test'.

    train_aug: the ids in SegmentationClassAug/ that are not in val; without that folder the devkit's own list
    train_aug.txt or trainaug.txt, else only train. UserError: no devkit, or a devkit without train.txt or val.txt.
    """
    sets = root / 'ImageSets' / 'Segmentation'
    if not sets.is_dir():
        raise UserError('--voc12_root', f'{root} is no VOC devkit: it has no ImageSets/Segmentation',
                        'give the folder that holds JPEGImages, Annotations and ImageSets')
    splits = {name: read_list(sets / f'{name}.txt', '--voc12_root') for name in ('train', 'val')}
    both = set(splits['train']) & set(splits['val'])
    if both:
        raise UserError(sets / 'val.txt', f'shares {len(both)} ids with train.txt ({min(both)})', 'mend the lists')
    lists = [sets / name for name in ('train_aug.txt', 'trainaug.txt') if (sets / name).is_file()]
    masks = mask_ids(root)
    if masks:
        splits['train_aug'] = sorted(masks - set(splits['val']))
    else:
        splits['train_aug'] = read_list(lists[0], '--voc12_root') if lists else splits['train']
        warn(f'no SegmentationClassAug: train_aug.txt holds the ids of {lists[0].name if lists else "train.txt only"}, '
             'without masks (add the SBD masks to train Step 1 on all images and to score train_aug)')
    if (sets / 'test.txt').is_file():
        splits['test'] = read_list(sets / 'test.txt', '--voc12_root')
    return {name: with_photos(name, ids, root) for name, ids in splits.items()}


def part_of(splits, folder):
    """Of each list the ids that <folder>/<name>.txt has too. UserError where the folder names ids that a list lacks."""
    chosen = {name: read_list(path, '--only') for name in splits if (path := folder / f'{name}.txt').is_file()}
    if not chosen:
        raise UserError('--only', f'{folder} has no list of any of these names: {", ".join(splits)}', 'correct it')
    for name, ids in chosen.items():
        lacking = sorted(set(ids).difference(splits[name]))
        if lacking:
            raise UserError(folder / f'{name}.txt', f'names {len(lacking)} ids that the devkit lacks, {lacking[0]} the '
                            'first', 'complete the devkit, or correct --voc12_root')
    return chosen


def with_photos(name, ids, root):
    """Those ids of the list `name` that have a photo, and a warning that counts the others: no script takes them.

    All of them where none has a photo: the photos are still to come.
    """
    missing = files.missing_files(ids, root / 'JPEGImages', '.jpg')
    if not missing or len(missing) == len(ids):
        return ids
    warn(f'{name}: JPEGImages lacks {len(missing)} of {len(ids)} files, {missing[0]}.jpg the first; '
         f'{name}.txt leaves these ids out')
    without = set(missing)
    return [i for i in ids if i not in without]


def mask_ids(root):
    """The ids that have a mask in SegmentationClassAug/ (a set; empty without the folder)."""
    return {path.stem for path in (root / 'SegmentationClassAug').glob('*.png') if not path.name.startswith('.')}


# ---------------------------------------------------------------- labels

class _ObjectNames:
    """What ElementTree's parser calls: collects the text of each object's first name, without keeping a tree.

    Refuses a DOCTYPE, whose entities can fill memory or read other files.
    """

    def __init__(self):
        self.depth, self.in_object, self.reading, self.names = 0, False, False, []

    def start(self, tag, attributes):
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f'its elements are nested more than {DEEPEST} deep')
        if self.depth == 2:
            self.in_object = tag == 'object'
            self.names += [None] * self.in_object
        self.reading = self.depth == 3 and self.in_object and tag == 'name' and self.names[-1] is None
        if self.reading:
            self.names[-1] = ''

    def data(self, text):
        if self.reading and len(self.names[-1]) < LONGEST:
            self.names[-1] += text[:LONGEST]

    def end(self, tag):
        self.depth, self.reading = self.depth - 1, False

    def doctype(self, name, public_id, system):
        raise ValueError('it has a DOCTYPE, which no VOC annotation has')

    def close(self):
        return [(name or '').strip() for name in self.names]


def read_names(path):
    """The class names of the objects in Annotations/<id>.xml, a list; difficult and truncated ones count, as published.

    UserError: malformed XML, a DOCTYPE.
    """
    try:
        return ElementTree.parse(path, ElementTree.XMLParser(target=_ObjectNames())).getroot()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(path, f'annotation cannot be read ({error})', 'replace the file') from error


def read_all_labels(ids, folder, classes):
    """Labels of those `ids` that have an annotation, ids in order: dict id → float32 (foreground classes,), 1 where any
    object has the class. UserError, as read_names, or a class that the ClassSet lacks."""
    labels, paths = {}, found_files(ids, folder, ('.xml',))
    with parallel.progress(paths.items(), 'annotations') as bar:
        for i, path in bar:
            names = read_names(path)
            unknown = [name for name in names if name not in classes.foreground]
            if unknown:
                raise UserError(path, f'names the class {unknown[0]!r}, which {classes.name} lacks',
                                'correct the annotation, or name your own classes by --classes')
            labels[i] = np.array([name in names for name in classes.foreground], np.float32)
    return labels


# ---------------------------------------------------------------- saliency

def check_saliency(ids, saliency_dir, image_dir, num_workers):
    """Check the saliency maps of those `ids` that have an image, and print a line. UserError where a map is unfit."""
    need_images(ids, saliency_dir, ('.png',), '--saliency_dir')
    photos = found_files(ids, image_dir, SUFFIXES)
    ids = list(photos)
    check = functools.partial(workers.check_saliency, saliency_dir=Path(saliency_dir))
    checked = dict(zip(ids, parallel.map_images(check, photos.items(), num_workers, 'saliency')))
    problems = [(i, text) for i, (text, _) in checked.items() if text]
    if problems:
        image, text = problems[0]
        raise UserError(Path(saliency_dir) / f'{image}.png',
                        f'saliency map {text} ({len(problems)} of {len(ids)} maps are unfit)',
                        'write each as an 8-bit grey PNG, 0..255, of the size of its image')
    print(f'{saliency_dir}: {len(ids)} saliency maps, all fit')
    black = [i for i, (_, is_black) in checked.items() if is_black]
    if black:
        warn(f'{len(black)} saliency maps are zero everywhere, {black[0]}.png the first')


# ---------------------------------------------------------------- the script

def warn(text):
    """Print a warning to stderr."""
    print(f'warning: {text}', file=sys.stderr)


def report(name, ids, root):
    """Print how many ids a list has, the count of VOC 2012 if it differs, and which files of these ids are missing."""
    count = '' if len(ids) == VOC_COUNTS[name] else f' (VOC 2012 has {VOC_COUNTS[name]})'
    print(f'{name}.txt: {len(ids)} ids{count}')
    wanted = {'JPEGImages': SUFFIXES}
    if name != 'test':  # VOC publishes no annotations of test
        wanted['Annotations'] = ('.xml',)
    if name in ('train', 'val'):
        wanted['SegmentationClass'] = ('.png',)
    if name in ('train', 'val') and (root / 'SegmentationClassAug').is_dir():
        wanted['SegmentationClassAug'] = ('.png',)
    for folder, suffixes in wanted.items():
        found = found_files(ids, root / folder, suffixes)
        missing = [i for i in ids if i not in found]
        if missing:
            warn(f'{name}: {folder} lacks {len(missing)} of {len(ids)} files, {missing[0]}{suffixes[0]} the first')


def describe(out, root, classes, splits):
    """Write <out>/dataset.yaml for classes of one's own, and read it again, which checks their names."""
    truth = {'ground_truth': 'SegmentationClass'} if (root / 'SegmentationClass').is_dir() else {}
    save_description(out / 'dataset.yaml', name=root.resolve().name, classes=list(classes.foreground),
                     root=str(root.resolve()), images='JPEGImages', lists={name: f'{name}.txt' for name in splits},
                     labels='cls_labels.npy', **truth)
    read_dataset(str(out / 'dataset.yaml'))


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--voc12_root', default='VOC2012', help='folder of the VOC devkit (holds JPEGImages/)')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help="your own classes in place of VOC's, in the order "
                                                                     'of the labels; <out>/dataset.yaml names them')
    parser.add_argument('--out', default=str(files.REPO / 'voc12'), help='folder for the lists and cls_labels.npy')
    parser.add_argument('--only', help='folder of lists of these names; take of each list the ids that are in its '
                                       'namesake there, and leave lists without one out')
    parser.add_argument('--saliency_dir', help='folder of saliency maps <id>.png to check (nothing is written)')
    cli.add_worker_flag(parser)
    return parser


def main(args):
    root, classes = Path(args.voc12_root), VOC
    if args.classes:
        if Path(args.out).resolve() == (files.REPO / 'voc12').resolve():
            raise UserError('--out', 'is the folder of the lists of VOC', 'give another for classes of your own')
        classes = ClassSet('--classes', tuple(args.classes))
    out = files.out_dir(args.out, '--out')
    splits = read_splits(root)
    if args.only:
        splits = part_of(splits, Path(args.only))
    labels = read_all_labels(sorted(set().union(*splits.values())), root / 'Annotations', classes)
    if not labels:
        raise UserError(root / 'Annotations', 'holds no annotation of any listed image',
                        'add the XML files of the devkit')
    masks = mask_ids(root)
    for name, ids in splits.items():
        save_list(out / f'{name}.txt', ids, masks)
        report(name, ids, root)
    if 'test' not in splits:
        warn(f'no test.txt written: ImageSets/Segmentation/test.txt is missing ({TEST_HINT})')
    save_labels(out / 'cls_labels.npy', labels)
    if args.classes:
        describe(out, root, classes, splits)
    mean = np.mean([label.sum() for label in labels.values()])
    print(f'cls_labels.npy: {len(labels)} images, {mean:.2f} classes each')
    empty = [i for i, label in labels.items() if not label.any()]
    if empty:
        warn(f'{len(empty)} annotations name no object, {empty[0]}.xml the first')
    print(f'written to {out}')
    if args.saliency_dir:
        check_saliency(splits['train_aug'], args.saliency_dir, root / 'JPEGImages', args.num_workers)


if __name__ == '__main__':
    cli.run(main, get_args_parser())
