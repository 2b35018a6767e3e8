"""The networks of Steps 1 and 2 on any backbone: the heads of the published ones, which are ResNet-38s themselves.

The backbone is a part of its own here, so that the names of its tensors begin with `backbone.`; the heads' are those of
the published networks.
"""
from pkgutil import resolve_name

from torch import nn

from network import backbones
from network.fixed_norm import fix_batch_norms
from network.heads import CAMHeads
from network.names import in_words
from network.resnet38_aff import AffinityHead


class OnBackbone(nn.Module):
    """A backbone as the networks of Steps 1 and 2 hold it, BatchNorm fixed; to be mixed with heads.

    The subclass's constructor adds its layers, then calls freeze.
    """

    def __init__(self, backbone, title):
        super().__init__()
        self.backbone, self.title = backbone, title
        self.channels, self.stride, self.width = backbone.channels, backbone.stride, backbone.width

    def features(self, x):
        """Image x (N, 3, H, W), ImageNet-normalised → {'low', 'middle', 'high'}, maps at one stride."""
        return self.backbone.features(x)

    def freeze(self):
        """Switch gradients off for what the backbone does not train, and for all that is no convolution or matrix:
        nothing else is optimised (engine.training.parameter_groups)."""
        for name in self.backbone.not_trained:
            self.backbone.get_parameter(name).requires_grad_(False)
        for module in self.modules():
            if not isinstance(module, (nn.Conv2d, nn.Linear)):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        fix_batch_norms(self, mode)  # running statistics, never those of the batch, as in ResNet-38
        return self


class CAMNet(CAMHeads, OnBackbone):
    """The network of Step 1. heads: arguments of add_heads, those of a published network (its HEADS)."""

    def __init__(self, backbone, title, heads, num_classes):
        super().__init__(backbone, title)
        self.add_heads(num_classes, **heads)
        self.freeze()


class AffinityNet(AffinityHead, OnBackbone):
    """The network of Step 2."""

    def __init__(self, backbone, title):
        super().__init__(backbone, title)
        self.add_affinity_head()
        self.freeze()


def build(name, stride, state, method, published, **options):
    """The network of a step on the backbone `name` at random, and `state` under its names.

    state: the weights to be loaded next. method: 'cams' or 'affinity_features', what the step needs. published: module
    of the published network whose heads it has. options: num_classes for 'cams'. UserError as in backbones.build.
    """
    backbone, title = backbones.build(name, stride, state), in_words(name, stride)
    if method == 'cams':
        net = CAMNet(backbone, title, resolve_name(f'{published}:HEADS'), **options)
    else:
        net = AffinityNet(backbone, title)
    return net, backbones.under_backbone(backbone, state)
