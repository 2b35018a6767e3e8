"""Run the whole chain, Step 1 to 3, on PASCAL VOC 2012: the README's commands, then a table of measured figures.

    python reproduce.py --baseline seam --voc12_root VOC2012 --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params
    python reproduce.py --dataset my_photos/dataset.yaml --weights ...            (another data set, docs/OWN_DATA.md)
    python reproduce.py --preset laptop --voc12_root VOC2012          (`make laptop`: small images of six classes)

Reads  --voc12_root (the devkit), --weights, with --baseline eps --saliency_dir and --deeplab_weights.
Writes all into --out: what each step makes, log/<step>.log, and report.html, a page that opens without a network.
A step that is done is skipped, a step that was stopped continues where it was. --dry_run prints the commands only.
"""
import os
import shlex
from pathlib import Path

from data.description import BUILT_IN, read_dataset
from engine import cli, files
from engine.errors import UserError
from report import chain, pipeline
from report.pipeline import portable
from report.presets import PRESETS
from tool.recipes import RECIPES


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--baseline', choices=RECIPES, default='seam', help='network, losses and settings')
    cli.add_root_flag(parser)
    parser.add_argument('--preset', choices=[name for name, preset in PRESETS.items() if not preset.images],
                        help='settings of report/presets.py in place of the published ones (coco14 with --dataset '
                             'coco14)')
    parser.add_argument('--weights', help="ImageNet backbone of Steps 1, 2 (with --preset laptop, the preset's)")
    parser.add_argument('--deeplab_weights', help='backbone of Step 3 (--weights unless given; a ResNet-101 for eps)')
    experiments = ', '.join(f'{recipe.name}: {recipe.experiment}' for recipe in RECIPES.values())
    parser.add_argument('--experiment', help=f'settings of Step 3 ({experiments})')
    parser.add_argument('--saliency_dir', help='folder of saliency maps <id>.png (for EPS only)')
    cli.add_switch(parser, '--masks_crf', "train Step 3 on the random walk's masks after the CRF (where there is one)",
                   default=True)
    parser.add_argument('--lists', help='folder for lists and labels of voc12 (voc12; <out>/lists with --preset '
                                        'laptop)')
    parser.add_argument('--out', help='folder of the run (runs/reproduce_<baseline>; runs/<preset>_<baseline>)')
    parser.add_argument('--from', dest='start', metavar='STEP',
                        help='do this step and all after it anew; take those before it as done')
    parser.add_argument('--add', action='append', default=[], metavar='"STEP ARGUMENTS"',
                        help='arguments to add to the command of a step: --add "contrast_train --batch_size 4"')
    cli.add_switch(parser, '--dry_run', 'print the commands and run nothing')
    chain.add_flags(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for matplotlib.
    from report import page

    recipe, preset = RECIPES[args.baseline], PRESETS.get(args.preset or args.dataset)
    data = read_dataset(args.dataset if args.dataset in BUILT_IN else os.path.abspath(args.dataset))
    choose(args, preset)
    if not args.dry_run:
        check(args, recipe, data)
    paths = paths_of(args, preset, data)
    shared = chain.shared_flags(args), chain.machine(args)
    extra = added_arguments(args.add, preset.extra(recipe) if preset else {})
    steps = chain.chain(recipe, paths, extra, *shared)
    if of_some_classes(preset, paths):  # published figures are of all classes: what these mean, a box says
        steps[1:1] = chain.box_steps(paths)
    pipeline.run_steps(steps, files.REPO / paths.under('log'), args.dry_run, args.start)
    if not args.dry_run:
        os.chdir(files.REPO)  # where the paths count from
        page.publish(describe(recipe, preset, paths, steps, data.classes), paths.under('report.html'), data.classes)


def choose(args, preset):
    """Fill in what the preset decides where no flag does. UserError: no weights, a baseline without settings."""
    if preset and preset.background and args.baseline not in preset.background:
        raise UserError('--baseline', f'--preset {preset.name} has no settings for {args.baseline}',
                        f'choose {" or ".join(preset.background)}')
    if preset:
        args.weights = args.weights or preset.weights_file()
        args.experiment = args.experiment or preset.experiment
    if not args.weights:
        raise UserError('--weights', 'is missing', 'give it; the README says where to get it')
    name = f'{args.preset or "reproduce"}_{args.baseline}'
    args.out = portable(args.out or files.REPO / 'runs' / name)
    if args.lists in (None, 'voc12'):
        args.lists = f'{args.out}/lists' if preset and preset.lists else 'voc12'
    else:
        args.lists = portable(args.lists)


def paths_of(args, preset, data):
    """The chain.Paths of the flags."""
    of_preset = {'alphas': preset.alphas, 'only': preset.lists} if preset else {}
    return chain.Paths(
        weights=portable(args.weights), out=args.out,
        voc12_root=portable(args.voc12_root or (data.root if args.dataset in BUILT_IN else '')),
        lists=args.lists, data=None if args.dataset == 'voc12' else data,
        deeplab_weights=portable(args.deeplab_weights or ''), saliency_dir=portable(args.saliency_dir or ''),
        experiment=args.experiment or '', masks_crf=args.masks_crf, **of_preset)


def of_some_classes(preset, paths):
    """Whether the preset takes means over some of VOC's classes."""
    return bool(preset and preset.classes and not paths.data)


def describe(recipe, preset, paths, steps, classes):
    """The description of the run for report/page.py. classes: the data set's ClassSet."""
    if not of_some_classes(preset, paths):
        return chain.report_input(recipe, paths, steps, f'{recipe.title} on {classes.name}')
    title = f'{recipe.title} on {len(preset.classes) - 1} classes of {classes.name}'
    notes = [f'Means over {", ".join(preset.classes)}: no figure of {classes.name} as papers report it.',
             'The fixed threshold was chosen before this run, on masks of train (docs/BACKBONES.md).']
    description = chain.report_input(recipe, paths, steps, title, notes)
    # Published figures are of all classes and other settings: next to these they would mislead.
    description['rows'] = [{**row, 'published': None, 'classes': preset.classes}
                           for row in (chain.box_row(recipe, paths), *description['rows'])]
    description['curves'] = [{**curve, 'classes': preset.classes} for curve in description['curves']]
    return description


def check(args, recipe, data):
    """Refuse, before hours of work, what would stop a later step. UserError naming the flag."""
    for folder in data.photos(args.voc12_root).folders:
        if not folder.is_dir():
            raise UserError('--voc12_root', f'{args.voc12_root or data.root} has no {folder.name}',
                            f'give the folder that holds the images of {data.classes.name}')
    if args.dataset != 'voc12' and not files.repo_path(data.list('train')).is_file():
        raise UserError(data.list('train'), 'list not found', f'{args.dataset}/prepare.py writes it')
    for flag in ('--weights', '--deeplab_weights', '--saliency_dir'):
        path = getattr(args, flag[2:])
        if path and not Path(path).exists():
            raise UserError(flag, f'{path} does not exist', 'correct it; the README says where to get it')
        if recipe.saliency and not path:
            raise UserError(flag, f'is needed for --baseline {recipe.name}', 'give it; the README says where to get it')
    if args.saliency_dir and not recipe.saliency:
        raise UserError('--saliency_dir', f'--baseline {recipe.name} uses no saliency maps',
                        'leave it out, or add --baseline eps')


def added_arguments(texts, preset):
    """{step: arguments} of the preset and, after them, of the --add flags."""
    extra = {name: list(argv) for name, argv in preset.items()}
    for text in texts:
        name, *argv = shlex.split(text) or ['']
        extra.setdefault(name, []).extend(argv)
    return extra


if __name__ == '__main__':
    cli.run(main, get_args_parser())
