"""The whole chain on the toy VOC, on a CPU: `make demo` runs it.

    python demo.py [--baseline seam|eps] [--out runs/demo]

Reads  voc12/toy_backbone.pth. Writes into --out the toy set, what every step writes, table.txt, pictures.png (photo, CAM,
seed, … , ground truth) and report.html. Called again it does only what is missing.
"""
import os
from pathlib import Path

from tool import chain, cli

SHOWN = 8  # images in the picture


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--baseline', choices=chain.BASELINES, default='seam', help='what the contrast is added to')
    parser.add_argument('--out', help='folder for everything (runs/demo; runs/demo_eps for EPS)')
    parser.add_argument('--seed', type=cli.non_negative, default=0, help='seed of all training')
    parser.add_argument('--from', dest='start', metavar='STEP', help='do this step and all after it anew')
    cli.add_switch(parser, '--dry_run', 'print the commands and run nothing')
    return parser


def main(args):
    from tool import pipeline
    os.chdir(cli.REPO)  # where the paths of the commands count from
    out = args.out or ('runs/demo_eps' if args.baseline == 'eps' else 'runs/demo')
    paths = toy_paths(out, args.baseline)
    steps = toy_steps(args.baseline, paths, args.seed)
    seconds = pipeline.run_steps(steps, Path(out) / 'log', args.dry_run, args.start)
    if not args.dry_run:
        finish(args.baseline, paths, steps, sum(seconds.values()))


def toy_paths(out, baseline):
    """The chain.Paths of a toy run in folder `out`."""
    from voc12 import toy_recipe
    return chain.Paths(weights=toy_recipe.BACKBONE, out=out, voc12_root=f'{out}/VOC2012', lists=f'{out}/lists',
                       experiment='SEAM_deeplabv1_resnet38', alphas=toy_recipe.ALPHAS,
                       saliency_dir=f'{out}/VOC2012/SALImages' if baseline == 'eps' else '')


def toy_steps(baseline, paths, seed):
    """Making the toy set, the chain at the toy's settings, and the reference that no network made."""
    from tool.pipeline import Step
    from voc12 import toy_recipe
    toy = Step('toy', ('voc12/toy.py', '--out', paths.voc12_root, *toy_recipe.counts()), makes=(paths.voc12_root,))
    box = Step('box', ('voc12/toy_box.py', '--list', paths.list('train'), '--voc12_root', paths.voc12_root,
                       '--cls_labels', f'{paths.lists}/cls_labels.npy', '--out', paths.under('box')), ('prepare',), makes=(paths.under('box'),))
    steps = chain.chain(baseline, paths, toy_recipe.extra(baseline), shared=('--amp', 'bf16', '--seed', str(seed)))
    return [toy, *steps[:1], box, chain.eval_step('eval_box', paths, 'train', paths.under('box'), 'box'), *steps[1:]]


def finish(baseline, paths, steps, seconds):
    """Print the table; write it, the picture and the report."""
    from tool import files, report
    from voc12.classes import VOC
    box = chain.row(baseline, paths, 'box', 'train', 'eval_box', 'fixed', 'A centred box, no network')
    description = chain.report_input(baseline, paths, steps, f'{baseline.upper()} + PPC on the toy VOC')
    description['credits'] = ['The toy VOC is drawn with Twemoji graphics, CC-BY 4.0.']
    # Published figures are of VOC: beside a toy set they would mislead.
    description['rows'] = [{**row, 'published': None} for row in (box, *description['rows'])]
    table = report.text_table(description['rows'])
    files.save_text(paths.under('table.txt'), table + '\n')
    draw_pictures(description['images'], paths.under('pictures.png'), VOC)
    page = report.build(description, paths.under('report.html'), VOC)
    print(f'\n{table}\n\nall steps took {seconds / 60:.1f} minutes\nwrote {paths.under("pictures.png")}, {page}')


def draw_pictures(images, path, classes):
    """A sheet of the first images of each kind of scene: photo, what every stage made of it, ground truth.

    images: the entry of that name in a report's description. path: PNG to write. classes: the ClassSet.
    """
    from tool import files, pictures
    ids = files.read_list(images['list'])[:SHOWN]
    rows = []
    for name in ids:
        photo = files.read_image(Path(images['photos']) / f'{name}.jpg')
        row = [photo]
        for stage in images['stages']:
            if stage['kind'] == 'cam':
                _, cams = files.read_cams(Path(stage['folder']) / f'{name}.npy', classes.num_foreground)
                row.append(pictures.overlay(photo, cams.max(0)))
            else:
                row.append(pictures.colour(files.read_mask(Path(stage['folder']) / f'{name}.png'), classes.palette))
        rows.append([*row, pictures.colour(files.read_mask(Path(images['ground_truth']) / f'{name}.png'), classes.palette)])
    figure = pictures.grid(rows, ('photo', *(stage['title'] for stage in images['stages']), 'ground truth'))
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)


if __name__ == '__main__':
    cli.run(main, get_args_parser())
