"""Say what is wrong with an installation, a data set or weights, before hours of work, and what to do about it.

    python doctor.py --dataset voc12 --voc12_root VOC2012
    python doctor.py --dataset my_photos/dataset.yaml --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params

Checks  the installation: versions, device, precision, CRF; the data: lists, every photo, labels, masks; --weights; the
        disk of --out and the time that each step will need. The checks are those that the scripts themselves make.
Writes  nothing. Each line is `ok`, `note` or `FAILED`; the exit status is 0 if no check failed, else 1.
"""
import collections
import functools
import re
import shutil
import sys
from pathlib import Path

import numpy as np

from data.images import found_files
from data.labels import image_labels
from data.lists import read_list
from data.masks import need_objects
from engine import cli, files, machine, parallel, runinfo, workers
from engine.crf_engine import chosen_engine
from engine.errors import UserError
from tool.crf import ENGINES
from tool.metrics import IGNORE

GIB = 2 ** 30
RESULTS = files.REPO / 'benchmarks' / 'results.json'
HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')  # in the name of a file of weights: the beginning of its SHA-256


class Findings:
    """What was found, printed line by line. failed: how many checks failed."""

    def __init__(self):
        self.failed = 0

    def ok(self, text):
        """A check that passed."""
        print(f'  ok      {text}')

    def note(self, text, do):
        """Something to know, and what to do where it is not meant."""
        print(f'  note    {text}; {do}')

    def fail(self, text, do):
        """A check that failed, and what to do."""
        self.failed += 1
        print(f'  FAILED  {text}; {do}')

    def attempt(self, check, *args, **options):
        """The result of one of the scripts' own checks; None where it raises UserError, which is a failure."""
        try:
            return check(*args, **options)
        except UserError as error:
            self.fail(f'{error.what}: {error.wrong}', error.do)
            return None


# ---------------------------------------------------------------- installation

def check_installation(found):
    """Versions, device, precision, engines of the CRF."""
    from_torch = runinfo.versions()
    absent = [name for name, version in from_torch.items() if version == 'absent' and name != 'pydensecrf2']
    found.ok(', '.join(f'{name} {version}' for name, version in from_torch.items() if version != 'absent'))
    for name in absent:
        found.fail(f'{name} is not installed', 'pip install -r requirements.txt')
    for engine in ENGINES:
        try:
            chosen_engine(engine)
            found.ok(f'--crf_engine {engine}')
        except UserError as error:
            (found.fail if engine == 'torch' else found.note)(f'--crf_engine {engine}: {error.wrong}', error.do)


def check_device(found, args, select_device, choose_precision, device_name):
    """The device and the precision that --device and --amp auto choose."""
    device = found.attempt(select_device, args.device)
    if device is not None:
        found.ok(f'device {device}: {device_name(device)}, {machine.cores()} cores; --amp auto is '
                 f'{choose_precision(device, "auto")}')
        if device.type == 'cpu':
            found.note('no CUDA device is used', 'see the times at the end')


# ---------------------------------------------------------------- data

def check_lists(found, data):
    """{name: ids} of the lists of a DataSet that can be read."""
    lists = {}
    for name, path in data.lists.items():
        if name == 'test' and not files.repo_path(path).exists():
            continue  # VOC's comes with another archive
        ids = found.attempt(read_list, path, '--dataset')
        if ids:
            lists[name] = ids
            found.ok(f'list {name}: {len(ids)} ids ({path})')
    train = set(lists.get('train', [])) | set(lists.get('train_aug', []))
    shared = sorted(train & set(lists.get('val', [])))
    if shared:
        found.fail(f'{len(shared)} ids are in train and in val ({shared[0]})', 'take them out of one')
    return lists


