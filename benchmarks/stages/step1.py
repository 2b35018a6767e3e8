"""Step 1: the losses, a training step, the loading of an image, CAM inference."""
import random
import tempfile

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks import inputs
from benchmarks.frame import Case, Stage
from contrast_infer import SCALES
from contrast_train import get_args_parser
from data import transforms
from data.images import read_image
from engine.device import autocast, to_device
from engine.training import parameter_groups
from network.resnet38_contrast import Net, revise
from reference import networks as published
from reference.networks import contrast_forward, multi_scale_cams
from tool import cam, contrast, seam
from tool.cam import resize
from voc12.classes import VOC

SEAM_TERMS = {'cls': ('cls1', 'cls2'), 'rvmin': ('rvmin1', 'rvmin2')}  # ours is the mean of the published two


def output_maps(batch, device, num_classes=VOC.num_classes, sizes=(56, 16)):
    """Network outputs of both views at stride 8, leaves of the graph: {'cam1', 'cam_rv1', 'f_proj1', 'cam2', …}."""
    maps = {}
    for view, side in zip('12', sizes):
        for name, channels in (('cam', num_classes), ('cam_rv', num_classes), ('f_proj', 128)):
            values = inputs.smooth(batch * channels, side, side, seed=len(maps)).reshape(batch, channels, side, side)
            maps[name + view] = torch.from_numpy(values * (4 if name == 'cam' else 1)).to(device).requires_grad_()
    return maps


def contrast_loss(options, batch=8, num_classes=VOC.num_classes, side=56):
    """All loss terms from the networks' outputs at stride 8, forward and backward. The published side enlarges them
    first, as its network does.
    """

    maps = output_maps(batch, options.device, num_classes, (side, 16))
    label = inputs.labels(batch, num_classes - 1)
    present, label = seam.present_channels(label).to(options.device), label.to(options.device)
    view, small = (8 * side, 8 * side), (128, 128)

    def ours():
        views = (maps['cam1'], maps['cam_rv1'], view), (maps['cam2'], maps['cam_rv2'], small)
        terms = seam.losses(*views, label, present, small)
        terms |= contrast.losses((maps['f_proj1'], maps['cam_rv1']), (maps['f_proj2'], maps['cam_rv2']), label)
        return backward(weighted(terms), maps)

    def theirs():
        views = [(published.enlarge(maps[f'cam{v}'], size), published.enlarge(maps[f'cam_rv{v}'], size),
                  maps[f'f_proj{v}'], maps[f'cam_rv{v}']) for v, size in (('1', view), ('2', small))]
        return backward(merged(published.losses(*views, label)), maps)

    def check(a, b):
        return same_terms(a[0], b[0]) + ', ' + inputs.close(a[1], b[1], 1e-3, 'gradient of cam1')

    torch.manual_seed(0)
    moved = sum(m.numel() for m in maps.values()) * 4 * 4  # forward: read; backward: read, write, gradient read
    return Case(ours, theirs, check, count=batch, bytes=moved)


def weighted(terms):
    """Our terms times the default weights of contrast_train.py's flags, which the published terms include."""
    flags = get_args_parser()
    return {name: flags.get_default(f'w_{name}') * term for name, term in terms.items()}


def backward(terms, maps):
    """Gradients of the sum of terms: ({name: value}, gradient of cam1)."""
    for leaf in maps.values():
        leaf.grad = None
    sum(terms.values()).backward()
    return {name: term.item() for name, term in terms.items()}, maps['cam1'].grad


def merged(losses):
    """The published losses under our names: the mean of cls1 and cls2, of rvmin1 and rvmin2, the others as they are."""
    terms = {name: sum(losses.pop(key) for key in keys) / 2 for name, keys in SEAM_TERMS.items()}
    return terms | losses


