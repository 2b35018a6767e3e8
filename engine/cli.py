"""Command lines: the parser, types with bounds, groups of flags that scripts share. No torch here."""
import argparse
import contextlib
import dataclasses
import functools
import sys
from pathlib import Path

from data.description import BUILT_IN, read_dataset
from engine import machine, process, ranks, runinfo
from engine.errors import UserError
from network import names
from tool.crf import ENGINES
from tool.recipes import RECIPES, TERMS, Recipe

# ---------------------------------------------------------------- the parser


TOGETHER = 'together'  # all processes make the same steps, and would say the same
APART = 'apart'  # each process has images of its own, and speaks of them


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, but no "default: None" after flags that have none."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with usage mistakes in this project's one-line form, and the defaults shown in --help.

    add_argument takes two keywords more. before: the value that the code had before the flag existed, where it is not
    the default; a checkpoint that does not know the flag was made with that value. empty: the text may be '', which is
    refused otherwise, because it mostly comes of a shell variable that is not set.
    several_processes: whether torchrun may start the script, whose processes then share its work: False, TOGETHER or
    APART.
    """

    def __init__(self, **kwargs):
        self.before, self.several_processes = {}, False
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)

    def add_argument(self, *names, **kwargs):
        stated = {'before': kwargs.pop('before')} if 'before' in kwargs else {}
        if not kwargs.pop('empty', False) and kwargs.get('type', str) is str and 'action' not in kwargs:
            kwargs['type'] = text
        action = super().add_argument(*names, **kwargs)
        self.before |= {action.dest: value for value in stated.values()}
        return action

    def error(self, message):
        ranks.let_the_first_speak()
        print(f'error: command line: {message}; see {self.prog} --help', file=sys.stderr)
        sys.exit(2)


def run(main, parser, argv=None):
    """Parse argv, call main(args), and end the process; no worker process is left behind.

    Status 2 and one line: a UserError, or a want of memory or disk (engine/process.py). 130: Ctrl-C. 141, without a
    word: whoever read the output is gone (`| head`). Any other exception is a bug and shows its traceback.
    """
    process.prepare()
    try:
        code = _outcome(main, parser, argv)
    except BrokenPipeError:
        if not process.reader_is_gone():
            raise
        process.discard_output()
        code = 141
    finally:
        process.end_workers()
    if code:
        sys.exit(code)


def _outcome(main, parser, argv):
    """The exit status of main, which has printed its error line; 0 where all went well."""
    try:
        try:
            args = parser.parse_args(argv)
            if not parser.several_processes:
                ranks.refuse_several_processes()
            with contextlib.nullcontext() if parser.several_processes == APART else ranks.one_voice():
                main(args)
        finally:
            sys.stdout.flush()  # here, where a reader that is gone can be dealt with, not at the interpreter's end
    except UserError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        known = process.want_of_resources(error)
        if known is None:
            raise
        process.drop(error)
        return _refuse(known)
    return 0


def _refuse(error):
    """Print the error line of a UserError; the exit status. Of several processes one prints it."""
    ranks.let_the_first_speak()
    print(f'error: {error}', file=sys.stderr)
    return 2


def values_before(parser, args):
    """{setting: the value that code without its flag had}: what a checkpoint that lacks a setting was made with."""
    defaults = {name: parser.get_default(name) for name in vars(args)}
    if 'baseline' in defaults:
        recipe = RECIPES[args.baseline]
        for field in recipe_settings('train'):
            value, stated = getattr(recipe, field.name), field.metadata['before']
            defaults[field.name] = value if value is None or stated is None else stated
        # A term that the checkpoint does not know did not exist: it weighed nothing where the recipe has it now.
        defaults |= {f'w_{name}': 0. if name in recipe.weights else None for name in TERMS}
    return defaults | parser.before


# ---------------------------------------------------------------- types with bounds

LARGEST = 10 ** 9  # upper bound of a number that has no other: more is a slip of the keyboard


def number(kind=float, low=None, high=None, above=None):
    """An argparse type: a number of `kind` (int, float), at least `low` or above `above`, and at most `high`.

    high: LARGEST unless given. The type's attribute `inside` tells whether a number is within these bounds.
    """
    high = LARGEST if high is None else high
    least = f'above {above:.10g}' if low is None else f'at least {low:.10g}'

    def inside(value):
        # Not a number compares as False, so it is outside.
        return (value > above if low is None else value >= low) and value <= high

    def convert(text):
        value = kind(text)
        if not inside(value):
            raise argparse.ArgumentTypeError(f'{text} is not {least} and at most {high:.10g}')
        return value
    convert.__name__ = 'whole number' if kind is int else 'number'  # argparse names it: invalid number value: 'x'
    convert.inside = inside
    return convert


def word_or(word, kind):
    """An argparse type: the word, or what the type `kind`, made by `number`, takes."""
    def convert(text):
        return text if text == word else kind(text)
    convert.__name__, convert.inside = kind.__name__, kind.inside
    return convert


auto_or = functools.partial(word_or, 'auto')
positive = number(int, low=1)
non_negative = number(int, low=0)
processes = number(int, low=0, high=1024)
seed = number(int, low=0, high=2 ** 32 - 1)  # NumPy's generators take no more
positive_number = number(above=0)
non_negative_number = number(low=0)
unit_interval = number(low=0, high=1)
side = number(int, low=8, high=16384)  # pixels; the networks have stride 8
scale = number(low=0.05, high=16)  # of an image's sides
stride = number(int, low=names.STRIDES[0], high=names.STRIDES[-1])  # pixels


def text(value):
    """A text that is not empty (argparse type)."""
    if not value.strip():
        raise argparse.ArgumentTypeError('is empty; give a value')
    return value


def session(value):
    """The path of a session, whose last part begins the names of files (argparse type)."""
    if Path(text(value)).name in ('', '..'):
        raise argparse.ArgumentTypeError(f'{value} names no file; give a path such as runs/first')
    return value


def true_or_false(text):
    """The value of a flag written `--curve True` (argparse type)."""
    words = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f'{text!r} is neither True nor False')
    return words[text.lower()]


def add_switch(parser, name, help, default=False):
    """Add a flag that may stand alone or take a truth value: `--curve`, `--curve True`, `--curve False`."""
    parser.add_argument(name, nargs='?', const=True, default=default, type=true_or_false, metavar='True|False',
                        help=help)


# ---------------------------------------------------------------- groups of flags

VAL_LIST = 'voc12/val.txt'  # the default alone may be missing


def add_dataset_flag(parser):
    """--dataset, of every script: what chosen_dataset fills the flags from that are not given."""
    parser.add_argument('--dataset', default='voc12', metavar='|'.join([*BUILT_IN, 'FILE']),
                        help='the data set: its classes, and the defaults of the flags that name its lists, labels and '
                             'folders; a FILE is a dataset.yaml (docs/OWN_DATA.md)')
    # A checkpoint or <session>.json without classes was made when VOC's were the only ones.
    parser.before['classes'] = list(read_dataset('voc12').classes.foreground)


def chosen_dataset(args, **lists):
    """The data.description.DataSet of --dataset. Flags that were not given are filled into `args` from it, and
    args.classes: its foreground names.

    lists: {flag: name of the list that is its default}; '' for none in a --val_list whose data set has no val.
    UserError: a bad description, or one without the list.
    """
    data = read_dataset(args.dataset)
    args.classes = list(data.classes.foreground)
    defaults = {'voc12_root': data.root, 'cls_labels': data.labels}
    defaults['gt_dir'] = data.truth(getattr(args, 'voc12_root', None))
    for flag, value in defaults.items():
        if getattr(args, flag, '') is None:
            setattr(args, flag, value)
    for flag, name in lists.items():
        if getattr(args, flag) is None:
            setattr(args, flag, '' if flag == 'val_list' and 'val' not in data.lists else data.list(name))
    return data


def add_root_flag(parser):
    """--dataset, --voc12_root: which images, and where they are."""
    add_dataset_flag(parser)
    parser.add_argument('--voc12_root', help='folder that holds the images and the ground truth, for VOC the devkit '
                                             '(of the data set; voc12: VOC2012)')


def add_image_flags(parser):
    """--dataset, --voc12_root, --convert_rgb: where the photos are, and which are accepted."""
    add_root_flag(parser)
    add_switch(parser, '--convert_rgb', 'turn grey, palette and CMYK images into RGB instead of refusing them')


def add_label_flag(parser):
    """--cls_labels: the image-level labels."""
    parser.add_argument('--cls_labels', help='image-level labels: .npy (pickled dict id -> 0/1 per foreground class), '
                                             '.csv (id,class,class) or a folder of label masks (of the data set)')


def add_worker_flag(parser):
    """--num_workers, shared by all scripts that read or write many images, but for those with a network."""
    parser.add_argument('--num_workers', type=processes, default=machine.choose_workers('auto', on_cpu=False),
                        help='processes that prepare images or run the CRF (0: all work in the main process)')


def add_crf_flag(parser):
    """--crf_engine, shared by all scripts that run a CRF."""
    parser.add_argument('--crf_engine', choices=ENGINES, default='torch',
                        help="what runs the CRF: torch, on --device, or the authors' pydensecrf, on the CPU, which is "
                             'installed by requirements-pydensecrf.txt')


def add_device_flag(parser):
    """--device, shared by all scripts that compute with PyTorch."""
    parser.add_argument('--device', default='auto', help='auto (CUDA if there is one), cpu, cuda or cuda:<index>')


def add_precision_flags(parser):
    """--device and --amp: what computes, and in which precision."""
    add_device_flag(parser)
    parser.add_argument('--amp', choices=('off', 'auto', 'bf16', 'fp16'), default='off',
                        help='precision of the convolutions; losses and normalisations stay in float32. auto: what the '
                             'hardware computes natively (bf16, else fp16 on CUDA, else off)')


def add_device_flags(parser):
    """--device, --amp, --threads, --num_workers, --seed, of all scripts that run a network. See engine/device.py."""
    add_precision_flags(parser)
    parser.add_argument('--threads', type=auto_or(number(int, low=1, high=1024)), default='auto',
                        help='threads of the main process. auto: a thread for each core that is idle at the start and '
                             'that no worker process will use; OMP_NUM_THREADS counts where it is set')
    parser.add_argument('--num_workers', type=auto_or(processes), default='auto',
                        help='processes that prepare images or run the CRF (0: all work in the main process). auto: '
                             'one per core beside a GPU, at most 8; one for eight cores where the network runs on them')
    parser.add_argument('--seed', type=seed, default=0,
                        help='seed of every random choice (inference makes none, unless your --network does)')


def add_inference_flags(parser, list_name):
    """The flags of every script that makes files per image: which images, and what to do with files that exist.

    list_name: of the data set's list that is the default, for the help text.
    """
    parser.add_argument('--infer_list', help=f"list of image ids (the data set's {list_name})")
    add_switch(parser, '--overwrite', 'do images again whose files exist')
    add_shard_flag(parser)


def add_shard_flag(parser):
    """--shard, of every script that makes files per image; engine.ranks.own_shard reads it."""
    parser.several_processes = APART
    parser.add_argument('--shard', type=shard, metavar='I/N',
                        help='do only every N-th image of the list, from the I-th on (0-based), as one of N jobs that '
                             'fill the same folders; torchrun deals the list by itself')


def shard(value):
    """The ranks.Shard of a text I/N (argparse type)."""
    index, _, number = value.partition('/')
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number) <= LARGEST):
        raise argparse.ArgumentTypeError(f'{value!r} is no I/N with 0 <= I < N (of four jobs 0/4 to 3/4)')
    return ranks.Shard(int(index), int(number))


def add_training_flags(parser):
    """The flags of contrast_train.py and aff_train.py, published names and defaults, but for the number of epochs."""
    parser.add_argument('--weights', required=True, help='pretrained weights: .pth or (ImageNet ResNet-38) .params')
    parser.add_argument('--session_name', type=session, required=True,
                        help='path without suffix of what the run writes: <session>.pth, .ckpt, .json, .losses.jsonl')
    parser.add_argument('--train_list', help="list of image ids to train on (the data set's train_aug)")
    parser.add_argument('--val_list', empty=True, help='list of image ids validated after each epoch, without masks; '
                                                       "'' for none (the data set's val)")
    parser.add_argument('--batch_size', type=positive, default=8, help='images a step, over all processes')
    parser.add_argument('--accumulate', type=positive, default=1,
                        help='micro-batches in which each process makes its share of a step: less memory, more time, '
                             'the same result (docs/GPUS.md)')
    parser.add_argument('--lr', type=positive_number, default=0.01,
                        help='learning rate of pretrained weights (new layers: ten times)')
    parser.add_argument('--wt_dec', type=non_negative_number, default=5e-4, help='weight decay (biases: none)')
    parser.add_argument('--momentum', type=unit_interval, default=5e-4,
                        help='SGD momentum; the published code passes the weight decay by mistake, 0.9 was meant')
    parser.add_argument('--crop_size', type=side, default=448, help='side of the training crop in pixels')
    add_run_flags(parser)


def add_run_flags(parser):
    """The flags of every resumable training run, which several processes may share."""
    parser.several_processes = TOGETHER
    parser.add_argument('--tblog_dir', default='./tblog', empty=True, help="TensorBoard folder; '' for none")
    parser.add_argument('--save_every', type=non_negative, default=500,
                        help='steps between checkpoints; another is written after each epoch (0: only those)')
    parser.add_argument('--log_every', type=positive, default=10,
                        help='steps between readings of the losses (a reading waits for the device)')
    parser.add_argument('--picture_every', type=non_negative, default=200,
                        help='steps between pictures; another is drawn after the last step (0: only that)')
    add_switch(parser, '--resume', 'continue <session>.ckpt where it stopped')
    add_switch(parser, '--overwrite', 'start anew although <session>.ckpt exists')


# ---------------------------------------------------------------- networks

def backbone(value):
    """The name of a backbone (argparse type)."""
    if not names.known(value):
        raise argparse.ArgumentTypeError(f'{value!r} is unknown; give {names.CHOICES}')
    return value


def add_backbone_flags(parser, script):
    """--backbone, --stride of a script with --network. Not given they stay None until choose_backbone fills them in."""
    default = names.PUBLISHED if script == 'train' else f'that of <session>.json beside --weights, or {names.PUBLISHED}'
    parser.add_argument('--backbone', type=backbone, before=names.PUBLISHED,
                        help=f'{names.CHOICES}, with the heads of the published network ({default})')
    parser.add_argument('--stride', type=stride, choices=names.STRIDES, before=names.STRIDES[0],
                        help="pixels of the image per cell of the backbone's features; 16 takes a quarter of the time "
                             f'and memory of the last layers ({names.STRIDES[0]})')


def choose_backbone(args, network, stored=False):
    """Fill in args.network, args.backbone and args.stride: as given, else the published ones.

    network: the step's published network, or the recipe's. stored: what <session>.json beside --weights says comes
    before these. UserError: --network beside --backbone or --stride; a stride that ResNet-38 has not.
    """
    for flag in ('backbone', 'stride'):
        if args.network is not None and getattr(args, flag) is not None:
            raise UserError('--network', f'is given together with --{flag}', 'give one of the two')
    found = runinfo.settings_of(args.weights) if stored and args.network is None else {}
    if args.backbone is None:
        args.backbone, stored_stride = names.recorded(found)
        args.stride = args.stride or stored_stride
    args.stride = args.stride or names.STRIDES[0]
    # Another module than the project's own is the user's to name: a file from elsewhere must not choose what code runs.
    if str(found.get('network')).startswith('network.') and found.get('baseline') == getattr(args, 'baseline', None):
        network = found['network']
    args.network = network if args.network is None else args.network
    if args.backbone == names.PUBLISHED and args.stride != names.STRIDES[0]:
        raise UserError('--stride', f'{names.PUBLISHED} has stride {names.STRIDES[0]} alone',
                        'leave it out, or choose another --backbone')


def network_in_words(args):
    """The network of a script's flags in one text, for what says how files were made."""
    return args.network if args.backbone == names.PUBLISHED else names.in_words(args.backbone, args.stride)


