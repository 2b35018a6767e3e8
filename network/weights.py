"""Pretrained weights: reading them, loading them with a report, building the network that fits. METHOD 2.

A file is never loaded in part without a word (published: strict=False hid wrong files).
"""
import importlib
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import UserError
from network.mxnet import read_mxnet
from network.width import width_of

STEPS = {'cams': 'network.resnet38_contrast', 'affinity_features': 'network.resnet38_aff'}  # by what a Net must have
COUNTERS = 'num_batches_tracked'  # BatchNorm's step counter: absent from older files, never needed


# ---------------------------------------------------------------- reading

def read_weights(path, background_last=False):
    """Read weights: dict name → torch tensor on the CPU, floating-point ones as float32, names without `module.`.

    `.params` is MXNet's ImageNet ResNet-38, renamed to our keys; any other suffix is a PyTorch file: a plain state
    dict, or a checkpoint (`.ckpt`) whose entry 'model' is one. EPS weights with background last come back with
    background first: recognised by their key `proj_fc`; plain EPS has no such sign, so `background_last` says it.
    UserError: missing, truncated or foreign file, anything but tensors in it, `background_last` for one in our layout.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(path, 'weights not found', 'correct --weights')
        state = read_mxnet(path) if path.suffix == '.params' else _read_torch(path)
    except OSError as error:
        raise UserError(path, f'weights cannot be read ({error.strerror or error})', 'check the file') from error
    if background_last and 'fc_proj.weight' in state:
        raise UserError(path, 'has background first (it names fc_proj), not last', 'leave --background_last out')
    if background_last or is_published_eps(state):
        state = from_published_eps(state)
    return state


def _read_torch(path):
    """The state dict in a PyTorch file. UserError where it is no such file or holds anything but named tensors."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many exception types on files it did not write
        reason = str(error).split('\n')[0][:120] or type(error).__name__
        raise UserError(path, f'not a file of PyTorch weights ({reason})', 'give a .pth, .ckpt or .params') from error
    if isinstance(state, dict) and isinstance(state.get('model'), dict):
        state = state['model']
    if not isinstance(state, dict) or not state or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise UserError(path, 'holds no state dict (tensors by name)', 'give weights saved as a plain state dict')
    return {key.removeprefix('module.'): value.detach().float() if value.is_floating_point() else value.detach()
            for key, value in state.items()}


# ---------------------------------------------------------------- the published EPS layout

def is_published_eps(state):
    """Whether a state dict is certainly EPS + PPC as published (background last). Plain EPS cannot be told."""
    return any(key.startswith('proj_fc.') for key in state)


def from_published_eps(state):
    """EPS weights with background last → ours: fc8's rows rolled so that background is row 0, proj_fc → fc_proj."""
    return {key.replace('proj_fc.', 'fc_proj.'): torch.roll(value, 1, 0) if key == 'fc8.weight' else value
            for key, value in state.items()}


def to_published_eps(state):
    """The inverse of from_published_eps, bit by bit."""
    return {key.replace('fc_proj.', 'proj_fc.'): torch.roll(value, -1, 0) if key == 'fc8.weight' else value
            for key, value in state.items()}


# ---------------------------------------------------------------- loading

