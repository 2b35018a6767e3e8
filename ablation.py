"""What each loss term adds, on the toy VOC or on photos: a row a set of losses, several seeds each; medians and spread.

    python ablation.py [--out runs/ablation] [--seeds 3]
    python ablation.py --preset laptop --voc12_root VOC2012 --rows 'plain CAM' SEAM --seeds 1
    python ablation.py --preset laptop --voc12_root VOC2012 --dataset docs/laptop/dataset.yaml ...    (seven channels)

Reads  the preset's backbone (toy/backbone.pth); --voc12_root, but for the toy, which is drawn; --dataset, where given.
Writes the toy set, every run and table.md into --out, and a line for each finished run into --record. Runs that are
       done are skipped, a run that was stopped goes on where it was.
The figures are seeds (cam of contrast_infer.py, no CRF) on the train split, in mIoU.
"""
import json
import os
import statistics
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data.description import read_dataset
from engine import cli, files, machine
from engine.errors import UserError
from engine.parallel import progress
from report import chain
from report.pipeline import Step, end_children, ended_by_sigterm, portable, read_record, run_steps
from report.presets import PRESETS, mean_over
from tool.recipes import RECIPES


@dataclass(frozen=True)
class Row:
    """A row of the table. folder: name of its runs' folders. baseline: of tool/recipes.py. off: terms of weight 0.
    train: further arguments of contrast_train.py. start: the row whose trained weights it starts from, of the same
    seed; '' for the preset's backbone."""
    folder: str
    baseline: str
    off: tuple = ()
    train: tuple = ()
    start: str = ''

    @property
    def recipe(self):
        """The row's Recipe."""
        return RECIPES[self.baseline]


CONTRAST = ('cross_prototype', 'cross_cam', 'intra')
WITH_PCM = ('saliency_rv', 'rvmin', 'er', 'ecr', *CONTRAST)
ROWS = {
    'plain CAM': Row('cam', 'cam'),
    'SEAM': Row('seam', 'seam', CONTRAST),
    '+ cross-prototype': Row('cross_prototype', 'seam', ('cross_cam', 'intra')),
    '+ cross-CAM': Row('cross_cam', 'seam', ('intra',)),
    '+ intra-view (full PPC)': Row('full', 'seam'),
    'full PPC, momentum 5e-4 (published)': Row('full_published_momentum', 'seam', train=('--momentum', 5e-4)),
    'full PPC, background score 0.20 (published)': Row('full_bg20', 'seam', train=('--bg_threshold', 0.20)),
    'full PPC, background score 0.30': Row('full_bg30', 'seam', train=('--bg_threshold', 0.30)),
    'full PPC, background score 0.50': Row('full_bg50', 'seam', train=('--bg_threshold', 0.50)),
    'full PPC, 8 epochs': Row('full_8_epochs', 'seam', train=('--max_epoches', 8)),
    'SEAM, 8 epochs': Row('seam_8_epochs', 'seam', CONTRAST, ('--max_epoches', 8)),
    "full PPC from SEAM's weights": Row('full_from_seam', 'seam', start='SEAM'),
    "SEAM from SEAM's weights": Row('seam_from_seam', 'seam', CONTRAST, start='SEAM'),
    'full PPC, temperature 0.2': Row('full_temperature20', 'seam', train=('--temperature', 0.2)),
    'full PPC, prototypes of 1/16': Row('full_fraction16', 'seam', train=('--prototype_fraction', 1 / 16)),
    'SEAM, stride 8': Row('seam_stride8', 'seam', CONTRAST, ('--stride', 8)),
    'full PPC, stride 8': Row('full_stride8', 'seam', train=('--stride', 8)),
    'EPS': Row('eps_plain', 'eps_plain'),
    'EPS on two views': Row('eps_two_views', 'eps', WITH_PCM),
    'EPS + PPC': Row('eps', 'eps'),
    "EPS + PPC, SEAM's ECR target": Row('eps_seam_target', 'eps', train=('--ecr_target', 'seam')),
}


TOY_ROWS = ('plain CAM', 'SEAM', '+ cross-prototype', '+ cross-CAM', '+ intra-view (full PPC)',
            'full PPC, momentum 5e-4 (published)', 'EPS', 'EPS on two views', 'EPS + PPC',
            "EPS + PPC, SEAM's ECR target")
