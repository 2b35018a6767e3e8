"""What every script's command line shares: errors, flags, defaults, the device. torch is imported only when used."""
import argparse
import contextlib
import os
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """A mistake the user can mend. Printed as one line: `error: <what>: <what is wrong>; <what to do>`.

    what: the file or flag. wrong: what is the matter with it. do: the way out.
    """

    def __init__(self, what, wrong, do):
        super().__init__(what, wrong, do)  # the three arguments, so that the error survives pickling between processes
        self.what, self.wrong, self.do = what, wrong, do

    def __str__(self):
        return ' '.join(f'{self.what}: {self.wrong}; {self.do}'.split())


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, but no "default: None" after flags that have none."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with usage mistakes in this project's one-line form, and the defaults shown in --help."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        print(f'error: command line: {message}; see {self.prog} --help', file=sys.stderr)
        sys.exit(2)


def run(main, parser, argv=None):
    """Parse argv, call main(args), and end the process: status 2 and one line for a UserError, 130 for Ctrl-C."""
    args = parser.parse_args(argv)
    try:
        main(args)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)


def true_or_false(text):
    """The value of a flag written `--curve True` (argparse type)."""
    words = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f'{text!r} is neither True nor False')
    return words[text.lower()]


def add_switch(parser, name, help, default=False):
    """Add a flag that may stand alone or take a truth value: `--curve`, `--curve True`, `--curve False`."""
    parser.add_argument(name, nargs='?', const=True, default=default, type=true_or_false, metavar='True|False', help=help)


def positive(text):
    """An integer of at least 1 (argparse type)."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not at least 1')
    return value


def non_negative(text):
    """An integer of at least 0 (argparse type)."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{text} is negative')
    return value


def positive_number(text):
    """A number above 0 (argparse type)."""
    value = float(text)
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not above 0')
    return value


def unit_interval(text):
    """A number in 0..1 (argparse type)."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text} is not between 0 and 1')
    return value


def add_data_flags(parser, voc12_root='VOC2012'):
    """--voc12_root, --cls_labels, --convert_rgb: where the images and their image-level labels are."""
    parser.add_argument('--voc12_root', default=voc12_root, help='folder of the VOC devkit (holds JPEGImages/)')
    parser.add_argument('--cls_labels', default=str(REPO / 'voc12' / 'cls_labels.npy'),
                        help='image-level labels: pickled dict id -> 0/1 per foreground class (voc12/prepare.py writes it)')
    add_switch(parser, '--convert_rgb', 'turn grey, palette and CMYK images into RGB instead of refusing them')


def add_worker_flag(parser):
    """--num_workers, shared by all scripts that read or write many images."""
    parser.add_argument('--num_workers', type=non_negative, default=min(8, cores()),
                        help='processes that prepare images or run the CRF (0: none beside the main one)')


def add_device_flags(parser):
    """--device, --amp, --seed, shared by all scripts that run a network."""
    parser.add_argument('--device', default='auto', help='auto (CUDA if there is one), cpu, cuda or cuda:<index>')
    parser.add_argument('--amp', choices=('off', 'bf16', 'fp16'), default='off',
                        help='precision of the convolutions; losses and normalisations stay in float32')
    parser.add_argument('--seed', type=non_negative, default=0,
                        help='seed of every random choice (inference makes none, unless your --network does)')


def add_training_flags(parser, *, batch_size, lr):
    """The flags of contrast_train.py and aff_train.py: published names and defaults, then this project's."""
    parser.add_argument('--weights', required=True, help='pretrained weights: .pth or (ImageNet ResNet-38) .params')
    parser.add_argument('--session_name', required=True,
                        help='path without suffix of what the run writes: <session>.pth, .ckpt, .json, .losses.jsonl')
    parser.add_argument('--train_list', default='voc12/train_aug.txt', help='image ids to train on')
    parser.add_argument('--val_list', default='voc12/val.txt',
                        help="image ids validated after each epoch (image-level labels only); '' for none")
    parser.add_argument('--batch_size', type=positive, default=batch_size, help='images a step, over all devices')
    parser.add_argument('--max_epoches', type=positive, default=8, help='epochs')
    parser.add_argument('--lr', type=float, default=lr, help='learning rate of pretrained weights (new layers: ten times)')
    parser.add_argument('--wt_dec', type=float, default=5e-4, help='weight decay (biases: none)')
    parser.add_argument('--momentum', type=float, default=5e-4,
                        help="SGD momentum; the published optimiser passes the weight decay here, 0.9 is what it meant")
    parser.add_argument('--crop_size', type=positive, default=448, help='side of the training crop in pixels')
    parser.add_argument('--tblog_dir', default='./tblog', help='TensorBoard folder')
    add_run_flags(parser)