# ---------------------------------------------------------------- recipes

def add_recipe_flags(parser, script):
    """--baseline, --background_last, --backbone, --stride, and a flag for every setting of a Recipe that `script`
    ('train', 'infer') reads.

    Flags that are not given stay None until chosen_recipe fills in the baseline's values.
    """
    stored = ' (as <session>.json beside --weights says; seam without one)' if script == 'infer' else ''
    parser.add_argument('--baseline', choices=RECIPES, default=None if script == 'infer' else 'seam',
                        help='network, losses and settings, as published: '
                             + ', '.join(f'{recipe.name} ({recipe.title})' for recipe in RECIPES.values()) + stored)
    add_switch(parser, '--background_last', '--weights are of published EPS without contrast, where background is the '
                                            'last channel (its files with contrast are recognised)')
    add_backbone_flags(parser, script)
    for field in recipe_settings(script):
        bounds = {key: field.metadata[key] for key in ('low', 'high', 'above')}
        kind = text if field.metadata['kind'] is str else number(field.metadata['kind'], **bounds)
        defaults = _by_baseline([getattr(recipe, field.name) for recipe in RECIPES.values()])
        parser.add_argument(f'--{field.name}', type=kind, choices=field.metadata['choices'],
                            help=f'{field.metadata["help"]} ({defaults})')
    if script == 'train':
        for name, term in TERMS.items():
            defaults = _by_baseline([recipe.weights.get(name) for recipe in RECIPES.values()])
            parser.add_argument(f'--w_{name}', type=non_negative_number,
                                help=f'weight of the term {name}, {term.meaning}; 0 switches it off ({defaults})')