training = {}  # {run folder: a lock}: a run may be asked for twice, as a row and as another row's start
training_lock = threading.Lock()


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--preset', choices=[name for name, preset in PRESETS.items() if preset.background],
                        default='toy', help='data and settings: report/presets.py')
    parser.add_argument('--voc12_root', help='folder of the VOC devkit, for a preset that draws no images')
    parser.add_argument('--dataset', metavar='FILE', help='dataset.yaml in place of VOC: its classes, lists and labels')
    parser.add_argument('--out', help='folder for everything (runs/ablation; runs/ablation_<preset> for another than '
                                      'toy, with _dataset for --dataset)')
    parser.add_argument('--record', help='JSON Lines file that gets a line for each finished run (<out>/runs.jsonl '
                                         'unless given)')
    parser.add_argument('--seeds', type=cli.positive, default=3, help='runs a row')
    parser.add_argument('--jobs', type=cli.positive, default=machine.cores(), help='runs at the same time')
    parser.add_argument('--threads', type=cli.positive, default=1, help='threads of each run')
    cli.add_precision_flags(parser)
    parser.add_argument('--rows', nargs='+', choices=tuple(ROWS), metavar='ROW',
                        help='rows to run, of: ' + '; '.join(ROWS) + ' (toy: those it has figures of; else all rows '
                                                                     'whose baseline the preset has)')
    return parser


def main(args):
    preset = PRESETS[args.preset]
    args.rows = args.rows or [row for row in (TOY_ROWS if args.preset == 'toy' else ROWS)
                              if ROWS[row].baseline in preset.background]
    check(args, preset)
    default = 'ablation' if args.preset == 'toy' else f'ablation_{args.preset}'
    args.out = portable(args.out or files.REPO / 'runs' / (default + '_dataset' * bool(args.dataset)))
    args.dataset = portable(args.dataset or '')
    args.record = portable(args.record or Path(args.out) / 'runs.jsonl')
    args.voc12_root = portable(args.voc12_root or f'{args.out}/VOC2012')
    args.weights = portable(files.REPO / preset.weights_file())
    os.chdir(files.REPO)  # where the paths of the commands count from
    out = files.out_dir(args.out, '--out')
    run_steps(data_steps(args, preset), out / 'logs')
    jobs = [(row, seed) for seed in range(args.seeds) for row in args.rows]
    with ended_by_sigterm(), ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda job: run_row(args, *job), jobs)
        try:
            scores = dict(zip(jobs, progress(results, 'ablation', len(jobs), unit='run')))
        except BaseException:  # stopped, or one run failed: the others save and end too
            pool.shutdown(wait=False, cancel_futures=True)
            end_children()
            raise
    text = table(scores, args.rows, args.seeds)
    files.save_text(out / 'table.md', text)
    print(text)


def check(args, preset):
    """UserError for a preset without its photos, with photos it has no use for, or rows it has no settings for."""
    for flag in ('--voc12_root', '--dataset'):
        if preset.images and getattr(args, flag[2:]):
            raise UserError(flag, f'--preset {preset.name} draws its own images', 'leave it out')
    if not preset.images and not args.voc12_root:
        raise UserError('--voc12_root', f'is missing, --preset {preset.name} needs it', 'give the VOC devkit')
    for row in args.rows:
        if ROWS[row].baseline not in preset.background:
            raise UserError('--rows', f'--preset {preset.name} has no settings for {row!r}', 'leave it out')


def data_steps(args, preset):
    """The steps that make the toy set, where there is no --voc12_root, and VOC's lists."""
    if args.dataset:
        return []
    out, root = Path(args.out), args.voc12_root
    draw = Step('toy', ('toy/make.py', '--out', root, *preset.image_counts()), leaves=(f'{root}/JPEGImages',))
    only = ('--only', preset.lists) if preset.lists else ()
    prepare = ('voc12/prepare.py', '--voc12_root', root, '--out', out / 'lists', *only)
    return [*((draw,) if preset.images else ()),
            Step('prepare', prepare, after=('toy',), leaves=(out / 'lists/train.txt', out / 'lists/cls_labels.npy'))]


def run_row(args, row, seed):
    """Train, infer and evaluate one row with one seed. args: the script's flags.

    Returns (mIoU at the best threshold, that threshold, mIoU at the fixed one, that threshold).
    """
    run = run_folder(Path(args.out), row, seed)
    if ROWS[row].start:
        run_once(args, ROWS[row].start, seed, 'contrast_train')
    run_once(args, row, seed)
    result = json.loads((run / 'eval.txt.json').read_text(encoding='utf-8'))
    of_preset = () if args.dataset else PRESETS[args.preset].classes  # those are names of VOC's
    names = of_preset or tuple(result['fixed']['class_iou'])
    keep(args.record, record_of(args, row, seed, result, names))
    return tuple(value for kind in ('best', 'fixed')
                 for value in (mean_over(result[kind]['class_iou'], names), result[kind]['threshold']))


def run_once(args, row, seed, last=None):
    """Run the steps of a row, up to the step `last`, while no other thread does."""
    run = run_folder(Path(args.out), row, seed)
    steps = row_steps(args, row, seed)
    names = [step.name for step in steps]
    with training_lock:
        lock = training.setdefault(run, threading.Lock())
    with lock:
        run_steps(steps[:names.index(last) + 1] if last else steps, run / 'logs', quiet=True)


