"""Run the whole chain, Step 1 to 3, on PASCAL VOC 2012: the README's commands one by one, then the Model Zoo table.

    python reproduce.py --baseline seam --voc12_root VOC2012 --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params

Reads  --voc12_root (the devkit), --weights, with --baseline eps --saliency_dir and --deeplab_weights.
Writes all into --out: what each step makes, log/<step>.log, and report.html, a page that opens without a network.
A step that is done is skipped, one that was stopped goes on where it was. --dry_run prints the commands only.
"""
import os
import shlex
from pathlib import Path

from tool import chain, cli, pipeline
from tool.cli import UserError


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--baseline', choices=chain.BASELINES, default='seam', help='what the contrast is added to')
    parser.add_argument('--voc12_root', default='VOC2012', help='folder of the VOC devkit (holds JPEGImages/)')
    parser.add_argument('--weights', required=True, help='ImageNet ResNet-38 that Steps 1, 2 start from (.params, .pth)')
    parser.add_argument('--deeplab_weights', help='backbone of Step 3 (seam: --weights unless given; eps: a ResNet-101)')
    defaults = ', '.join(f'{baseline}: {name}' for baseline, name in chain.EXPERIMENT.items())
    parser.add_argument('--experiment', help=f'settings of Step 3 ({defaults})')
    parser.add_argument('--saliency_dir', help='folder of saliency maps <id>.png (eps only)')
    cli.add_switch(parser, '--masks_crf', "train Step 3 on the random walk's masks after the CRF (seam)", default=True)
    parser.add_argument('--lists', default='voc12', help='folder for the lists and image-level labels')
    parser.add_argument('--out', help='folder of the run (runs/reproduce_<baseline> unless given)')
    parser.add_argument('--from', dest='start', metavar='STEP',
                        help='do this step and all after it anew; take those before it as done')
    parser.add_argument('--add', action='append', default=[], metavar='"STEP WORDS"',
                        help='words to add to the command of a step: --add "contrast_train --batch_size 4"')
    cli.add_switch(parser, '--dry_run', 'print the commands and run nothing')
    cli.add_worker_flag(parser)
    cli.add_device_flags(parser)
    parser.set_defaults(num_workers=None, device=None)  # each script's own default, and not in the printed commands
    return parser


def main(args):
    if not args.dry_run:
        check(args)
    paths = chain.Paths(
        weights=portable(args.weights), out=portable(args.out or cli.REPO / 'runs' / f'reproduce_{args.baseline}'),
        voc12_root=portable(args.voc12_root), lists='voc12' if args.lists == 'voc12' else portable(args.lists),
        deeplab_weights=portable(args.deeplab_weights or ''), saliency_dir=portable(args.saliency_dir or ''),
        experiment=args.experiment or '', masks_crf=args.masks_crf)
    steps = chain.chain(args.baseline, paths, added_words(args.add), shared_words(args), args.num_workers, args.device)
    pipeline.run_steps(steps, cli.REPO / paths.under('log'), args.dry_run, args.start)
    if not args.dry_run:
        finish(args.baseline, paths, steps)


def check(args):
    """Refuse, before hours of work, what would stop a later step. UserError naming the flag."""
    if not (Path(args.voc12_root) / 'JPEGImages').is_dir():
        raise UserError('--voc12_root', f'{args.voc12_root} is no VOC devkit: it has no JPEGImages',
                        'give the folder that holds it')
    for flag in ('--weights', '--deeplab_weights', '--saliency_dir'):
        path = getattr(args, flag[2:])
        if path and not Path(path).exists():
            raise UserError(flag, f'{path} does not exist', 'correct it; the README says where to get it')
        if args.baseline == 'eps' and not path:
            raise UserError(flag, 'is needed for --baseline eps', 'give it; the README says where to get it')
    if args.baseline == 'seam' and args.saliency_dir:
        raise UserError('--saliency_dir', 'SEAM uses no saliency maps', 'leave it out, or add --baseline eps')


def portable(path):
    """A path of the user's for the steps, which run in the repository's folder: relative to it if it lies inside."""
    if not str(path):
        return ''
    path = Path(os.path.abspath(path))
    return str(path.relative_to(cli.REPO) if path.is_relative_to(cli.REPO) else path)


def added_words(texts):
    """{step: words} of the --add flags."""
    extra = {}
    for text in texts:
        name, *words = shlex.split(text) or ['']
        extra.setdefault(name, []).extend(words)
    return extra


def shared_words(args):
    """The flags of every step with a network that are not at their default."""
    return (*(('--amp', args.amp) if args.amp != 'off' else ()), *(('--seed', str(args.seed)) if args.seed else ()))


def finish(baseline, paths, steps):
    """Build the report and print the Model Zoo table."""
    from tool import report
    from voc12.classes import VOC
    os.chdir(cli.REPO)  # where the paths count from
    title = f'Pixel-to-prototype contrast with {baseline.upper()} on {VOC.name}'
    page = report.build(chain.report_input(baseline, paths, steps, title), paths.under('report.html'), VOC)
    print('\n' + report.text_table(chain.rows(baseline, paths)) + f'\n\nwrote {page}')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
