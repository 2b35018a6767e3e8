"""What each loss term adds, on the toy VOC: a row a set of losses, several seeds each; medians and spread.

    python ablation.py [--out runs/ablation] [--seeds 3]

Reads  voc12/toy_backbone.pth. Writes the toy set, every run and table.md into --out. Runs that are done are skipped.
The figures are seeds (cam of contrast_infer.py, no CRF) on the toy train split, in mIoU.
"""
import json
import statistics
from concurrent.futures import ThreadPoolExecutor

from tool import cli

SEAM = ('rvmin', 'er', 'ecr')
CONTRAST = ('cross_prototype', 'cross_cam', 'intra')
EPS = ('--baseline', 'eps')
PLAIN_EPS = (*EPS, '--network', 'network.resnet38_eps')
ROWS = {  # row: (the terms that are off, further words of training, further words of inference)
    'plain CAM': ((*SEAM, *CONTRAST), (), ('--map', 'plain')),
    'SEAM': (CONTRAST, (), ()),
    '+ cross-prototype': (('cross_cam', 'intra'), (), ()),
    '+ cross-CAM': (('intra',), (), ()),
    '+ intra-view (full PPC)': ((), (), ()),
    'full PPC, momentum 5e-4 (published)': ((), ('--momentum', 5e-4), ()),
    'EPS': ((), PLAIN_EPS, PLAIN_EPS),
    'EPS + PPC': ((), EPS, EPS),
}


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', default='runs/ablation', help='folder for everything')
    parser.add_argument('--seeds', type=cli.positive, default=3, help='runs a row')
    parser.add_argument('--jobs', type=cli.positive, default=cli.cores(), help='runs side by side, one thread each')
    parser.add_argument('--rows', nargs='+', choices=tuple(ROWS), default=tuple(ROWS), metavar='ROW',
                        help='rows to run, of: ' + '; '.join(ROWS))
    return parser


def main(args):
    import os

    from tool import files, parallel
    from tool.pipeline import run_steps
    os.environ['OMP_NUM_THREADS'] = '1'  # of every run: as many run side by side as there are cores
    out = files.out_dir(args.out, '--out')
    run_steps(data_steps(out), out / 'logs')
    jobs = [(row, seed) for seed in range(args.seeds) for row in args.rows]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda job: run_row(out, *job), jobs)
        scores = dict(zip(jobs, parallel.progress(results, 'ablation', len(jobs), unit='run')))
    text = table(scores, args.rows, args.seeds)
    files.save_text(out / 'table.md', text)
    print(text)


def data_steps(out):
    """The steps that make the toy set and its lists."""
    from tool.pipeline import Step
    from voc12 import toy_recipe
    prepare = ('voc12/prepare.py', '--voc12_root', out / 'VOC2012', '--out', out / 'lists')
    return [Step('toy', ('voc12/toy.py', '--out', out / 'VOC2012', *toy_recipe.counts())),
            Step('prepare', prepare, after=('toy',))]


def run_row(out, row, seed):
    """Train, infer and evaluate one row with one seed.

    Returns (mIoU at the best threshold, that threshold, mIoU at the fixed one, that threshold).
    """
    from tool.pipeline import run_steps
    run = run_folder(out, row, seed)
    run_steps(row_steps(out, row, seed), run / 'logs', quiet=True)
    result = json.loads((run / 'eval.txt.json').read_text())
    return tuple(result[kind][value] for kind in ('best', 'fixed') for value in ('miou', 'threshold'))


def run_folder(out, row, seed):
    """The folder of one run of a row."""
    return out / f'{list(ROWS).index(row)}_seed{seed}'


def row_steps(out, row, seed):
    """The three commands of one run of a row."""
    from tool.pipeline import Step
    from voc12 import toy_recipe
    off, training, inference = ROWS[row]
    baseline, run = 'eps' if 'eps' in training else 'seam', run_folder(out, row, seed)
    lists = out / 'lists'
    data = ('--voc12_root', out / 'VOC2012', '--cls_labels', lists / 'cls_labels.npy', '--num_workers', 0,
            '--amp', 'bf16')
    weights = [word for name in off for word in (f'--w_{name}', 0)]
    saliency = ('--saliency_dir', out / 'VOC2012/SALImages') if baseline == 'eps' else ()
    train = ('contrast_train.py', '--weights', toy_recipe.BACKBONE, *data, '--train_list', lists / 'train.txt',
             '--val_list', '', '--session_name', run / 'net', '--tblog_dir', run / 'tb', '--seed', seed,
             *toy_recipe.CONTRAST_TRAIN, *training, *saliency, *weights, '--resume')
    infer = ('contrast_infer.py', '--weights', run / 'net.pth', *data, '--infer_list', lists / 'train.txt', '--out_cam',
             run / 'cam', *toy_recipe.CONTRAST_INFER[baseline], *inference)
    score = ('eval.py', '--list', lists / 'train.txt', '--predict_dir', run / 'cam',
             '--gt_dir', out / 'VOC2012/SegmentationClass', '--comment', f'{row}, seed {seed}', '--type', 'npy',
             '--curve', *toy_recipe.EVAL_SEEDS[baseline], '--logfile', run / 'eval.txt', '--num_workers', 0)
    return [Step('contrast_train', train), Step('contrast_infer', infer, ('contrast_train',)),
            Step('eval', score, ('contrast_infer',))]


def table(scores, rows, seeds):
    """The Markdown table of {(row, seed): what run_row returns}: medians over seeds, and the range."""
    lines = [f'| losses | mIoU, best threshold (median of {seeds}) | lowest to highest | its threshold | mIoU, fixed '
             'threshold | the fixed one |', '|---|---|---|---|---|---|']
    for row in rows:
        best, best_at, fixed, fixed_at = zip(*(scores[row, seed] for seed in range(seeds)))
        lines.append(f'| {row} | {statistics.median(best):.1f} | {min(best):.1f} to {max(best):.1f} '
                     f'| {statistics.median(best_at):.2f} | {statistics.median(fixed):.1f} | {fixed_at[0]:.2f} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    cli.run(main, get_args_parser())
