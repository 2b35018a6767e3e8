"""The golden files of tests/golden on the device: the difference of each network, CAM and loss from the published.

Tolerances (tests/golden/README.md) hold for float32. In other precisions the difference is stated without a verdict.
"""
import functools
from dataclasses import dataclass
from pkgutil import resolve_name
from unittest import mock

import numpy as np
import torch

from benchmarks import inputs
from benchmarks.gpu_parts.measure import FLOAT32, PRECISIONS, TF32, Row, attempt_mode, placed, synchronise
from contrast_infer import SCALES
from data import transforms
from engine.device import autocast
from golden.fill import fill_state_dict
from network import weights
from tool import contrast, eps
from tool.cam import View
from tool.recipes import RECIPES
from tool.seam import Target, present_channels
from voc12.classes import VOC

PRODUCTS = 'TF32 in products too'
TINY_WIDTH = 1 / 16  # of a trial, in which only the shapes of maps are right
SEAM = RECIPES['seam']


@dataclass(frozen=True)
class NetworkCase:
    """A golden file of a network: the network, the function that gives its outputs by the file's names, the tolerance
    relative to the largest value. background_last: the file's channels and weights are those of published EPS."""
    file: str
    network: str
    options: dict
    outputs: object
    tolerance: float
    background_last: bool = False


def contrast_outputs(net, x):
    """The outputs of resnet38_contrast, as its forward returns them."""
    cam, revised, features, small = net(x)
    return {'cam': cam[:, :, ::4, ::4], 'cam_rv': revised[:, :, ::4, ::4], 'f_proj': features, 'cam_rv_down': small}


def eps_contrast_outputs(net, x):
    """The outputs of resnet38_eps_contrast, at stride 8."""
    view = net.view(x)
    return {'cam': view.cam, 'cam_rv': view.revised, 'pred': view.cam.mean((2, 3)),
            'pred_rv': view.revised.mean((2, 3)), 'feat': view.features}


def eps_outputs(net, x):
    """The outputs of resnet38_eps."""
    logits, cam = net(x)
    return {'cam': cam, 'pred': logits}


def affinity_outputs(net, x):
    """The outputs of resnet38_aff."""
    return {'aff': net(x)}


def deeplab_outputs(net, x):
    """The outputs of a DeepLab."""
    return {'logits': net(x)[:, :, ::4, ::4]}


CLASSES = {'num_classes': VOC.num_classes}
CONTRAST, DEEPLAB = 'network.resnet38_contrast:Net', 'network.deeplab:build'
NETWORKS = (
    NetworkCase('resnet38_contrast_64x96', CONTRAST, CLASSES, contrast_outputs, 1e-4),
    NetworkCase('resnet38_contrast_65x97', CONTRAST, CLASSES, contrast_outputs, 1e-4),
    NetworkCase('eps_resnet38_contrast_64x96', 'network.resnet38_eps_contrast:Net', CLASSES, eps_contrast_outputs, 1e-5,
                background_last=True),
    NetworkCase('eps_resnet38_eps_64x96', 'network.resnet38_eps:Net', CLASSES, eps_outputs, 1e-5,
                background_last=True),
    NetworkCase('resnet38_aff_120x160', 'network.resnet38_aff:Net', {}, affinity_outputs, 1e-4),
    *(NetworkCase(f'{name}_97x129', DEEPLAB, {'name': name, **CLASSES}, deeplab_outputs, 1e-4)
      for name in ('deeplabv1_resnet38', 'deeplabv1_resnet101', 'deeplabv2_resnet101')))
PHOTOS = '2011_000001', '2011_000002'


