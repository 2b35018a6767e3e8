"""The baseline that seeds must beat, without a network: a centred box of half the image, of a class of its label.

    python toy/centred_box.py --list runs/toy/lists/train.txt --voc12_root runs/toy \\
        --cls_labels runs/toy/lists/cls_labels.npy --out runs/toy/box

Reads  --list, --cls_labels, the sizes of <voc12_root>/JPEGImages. Writes <out>/<id>.png.
"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, whatever the working directory

import numpy as np

from data.images import devkit_photos, image_size
from data.labels import labels_of, read_labels
from data.lists import read_list
from data.masks import save_mask
from engine import cli, files
from engine.parallel import progress
from voc12.classes import VOC


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--list', required=True, help='image ids')
    cli.add_image_flags(parser)
    cli.add_label_flag(parser)
    parser.add_argument('--out', required=True, help='folder of the masks (.png)')
    return parser


def main(args):
    ids = read_list(args.list, '--list')
    labels = labels_of(ids, read_labels(args.cls_labels, VOC.num_foreground), args.cls_labels)
    folder = files.out_dir(args.out, '--out')
    photos = devkit_photos(args.voc12_root).need(ids)
    for name, label in progress(zip(ids, labels), 'boxes', len(ids)):
        box = centred_box(image_size(photos[name]), int(label.argmax()) + 1 if label.any() else 0)
        save_mask(folder / f'{name}.png', box, VOC.palette)


def centred_box(size, label):
    """A mask (H, W) of 0 with `label` in a centred box of the image's shape and half the image's area."""
    mask = np.zeros(size, np.uint8)
    (top, bottom), (left, right) = ((round(n * (1 - 0.5 ** 0.5) / 2), round(n * (1 + 0.5 ** 0.5) / 2)) for n in size)
    mask[top:bottom, left:right] = label
    return mask


if __name__ == '__main__':
    cli.run(main, get_args_parser())
