"""Pretrained weights: reading them, loading them with a report, building the network that fits. METHOD 2.

A file is never loaded in part without a word (published: strict=False hid wrong files).
"""
import collections
import importlib
import io
import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from engine.errors import UserError
from network.mxnet import read_mxnet
from network.resnet101 import with_our_stem
from network.width import width_of

STEPS = {'cams': 'network.resnet38_contrast', 'affinity_features': 'network.resnet38_aff'}  # by what a Net must have
USUAL = ('model', 'state_dict', 'model_state_dict')  # the entry that counts where a checkpoint has several state dicts
COUNTERS = 'num_batches_tracked'  # BatchNorm's step counter: absent from older files, never needed


# ---------------------------------------------------------------- reading

def read_weights(path, background_last=False, remedy='correct --weights'):
    """Read weights: dict name → torch tensor on the CPU, floating-point ones as float32, under our names.

    `.params` is MXNet's ImageNet ResNet-38, renamed to our keys; `.safetensors` a state dict in that form, which pages
    of timm's weights have; any other suffix is a PyTorch file: a plain state dict, or a checkpoint with one in it,
    whose names wrappers may have lengthened (_read_torch). A ResNet's deep stem comes back under our names. EPS weights
    with background last come back with background first: recognised by their key `proj_fc`; plain EPS has no such
    sign, so `background_last` says it.
    remedy: what to do where there is no such file.
    UserError: missing, truncated or foreign file, no state dict in it, `background_last` for one in our layout.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(path, 'weights not found', remedy)
        _refuse_text(path)
        state = {'.params': read_mxnet, '.safetensors': _read_safetensors}.get(path.suffix, _read_torch)(path)
    except OSError as error:
        raise UserError(path, f'weights cannot be read ({error.strerror or error})', 'check the file') from error
    if background_last and 'fc_proj.weight' in state:
        raise UserError(path, 'has background first (it names fc_proj), not last', 'leave --background_last out')
    if background_last or is_published_eps(state):
        state = from_published_eps(state)
    return with_our_stem(state)


def _refuse_text(path):
    """UserError for what a download may leave in place of weights: a web page, or git's note on where they lie."""
    with open(path, 'rb') as file:
        start = file.read(200).lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if start.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise UserError(path, 'is a web page, not weights', 'open the address in a browser, download the file itself')
    if start.startswith(b'version https://git-lfs'):
        raise UserError(path, 'is a pointer of git LFS, not the weights themselves', 'fetch them with git lfs pull')


def _read_safetensors(path):
    """The tensors of a .safetensors file. UserError where it is none."""
    try:
        return _as_float32(safetensors.torch.load_file(path))
    except safetensors.SafetensorError as error:
        raise UserError(path, f'not a file of safetensors ({error})', 'download it again') from error


def _as_float32(state):
    """A state dict whose floating-point tensors are float32."""
    return {key: value.detach().float() if value.is_floating_point() else value.detach()
            for key, value in state.items()}


