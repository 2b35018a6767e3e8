"""The time of the whole chain on VOC (reproduce.py, SEAM + PPC), computed from the measured rows."""
from dataclasses import dataclass

from benchmarks.gpu_parts.measure import BEST, Row
from benchmarks.projection import DEEPLAB_IMAGES, EPOCHS, TRAIN, VAL

TRAIN_SPLIT = 1464  # images of voc12/train.txt; TRAIN: of train_aug.txt


@dataclass(frozen=True)
class Step:
    """A step of the chain. images: how many it handles. network: the measured work of its network, '' where it has
    none. deeplab: which DeepLab. cores: the measured works of a core for each image."""
    name: str
    images: int
    network: str = ''
    deeplab: str = ''
    cores: tuple = ()


CHAIN = (
    Step('contrast_train', EPOCHS * TRAIN, 'contrast_train', cores=('load a training image',)),
    Step('contrast_infer, train_aug and val', TRAIN + VAL, 'contrast_infer', cores=('load all scales', 'CRF of seeds')),
    Step('aff_prepare', TRAIN, cores=('aff_prepare',)),
    Step('aff_train', EPOCHS * TRAIN, 'aff_train', cores=('load a training image', 'labels of AffinityNet')),
    Step('aff_infer, train and val', TRAIN_SPLIT + VAL, 'aff_infer', cores=('random walk',)),
    Step('aff_infer --crf, train_aug and val', TRAIN + VAL, 'aff_infer', cores=('random walk', 'CRF after the walk')),
    Step('segmentation/train', DEEPLAB_IMAGES, 'segmentation_train', 'deeplabv1_resnet38', ('augment for DeepLab',)),
    Step('segmentation/test', VAL, 'segmentation_test', 'deeplabv1_resnet38', 2 * ('CRF of DeepLab',)),
)


def rows(found, cores):
    """Rows of hours, a step each and all together, per precision. found: the Rows of all parts. cores: their number.

    A step takes as long as its network or, if that is more, as its work on the cores, spread over all of them.
    """
    for precision in BEST:
        missing = sorted(set(needed(precision)).difference(measured(found)))
        if missing:
            words = ', '.join(work for work, *_ in missing)
            yield Row('voc', 'the whole chain', precision=precision, note=f'not measured: {words}')
            continue
        seconds = measured(found)
        total = 0.
        for step in CHAIN:
            on_network = step.images * seconds[network_key(step, precision)] if step.network else 0.
            on_cores = step.images * sum(seconds[work, '', ''] for work in step.cores)
            hours = max(on_network, on_cores / cores) / 3600
            total += hours
            yield Row('voc', step.name, f'{step.images:,} images', precision, hours, 'h',
                      note=f'network {on_network / 3600:.2f} h, {on_cores / 3600:.1f} core-hours on {cores} cores')
        yield Row('voc', 'the whole chain', precision=precision, value=total, unit='h')


def network_key(step, precision):
    """The key of a step's network in `measured`."""
    return step.network, step.deeplab, precision


def needed(precision):
    """The keys of `measured` that the chain needs."""
    for step in CHAIN:
        if step.network:
            yield network_key(step, precision)
        for work in step.cores:
            yield work, '', ''


def measured(found):
    """{(work, DeepLab's name or '', precision): seconds an image} of the Rows that the chain needs."""
    seconds = {}
    for row in found:
        if row.value and row.unit == 'images/s' and row.part in ('step', 'cams', 'affinity', 'deeplab'):
            name = row.size.split(',')[0] if row.part == 'deeplab' else ''
            seconds[row.work, name, row.precision] = 1 / row.value
        elif row.value and row.unit == 's of one core':
            seconds[row.work, '', ''] = row.value
    return seconds
