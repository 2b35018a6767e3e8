"""The settings of Step 3: three experiments, with the published names as fields.

Set DATA_PSEUDO_GT here, or give --pseudo_gt: every field is also a flag of train.py or test.py (`--TRAIN_LR 0.002`).
Data folder, lists, device, seed and number of workers are flags alone, because all scripts have them (published:
DATA_WORKERS, GPUS).
"""
import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from engine import cli, files, runinfo
from engine.errors import UserError
from network import names


def setting(default, help, scripts='train', type=str, **flag):
    """A field: its default, the help text of its flag, the scripts that read it, how its text becomes a value."""
    metadata = {'help': help, 'scripts': scripts.split(), 'flag': {'type': type, **flag}}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The settings of an experiment. The defaults are those that all three have in common (METHOD 7)."""
    EXP_NAME: str = setting(
        '', 'path without suffix of what training writes: <name>.pth, .ckpt, .json, .losses.jsonl', 'train test',
        type=cli.session)
    MODEL_NAME: str = setting('deeplabv1', 'deeplabv1 or deeplabv2', 'train test')
    MODEL_BACKBONE: str = setting(names.PUBLISHED, names.CHOICES, 'train test', type=cli.backbone)
    MODEL_STRIDE: int = setting(names.STRIDES[0], "pixels of the image per cell of the backbone's features",
                                'train test', type=cli.stride, choices=names.STRIDES)
    MODEL_BACKBONE_PRETRAIN: str = setting(
        'models/ilsvrc-cls_rna-a1_cls1000_ep-0001.params',
        'pretrained weights of the backbone: .pth, of ResNet-38 .params too')
    DATA_PSEUDO_GT: str = setting('', 'folder of the pseudo masks, <id>.png', empty=True)
    DATA_RANDOMCROP: int = setting(448, 'side of the training crop in pixels', type=cli.side)
    DATA_RANDOMSCALE: tuple = setting((0.5, 1.5), 'lowest and highest factor of the random scale',
                                      type=cli.scale, nargs=2)
    DATA_RANDOM_H: int = setting(10, 'most by which the hue is shifted (of 180, two degrees a unit)',
                                 type=cli.number(int, low=0, high=180))
    DATA_RANDOM_S: int = setting(10, 'most by which the saturation is shifted (0..255)',
                                 type=cli.number(int, low=0, high=255))
    DATA_RANDOM_V: int = setting(10, 'most by which the value (brightness) is shifted (0..255)',
                                 type=cli.number(int, low=0, high=255))
    DATA_RANDOMFLIP: float = setting(0.5, 'probability of the flip', type=cli.unit_interval)
    TRAIN_LR: float = setting(0.001, 'learning rate of the backbone (head: ten times)', type=cli.positive_number)
    TRAIN_MOMENTUM: float = setting(0.9, 'SGD momentum', type=cli.unit_interval)
    TRAIN_WEIGHT_DECAY: float = setting(5e-4, 'weight decay (biases: none)', type=cli.non_negative_number)
    TRAIN_BN_MOM: float = setting(
        3e-4, 'BatchNorm momentum in ResNet-38 and in the head (ResNet-101 keeps 0.1)', type=cli.unit_interval)
    TRAIN_POWER: float = setting(0.9, 'power of the learning rate schedule', type=cli.positive_number)
    TRAIN_BATCHES: int = setting(10, 'images a step, over all devices', type=cli.positive)
    TRAIN_ITERATION: int = setting(20000, 'steps', type=cli.positive)
    TEST_MULTISCALE: tuple = setting((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), 'scales of the multi-scale test', 'test',
                                     type=cli.scale, nargs='+')
    TEST_FLIP: bool = setting(True, 'add the flip at every scale of the multi-scale test', 'test',
                              type=cli.true_or_false, metavar='True|False')

    def __post_init__(self):
        low, high = self.DATA_RANDOMSCALE
        if low > high:
            raise UserError('--DATA_RANDOMSCALE', f'{low} is above {high}', 'give the lower factor first')

    @property
    def jitter(self):
        """The most by which hue, saturation and value are shifted."""
        return self.DATA_RANDOM_H, self.DATA_RANDOM_S, self.DATA_RANDOM_V

    @property
    def network(self):
        """Name of the network, for network.deeplab.build."""
        return f'{self.MODEL_NAME}_{self.MODEL_BACKBONE}'

    @property
    def network_in_words(self):
        """The network in one text, for what says how files were made."""
        return names.in_words(self.network, self.MODEL_STRIDE)


EXPERIMENTS = {config.EXP_NAME: config for config in (
    Config(EXP_NAME='SEAM_deeplabv1_resnet38'),
    Config(EXP_NAME='EPS_deeplabv1_resnet101', MODEL_BACKBONE='resnet101',
           MODEL_BACKBONE_PRETRAIN='models/resnet101.pth'),
    Config(EXP_NAME='EPS_deeplabv2_resnet101', MODEL_NAME='deeplabv2', MODEL_BACKBONE='resnet101',
           MODEL_BACKBONE_PRETRAIN='models/resnet101.pth'),
)}
DEFAULT = 'SEAM_deeplabv1_resnet38'

# Second names of flags: those that the other scripts use.
BACKBONE = {'MODEL_BACKBONE': '--backbone', 'MODEL_STRIDE': '--stride'}
ALSO = {
    'train': {**BACKBONE, 'EXP_NAME': '--session_name', 'DATA_PSEUDO_GT': '--pseudo_gt',
              'MODEL_BACKBONE_PRETRAIN': '--weights'},
    'test': {**BACKBONE, 'EXP_NAME': '--session_name'},
}


def add_flags(parser, script):
    """Add --experiment and a flag for every field that `script` ('train' or 'test') reads."""
    stored = f' (as <session>.json beside --weights says; {DEFAULT} without one)' if script == 'test' else ''
    parser.add_argument('--experiment', choices=EXPERIMENTS, default=None if script == 'test' else DEFAULT,
                        help=f'the experiment that gives all defaults below{stored}')
    for field in dataclasses.fields(Config):
        if script in field.metadata['scripts']:
            flags = [f'--{field.name}'] + ([ALSO[script][field.name]] if field.name in ALSO[script] else [])
            default = getattr(EXPERIMENTS[DEFAULT], field.name)
            parser.add_argument(*flags, dest=field.name, default=argparse.SUPPRESS, **field.metadata['flag'],
                                help=f'{field.metadata["help"]} ({DEFAULT}: {default})')


def as_trained(args):
    """Fill what no flag says from the <session>.json beside the weights of test.py: the experiment and its network, and
    a backbone that no experiment has, which --experiment cannot name."""
    stored = runinfo.settings_of(args.weights or f'{getattr(args, "EXP_NAME", args.experiment or DEFAULT)}.pth')
    backbone = names.recorded(stored, *BACKBONE)
    is_own = backbone not in [(config.MODEL_BACKBONE, config.MODEL_STRIDE) for config in EXPERIMENTS.values()]
    found = {}
    if args.experiment is None:
        args.experiment = stored['experiment'] if stored.get('experiment') in EXPERIMENTS else DEFAULT
        found = {name: stored[name] for name in ('MODEL_NAME',) if name in stored}
        is_own = is_own or BACKBONE.keys() <= stored.keys()
    if is_own and not any(hasattr(args, name) for name in BACKBONE):  # the two go together
        found |= dict(zip(BACKBONE, backbone))
    for name, value in found.items():
        setattr(args, name, getattr(args, name, value))


def effective(args):
    """The Config of parsed flags: the experiment's, with what the command line sets. UserError: impossible value."""
    if hasattr(args, 'weights'):
        as_trained(args)
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Config) if hasattr(args, field.name)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return dataclasses.replace(EXPERIMENTS[args.experiment], **given)


def located(path):
    """A path of this file or a flag: as it stands or, where that does not exist, in the repository.

    `VOC2012` and a relative DATA_PSEUDO_GT then mean the same in the repository's folder and in experiment/.
    """
    path = Path(path)
    return path if path.exists() or not (files.REPO / path).exists() else files.REPO / path
