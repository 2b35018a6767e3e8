"""Step 1: the losses, a training step, the loading of an image, CAM inference."""
import random
import tempfile

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks import inputs, work
from benchmarks.frame import Case
from data import transforms
from data.images import read_image
from engine.device import to_device
from network.heads import PROJECTION_CHANNELS, revise
from network.resnet38_contrast import Net
from reference import contrast_loss as published
from reference import networks, training_image
from tool.cam import View, with_flip
from tool.recipes import RECIPES
from tool.seam import Target, present_channels
from voc12.classes import VOC

SEAM = RECIPES['seam']
SEAM_TERMS = {'cls': ('cls1', 'cls2'), 'rvmin': ('rvmin1', 'rvmin2')}  # our loss is the mean of the published two
VIEW2 = (work.VIEW2_SIDE, work.VIEW2_SIDE)


# ---------------------------------------------------------------- losses

def contrast_loss(options, batch=8, num_classes=VOC.num_classes, side=56):
    """All losses from the networks' outputs at stride 8, forward and backward. The published side first enlarges
    the outputs, as its network does.
    """
    sizes = (8 * side, 8 * side), VIEW2
    views = [made_view(batch, options.device, num_classes, size, seed) for seed, size in enumerate(sizes)]
    leaves = [tensor for view in views for tensor in view[:3]]
    label = inputs.labels(batch, num_classes - 1)
    target = Target(label, present_channels(label)).to(options.device)

    def ours():
        return backward(weighted(SEAM.loss_terms(*views, target)), leaves)

    def theirs():
        enlarged = [(published.enlarge(view.cam, view.size), published.enlarge(view.revised, view.size),
                     view.features, view.revised) for view in views]
        return backward(merged(published.losses(*enlarged, target.label)), leaves)

    def check(a, b):
        return same_terms(a[0], b[0]) + ', ' + inputs.close(a[1], b[1], 1e-3, 'gradient of view 1\'s CAM')

    torch.manual_seed(0)
    moved = sum(leaf.nbytes for leaf in leaves) * 4  # forward: read; backward: read, write, gradient read
    return Case(ours, theirs, check, count=batch, bytes=moved)


def made_view(batch, device, num_classes, size, seed):
    """A View of smooth random maps at stride 8 of `size` (H, W), leaves of the graph."""
    maps = []
    for k, channels in enumerate((num_classes, num_classes, PROJECTION_CHANNELS)):
        shape = batch, channels, size[0] // 8, size[1] // 8
        values = inputs.smooth(batch * channels, *shape[2:], seed=3 * seed + k).reshape(shape)
        maps.append(torch.from_numpy(values * (4 if k == 0 else 1)).to(device).requires_grad_())
    return View(*maps, size)


def weighted(terms):
    """Our terms times their weights, which the published terms include."""
    return {name: SEAM.weights[name] * term for name, term in terms.items()}


def backward(terms, leaves):
    """Gradients of the sum of terms: ({name: value}, gradient of the first leaf, view 1's CAM)."""
    for leaf in leaves:
        leaf.grad = None
    sum(terms.values()).backward()
    return {name: term.item() for name, term in terms.items()}, leaves[0].grad


def merged(losses):
    """The published losses under our names: the mean of cls1 and cls2, of rvmin1 and rvmin2, the others as they are."""
    terms = {name: sum(losses.pop(key) for key in keys) / 2 for name, keys in SEAM_TERMS.items()}
    return terms | losses


def same_terms(ours, theirs):
    """Words for the largest relative difference of the weighted loss terms. The intra loss samples pixels, hence its
    wide tolerance.
    """
    worst = {}
    for name, value in theirs.items():
        tolerance = {'intra': 0.05, 'cross_prototype': 1e-3, 'cross_cam': 1e-3}.get(name, 1e-4)
        worst[name] = abs(ours[name] - value) / max(abs(value), 1e-12)
        assert worst[name] <= tolerance, f'{name}: {ours[name]} against {value}'
    intra = worst.pop('intra')
    return f'loss terms to {max(worst.values()):.0e} (intra, which samples, {intra:.0e})'


# ---------------------------------------------------------------- training

def training_step(options, width=1 / 8, crop=224, batch=8):
    """Forward, losses, backward and optimiser step, from a batch on the device. Same dropout on both sides."""
    device = torch.device(options.device)
    step = work.contrast_step(network(width, device), device, batch=batch, crop=crop)
    published_step = theirs_of(network(width, device), device, batch, crop)

    def ours():
        torch.manual_seed(1)
        return step()

    def theirs():
        torch.manual_seed(1)
        return published_step()

    def check(a, b):
        return same_terms({name: term.item() for name, term in weighted(a).items()}, b)

    return Case(ours, theirs, check, count=batch, flops=lambda: inputs.flops_of(ours))