def rows(settings):
    """Losses, then networks and the CAMs of a photo under each precision."""
    for precision in (FLOAT32, PRODUCTS):
        for file, differences in LOSSES:
            yield row_of(settings, file, precision, lambda mode: differences(settings.place))
    fill = Filler()
    for case in NETWORKS:
        if settings.tiny and 'resnet101' in case.file:
            continue  # ResNet-101 has no width factor
        net = fill.network(case, TINY_WIDTH if settings.tiny else 1.)
        for precision in (FLOAT32, TF32, PRODUCTS, *PRECISIONS[2:]):
            yield row_of(settings, case.file, precision, functools.partial(network_differences, case, net, settings))
        if case is NETWORKS[0]:
            for photo in PHOTOS[:1] if settings.tiny else PHOTOS:
                for precision in PRECISIONS:
                    yield row_of(settings, f'chain, CAMs of {photo}', precision,
                                 functools.partial(cam_differences, photo, net, settings))


# ---------------------------------------------------------------- differences

def row_of(settings, file, precision, differences):
    """The Row of a golden file. differences(mode) → {output: (difference, tolerance)}, relative differences."""
    def measure(mode):
        found = differences(mode)
        synchronise(settings.place)
        return worst(found, precision == FLOAT32 and not settings.tiny)

    return attempt_mode(Row('golden', file, precision=precision), settings, measure)


def worst(found, verdict):
    """Fields of a Row: the difference that is largest against its tolerance and, with `verdict`, whether all are met.
    """
    bad = [name for name, (value, _) in found.items() if not np.isfinite(value)]
    if bad:
        return {'note': f'not finite: {", ".join(bad)}'}
    name = max(found, key=lambda name: found[name][0] / found[name][1])
    value, tolerance = found[name]
    words = f'{name}, allowed {tolerance:g}: {"met" if value <= tolerance else "MISSED"}' if verdict else name
    return {'value': value, 'unit': 'of the largest', 'note': words}


def difference(ours, published):
    """The largest difference, relative to the largest published value."""
    ours, published = np.asarray(ours.detach().float().cpu(), np.float64), np.asarray(published, np.float64)
    if ours.shape != published.shape:
        raise ValueError(f'shape {ours.shape}, published {published.shape}')
    return float(np.abs(ours - published).max() / np.abs(published).max())


# ---------------------------------------------------------------- networks

class Filler:
    """Makes networks with the golden weights. The values of a key are drawn once: most keys are in many networks."""

    def __init__(self):
        self.drawn = {}

    def network(self, case, width):
        """The filled network of a NetworkCase, in eval mode on the CPU."""
        options = case.options if 'resnet101' in case.file else {**case.options, 'width': width}
        with torch.device('meta'):  # no time spent on initial values
            net = resolve_name(case.network)(**options)
        state = net.state_dict()
        filled = self.fill(weights.to_published_eps(state) if case.background_last else state)
        net.load_state_dict(weights.from_published_eps(filled) if case.background_last else filled, assign=True)
        return net.eval()

    def fill(self, state):
        """fill_state_dict, with the values of a key and shape drawn once."""
        new = {key: value for key, value in state.items() if (key, value.shape) not in self.drawn}
        self.drawn |= {(key, value.shape): value for key, value in fill_state_dict(new).items()}
        return {key: self.drawn[key, value.shape] for key, value in state.items()}


def network_differences(case, net, settings, mode):
    """{output: (difference, tolerance)} of a network's golden file."""
    golden = np.load(inputs.GOLDEN / f'{case.file}.npz')
    net = placed(net, mode, settings.place)
    x = torch.from_numpy(golden['x']).to(settings.place)
    with torch.inference_mode(), autocast(settings.place, mode.amp):
        outputs = case.outputs(net, x)
    if case.background_last:
        outputs = {name: value if name == 'feat' else value.roll(-1, 1) for name, value in outputs.items()}
    return {name: (difference(value, golden[name]), case.tolerance) for name, value in outputs.items()}


def cam_differences(photo, net, settings, mode):
    """{'CAMs': (difference, tolerance)} of contrast_infer.py's CAMs of a photo."""
    golden = np.load(inputs.GOLDEN / 'chain.npz')
    image, device = golden[f'image_{photo}'], settings.place
    net = placed(net, mode, device)
    scaled = [transforms.at_scale(image, scale) for scale in SCALES]
    pairs = [torch.stack([one, one.flip(2)]).to(device) for one in scaled]
    present = torch.from_numpy(golden[f'cam_keys_{photo}'])
    with torch.inference_mode(), autocast(device, mode.amp):
        cams = SEAM.multi_scale_cams(net.cams, pairs, present, image.shape[:2])
    return {'CAMs': (difference(cams, golden[f'cam_{photo}']), 1e-4)}


