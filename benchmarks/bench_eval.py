"""Time of the 60-score curve: one pass over the files against the published sixty.

    python -m benchmarks.bench_eval [--images 200 --size 96 128 --repeats 3]
"""
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.published import curve as published
from tool import cli, files
from tool.evaluation import evaluate
from tool.metrics import CURVE
from voc12.classes import IGNORE, VOC


def write_images(folder, images, size, seed=0):
    """Write synthetic CAMs (one to three classes) and ground truth of `size` (H, W) under `folder`. Returns the ids."""
    rng = np.random.default_rng(seed)
    ids = [f'{n:06d}' for n in range(images)]
    for name in ('cam', 'gt'):
        files.out_dir(folder / name, '--size')
    for image in ids:
        keys = rng.choice(VOC.num_foreground, rng.integers(1, 4), replace=False)
        files.save_npy(folder / 'cam' / f'{image}.npy', {int(k): rng.random(size, np.float32) for k in keys})
        gt = rng.choice([0, IGNORE, *(keys + 1)], [side // 8 + 1 for side in size]).astype(np.uint8)
        files.save_mask(folder / 'gt' / f'{image}.png', gt.repeat(8, 0).repeat(8, 1)[:size[0], :size[1]], VOC.palette)
    return ids


def curve_pair(folder, images=200, size=(96, 128)):
    """(ours, published): callables that return the curve, 60 mIoU in percent, from files under `folder`, one process each."""
    folder = Path(folder)
    ids = write_images(folder, images, size)
    return (lambda: evaluate(ids, folder / 'cam', folder / 'gt', VOC, 'npy', CURVE).miou,
            lambda: published.curve(ids, folder / 'cam', folder / 'gt', VOC.num_classes))


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--images', type=cli.positive, default=200, help='number of synthetic images')
    parser.add_argument('--size', type=cli.positive, nargs=2, default=(96, 128), metavar=('H', 'W'), help='their size in pixels')
    parser.add_argument('--repeats', type=cli.positive, default=3, help='runs of each, in turn')
    return parser


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        pair = curve_pair(folder, args.images, tuple(args.size))
        seconds = ([], [])
        for _ in range(args.repeats):
            for times, run in zip(seconds, pair):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
    ours, theirs = map(np.median, seconds)
    print(f'curve of {args.images} images of {args.size[0]}x{args.size[1]}, one process, median of {args.repeats}: '
          f'{ours:.2f} s here, {theirs:.2f} s as published, {theirs / ours:.0f} times faster')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
