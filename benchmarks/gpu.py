"""Measure on a GPU: values against golden files, speed, and memory, part by part.

    python benchmarks/gpu.py [--only golden step cams] [--minutes 15] [--out FOLDER]

Reads  tests/golden, toy/backbone.pth; all other inputs are made here. Writes <out>/gpu.json (every row) and GPU.md (the
table) anew after each row, so that a run which is cut short leaves its rows. Each part runs in a process of its own,
for its minutes at most; a part that fails does not end the others. The most important parts come first: the first three
take four minutes at most.
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))  # the repository, whatever the working directory
sys.path.append(str(REPO / 'tests'))  # golden.fill, the weights of the golden files

from engine import cli, files, machine


@dataclass(frozen=True)
class Part:
    """A part. rows: dotted name of a function(measure.Settings) that yields measure.Row. minutes: its limit."""
    name: str
    minutes: float
    rows: str

    @property
    def function(self):
        """The function that `rows` names."""
        return resolve_name(f'benchmarks.gpu_parts.{self.rows}')


PARTS = {part.name: part for part in (
    Part('golden', 2, 'golden:rows'),            # published values, in every precision
    Part('step', 1, 'networks:step'),            # contrast_train.py's step, width 1, crop 448, batch 8
    Part('cams', 1, 'networks:cams'),            # contrast_infer.py on a photo
    Part('published', 2, 'networks:published'),  # the published formulation of both
    Part('batch16', 1, 'networks:batch16'),
    Part('layouts', 2, 'networks:layouts'),      # channels-last, cudnn.benchmark, TF32 in products, fused SGD
    Part('compiled', 4, 'networks:compiled'),    # torch.compile
    Part('rates', 1, 'networks:rates'),          # the card's highest rates
    Part('crf', 1, 'cores:crf'),
    Part('walk', 1, 'cores:walk'),
    Part('loading', 1, 'cores:loading'),
    Part('affinity', 1, 'networks:affinity'),    # AffinityNet's training and inference
    Part('deeplab', 3, 'deeplab:rows'),          # DeepLab's training and test
    Part('toy', 8, 'toy:rows'),                  # the chain on the toy set
)}


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', default='cuda', help='cuda, cuda:<index>, or cpu to try the code')
    parser.add_argument('--only', nargs='+', choices=PARTS, metavar='PART',
                        help=f'only these parts: {", ".join(PARTS)} (all unless given)')
    parser.add_argument('--minutes', type=cli.positive_number, default=60., help='minutes for all parts together')
    parser.add_argument('--out', default=str(files.REPO / 'runs' / 'gpu'), help='folder of the report')
    cli.add_switch(parser, '--tiny', 'inputs of a few pixels, whose numbers mean nothing: a trial of the code')
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    from benchmarks.gpu_parts import child, report, voc
    from benchmarks.gpu_parts.measure import Row, Settings
    from engine.device import select_device

    settings = Settings(str(select_device(args.device)), args.tiny)
    out = files.out_dir(args.out, '--out')
    info, rows, start = report.describe(args), [], time.monotonic()

    def publish(row):
        rows.append((time.monotonic() - start, row))
        print(report.line(*rows[-1]), flush=True)
        report.write(out, info, rows)

    for part in (PARTS[name] for name in args.only or PARTS):
        left = 60 * args.minutes - (time.monotonic() - start)
        if left <= 0:
            publish(Row(part.name, part.name, note=f'left out: the {args.minutes:g} minutes are over'))
            continue
        for found in child.results(part, settings, min(left, 60 * part.minutes)):
            if isinstance(found, dict):
                info |= found
            else:
                publish(found)
    for row in voc.rows([row for _, row in rows], machine.cores()):
        publish(row)
    print(f'wrote {out / "GPU.md"}')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