def recipe_settings(script):
    """The fields of Recipe that are flags of a script."""
    return [field for field in dataclasses.fields(Recipe) if script in field.metadata.get('scripts', ())]


def _by_baseline(values):
    """A flag's default for each baseline (`values`, in the order of RECIPES), in words: 'seam, cam: 8; eps: 15'."""
    groups = {}
    for name, value in zip(RECIPES, values):
        if value is not None:
            words = 'to be given' if value == '' else f'{value:.4g}' if isinstance(value, float) else value
            groups.setdefault(words, []).append(name)
    return '; '.join(f'{", ".join(names)}: {value}' for value, names in groups.items())


def chosen_recipe(args, script):
    """The Recipe of --baseline with what the command line changes; its values are filled into `args`.

    UserError where a flag is given that the baseline has no use for, or one is missing that it needs. A weight of 0
    may always be given.
    """
    if args.baseline is None:
        stored = runinfo.settings_of(args.weights).get('baseline')
        args.baseline = stored if stored in RECIPES else 'seam'
    recipe = RECIPES[args.baseline]
    choose_backbone(args, recipe.network, stored=script == 'infer')
    changes = {}
    for field in recipe_settings(script):
        changes[field.name] = _resolve(args, field.name, getattr(recipe, field.name))
    if script == 'train':
        weights = {name: _resolve(args, f'w_{name}', recipe.weights.get(name)) for name in TERMS}
        changes['weights'] = {name: weights[name] for name in recipe.weights}
    return dataclasses.replace(recipe, **changes)


def _resolve(args, name, default):
    """The value of a recipe's flag, also put into `args`: as given, else the recipe's. UserError, as chosen_recipe."""
    value = getattr(args, name)
    if default is None and value is not None and not (name.startswith('w_') and value == 0):
        users = [recipe.name for recipe in RECIPES.values()
                 if (recipe.weights.get(name[2:]) if name.startswith('w_') else getattr(recipe, name)) is not None]
        raise UserError(f'--{name}', f'--baseline {args.baseline} does not use it',
                        f'leave it out, or choose --baseline {" or ".join(users)}')
    if default == '' and not value:
        raise UserError(f'--{name}', f'is missing, --baseline {args.baseline} needs it', 'give it')
    # A weight of 0 where the baseline has no such term says nothing, and must not count as another setting.
    setattr(args, name, default if value is None or default is None else value)
    return getattr(args, name)
