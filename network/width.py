"""The width factor: one number that scales every channel count of a ResNet-38 and of its heads."""


def scaled(channels, width):
    """A channel count scaled by the width factor: whole, at least 1."""
    return max(1, round(channels * width))


def width_of(state_dict, key='conv1a.weight'):
    """The width factor of the ResNet-38 that a state dict belongs to, read from its first convolution."""
    return state_dict[key].shape[0] / 64
