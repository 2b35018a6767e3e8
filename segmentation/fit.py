"""Which steps a file of weights fits: the loading that each step does, without the memory that a network takes."""
import contextlib
import functools
import io
import warnings

import torch

from network import weights
from segmentation import model
from segmentation.experiment.config import EXPERIMENTS


def _on_shapes(load):
    """A loading function on PyTorch's meta device, where tensors have shapes only; what it prints is left out."""
    @functools.wraps(load)
    def quiet(*args):
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.device('meta'):
            warnings.simplefilter('ignore')  # "copying to a meta parameter is a no-op": it is what is wanted
            load(*args)
    return quiet


def _network(module, method, required, **options):
    @_on_shapes
    def load(path, state, num_classes):
        classes = {'num_classes': num_classes} if method == 'cams' else {}
        weights.load_weights(weights.build_net(module, state, method, **classes), state, path, required)
    return load


def _deeplab(build, config):
    @_on_shapes
    def load(path, state, num_classes):
        build(config, path, num_classes)
    return load


# Step in words: function of (path, state dict, number of classes), which raises UserError where the weights do not fit.
USES = {
    'Step 1, training (seam, cam)': _network('network.resnet38_contrast', 'cams', 'backbone'),
    'Step 1, inference (seam, cam)': _network('network.resnet38_contrast', 'cams', 'inference'),
    'Step 1, inference (eps)': _network('network.resnet38_eps_contrast', 'cams', 'inference'),
    'Step 2, training': _network('network.resnet38_aff', 'affinity_features', 'backbone'),
    'Step 2, inference': _network('network.resnet38_aff', 'affinity_features', 'inference'),
    **{f'Step 3, training {name}': _deeplab(model.pretrained, config) for name, config in EXPERIMENTS.items()},
    **{f'Step 3, test {name}': _deeplab(model.trained, config) for name, config in EXPERIMENTS.items()}}
