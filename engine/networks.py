"""Building the network of `--network` or of `--backbone` that fits its weights, and loading them. METHOD 2."""
from pathlib import Path

from engine.device import to_device
from engine.errors import UserError
from engine.ranks import is_main
from network import backbones, on_backbone, weights
from network.names import PUBLISHED, STRIDES


def network_for_training(args, device, recipe=None, method='cams', **options):
    """The network that --network or --backbone names, pretrained by --weights, on its device.

    args: flags with network, backbone, stride (as engine.cli.choose_backbone leaves them), weights, amp (and
    background_last). recipe: whose losses it must serve. method: what its Net must have, 'cams' or 'affinity_features'.
    options: for Net.
    UserError: no such network, weights that do not fit it, a network that lacks what the recipe needs.
    """
    net = _load(args, 'backbone', method, options)
    missing = sorted(recipe.needs.difference(net.parts)) if recipe else []
    if missing:
        terms = ' '.join(f'--w_{name} 0' for name in recipe.terms_that_need(missing[0]))
        raise UserError('--network', f'{args.network} has no {missing[0]}, which --baseline {recipe.name} needs',
                        f'choose another network, or give {terms}')
    return to_device(net, device, args.amp)


def network_for_inference(args, device, recipe=None, method='cams', **options):
    """The network that --network or --backbone names with all weights that inference needs from --weights, on its
    device, in eval mode.

    recipe: whose CAMs it must make; UserError, besides those of weights, for a network that cannot.
    """
    net = _load(args, 'inference', method, options)
    if recipe and recipe.map == 'revised' and 'pcm' not in net.parts:
        raise UserError('--network', f'{args.network} has no pcm, which --map revised needs',
                        'choose another network, or give --map plain')
    return to_device(net, device, args.amp).eval()


def read_weights(path, backbone, background_last=False):
    """network.weights.read_weights. Where there is no such file, the error says who has those of another backbone."""
    where = '' if backbone == PUBLISHED or Path(path).exists() else f'; {backbones.source_of_weights(backbone)}'
    return weights.read_weights(path, background_last, f'correct --weights{where}')


def load_with_report(net, state, path, required='all'):
    """network.weights.load_weights, and one line that says what was loaded, printed by the main process."""
    report = weights.load_weights(net, state, path, required)
    if is_main():
        print(f'{path}: {weights.describe(state)}; {report}')


def _load(args, required, method, options):
    state = read_weights(args.weights, args.backbone, getattr(args, 'background_last', False))
    if args.backbone == PUBLISHED:
        net = weights.build_net(args.network, state, method, **options)
    else:
        net, state = on_backbone.build(args.backbone, args.stride, state, method, args.network, **options)
    load_with_report(net, state, args.weights, required)
    if not hasattr(net, 'stride'):  # a network of one's own need not say it where it is the published one
        net.stride = STRIDES[0]
    return net