def check_photos(found, lists, photos, args):
    """{id: engine.workers.Look} of the photos that open; each is read as the scripts read it."""
    ids = sorted(set().union(*lists.values()))
    paths = photos.find(ids)
    missing = [i for i in ids if i not in paths]
    if missing:
        found.fail(f'{len(missing)} of {len(ids)} photos are missing, {missing[0]} the first '
                   f'(in {", ".join(map(str, photos.folders))})', 'correct --voc12_root, the lists or the extensions')
    look = functools.partial(workers.look_at_photo, convert=args.convert_rgb)
    looks = dict(zip(paths, parallel.map_images(look, paths.values(), args.num_workers, 'photos')))
    broken = [look.problem for look in looks.values() if look.problem]
    for problem in broken[:3]:
        found.fail(*problem)
    if len(broken) > 3:
        found.fail(f'{len(broken) - 3} more photos are unfit', 'mend these, then run this again')
    looks = {i: look for i, look in looks.items() if not look.problem}
    if looks:
        sides = [side for look in looks.values() for side in look.size]
        modes = collections.Counter(look.mode for look in looks.values())
        found.ok(f'{len(looks)} photos open, sides {min(sides)} to {max(sides)} pixels, '
                 + ', '.join(f'{count} {mode}' for mode, count in modes.items()))
        note_photos(found, lists, looks)
    return looks


def note_photos(found, lists, looks):
    """What is unusual in photos: turned by EXIF, of one colour, the same file in train and in val."""
    turned, blank = ([i for i, look in looks.items() if getattr(look, name)] for name in ('turned', 'blank'))
    if turned:
        found.note(f'{len(turned)} photos are turned by their EXIF orientation, {turned[0]} the first',
                   'make masks and saliency maps with a program that turns them too')
    if blank:
        found.note(f'{len(blank)} photos are of one colour, {blank[0]} the first', 'take them off the lists')
    train = {looks[i].digest: i for name in ('train', 'train_aug') for i in lists.get(name, ()) if i in looks}
    copies = [(train[looks[i].digest], i) for i in lists.get('val', ())
              if i in looks and looks[i].digest in train and train[looks[i].digest] != i]
    if copies:
        found.fail(f'{len(copies)} photos of val are in train under another id ({copies[0][1]} is {copies[0][0]})',
                   'take them out of one list')


def check_labels(found, lists, path, classes):
    """Mean number of classes of a training image; 1 where that is not known."""
    mean = 1.
    for name, ids in lists.items():
        labels = found.attempt(image_labels, ids, path, classes) if name != 'test' else None
        if labels is None:
            continue
        found.ok(f'labels of {name}: {labels.sum(1).mean():.2f} classes an image')
        empty, never = int((~labels.any(1)).sum()), np.flatnonzero(~labels.any(0))
        if empty:
            found.note(f'{empty} images of {name} have no class', 'they count as background alone')
        if len(never) and name != 'val':
            found.note(f'{len(never)} classes are in no image of {name}, {classes.foreground[never[0]]} the first',
                       'a network cannot learn them, and to the contrast they look like background: leave them out')
        if name in ('train', 'train_aug'):
            mean = float(labels.sum(1).mean())
    return mean


def check_masks(found, lists, looks, truth, classes, num_workers):
    """Ground truth of train and val: present, readable, of the photo's size, labels in range, not binary."""
    for name in ('train', 'val'):
        ids = [i for i in lists.get(name, ()) if i in looks]
        masks = found_files(ids, truth, ('.png',))
        if len(masks) < len(ids):
            report = found.fail if name == 'val' else found.note
            report(f'{len(ids) - len(masks)} of {len(ids)} images of {name} have no ground truth in {truth}',
                   'add the masks, or leave ground_truth out; training reads none')
        if not masks:
            continue
        look = functools.partial(workers.look_at_mask, classes=classes)
        items = [(path, looks[i].size) for i, path in masks.items()]
        pixels, problems = zip(*parallel.map_images(look, items, num_workers, f'masks of {name}'))
        problems = [problem for problem in problems if problem]
        for problem in problems[:3]:
            found.fail(*problem)
        if problems[3:]:
            found.fail(f'{len(problems) - 3} more masks are unfit', 'mend these, then run this again')
        total = sum(pixels)
        if not problems and found.attempt(lambda ids=ids: need_objects(masks, truth, classes) or True):
            absent = [label for label, count in zip(classes.names, total) if not count]
            found.ok(f'{len(masks)} masks of {name}, {100 * total[IGNORE] / total.sum():.2f}% of their pixels ignored'
                     + (f'; {len(absent)} classes are not in them, {absent[0]} the first' if absent else ''))


# ---------------------------------------------------------------- weights

