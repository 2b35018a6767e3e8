"""Compare every stage with the published formulation of its arithmetic: time and memory on the CPU, same inputs.

    python benchmarks/bench.py [--quick] [--stages crf curve …] [--out FOLDER]

Reads  tests/golden (a photo); all other inputs are made here. Writes <out>/results.json (every measurement), RESULTS.md
(the tables), results.png (ratios), growth.png (cost against size). Measurements on a GPU: benchmarks/gpu.py.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, whatever the working directory

from benchmarks.table import STAGES
from engine import cli, files, machine

GROWTH = 'growth'  # name of the curves of cost against size, next to the stages


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    names = *STAGES, GROWTH
    parser.add_argument('--stages', nargs='+', choices=names, metavar='STAGE',
                        help=f'only these: {", ".join(names)} (all unless given)')
    parser.add_argument('--threads', type=cli.positive, default=machine.cores(), help='threads of PyTorch')
    parser.add_argument('--out', help='folder of the report (benchmarks for all stages in full; else runs/bench, so '
                                      'that no part takes the place of the whole)')
    cli.add_switch(parser, '--quick', 'smaller inputs, fewer repetitions: under three minutes on two cores')
    return parser


def main(args):
    # Imported here, because --help need not wait for torch and matplotlib.
    from benchmarks import floor, frame, growth, report

    out = files.out_dir(args.out or default_folder(args), '--out')
    options = frame.Options(quick=args.quick, threads=args.threads)
    wanted = args.stages or [*STAGES, GROWTH]
    info = report.describe(args)
    info['rates'] = frame.in_child(floor.machine, args.threads)
    results = []
    for name in wanted:
        if name in STAGES and STAGES[name].missing:
            print(f'{name}: left out, {STAGES[name].needs} is not installed (pip install -r '
                  'requirements-pydensecrf.txt)', flush=True)
        elif name in STAGES:
            results.append(frame.run(STAGES[name], options))
            print(report.line(results[-1]), flush=True)
    curves = growth.measure(options) if GROWTH in wanted else []
    report.write(out, info, STAGES, results, curves)


def default_folder(args):
    """Where the report goes without --out."""
    return files.REPO / 'runs' / 'bench' if args.quick or args.stages else Path(__file__).parent


if __name__ == '__main__':
    cli.run(main, get_args_parser())