def network(width, device):
    """resnet38_contrast with random weights, the same at every call, in float32 on `device`."""
    return to_device(inputs.network(Net, num_classes=VOC.num_classes, width=width), device, 'off')


def theirs_of(net, device, batch, crop):
    """The published training step, in float32, as work.contrast_step makes ours. It reads its losses at every step."""
    training = work.Training(net, device, 'off')
    image, label = inputs.images(batch, crop).to(device), inputs.labels(batch)

    def step():
        view1 = networks.contrast_forward(net, image)
        view2 = networks.contrast_forward(net, published.enlarge(image, VIEW2))
        terms = merged(published.losses(view1, view2, label.to(device)))
        training.update(terms, dict.fromkeys(terms, 1.))
        return {name: term.item() for name, term in terms.items()}

    return step


def data_loading(options, images=20):
    """A JPEG file → a normalised, augmented crop of 448, in one process; the long side always 608, the mean of what is
    drawn.
    """
    torch.set_num_threads(1)  # as in a loader's worker
    folder = tempfile.TemporaryDirectory()
    path = f'{folder.name}/photo.jpg'
    Image.fromarray(inputs.photo(*inputs.SIZE)).save(path, quality=95)
    augment = transforms.classification_train(448, 608, 608)

    def ours(_=folder):  # the argument keeps the temporary folder alive
        return [augment(Image.fromarray(read_image(path))) for _ in range(images)]

    def theirs():
        return [training_image.load(path, 448, 608, 608) for _ in range(images)]

    return Case(ours, theirs, lambda *_: same_crops(folder.name), count=images, single_core=True,
                bytes=448 * 448 * 3 * 4 + 375 * 500 * 3)


def same_crops(folder):
    """Words for the agreement of the two loadings. They draw random numbers differently, so this compares them on a
    square photo whose side leaves only the flip to chance; tests/test_benchmarks.py compares the colours.
    """
    square = f'{folder}/square.jpg'
    Image.fromarray(inputs.photo(300, 300)).save(square, quality=95)
    steps = transforms.classification_train(448, 448, 448).transforms
    plain = v2.Compose([step for step in steps if not isinstance(step, v2.ColorJitter)])
    random.seed(0)
    pictures = [training_image.load(square, 448, 448, 448, jitter=(0, 0, 0, 0)) for _ in range(8)]  # some flipped
    mine = plain(Image.fromarray(read_image(square)))
    nearest = min((mine - picture).abs().max().item() for picture in pictures)
    assert nearest < 1e-4, f'image without colour jitter differs by {nearest}'
    return f'without colour jitter to {nearest:.0e}'


# ---------------------------------------------------------------- inference

def cam_inference(options, width=1.0, size=inputs.SIZE):
    """All scales and flips of one photo, from the tensors of the loader to the CAMs of the present classes."""
    device = torch.device(options.device)
    net = network(width, device).eval()
    ours = work.photo_cams(net, device, size=size)
    pairs, present = [with_flip(image) for image in work.scaled_images(size)], work.present_classes()
    label = np.isin(np.arange(VOC.num_foreground), present.numpy()).astype(np.float32)

    def theirs():
        return networks.multi_scale_cams(net, [pair.to(device) for pair in pairs], label, size)

    def check(a, b):
        return inputs.close(a, np.stack([b[k] for k in sorted(b)]), 1e-4, 'CAMs')

    return Case(ours, theirs, check, flops=lambda: inputs.flops_of(ours))


def pcm(options, size=inputs.SIZE, scale=2, channels=192):
    """The PCM alone, at the largest scale of inference and at full width: every cell's correlation with every other."""
    height, width = (-(-side * scale // 8) for side in size)
    features = torch.randn(1, channels, height, width).to(options.device)
    cam = torch.from_numpy(inputs.smooth(VOC.num_classes, height, width))[None].to(options.device)

    def ours():
        with torch.inference_mode():
            return revise(cam, features)

    def theirs():
        with torch.inference_mode():
            return networks.pcm(cam, features)

    return Case(ours, theirs, lambda a, b: inputs.close(a, b, 1e-6, 'revised CAMs'),
                flops=lambda: inputs.flops_of(ours))
