"""Score seeds, pseudo masks or segmentations against ground-truth masks (every step).

Reads   --list, <predict_dir>/<id>.npy (CAMs; a pixel is background where no class scores above the threshold)
        or <id>.png (masks), and <gt_dir>/<id>.png; pixels of ground truth 255 do not count.
Writes  a per-class table to the screen, an entry more in --logfile, and for the last run <logfile>.json and, with
        --curve, <logfile>.png.

    python eval.py --list voc12/train.txt --predict_dir out_cam --gt_dir VOC2012/SegmentationClass \
        --comment seeds --type npy --curve True
"""
import time
from pathlib import Path

from data.lists import read_list
from data.masks import BINARY
from engine import cli, files
from engine.errors import UserError
from engine.evaluation import absent_text, evaluate_cams, evaluate_masks
from tool import metrics

FIXED_THRESHOLD = 0.26  # the background score of contrast_infer.py --out_cam_pred_alpha


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    cli.add_dataset_flag(parser)
    parser.add_argument('--list', help="list of image ids (the data set's train)")
    parser.add_argument('--predict_dir', required=True, help='folder of the predictions')
    parser.add_argument('--gt_dir', help='folder of the ground-truth masks (of the data set; voc12: '
                                         'VOC2012/SegmentationClass)')
    parser.add_argument('--comment', required=True, empty=True, help='what this run is, for the log')
    parser.add_argument('--type', choices=('npy', 'png'), default='png', help='CAM dicts or label masks')
    cli.add_switch(parser, '--curve', f'try the {len(metrics.CURVE)} background scores '
                                      f'{metrics.CURVE[0]:.2f}..{metrics.CURVE[-1]:.2f} (--type npy)')
    parser.add_argument('--t', type=cli.unit_interval,
                        help=f'background score 0..1 of --type npy, {FIXED_THRESHOLD} unless given')
    parser.add_argument('--logfile', default='./evallog.txt', help='text log, appended to')
    cli.add_worker_flag(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for matplotlib.
    from report.figures import save_threshold_curve

    if args.type == 'png' and (args.curve or args.t is not None):
        raise UserError('--curve' if args.curve else '--t', 'a mask has no scores to compare with a threshold',
                        'leave it out, or score CAMs with --type npy')
    data = cli.chosen_dataset(args, list='train')
    if not args.gt_dir:
        raise UserError('--gt_dir', f'{data.source} names no ground truth', 'give the folder of masks to score with')
    ids = read_list(args.list, '--list')
    split = split_of(ids, args.list, data)
    logfile = Path(args.logfile)
    files.out_dir(logfile.parent, '--logfile')
    fixed = FIXED_THRESHOLD if args.t is None else args.t
    thresholds = [*metrics.CURVE.tolist(), fixed] if args.curve else [fixed]
    where = ids, args.predict_dir, args.gt_dir, data.classes
    result = (evaluate_masks(*where, args.num_workers) if args.type == 'png'
              else evaluate_cams(*where, thresholds, args.num_workers))
    summary = summarise(args, split, result, fixed)
    print(as_text(summary, result))
    append_log(logfile, args.comment, published_log(args, summary, result))
    files.save_json(f'{logfile}.json', summary)
    if args.curve:
        title = f'{" ".join(args.comment.split())}, {result.images} images, split {split}'
        save_threshold_curve(f'{logfile}.png', title, summary)


def split_of(ids, list_path, data):
    """The split that a list belongs to, judged by the lists beside it or else those of a data set (DataSet): 'train',
    'val', 'train_aug' or 'unknown'. UserError where it mixes images of val with training images: one number for both
    says nothing.
    """
    known, splits = {}, ('train', 'val', 'train_aug')
    beside = {name: files.repo_path(list_path).parent / f'{name}.txt' for name in splits}
    own = {name: files.repo_path(data.lists[name]) for name in splits if name in data.lists}
    for lists in (beside, own):
        if not known and all(name in lists and lists[name].is_file() for name in ('train', 'val')):
            known = {name: set(read_list(path)) for name, path in lists.items() if path.is_file()}
    for name in known:
        if known[name].issuperset(ids):
            return name
    if known and set().union(*known.values()).issuperset(ids):
        raise UserError(list_path, 'mixes images of val with images of train', 'score the splits one by one')
    return 'unknown'


def summarise(args, split, result, fixed):
    """What <logfile>.json holds. IoU in percent; "fixed" is at the threshold given, "best" the curve's best or None.

    "curve": {threshold: mIoU}, "curve_class_iou": {threshold: {class: IoU}}, where --curve is given.
    "absent": the classes that are neither in the ground truth nor predicted. They count as 0 in "miou", as published,
    and do not count in "miou_occurring".
    """
    def class_iou(index):
        return dict(zip(result.classes.names, result.class_iou[index].tolist()))

    def at(index):
        return {'threshold': None if result.thresholds is None else float(result.thresholds[index]),
                'miou': float(result.miou[index]),
                'miou_occurring': float(result.miou_occurring[index]),
                'absent': [name for name, occurs in zip(result.classes.names, result.occurring[index]) if not occurs],
                'class_iou': class_iou(index)}
    summary = {'comment': args.comment, 'time': time.strftime('%Y-%m-%d %H:%M:%S'), 'list': str(args.list),
               'split': split, 'images': result.images, 'predict_dir': str(args.predict_dir),
               'gt_dir': str(args.gt_dir), 'type': args.type,
               'unlabelled_fraction': float(result.unlabelled), 'ignored_fraction': float(result.ignored),
               'best': None, 'curve': None, 'curve_class_iou': None}
    summary['fixed'] = at(0 if result.thresholds is None else result.at(fixed))
    if args.curve:
        curve = [result.at(t) for t in metrics.CURVE.tolist()]
        summary['curve'] = {f'{result.thresholds[i]:.2f}': float(result.miou[i]) for i in curve}
        summary['curve_class_iou'] = {f'{result.thresholds[i]:.2f}': class_iou(i) for i in curve}
        summary['best'] = at(max(curve, key=lambda i: result.miou[i]))
    return summary


def as_text(summary, result):
    """The report on the screen: what was scored, the per-class table, and mIoU with what its threshold is."""
    fixed, best = summary['fixed'], summary['best']
    columns = [('mask' if fixed['threshold'] is None else f'fixed {fixed["threshold"]:g}', fixed)]
    if best:
        columns.append((f'best {best["threshold"]:.2f}', best))
    lines = [f'{summary["comment"]}: {summary["images"]} images of {summary["list"]} (split: {summary["split"]}), '
             f'{summary["predict_dir"]} against {summary["gt_dir"]}',
             f'{"IoU in %":<12}' + ''.join(f'{title:>12}' for title, _ in columns)]
    lines += [f'{name:<12}' + ''.join(f'{iou_text(column, name):>12}' for _, column in columns)
              for name in result.classes.names]
    lines.append(f'{"mIoU":<12}' + ''.join(f'{column["miou"]:12.2f}' for _, column in columns))
    if any(column['absent'] for _, column in columns):
        lines.append(f'{"  occurring":<12}' + ''.join(f'{column["miou_occurring"]:12.2f}' for _, column in columns))
        lines.append('–: neither in the ground truth nor predicted')
        at = 0 if result.thresholds is None else result.at(fixed['threshold'])
        lines.append(absent_text(result.counts[at]))
    if fixed['threshold'] is not None:
        lines.append(f'fixed: background score {fixed["threshold"]:g}, chosen without this ground truth')
    if best:
        at_the_end = best['threshold'] in metrics.CURVE[[0, -1]]
        edge = ', at the end of the range: the true best may lie outside' if at_the_end else ''
        lines.append(f'best on this ground truth: background score {best["threshold"]:.2f}, an upper bound{edge}')
    lines.append(f'{100 * result.ignored:.2f}% of the pixels are left out of the score: their ground truth is '
                 f'{metrics.IGNORE}')
    if result.binary:
        lines.append(f'warning: {summary["predict_dir"]} {BINARY}')
    if result.unlabelled:
        lines.append(f'{100 * result.unlabelled:.2f}% of the pixels have no predicted label ({metrics.IGNORE}); '
                     'each counts as a miss')
    return '\n'.join(lines)


def iou_text(column, name):
    """The IoU of a class in a column of the table; a dash where the class does not occur."""
    return '–' if name in column['absent'] else f'{column["class_iou"][name]:.2f}'


def published_log(args, summary, result):
    """What the published log holds: IoU per class and mIoU or, for a curve, the list of mIoU; and what the run was."""
    if args.curve:
        curve = [round(value, 3) for value in summary['curve'].values()]
        scores = {'mIoU': curve, 'best': summary['best']['threshold']}
    else:
        scores = {**{name: f'{value:.3f}' for name, value in summary['fixed']['class_iou'].items()},
                  'mIoU': f'{summary["fixed"]["miou"]:.3f}', 'threshold': summary['fixed']['threshold']}
    return scores | {'list': summary['list'], 'images': summary['images'], 'split': summary['split']}


def append_log(path, comment, entries):
    """Append one entry in the published form: date and comment, `key:value` pairs, a rule."""
    text = time.strftime('%Y-%m-%d %H:%M:%S') + f'\t{" ".join(comment.split())}\n'
    text += '  '.join(f'{key}:{value}' for key, value in entries.items()) + '\n' + '=' * 37 + '\n'
    try:
        with open(path, 'a', encoding='utf-8') as file:
            file.write(text)
    except OSError as error:
        raise UserError(path, f'log cannot be written ({error.strerror})', 'choose another --logfile') from error


if __name__ == '__main__':
    cli.run(main, get_args_parser())
