"""Step 1 and AffinityNet on the device: a training step, the CAMs of a photo, under each precision and layout."""
import torch

from benchmarks import inputs, work
from benchmarks.frame import Options
from benchmarks.gpu_parts.measure import BEST, FLOAT32, PRECISIONS, TF32, Row, attempt, attempt_mode, placed, speed
from benchmarks.stages import step1
from network import resnet38_aff, resnet38_contrast
from voc12.classes import VOC

CLASSES = VOC.num_classes


def sizes(settings, batch=8):
    """{'width', 'crop', 'batch', 'photo'}: the published ones, or those of a trial."""
    if settings.tiny:
        return {'width': 1 / 16, 'crop': 64, 'batch': 2, 'photo': (40, 52)}
    return {'width': 1., 'crop': 448, 'batch': batch, 'photo': inputs.SIZE}


def batch_words(size):
    """A batch in words."""
    return f'width {size["width"]:g}, crop {size["crop"]}, batch {size["batch"]}'


def photo_words(size):
    """A photo in words."""
    return f'width {size["width"]:g}, photo {size["photo"][0]}x{size["photo"][1]}'


def made(net_class, settings, **options):
    """A network with random weights, drawn on the device, which is quicker than on the CPU."""
    with torch.device(settings.place):
        return inputs.network(net_class, **options)


def contrast_net(settings, mode, width):
    """resnet38_contrast under a Mode, ready."""
    net = placed(made(resnet38_contrast.Net, settings, num_classes=CLASSES, width=width), mode, settings.place)
    if mode.compiled:  # tiny: only traced, because compiling takes long
        net.view = torch.compile(net.view, backend='eager' if settings.tiny else 'inductor')
    return net


# ---------------------------------------------------------------- ours

def training_rows(part, settings, precisions, batch=8):
    """contrast_train.py's step under each of the precisions."""
    size = sizes(settings, batch)

    def measure(mode):
        step = work.contrast_step(contrast_net(settings, mode, size['width']), settings.place, mode.amp, size['batch'],
                                  size['crop'], mode.fused)
        return speed(step, size['batch'], settings)

    for precision in precisions:
        yield attempt_mode(Row(part, 'contrast_train', batch_words(size), precision), settings, measure)


def cam_rows(part, settings, precisions):
    """contrast_infer.py's CAMs of a photo, four scales with flips, under each of the precisions."""
    size = sizes(settings)

    def measure(mode):
        net = contrast_net(settings, mode, size['width'])
        return speed(work.photo_cams(net, settings.place, mode.amp, size['photo']), 1, settings)

    for precision in precisions:
        yield attempt_mode(Row(part, 'contrast_infer', photo_words(size), precision), settings, measure)


def step(settings):
    """The training step of Step 1 at published size."""
    yield from training_rows('step', settings, PRECISIONS)


def cams(settings):
    """CAM inference at published size."""
    yield from cam_rows('cams', settings, PRECISIONS)


def batch16(settings):
    """The training step with twice the images."""
    yield from training_rows('batch16', settings, PRECISIONS, batch=16)


def layouts(settings):
    """Rows with other layouts of weights, with cudnn.benchmark, with TF32 in products, and with fused SGD."""
    wanted = ('TF32, channels-last', 'bf16, not channels-last', 'TF32, cudnn.benchmark', 'bf16, cudnn.benchmark',
              'TF32 in products too', 'TF32, fused SGD', 'bf16, fused SGD', 'fp16, fused SGD')
    yield from training_rows('layouts', settings, wanted)
    yield from cam_rows('layouts', settings, ('TF32, channels-last', 'bf16, not channels-last',
                                              'TF32 in products too'))


def compiled(settings):
    """The training step with a compiled forward pass."""
    yield from training_rows('compiled', settings, ('TF32, compiled', 'bf16, compiled'))


def affinity(settings):
    """AffinityNet: a training step, and the affinities of a photo."""
    size, device = sizes(settings), settings.place

    def train(mode):
        net = placed(made(resnet38_aff.Net, settings, width=size['width']), mode, device)
        return speed(work.affinity_step(net, device, mode.amp, size['batch'], size['crop']), size['batch'], settings)

    def infer(mode):
        net = placed(made(resnet38_aff.Net, settings, width=size['width']), mode, device)
        return speed(work.photo_affinities(net, device, mode.amp, size['photo']), 1, settings)

    for precision in BEST:
        yield attempt_mode(Row('affinity', 'aff_train', batch_words(size), precision), settings, train)
        yield attempt_mode(Row('affinity', 'aff_infer', photo_words(size), precision), settings, infer)


# ---------------------------------------------------------------- the published formulation

def published(settings):
    """Rows of the published training step and CAMs, in float32 with and without TF32, and whether ours agree."""
    size, device = sizes(settings), settings.place
    options = Options(quick=False, threads=torch.get_num_threads(), device=settings.device)

    def train(mode):
        words = agreement(step1.training_step(options, size['width'], size['crop'], size['batch']))
        step = step1.theirs_of(step1.network(size['width'], device), device, size['batch'], size['crop'])
        return with_note(speed(step, size['batch'], settings), words)

    def infer(mode):
        case = step1.cam_inference(options, size['width'], size['photo'])
        words = agreement(case)
        return with_note(speed(case.published, 1, settings), words)

    for precision in (FLOAT32, TF32):
        yield attempt_mode(Row('published', 'contrast_train, published', batch_words(size), precision), settings, train)
        yield attempt_mode(Row('published', 'contrast_infer, published', photo_words(size), precision), settings, infer)


def agreement(case):
    """Whether the two sides of a Case, not called yet, give the same: in words."""
    try:
        return case.check(case.ours(), case.published())
    except AssertionError as error:
        return f'not the same: {error}'
    except torch.OutOfMemoryError:
        return 'not compared: both sides together are too much for this card'


def with_note(found, words):
    """Fields of a Row with `words` before their note."""
    return found | {'note': '; '.join([words, *filter(None, [found.get('note')])])}


# ---------------------------------------------------------------- the card itself

def rates(settings):
    """The card's highest rates: a large matrix product in each type, and a copy in the card's memory."""
    device, side = settings.place, 256 if settings.tiny else 8192
    types = {'float32': torch.float32, 'TF32 in products too': torch.float32, 'bf16': torch.bfloat16,
             'fp16': torch.float16}

    def product(mode):
        a = torch.rand(side, side, device=device).to(types[name])
        found = speed(lambda: a @ a, 2 * side ** 3 / 1e12, settings, 'TFLOP/s')
        return {'value': found['value'], 'unit': found['unit']}

    def copy():
        source = torch.zeros(side ** 2 * 4, device=device)
        target = torch.empty_like(source)
        found = speed(lambda: target.copy_(source), 2 * source.nbytes / 1e9, settings, 'GB/s')
        return {'value': found['value'], 'unit': found['unit']}

    for name in types:
        yield attempt_mode(Row('rates', 'matrix product', f'{side}x{side}', name), settings, product)
    yield attempt(Row('rates', 'copy', f'{side ** 2 * 16 / 2 ** 20:.0f} MiB'), copy)
