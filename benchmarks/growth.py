"""How the cost of a stage grows with the image's side, the number of classes, images and worker processes."""
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from benchmarks import inputs
from benchmarks.frame import in_child, timed
from benchmarks.stages import step1, step2, step3
from data.cams import save_cams
from engine import files, machine, parallel
from engine.crf_workers import write_probabilities
from voc12.classes import VOC


@dataclass(frozen=True)
class Curve:
    """A stage at several sizes.

    title, axis: words. setup(options, **sizes) → frame.Case. points: ((place on the axis, sizes), …), ascending. quick:
    how many of them --quick takes. ours_only: further points, at which the published side would take too long or too
    much memory.
    """
    title: str
    axis: str
    setup: object
    points: tuple
    ours_only: tuple = ()
    quick: int = 2


def sides(*sizes, **fixed):
    """Points of photos: the long side in pixels, {'size': (H, W)}."""
    return tuple((width, {'size': (height, width), **fixed}) for height, width in sizes)


def classes(**fixed):
    """Points of 21, 41 and 81 classes, the background included."""
    return tuple((1 + k * VOC.num_foreground, {'num_classes': 1 + k * VOC.num_foreground, **fixed}) for k in (1, 2, 4))


SIDE, CLASSES, IMAGES = 'image side, pixels', 'classes, with background', 'images'
CURVES = (
    Curve('losses of Step 1', SIDE, step1.contrast_loss,
          tuple((8 * side, {'side': side, 'batch': 2}) for side in (28, 56, 112))),
    Curve('training step, width 1/8', SIDE, step1.training_step,
          tuple((crop, {'crop': crop, 'batch': 2}) for crop in (112, 224, 448))),
    Curve('multi-scale CAMs, width 1/8', SIDE, step1.cam_inference,
          sides((94, 125), (188, 250), (375, 500), width=1 / 8)),
    Curve('CRF', SIDE, step2.crf, sides((94, 125), (188, 250), (375, 500))),
    Curve('random walk', SIDE, step2.random_walk, sides((125, 167), (250, 333), (375, 500)), sides((750, 1000))),
    Curve('losses of Step 1', CLASSES, step1.contrast_loss, classes(side=28, batch=2)),
    Curve('CRF', CLASSES, step2.crf, classes(size=(94, 125))),
    Curve('eval --curve', CLASSES, step3.curve, classes(images=10, size=(188, 250))),
    Curve('eval --curve', IMAGES, step3.curve, tuple((n, {'images': n, 'size': (94, 125)}) for n in (20, 60, 200))),
)
WORKERS = (1, 2, 4)


def measure(options):
    """The curves: [{'title', 'axis', 'ours': [(place, seconds), …], 'published': …, 'exponents': {side: number}}].

    Seconds are those of a whole call.
    """
    curves = [in_child(measure_curve, index, options) for index in range(len(CURVES))]
    return curves + ([worker_curve(options)] if machine.cores() > 1 else [])


def measure_curve(index, options):
    """The curve CURVES[index], measured in this process."""
    curve = CURVES[index]
    points = curve.points[:curve.quick] if options.quick else curve.points
    out = {'title': curve.title, 'axis': curve.axis, 'ours': [], 'published': []}
    for place, sizes in points + (() if options.quick else curve.ours_only):
        torch.set_num_threads(options.threads)
        case = curve.setup(options, **sizes)
        for side, fraction in (('ours', 1), ('published', case.published_fraction)):
            if getattr(case, side) and (side == 'ours' or (place, sizes) in points):
                out[side].append((place, best(getattr(case, side), options.quick) / fraction))
    return with_exponents(out)


def best(call, quick):
    """Seconds of the quickest of up to three calls, after a call that is not timed: the least disturbed measurement."""
    call()
    times = []
    while not times or (not quick and len(times) < 3 and sum(times) < 3):
        times.append(timed(call)[0])
    return min(times)


def with_exponents(curve):
    """A curve with the exponent of each side that has two points or more."""
    fitted = [side for side in ('ours', 'published') if len(curve[side]) > 1]
    return curve | {'exponents': {side: exponent(curve[side]) for side in fitted}}


def exponent(points):
    """The least-squares slope of log(seconds) over log(place)."""
    x, y = ([math.log(value) for value in column] for column in zip(*points))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def worker_curve(options):
    """The curve of aff_prepare.py's work on a few images with 1, 2, 4 worker processes, without their start-up."""
    size = (94, 125) if options.quick else inputs.SIZE
    with tempfile.TemporaryDirectory() as folder:
        images = [write_image(Path(folder), n, size) for n in range(2 * max(WORKERS))]
        points = [(n, in_child(seconds_with, n, images)) for n in WORKERS if n <= machine.cores()]
    return with_exponents({'title': f'aff_prepare, {len(images)} images', 'axis': 'worker processes', 'ours': points,
                           'published': []})


def write_image(folder, number, size):
    """A photo and its CAMs, as aff_prepare.py reads them. Returns (folder, id)."""
    Image.fromarray(inputs.photo(*size)).save(folder / f'{number}.jpg', quality=95)
    save_cams(folder / f'{number}.npy', *inputs.cams(*size))
    for alpha in (4, 24):
        files.out_dir(folder / f'{alpha}', '--out')
    return folder, str(number)


def refine(image):
    """aff_prepare.py's work on an image of write_image."""
    folder, name = image
    write_probabilities((name, folder / f'{name}.jpg'), folder, {4.: folder / '4', 24.: folder / '24'}, iterations=10,
                        num_classes=VOC.num_classes, convert_rgb=False, overwrite=True)


def seconds_with(workers, images):
    """Seconds that `workers` processes take for the images, once they have started."""
    with parallel.executor(workers) as pool:
        list(pool.map(refine, images[:2 * workers]))  # starts the processes and their imports
        start = time.perf_counter()
        list(pool.map(refine, images))
        return time.perf_counter() - start
