"""The DeepLab of an experiment, with pretrained or with trained weights."""
from torch import nn

from engine.errors import UserError
from engine.networks import load_with_report, read_weights
from engine.ranks import world_size
from network import deeplab
from network.backbones import under_backbone
from network.names import PUBLISHED, STRIDES
from network.weights import describe


def pretrained(config, path, num_classes):
    """The network to train: backbone from `path`; head from `path` if the file holds a head, else Kaiming's normal.

    config: a Config (network, MODEL_BACKBONE, MODEL_STRIDE, TRAIN_BN_MOM). path: weights of the bare backbone, of a
    network of Step 1 on it or of a whole DeepLab; their width (ResNet-38) and stem (torchvision's ResNets) decide the
    network's. UserError: unknown network, weights that do not fit it.
    """
    state = read_weights(path, config.MODEL_BACKBONE)
    net = _build(config, state, path, num_classes, bn_momentum=config.TRAIN_BN_MOM)
    state = under_backbone(net.backbone, state)
    load_with_report(net, state, path, required='backbone')
    return net


def trained(config, path, num_classes, state=None):
    """The network to test, all of it from `path`. state: the tensors in that file, where they were read already.

    UserError: missing file, weights of another network.
    """
    state = read_weights(path, PUBLISHED) if state is None else state
    found = deeplab.name_of(state)
    if found != config.network.partition(':')[0]:
        raise UserError(path, f'holds {found or describe(state)}, experiment {config.EXP_NAME} needs {config.network}',
                        'give the weights of this experiment, or choose another with --experiment')
    net = _build(config, state, path, num_classes)
    load_with_report(net, state, path)
    return net


def over_processes(net, device):
    """The network with batch statistics over all processes of a run (SyncBatchNorm), which are those of the total
    batch. UserError for several processes on CPUs, where PyTorch has no such layer.
    """
    if world_size() == 1:
        return net
    if device.type != 'cuda':
        raise UserError('torchrun', f'started {world_size()} processes on CPUs, where DeepLab needs batch statistics '
                        'that exist on GPUs alone (SyncBatchNorm)', 'start it with python, or give each process a GPU')
    print('batch statistics: over all processes (SyncBatchNorm)')
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def _build(config, state, path, num_classes, **options):
    if config.MODEL_BACKBONE == PUBLISHED and config.MODEL_STRIDE != STRIDES[0]:
        raise UserError('--stride', f'{PUBLISHED} has stride {STRIDES[0]} alone',
                        'leave it out, or choose another --backbone')
    if not deeplab.is_known(config.network):
        raise UserError('--MODEL_NAME', f'there is no {config.network}', f'use one of {", ".join(deeplab.NAMES)}')
    try:
        options |= {'stride': config.MODEL_STRIDE} | deeplab.options_of(config.network, state)
    except KeyError:
        raise UserError(path, f'holds {describe(state)}, {config.network} needs a {config.MODEL_BACKBONE}',
                        'give weights of that backbone, or choose another --experiment') from None
    return deeplab.build(config.network, num_classes, **options)