def same_terms(ours, published):
    """Words for the largest relative difference of the loss terms; the intra term samples pixels, so it is compared
    loosely.
    """
    worst = {}
    for name, value in published.items():
        tolerance = {'intra': 0.05, 'cross_prototype': 1e-3, 'cross_cam': 1e-3}.get(name, 1e-4)
        worst[name] = abs(ours[name] - value) / max(abs(value), 1e-12)
        assert worst[name] <= tolerance, f'{name}: {ours[name]} against {value}'
    intra = worst.pop('intra')
    return f'loss terms to {max(worst.values()):.0e} (intra, which samples, {intra:.0e})'


def training_step(options, width=1 / 8, crop=224, batch=8, precision='float32'):
    """Forward, losses, backward and optimiser step, from a batch on the device. Same dropout on both sides."""

    device, amp = torch.device(options.device), 'bf16' if 'bf16' in precision else 'off'
    image, label, small = torch.randn(batch, 3, crop, crop).to(device), inputs.labels(batch), (128, 128)
    nets = {side: placed(inputs.network(Net, width=width), device, how).train()
            for side, how in (('ours', precision), ('published', 'float32'))}
    optimizers = {side: torch.optim.SGD(parameter_groups(net, 0.01, 5e-4), lr=0.01, momentum=5e-4)
                  for side, net in nets.items()}

    def step(side, terms):
        total = sum(terms.values())
        optimizers[side].zero_grad(set_to_none=True)
        total.backward()
        optimizers[side].step()
        return {name: term.detach() for name, term in terms.items()}

    def ours():
        torch.manual_seed(1)
        net, present = nets['ours'], seam.present_channels(label).to(device)
        y, image2 = label.to(device), resize(image, small)
        with autocast(device, amp):
            cam1, rv1, f1 = net.maps(image)
            cam2, rv2, f2 = net.maps(image2)
        terms = seam.losses((cam1.float(), rv1, image.shape[2:]), (cam2.float(), rv2, small), y, present, small)
        terms |= contrast.losses((f1, rv1), (f2, rv2), y)
        return step('ours', weighted(terms))

    def theirs():
        torch.manual_seed(1)
        net, y = nets['published'], label.to(device)
        view1 = contrast_forward(net, image)
        view2 = contrast_forward(net, published.enlarge(image, small))
        terms = step('published', merged(published.losses(view1, view2, y)))
        return {name: term.item() for name, term in terms.items()}  # logged at every step

    def check(a, b):
        return same_terms({name: term.item() for name, term in a.items()}, b)

    return Case(ours, theirs, check, count=batch, flops=lambda: inputs.flops_of(ours))


def placed(net, device, precision):
    """A network on its device in the layout that `precision` (benchmarks.cuda.PRECISIONS) names, its `maps` perhaps
    compiled.
    """
    net = net.to(device, memory_format=torch.channels_last if 'channels-last' in precision else torch.preserve_format)
    if 'compiled' in precision:
        net.maps = torch.compile(net.maps)
    return net


def data_loading(options, images=20):
    """A JPEG file → a normalised, augmented crop of 448, in one process; the long side always 608, the mean of what is
    drawn.
    """

    torch.set_num_threads(1)  # as in a loader's worker
    folder = tempfile.TemporaryDirectory()
    path = f'{folder.name}/photo.jpg'
    Image.fromarray(inputs.photo(*inputs.SIZE)).save(path, quality=95)
    augment = transforms.classification_train(448, 608, 608)

    def ours(_=folder):
        return [augment(Image.fromarray(read_image(path))) for _ in range(images)]

    def theirs():
        return [published.load(path, 448, 608, 608) for _ in range(images)]

    def check(a, b):
        """The two draw differently, so they are compared on a square photo whose side leaves only the mirror to chance;
        the colours are compared one by one in tests/test_benchmarks.py.
        """
        square = f'{folder.name}/square.jpg'
        Image.fromarray(inputs.photo(300, 300)).save(square, quality=95)
        steps = transforms.classification_train(448, 448, 448).transforms
        plain = v2.Compose([step for step in steps if not isinstance(step, v2.ColorJitter)])
        random.seed(0)
        pictures = [published.load(square, 448, 448, 448, jitter=(0, 0, 0, 0)) for _ in range(8)]  # of both kinds
        mine = plain(Image.fromarray(read_image(square)))
        nearest = min((mine - picture).abs().max().item() for picture in pictures)
        assert nearest < 1e-4, f'image without colour jitter differs by {nearest}'
        return f'without colour jitter to {nearest:.0e}'

    return Case(ours, theirs, check, count=images, bytes=448 * 448 * 3 * 4 + 375 * 500 * 3, single_core=True)