def add_run_flags(parser):
    """The flags of every resumable run."""
    parser.add_argument('--save_every', type=non_negative, default=500,
                        help='steps between checkpoints, beside the one after each epoch (0: only those)')
    parser.add_argument('--log_every', type=positive, default=10,
                        help='steps between readings of the losses (a reading waits for the device)')
    parser.add_argument('--picture_every', type=non_negative, default=200, help='steps between pictures (0: none)')
    add_switch(parser, '--resume', 'continue <session>.ckpt where it stopped')
    add_switch(parser, '--overwrite', 'start anew although <session>.ckpt exists')


def cores():
    """Number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def repo_path(path):
    """A path as the user gave it or, where that does not exist and it names a file of voc12/, the repository's own.

    So `--infer_list voc12/val.txt` works from any folder, and `voc12/trainaug.txt` means voc12/train_aug.txt.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    if path.name == 'trainaug.txt' and path.parent.name == 'voc12':
        path = path.with_name('train_aug.txt')
    return REPO / path if path.parts[:1] == ('voc12',) and not path.exists() else path


def set_up(args):
    """What a script with add_device_flags does first: seed PyTorch by --seed, check --device and --amp, return the torch.device."""
    import torch
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # numbers under 1e-38 count as 0: on a CPU each would cost a hundred ordinary ones
    device = select_device(args.device)
    autocast(device, args.amp)
    return device


def select_device(name):
    """The torch.device of a --device flag. UserError where the flag is malformed or CUDA is not to be had."""
    import torch
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    kind, _, index = name.partition(':')
    if kind not in ('cpu', 'cuda') or (index and (kind == 'cpu' or not index.isdigit())):
        raise UserError('--device', f'{name!r} is unknown', 'use auto, cpu, cuda or cuda:<index>')
    if kind == 'cuda':
        if not torch.cuda.is_available():
            raise UserError('--device', 'no CUDA device is available to PyTorch here', 'use --device cpu or auto')
        if index and int(index) >= torch.cuda.device_count():
            raise UserError('--device', f'there is no {name}', f'use cuda:0 to cuda:{torch.cuda.device_count() - 1}')
    return torch.device(name)


def autocast(device, amp):
    """The mixed-precision context of an --amp flag: torch.autocast, or nothing when it is 'off'.

    fp16 on a CPU is refused (UserError): PyTorch has no gradient scaling there.
    """
    import torch
    if amp == 'off':
        return contextlib.nullcontext()
    if amp == 'fp16' and device.type == 'cpu':
        raise UserError('--amp fp16', 'half precision needs a CUDA device', 'use --amp bf16 or off on a CPU')
    return torch.autocast(device.type, torch.bfloat16 if amp == 'bf16' else torch.float16)


def place(net, device, amp):
    """Move a network to its device, in channels-last layout under mixed precision on CUDA. Returns it.

    Not on the CPU: there it gains nothing measurable, and PyTorch's backward pass has crashed on it (few channels, bf16).
    """
    import torch
    last = amp != 'off' and device.type == 'cuda'
    return net.to(device, memory_format=torch.channels_last if last else torch.preserve_format)
