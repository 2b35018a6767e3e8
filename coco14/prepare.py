"""Write lists, image-level labels and masks of COCO 2014, or of any data set annotated in its format, from the JSON.

    python coco14/prepare.py --coco_root COCO2014
    python coco14/prepare.py --coco_root my_export --train train --val val --out my_data      (classes of one's own)

Reads:  <coco_root>/annotations/instances_<train|val>.json (--train, --val: names of the splits).
Writes: <out>/{train,val}.txt, one id a line (images without any class too), <out>/cls_labels.npy, a pickled dict
        id → float32 0/1 per foreground class, <out_masks>/<id>.png (255 where crowds are) and, unless <out> is the
        folder of this script, <out>/dataset.yaml for --dataset. The photos are not read: they stay in <coco_root>.
"""
import functools
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, whatever the working directory

import numpy as np

from data.classes import ClassSet
from data.coco import label_of, read_instances, write_mask
from data.description import read_dataset, save_description
from data.labels import save_labels
from data.lists import save_list
from engine import cli, files, parallel
from engine.errors import UserError

HERE = files.REPO / 'coco14'


def read_splits(args):
    """{'train', 'val': Instances} of those that are wanted. UserError: other classes, an image in both."""
    wanted = {name: getattr(args, name) for name in ('train', 'val') if getattr(args, name)}
    splits = {name: read_instances(Path(args.coco_root) / 'annotations' / f'instances_{split}.json')
              for name, split in wanted.items()}
    first, *others = splits.values()
    for other in others:
        if other.names != first.names:
            raise UserError(other.path, f'has other categories than {first.path}', 'give two with the same')
        both = set(first.images) & set(other.images)
        if both:
            raise UserError(other.path, f'shares {len(both)} images with {first.path} ({min(both)})', 'mend the split')
    return splits


def classes_of(splits, out):
    """The ClassSet of the categories. UserError: those of `out`, this script's own folder, are COCO's 80."""
    names = next(iter(splits.values())).names
    coco = read_dataset('coco14').classes
    if out.resolve() == HERE.resolve() and names != coco.foreground:
        raise UserError('--out', f'{out} is for the 80 classes of COCO, the JSON has {len(names)} others',
                        'give another folder, to get a dataset.yaml of its own')
    return coco if names == coco.foreground else ClassSet(out.resolve().name, names)


def describe(args, out, masks, classes, splits):
    """Write <out>/dataset.yaml, and read it again, which checks the names of the classes."""
    path, root = out / 'dataset.yaml', Path(args.coco_root).resolve()
    inside = masks.resolve().is_relative_to(root)
    save_description(
        path, name=classes.name, classes=list(classes.foreground), root=str(root),
        images=[getattr(args, name) for name in splits], lists={name: f'{name}.txt' for name in splits},
        labels='cls_labels.npy',
        ground_truth=str(masks.resolve().relative_to(root) if inside else masks.resolve()))
    read_dataset(str(path))


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--coco_root', default='COCO2014', help='folder that holds the photos and annotations/')
    parser.add_argument('--train', default='train2014', help='the split to train on: a folder of photos and a JSON')
    parser.add_argument('--val', default='val2014', empty=True, help="the split to score on; '' for none")
    parser.add_argument('--out', default=str(HERE), help='folder for the lists and cls_labels.npy')
    parser.add_argument('--out_masks', help='folder for the masks (<coco_root>/SegmentationClass unless given)')
    cli.add_worker_flag(parser)
    return parser


def main(args):
    out, splits = files.out_dir(args.out, '--out'), read_splits(args)
    masks = files.out_dir(args.out_masks or Path(args.coco_root) / 'SegmentationClass', '--out_masks')
    classes, labels = classes_of(splits, out), {}
    for name, instances in splits.items():
        write = functools.partial(write_mask, path=instances.path, folder=masks, palette=classes.palette)
        parallel.map_images(write, instances.images.items(), args.num_workers, f'masks of {name}')
        found = {i: label_of(annotations, classes.num_foreground)
                 for i, (_, _, annotations) in instances.images.items()}
        save_list(out / f'{name}.txt', list(found))
        without = sum(not label.any() for label in found.values())
        print(f'{name}.txt: {len(found)} ids, {without} of them without any class, '
              f'{np.mean([label.sum() for label in found.values()]):.2f} classes each')
        labels |= found
    save_labels(out / 'cls_labels.npy', labels)
    if out.resolve() != HERE.resolve():
        describe(args, out, masks, classes, splits)
    print(f'written to {out}, masks to {masks}')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
