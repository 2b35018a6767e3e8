"""What each loss term adds, on the toy VOC: a row a set of losses, several seeds each; medians and spread.

    python ablation.py [--out runs/ablation] [--seeds 3]

Reads  toy/backbone.pth. Writes the toy set, every run and table.md into --out. Runs that are done are skipped.
The figures are seeds (cam of contrast_infer.py, no CRF) on the toy train split, in mIoU.
"""
import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine import cli, files, machine
from engine.parallel import progress
from report.pipeline import Step, portable, run_steps
from report.presets import TOY
from tool.recipes import RECIPES


@dataclass(frozen=True)
class Row:
    """A row of the table. folder: name of its runs' folders. baseline: of tool/recipes.py. off: terms of weight 0.
    train: further arguments of contrast_train.py."""
    folder: str
    baseline: str
    off: tuple = ()
    train: tuple = ()

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
    'EPS': Row('eps_plain', 'eps_plain'),
    'EPS on two views': Row('eps_two_views', 'eps', WITH_PCM),
    'EPS + PPC': Row('eps', 'eps'),
    "EPS + PPC, SEAM's ECR target": Row('eps_seam_target', 'eps', train=('--ecr_target', 'seam')),
}


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', help='folder for everything (runs/ablation unless given)')
    parser.add_argument('--seeds', type=cli.positive, default=3, help='runs a row')
    parser.add_argument('--jobs', type=cli.positive, default=machine.cores(), help='runs at the same time')
    parser.add_argument('--threads', type=cli.positive, default=1, help='threads of each run')
    cli.add_precision_flags(parser)
    parser.add_argument('--rows', nargs='+', choices=tuple(ROWS), default=tuple(ROWS), metavar='ROW',
                        help='rows to run, of: ' + '; '.join(ROWS))
    return parser


def main(args):
    args.out = portable(args.out or files.REPO / 'runs' / 'ablation')
    os.chdir(files.REPO)  # where the paths of the commands count from
    out = files.out_dir(args.out, '--out')
    run_steps(data_steps(out), out / 'logs')
    jobs = [(row, seed) for seed in range(args.seeds) for row in args.rows]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda job: run_row(args, *job), jobs)
        scores = dict(zip(jobs, progress(results, 'ablation', len(jobs), unit='run')))
    text = table(scores, args.rows, args.seeds)
    files.save_text(out / 'table.md', text)
    print(text)


def data_steps(out):
    """The steps that make the toy set and its lists."""
    prepare = ('voc12/prepare.py', '--voc12_root', out / 'VOC2012', '--out', out / 'lists')
    return [Step('toy', ('toy/make.py', '--out', out / 'VOC2012', *TOY.image_counts()),
                 leaves=(out / 'VOC2012/JPEGImages',)),
            Step('prepare', prepare, after=('toy',), leaves=(out / 'lists/train.txt', out / 'lists/cls_labels.npy'))]


def run_row(args, row, seed):
    """Train, infer and evaluate one row with one seed. args: the script's flags.

    Returns (mIoU at the best threshold, that threshold, mIoU at the fixed one, that threshold).
    """
    run = run_folder(Path(args.out), row, seed)
    run_steps(row_steps(args, row, seed), run / 'logs', quiet=True)
    result = json.loads((run / 'eval.txt.json').read_text(encoding='utf-8'))
    return tuple(result[kind][value] for kind in ('best', 'fixed') for value in ('miou', 'threshold'))


def run_folder(out, row, seed):
    """The folder of one run of a row."""
    return out / f'{ROWS[row].folder}_seed{seed}'


def row_steps(args, row, seed):
    """The three commands of one run of a row. args: the script's flags."""
    out = Path(args.out)
    recipe, run, lists = ROWS[row].recipe, run_folder(out, row, seed), out / 'lists'
    data = ('--baseline', recipe.name, '--voc12_root', out / 'VOC2012', '--cls_labels', lists / 'cls_labels.npy',
            '--amp', args.amp)
    machine = ('--device', args.device, '--threads', args.threads, '--num_workers', 0)
    saliency = ('--saliency_dir', out / 'VOC2012/SALImages') if recipe.saliency else ()
    weights = [text for name in ROWS[row].off for text in (f'--w_{name}', 0)]
    train = ('contrast_train.py', '--weights', TOY.weights, *data, '--train_list', lists / 'train.txt',
             '--val_list', '', '--session_name', run / 'net', '--tblog_dir', run / 'tb', '--seed', seed,
             *TOY.training(recipe), *ROWS[row].train, *saliency, *weights, '--resume')
    infer = ('contrast_infer.py', '--weights', run / 'net.pth', *data, '--infer_list', lists / 'train.txt', '--out_cam',
             run / 'cam', *TOY.seeds(recipe))
    score = ('eval.py', '--list', lists / 'train.txt', '--predict_dir', run / 'cam',
             '--gt_dir', out / 'VOC2012/SegmentationClass', '--comment', f'{row}, seed {seed}', '--type', 'npy',
             '--curve', *TOY.fixed_threshold(recipe), '--logfile', run / 'eval.txt', '--num_workers', 0)
    return [Step('contrast_train', train, machine=machine, leaves=(run / 'net.pth',)),
            Step('contrast_infer', infer, ('contrast_train',), machine, leaves=(run / 'cam',)),
            Step('eval', score, ('contrast_infer',))]


def table(scores, rows, seeds):
    """The Markdown table of {(row, seed): what run_row returns}: medians over seeds, and the range."""
    lines = [f'| losses | mIoU, best threshold (median of {seeds}) | lowest to highest | its threshold | mIoU, fixed '
             'threshold | the fixed one |', '|---|---|---|---|---|---|']
    for row in rows:
        best, best_at, fixed, fixed_at = zip(*(scores[row, seed] for seed in range(seeds)))
        extra = ' (extra supervision: saliency)' if ROWS[row].recipe.saliency else ''
        lines.append(f'| {row}{extra} | {statistics.median(best):.1f} | {min(best):.1f} to {max(best):.1f} '
                     f'| {statistics.median(best_at):.2f} | {statistics.median(fixed):.1f} | {fixed_at[0]:.2f} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    cli.run(main, get_args_parser())