class _Unread:
    """Stand-in for NumPy's classes in a checkpoint: takes any arguments and any state, and keeps nothing."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


class _Fields:
    """Stand-in for any other class or function in a checkpoint: what it makes is an empty dict, to be filled by the
    pickle. No foreign code runs. (torch fills dicts of its own kinds only, hence no subclass.)"""

    def __new__(cls, *args):
        return collections.OrderedDict()


def _read_torch(path):
    """The state dict in a PyTorch file. UserError where it is no such file, or one without a single state dict.

    Objects of other classes (argparse.Namespace, NumPy's numbers, a framework's configuration) are passed over,
    stand-ins in their place. The words that wrappers put before a name are taken off: `module.` (DataParallel),
    `_orig_mod.` (torch.compile), and `model.` or `net.` where all names begin with it (Lightning).
    """
    try:
        # The older format is read from memory: a file's read(n) takes n bytes, whatever the file holds.
        older = None if zipfile.is_zipfile(path) else path.read_bytes()
        with torch.serialization.safe_globals(_stand_ins(path, older)):
            loaded = torch.load(path if older is None else io.BytesIO(older), map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many exception types on files it did not write
        raise UserError(path, f'not a file of PyTorch weights ({_reason(error)})',
                        'give a .pth, .ckpt, .safetensors or .params') from error
    state = {_unwrapped(key): value for key, value in _state_in(path, loaded).items()}
    _refuse_unsound(path, state)
    for word in ('model.', 'net.'):
        if all(key.startswith(word) for key in state):
            state = {key.removeprefix(word): value for key, value in state.items()}
    return _as_float32(state)


def _refuse_unsound(path, state):
    """UserError for tensors that are not numbers one after the other, or that unfold to more than their file can hold,
    as a view of one number a million times over does when it is turned into float32."""
    for key, value in state.items():
        if value.layout is not torch.strided or value.device.type != 'cpu' or value.is_quantized:
            raise UserError(path, f'{key} is a tensor without plain numbers (sparse, quantised or meta)',
                            'save it as a plain one')
    if sum(value.numel() for value in state.values()) > path.stat().st_size:  # a number takes a byte or more
        raise UserError(path, 'its tensors have more numbers than it holds', 'save copies of the tensors, not views')


def _stand_ins(path, older):
    """[(stand-in, name)] for the classes and functions that a PyTorch file names and torch's reader refuses.

    older: the bytes of a file in the older format, None for an archive. ValueError: a packed archive, which may unfold
    to any size; torch.save packs nothing.
    """
    if older is None:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError('a packed archive')
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    else:
        file = io.BytesIO(older)  # five pickles (the fourth is the content), then numbers
        operations = [operation for _ in range(5) for operation in pickletools.genops(file)]
        names = {argument.replace(' ', '.').replace('__builtin__', 'builtins')
                 for code, argument, _ in operations if code.name == 'GLOBAL'}
    return [(_Unread if name.startswith('numpy.') else _Fields, name) for name in names]


def _reason(error):
    """What torch.load's exception says, in a few words: its first line, or what its reader stumbled over."""
    found = re.search(r'WeightsUnpickler error: (.*)', str(error))
    return (found[1] if found else str(error).split('\n')[0])[:120] or type(error).__name__


def _state_in(path, loaded):
    """The state dict in what a file holds: itself, or its single entry that is one. UserError: none, or several."""
    if isinstance(loaded, dict):
        found = {key: _tensors(value) for key, value in loaded.items() if isinstance(value, dict)}
        found = {key: value for key, value in found.items() if any(tensor.ndim > 1 for tensor in value.values())}
        usual = [key for key in USUAL if key in found] or list(found)
        if len(found) > 1 and usual == list(found):
            raise UserError(path, f'holds several state dicts ({", ".join(map(str, found))})',
                            'save the wanted one to a file of its own')
        state = found[usual[0]] if found else _tensors(loaded)
        if state:
            return state
    if '_modules' in getattr(loaded, '__dict__', {}):
        raise UserError(path, 'holds a whole network, not its state dict', 'save its state_dict() where it was made')
    raise UserError(path, 'holds no state dict (tensors by name)', 'give weights saved as a plain state dict')


def _tensors(value):
    """The tensors of a dict, by name."""
    return {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, torch.Tensor)}


def _unwrapped(key):
    """A tensor's name without the words of wrappers: `_orig_mod` anywhere, `module` at the beginning, in any order."""
    parts = [part for part in key.split('.') if part != '_orig_mod']
    while len(parts) > 1 and parts[0] == 'module':
        del parts[0]
    return '.'.join(parts)


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

    weights: from read_weights. path: the file it came from, for messages. required: 'all', 'inference' (the layers
    named in net.training_only may be missing) or 'backbone' (to train from pretrained weights: those named in
    net.from_scratch may be missing).
    UserError: a required tensor is missing, a shape differs, a value is not finite. Then net is unchanged.
    """
    own = {key: value for key, value in net.state_dict().items() if not key.endswith(COUNTERS)}
    report = LoadReport([key for key in own if key in weights], [key for key in own if key not in weights],
                        [key for key in weights if key not in own and not key.endswith(COUNTERS)])
    optional = {'all': (), 'inference': getattr(net, 'training_only', ()), 'backbone': net.from_scratch}[required]
    may_miss = tuple(f'{name}.' for name in optional)
    needed = [key for key in report.missing if not key.startswith(may_miss)]
    network = getattr(net, 'title', type(net).__module__)
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
             ('layer4', 'a ResNet backbone'), ('conv_stem', 'an EfficientNet or MobileNet backbone'))
    if 'downsample' in parts and state.get('layer1.0.downsample.1.weight', torch.ones(1)).ndim == 4:
        return 'a ResNet-D backbone, which averages before its shortcuts'
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