def cam_inference(options, width=1.0, size=inputs.SIZE):
    """All scales and mirror images of one photo, from the tensors of the loader to the CAMs of the present classes."""

    device = torch.device(options.device)
    photo = inputs.photo(*size)
    net = to_device(inputs.network(Net, width=width), device, 'off').eval()
    scaled = [transforms.at_scale(photo, scale) for scale in SCALES]
    pairs = [torch.stack([image, image.flip(2)]) for image in scaled]
    label = inputs.labels(2)[1].numpy()
    classes = torch.from_numpy(label).nonzero()[:, 0]

    def ours():
        with torch.inference_mode():
            on_device = [pair.to(device, non_blocking=True) for pair in pairs]
            return cam.multi_scale(lambda x: net.maps(x)[1], on_device, classes + 1, photo.shape[:2]).cpu().numpy()

    def theirs():
        return multi_scale_cams(net, [pair.to(device) for pair in pairs], label, photo.shape[:2])

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
            return published.pcm(cam, features)

    return Case(ours, theirs, lambda a, b: inputs.close(a, b, 1e-6, 'revised CAMs'),
                flops=lambda: inputs.flops_of(ours))


def batch_of_cams(options, width=1.0, crop=448, batch=8, precision='float32'):
    """CAMs of a batch at one scale, enlarged to the image; the published side enlarges all that its network returns."""

    device = torch.device(options.device)
    net = inputs.network(Net, width=width)
    ours_net, published_net = placed(net, device, precision).eval(), net
    image = torch.randn(batch, 3, crop, crop).to(device)

    def ours():
        with torch.inference_mode(), autocast(device, 'bf16' if 'bf16' in precision else 'off'):
            return resize(ours_net.maps(image)[1], image.shape[2:])

    def theirs():
        with torch.no_grad():
            return contrast_forward(published_net, image)[1]

    return Case(ours, theirs, lambda a, b: inputs.close(a, b, 1e-4, 'CAMs'), count=batch,
                flops=lambda: inputs.flops_of(ours))


STAGES = [
    Stage('contrast_loss', 'losses of Step 1, forward + backward, batch 8', contrast_loss, quick={'batch': 2},
          aim=8, aim_text='at first 5x', on_device=True),
    Stage('training_step', 'training step, width 1/8, crop 224, batch 8', training_step,
          quick={'crop': 112, 'batch': 4}, aim=1.3, on_device=True),
    Stage('data_loading', 'loading a training image', data_loading, quick={'images': 5}, aim=1.5),
    Stage('cam_inference', 'multi-scale CAMs, width 1, photo 120x160', cam_inference, {'size': (120, 160)},
          {'size': (60, 80)}, aim=1.3, on_device=True,
          limit='On a CPU nine tenths of both sides are the same convolutions, and the floor alone is more than the '
                'aim leaves.'),
    # The PCM's affinity matrix, which decides the peak, does not depend on the width.
    Stage('cam_inference_large', 'multi-scale CAMs, width 1/8, photo 375x500', cam_inference, {'width': 1 / 8},
          {'size': (150, 200)}, memory_aim=0.5, on_device=True),
    Stage('pcm', 'PCM of a photo 375x500 at scale 2', pcm, quick={'scale': 1}, memory_aim=0.25, on_device=True),
]