def record_of(args, row, seed, result, names):
    """What is kept of a finished run, as a JSON-ready dict. result: eval.py's JSON. names: of the classes counted."""
    run = run_folder(Path(args.out), row, seed)
    info = json.loads((run / 'net.json').read_text(encoding='utf-8'))
    hours = {step: round(read_record(run / 'logs', step)['seconds'] / 3600, 3)
             for step in ('contrast_train', 'contrast_infer')}
    scores = {kind: {'miou': round(mean_over(result[kind]['class_iou'], names), 2),
                     'threshold': result[kind]['threshold'],
                     'class_iou': {name: round(result[kind]['class_iou'][name], 2) for name in names}}
              for kind in ('best', 'fixed')}
    return {'preset': args.preset, 'dataset': args.dataset or 'voc12', 'row': row, 'seed': seed,
            'images': result['images'], **scores, 'hours': hours,
            'commit': info['git_commit'], 'device': info['device'], 'processor': machine.processor(),
            'threads': args.threads, 'amp': args.amp, 'python': info['python'], 'packages': info['packages'],
            'settings': [str(text) for text in ROWS[row].train]}


def keep(path, line):
    """Put a run's line into a JSON Lines file, in place of the one of this preset, data, row and seed."""
    def key(line):
        return [line[name] for name in ('preset', 'dataset', 'row', 'seed')]
    with training_lock:
        path = Path(path)
        text = path.read_text(encoding='utf-8') if path.exists() else ''
        lines = [other for other in map(json.loads, text.splitlines()) if key(other) != key(line)]
        files.out_dir(path.parent, '--record')
        files.save_text(path, ''.join(json.dumps(entry) + '\n' for entry in (*lines, line)))


def run_folder(out, row, seed):
    """The folder of one run of a row."""
    return out / f'{ROWS[row].folder}_seed{seed}'


def paths_of(args):
    """The chain.Paths of what the commands read."""
    return chain.Paths(weights=args.weights, out=args.out, voc12_root=args.voc12_root, lists=f'{args.out}/lists',
                       data=read_dataset(files.REPO / args.dataset) if args.dataset else None)


def row_steps(args, row, seed):
    """The three commands of one run of a row. args: the script's flags."""
    out, root, preset = Path(args.out), args.voc12_root, PRESETS[args.preset]
    recipe, run = ROWS[row].recipe, run_folder(out, row, seed)
    paths = paths_of(args)
    scored = paths.list('train')
    data = ('--baseline', recipe.name, *paths.where, *chain.label_flag(paths), '--amp', args.amp)
    start = run_folder(out, ROWS[row].start, seed) / 'net.pth' if ROWS[row].start else args.weights
    machine = ('--device', args.device, '--threads', args.threads, '--num_workers', 0)
    saliency = ('--saliency_dir', f'{root}/SALImages') if recipe.saliency else ()
    weights = [text for name in ROWS[row].off for text in (f'--w_{name}', 0)]
    train = ('contrast_train.py', '--weights', start, *data, '--train_list',
             paths.list('train' if preset.images else 'train_aug'), '--val_list', '',
             '--session_name', run / 'net', '--tblog_dir', run / 'tb', '--seed', seed,
             *preset.training(recipe), *ROWS[row].train, *saliency, *weights, '--resume')
    infer = ('contrast_infer.py', '--weights', run / 'net.pth', *data, '--infer_list', scored, '--out_cam', run / 'cam',
             *preset.seeds(recipe))
    score = ('eval.py', *paths.described, '--list', scored, '--predict_dir', run / 'cam',
             '--gt_dir', paths.truth, '--comment', f'{row}, seed {seed}', '--type', 'npy',
             '--curve', *preset.fixed_threshold(recipe), '--logfile', run / 'eval.txt', '--num_workers', 0)
    return [Step('contrast_train', train, machine=machine, leaves=(run / 'net.pth',)),
            Step('contrast_infer', infer, ('contrast_train',), machine, leaves=(run / 'cam',)),
            Step('eval', score, ('contrast_infer',))]


def summary(runs):
    """The cells of a row: median and range at the best threshold, its median, median at the fixed threshold, that one.

    runs: what run_row returns, of each run.
    """
    best, best_at, fixed, fixed_at = zip(*runs)
    return [f'{statistics.median(best):.1f}', f'{min(best):.1f} to {max(best):.1f}',
            f'{statistics.median(best_at):.2f}', f'{statistics.median(fixed):.1f}', f'{fixed_at[0]:.2f}']


def table(scores, rows, seeds):
    """The Markdown table of {(row, seed): what run_row returns}: medians over seeds, and the range."""
    lines = [f'| losses | mIoU, best threshold (median of {seeds}) | lowest to highest | its threshold | mIoU, fixed '
             'threshold | the fixed one |', '|---|---|---|---|---|---|']
    for row in rows:
        extra = ' (extra supervision: saliency)' if ROWS[row].recipe.saliency else ''
        lines.append(f'| {row}{extra} | {" | ".join(summary([scores[row, seed] for seed in range(seeds)]))} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    cli.run(main, get_args_parser())
