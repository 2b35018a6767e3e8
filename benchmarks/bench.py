"""Time every stage beside the published formulation of its arithmetic, on the same inputs, alternately.

    python benchmarks/bench.py [--quick] [--device cpu|cuda] [--stages crf curve …] [--out FOLDER]

Reads  tests/golden (a photo); all else it makes. Writes <out>/results.json (every measurement), RESULTS.md (the
tables), results.png (ratios), growth.png (cost against size).
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, whatever the working directory

from benchmarks import cuda, floor, frame, growth, report
from benchmarks.stages import step1, step2, step3
from engine import cli, files
from engine.device import select_device
from engine.errors import UserError

STAGES = {stage.name: stage for stage in step1.STAGES + step2.STAGES + step3.STAGES}

PARTS = ('growth', 'cuda')  # how cost grows; precisions at full size, on CUDA only


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='where the networks and losses run')
    parser.add_argument('--stages', nargs='+', choices=(*STAGES, *PARTS), metavar='STAGE',
                        help=f'only these: {", ".join((*STAGES, *PARTS))} (all unless given)')
    parser.add_argument('--threads', type=cli.positive, default=cli.cores(), help='threads of PyTorch on the CPU')
    parser.add_argument('--out', help='folder of the report (benchmarks, or benchmarks/cuda, for all stages in full; '
                                      'else runs/bench, so that no part takes the place of the whole)')
    cli.add_switch(parser, '--quick', 'smaller inputs, fewer repetitions: under three minutes on two cores')
    return parser


def main(args):
    select_device(args.device)
    if args.device == 'cpu' and args.stages and 'cuda' in args.stages:
        raise UserError('--stages cuda', 'needs a GPU', 'add --device cuda')
    out = files.out_dir(args.out or default_folder(args), '--out')
    options = frame.Options(args.quick, args.device, args.threads)
    wanted = args.stages or [*STAGES, *PARTS]
    info = report.describe(args)
    machine = frame.in_child(floor.machine, args.device, args.threads)
    info['rates'] = machine
    results = []
    for name in wanted:
        if name in STAGES:
            results.append(frame.run(STAGES[name], options))
            print(report.line(results[-1]), flush=True)
    curves = growth.measure(options) if 'growth' in wanted else []
    sweep = cuda.sweep(options, machine['all cores']) if args.device == 'cuda' and 'cuda' in wanted else []
    report.write(out, info, STAGES, results, curves, sweep)


def default_folder(args):
    """Where the report goes without --out."""
    if args.quick or args.stages:
        return files.REPO / 'runs' / 'bench'
    return Path(__file__).parent / ('cuda' if args.device == 'cuda' else '')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
