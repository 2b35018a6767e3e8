"""The names of backbones, as `--backbone` takes them. No torch here: command lines are read before it is loaded."""

PUBLISHED = 'resnet38'
RESNETS = 'resnet50', 'resnet101'  # torchvision's
TIMM = 'timm:'  # before the name of a network of the package timm
STRIDES = 8, 16  # pixels of the image per cell of the features; published: 8
CHOICES = f'{PUBLISHED}, {", ".join(RESNETS)} or {TIMM}NAME, of a network of the package timm'


def known(name):
    """Whether a name has the form of one; whether timm has such a network, timm alone can tell."""
    return name in (PUBLISHED, *RESNETS) or (name.startswith(TIMM) and name != TIMM)


def in_words(name, stride):
    """A name together with a stride that is not the published one, for what identifies a network."""
    return name if stride == STRIDES[0] else f'{name}, stride {stride}'


def recorded(settings, backbone='backbone', stride='stride'):
    """(name, stride) of the backbone in the settings of a run, under these keys; the published where they say none."""
    name, pixels = settings.get(backbone), settings.get(stride)
    return (name if isinstance(name, str) and known(name) else PUBLISHED,
            pixels if pixels in STRIDES else STRIDES[0])