@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors, by name. BatchNorm's step counters are left out of all three.

    loaded: in file and network. missing: the network's own, kept as initialised. left_over: the file's own, unused.
    """
    loaded: list
    missing: list
    left_over: list

    def __str__(self):
        text = f'loaded {len(self.loaded)} of {len(self.loaded) + len(self.missing)} tensors'
        if self.missing:
            text += f'; missing, so they keep their initial values: {_layers(self.missing)}'
        if self.left_over:
            text += f'; left over in the file: {_layers(self.left_over)}'
        return text


def _layers(keys, most=8):
    """The layers that own `keys`, in order, for one line of text."""
    layers = list(dict.fromkeys(key.rsplit('.', 1)[0] for key in keys))
    return ', '.join(layers[:most]) + (f' and {len(layers) - most} more' if len(layers) > most else '')


def load_weights(net, weights, path, required='all'):
    """Load a state dict into net. Returns the LoadReport.

    weights: from read_weights. path: the file it came from, for messages. required: 'all' (to infer) or 'backbone' (to
    train from pretrained weights: the layers named in net.from_scratch may be missing).
    UserError: a required tensor is missing, a shape differs, a value is not finite. Then net is unchanged.
    """
    own = {key: value for key, value in net.state_dict().items() if not key.endswith(COUNTERS)}
    report = LoadReport([key for key in own if key in weights], [key for key in own if key not in weights],
                        [key for key in weights if key not in own and not key.endswith(COUNTERS)])
    may_miss = tuple(f'{name}.' for name in net.from_scratch) if required == 'backbone' else ()
    needed = [key for key in report.missing if not key.startswith(may_miss)]
    network = type(net).__module__
    looks = f'it looks like {describe(weights)}'
    if needed:
        raise UserError(path, f'does not fit {network}: {looks}; it lacks {len(needed)} of {len(own)} tensors '
                              f'({_layers(needed, 4)})', 'give it its own weights, or choose another by --network')
    for key in report.loaded:
        if own[key].shape != weights[key].shape:
            raise UserError(path, f'does not fit {network}: {looks}; {key} has shape {tuple(weights[key].shape)}, '
                                  f'the network needs {tuple(own[key].shape)}',
                            'give weights of the same width and classes')
        if not torch.isfinite(weights[key]).all():
            raise UserError(path, f'{key} holds values that are not finite', 'give weights of a run that did not fail')
    counters = {key: weights[key] for key in net.state_dict() if key.endswith(COUNTERS) and key in weights}
    # Not strict only because of the counters and of what may be missing: all else was checked above.
    net.load_state_dict({key: weights[key] for key in report.loaded} | counters, strict=False)
    return report


def describe(state):
    """In words, the network that a state dict seems to belong to, judged by the layers only it has."""
    parts = {part for key in state for part in key.split('.')}
    signs = (('cls_conv', 'a DeepLab'), ('f8_5', 'an AffinityNet'), ('proj_fc', 'an EPS + PPC with background last'),
             ('fc_proj', 'a SEAM + PPC or EPS + PPC'), ('f9', 'a SEAM'),
             ('fc8', 'a ResNet-38 classifier (plain EPS, for example)'), ('conv1a', 'a ResNet-38 backbone'),
             ('layer4', 'a ResNet backbone'))
    name = next((words for sign, words in signs if sign in parts), 'none of the networks here')
    return f'{name} of width {width_of_weights(state):g}' if 'conv1a' in parts else name


# ---------------------------------------------------------------- the net that fits

def width_of_weights(state):
    """The width factor of the ResNet-38 in a state dict, bare or as `backbone.`; 1.0 for any other network."""
    for key in ('conv1a.weight', 'backbone.conv1a.weight'):
        if key in state and state[key].ndim == 4:
            return width_of(state, key)
    return 1.0


def build_net(module_name, state, method, **kwargs):
    """Build the network of a `--network` flag (network.resnet38_contrast, for example) at the width of its weights.

    state: the state dict to be loaded next. method: what its Net must have to serve a step: 'cams' or
    'affinity_features'. kwargs go to Net. UserError: no such module, one without a Net, or one for another step.
    """
    try:
        module = importlib.import_module(module_name)
    except SyntaxError as error:
        where = f'{error.filename} line {error.lineno}'
        raise UserError('--network', f'{module_name} cannot be imported ({where}: {error.msg})', 'mend it') from error
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError) or not f'{module_name}.'.startswith(f'{error.name}.'):
            raise UserError('--network', f'{module_name} cannot be imported ({error.msg})', 'mend it') from error
        module = None
    except (ValueError, TypeError):  # no name of a module at all
        module = None
    if not hasattr(module, 'Net'):
        raise UserError('--network', f'{module_name!r} is no module with a class Net',
                        f'give {STEPS[method]}, for example')
    if not hasattr(module.Net, method):
        raise UserError('--network', f'{module_name} is for another step: its Net has no method {method}',
                        f'give {STEPS[method]}, for example')
    return module.Net(width=width_of_weights(state), **kwargs)