# ---------------------------------------------------------------- losses

def golden_step(device):
    """The golden file of SEAM's and the contrast's losses, its two views as leaves of the graph, and their Target."""
    golden = np.load(inputs.GOLDEN / 'contrast_losses.npz')
    views = [View(*(torch.from_numpy(golden[f'{name}{number}']).float().to(device).requires_grad_()
                    for name in ('cam', 'cam_rv', 'f_proj')), (side, side))
             for number, side in ((1, 448), (2, 128))]
    label = torch.from_numpy(golden['label'])
    return golden, views, Target(label, present_channels(label)).to(device)


def published_best_pixels(scores, k):
    """tool.contrast.best_pixels with the choice among equal scores that the golden file was measured with: that of
    torch.topk on a CPU. Ours is another (METHOD 9.7)."""
    return tuple(chosen.to(scores.device) for chosen in scores.cpu().topk(k, dim=1))


def loss_differences(device):
    """The losses of a step except intra, and the gradients of their weighted sum."""
    golden, views, target = golden_step(device)
    with mock.patch.object(contrast, 'best_pixels', published_best_pixels):
        terms = {name: SEAM.weights[name] * term for name, term in SEAM.loss_terms(*views, target).items()}
    published = {'cls': (golden['loss_cls1'] + golden['loss_cls2']) / 2,
                 'rvmin': (golden['loss_rvmin1'] + golden['loss_rvmin2']) / 2, 'er': golden['loss_er'],
                 'ecr': golden['loss_ecr'], 'cross_prototype': golden['loss_cross_nce'],
                 'cross_cam': golden['loss_cross_nce2']}
    found = {name: (difference(terms[name], value), 1e-3 if 'cross' in name else 1e-4)
             for name, value in published.items()}
    sum(terms[name] for name in published).backward()
    for number, view, stride in ((1, views[0], 4), (2, views[1], 1)):
        for name, leaf in zip(('cam', 'cam_rv', 'f_proj'), view):
            gradient = leaf.grad[:, :, ::stride, ::stride]
            found[f'gradient of {name}{number}'] = (difference(gradient, golden[f'grad_{name}{number}']),
                                                    1e-3 if name == 'f_proj' else 1e-4)
    return found


def intra_differences(device, draws=60):
    """The mean of the intra-view loss over random draws."""
    golden, views, target = golden_step(device)
    with torch.no_grad(), mock.patch.object(contrast, 'best_pixels', published_best_pixels):
        values = [contrast.losses(*views, target.label, wanted=('intra',))['intra'] for _ in range(draws)]
        mean = SEAM.weights['intra'] * torch.stack(values).mean()
    error = golden['intra_std'] * (1 / golden['intra_draws'] + 1 / draws) ** 0.5
    return {'mean of intra': (difference(mean, golden['intra_mean']), 4 * error / golden['intra_mean'])}


def saliency_differences(device):
    """EPS's saliency loss and its gradient."""
    golden = np.load(inputs.GOLDEN / 'eps_saliency_loss.npz')
    cam = torch.from_numpy(golden['cam']).roll(1, 1).to(device).requires_grad_()
    present = present_channels(torch.from_numpy(golden['label'])).to(device)
    loss = eps.saliency_loss(cam, torch.from_numpy(golden['saliency']).to(device), present, tau=0.4, alpha=0.5)
    loss.backward()
    return {'loss': (difference(loss, golden['loss']), 1e-5),
            'gradient': (difference(cam.grad.roll(-1, 1), golden['grad']), 1e-5)}


LOSSES = (('contrast_losses', loss_differences), ('contrast_losses, intra', intra_differences),
          ('eps_saliency_loss', saliency_differences))
