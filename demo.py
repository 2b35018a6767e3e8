"""The whole chain on the toy VOC, on a CPU: `make demo` runs it.

    python demo.py [--baseline seam|eps|eps_plain|cam] [--out runs/demo]

Reads  toy/backbone.pth. Writes into --out the toy set, what every step writes, table.txt, pictures.png (photo, CAM,
seed, … , ground truth) and report.html. Called again it does only what is missing.
"""
import os
from pathlib import Path

from engine import cli, files
from report import chain, pipeline
from report.presets import TOY
from tool.recipes import RECIPES
from voc12.classes import VOC


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--baseline', choices=TOY.background, default='seam',
                        help='network, losses and settings')
    parser.add_argument('--out', help='folder for everything (runs/demo; runs/demo_<baseline> for another than seam)')
    parser.add_argument('--from', dest='start', metavar='STEP', help='do this step and all after it anew')
    cli.add_switch(parser, '--dry_run', 'print the commands and run nothing')
    chain.add_flags(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for matplotlib.
    from report import gallery, page

    recipe = RECIPES[args.baseline]
    default = files.REPO / 'runs' / ('demo' if recipe.name == 'seam' else f'demo_{recipe.name}')
    out = pipeline.portable(args.out or default)
    os.chdir(files.REPO)  # where the paths of the commands count from
    paths = toy_paths(out, recipe)
    steps = toy_steps(recipe, paths, chain.shared_flags(args), chain.machine(args))
    seconds = pipeline.run_steps(steps, Path(out) / 'log', args.dry_run, args.start)
    if not args.dry_run:
        description = describe(recipe, paths, steps)
        gallery.save_sheet(description['images'], paths.under('pictures.png'), VOC)
        table = page.publish(description, paths.under('report.html'), VOC)
        files.save_text(paths.under('table.txt'), table + '\n')
        print(f'wrote {paths.under("pictures.png")}; all steps took {sum(seconds.values()) / 60:.1f} minutes')


def toy_paths(out, recipe):
    """The chain.Paths of a toy run in folder `out`."""
    return chain.Paths(weights=TOY.weights, out=out, voc12_root=f'{out}/VOC2012', lists=f'{out}/lists',
                       experiment=TOY.experiment, alphas=TOY.alphas,
                       saliency_dir=f'{out}/VOC2012/SALImages' if recipe.saliency else '')


def toy_steps(recipe, paths, shared=(), machine=chain.Machine()):
    """Making the toy set, the chain at the toy's settings, and the reference that no network made.

    shared, machine: as for report/chain.py, chain.
    """
    toy = pipeline.Step('toy', ('toy/make.py', '--out', paths.voc12_root, *TOY.image_counts()),
                        makes=(paths.voc12_root,), leaves=(f'{paths.voc12_root}/JPEGImages',))
    steps = chain.chain(recipe, paths, TOY.extra(recipe), shared, machine)
    return [toy, *steps[:1], *chain.box_steps(paths), *steps[1:]]


def describe(recipe, paths, steps):
    """The description of the run for report/page.py."""
    description = chain.report_input(recipe, paths, steps, f'{recipe.title} on the toy VOC')
    description['credits'] = ['The toy VOC is drawn with Twemoji graphics, CC-BY 4.0.']
    # Published figures are of VOC: next to those of a toy set they would mislead.
    description['rows'] = [{**row, 'published': None} for row in (chain.box_row(recipe, paths), *description['rows'])]
    return description


if __name__ == '__main__':
    cli.run(main, get_args_parser())