def check_weights(found, path, classes, uses, weights):
    """What a file of weights looks like, its hash, and which steps it fits.

    uses: {step in words: function of (path, state, number of classes) that loads it and raises UserError}. weights: the
    module network.weights.
    """
    state = found.attempt(weights.read_weights, path)
    if state is None:
        return
    digest, named = runinfo.digest(path), HASH.search(Path(path).name)
    found.ok(f'{path}: {weights.describe(state)}, {len(state)} tensors, SHA-256 {digest[:16]}…')
    if named and not digest.startswith(named[1]):
        found.fail(f'its name says SHA-256 {named[1]}, its content has {digest[:len(named[1])]}', 'download it again')
    found.attempt(runinfo.check_classes, path, classes)
    fits, reasons = [], []
    for step, load in uses.items():
        try:
            load(path, state, classes.num_classes)
            fits.append(step)
        except UserError as error:
            reasons.append(f'{step}: {error.wrong}')
    if fits:
        found.ok(f'fits {", ".join(fits)}')
    else:
        found.fail(f'it fits no step ({reasons[0]})', 'give those of a ResNet-38 or ResNet-101, or of a step')


# ---------------------------------------------------------------- disk and time

def check_cost(found, lists, looks, classes_each, out):
    """Disk that the steps will fill, beside what is free, and the time that the benchmark projects."""
    images = {name: len(lists.get(name, ())) for name in ('train', 'train_aug', 'val')}
    training = images['train_aug'] or images['train']
    pixels = np.mean([np.prod(look.size) for look in looks.values()]) if looks else 0
    cams = (training + images['val']) * pixels * 4 * classes_each
    refined = training * pixels * 2 * 2 * (classes_each + 1)
    folder = next(path for path in (Path(out).resolve(), *Path(out).resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    need = (f'CAMs {cams / GIB:.1f} GiB and probabilities after the CRF {refined / GIB:.1f} GiB, and some GiB for '
            'checkpoints')
    if cams + refined > free:
        found.fail(f'{need} do not fit into the {free / GIB:.1f} GiB that are free in {folder}', 'free space')
    else:
        found.ok(f'{need}; {free / GIB:.1f} GiB are free in {folder}')
    results = files.read_json(RESULTS, 'write it again with benchmarks/bench.py')
    if not results or not results.get('projection') or not training:
        return
    info = results['info']
    print(f'  time in hours of one core, projected from benchmarks/results.json ({info["processor"]}, float32, VOC\'s '
          'epochs); on GPUs see docs/GPUS.md')
    reference = next(row['images'] for row in results['projection'] if row['part'] == 'Step 2, random walk')
    for row in results['projection']:
        count = row['images'] * training / reference
        if 'val' in row['part']:
            count = images['val']
        elif row['part'] == 'Step 3, training':
            count = row['images']  # a number of steps, whatever the data set
        print(f'          {row["part"]:<34}{sum(row["ours"]) * count / row["images"]:>10.1f}')


# ---------------------------------------------------------------- the script

def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    cli.add_image_flags(parser)
    cli.add_label_flag(parser)
    parser.add_argument('--gt_dir', help='folder of the ground-truth masks (of the data set)')
    parser.add_argument('--weights', nargs='+', default=[], metavar='FILE', help='weights to look at')
    parser.add_argument('--out', default='runs', help='folder whose disk the steps will fill')
    cli.add_worker_flag(parser)
    cli.add_device_flag(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    from engine.device import choose_precision, device_name, select_device
    from network import weights
    from segmentation.fit import USES

    found = Findings()
    print('installation')
    check_installation(found)
    check_device(found, args, select_device, choose_precision, device_name)
    data = cli.chosen_dataset(args)
    print(f'\ndata set {data.classes.name}, {data.classes.num_foreground} classes')
    lists = check_lists(found, data)
    looks = check_photos(found, lists, data.photos(args.voc12_root), args) if lists else {}
    classes_each = check_labels(found, lists, args.cls_labels, data.classes)
    if args.gt_dir:
        check_masks(found, lists, looks, args.gt_dir, data.classes, args.num_workers)
    else:
        found.note('no ground truth', 'nothing will be scored; training needs none')
    if args.weights:
        print('\nweights')
    for path in args.weights:
        check_weights(found, path, data.classes, USES, weights)
    print('\ndisk and time')
    check_cost(found, lists, looks, classes_each, args.out)
    print(f'\nchecks that failed: {found.failed}')
    if found.failed:
        sys.exit(1)


if __name__ == '__main__':
    cli.run(main, get_args_parser())
