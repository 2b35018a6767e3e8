"""What all backbones share: how the images that they get are normalised, and the three maps that they give."""
from tool.cam import resize

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1: nearly all pretrained weights were trained with them
STD = (0.229, 0.224, 0.225)
LEVELS = 'low', 'middle', 'high'


def at_one_stride(maps):
    """{'low', 'middle', 'high'} of three maps (N, channels, h, w), the larger ones resized to the size of the last."""
    size = maps[-1].shape[2:]
    return {level: x if x.shape[2:] == size else resize(x, size) for level, x in zip(LEVELS, maps, strict=True)}
