"""Rows as one JSON and one Markdown table, with the card, its driver and cuDNN."""
import dataclasses
import math
import subprocess

import torch

from engine import files, machine, runinfo

PACKAGES = 'torch', 'torchvision', 'numpy'


def describe_card(device):
    """What a torch.device is: a JSON-ready dict."""
    if device.type == 'cpu':
        return {'card': runinfo.processor(), 'memory_gib': None, 'capability': None, 'driver': None,
                'cudnn': None, 'cuda': None}
    properties = torch.cuda.get_device_properties(device)
    return {'card': properties.name, 'memory_gib': properties.total_memory / 2 ** 30,
            'capability': f'{properties.major}.{properties.minor}', 'driver': driver(),
            'cudnn': torch.backends.cudnn.version(), 'cuda': torch.version.cuda}


def driver():
    """The version of NVIDIA's driver; 'unknown' where nvidia-smi does not tell."""
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
        return lines[0] if lines else 'unknown'
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


def describe(args):
    """What is measured: a JSON-ready dict. The card is not known yet: describe_card, called in a child, tells it."""
    return runinfo.describe(vars(args)) | {'cores': machine.cores(), 'card': 'an unknown card', 'cuda': None}


def write(out, info, rows):
    """Write gpu.json and GPU.md into the folder `out`. rows: [(seconds since the start, Row)]."""
    found = [{'at': round(at, 1), **dataclasses.asdict(row)} for at, row in rows]
    files.save_json(out / 'gpu.json', {'info': info, 'rows': found})
    files.save_text(out / 'GPU.md', markdown(info, [row for _, row in rows]))


def markdown(info, rows):
    """The report as Markdown."""
    packages = ', '.join(f'{name} {info["packages"][name]}' for name in PACKAGES)
    card = info['card']
    if info['cuda']:
        card += (f' ({info["memory_gib"]:.1f} GiB, compute capability {info["capability"]}), driver {info["driver"]}, '
                 f'CUDA {info["cuda"]}, cuDNN {info["cudnn"]}')
    lines = ['# On a GPU', '', f'`python benchmarks/gpu.py`, {info["time"]}, commit {info["git_commit"]}, on {card}; '
             f'{info["cores"]} CPU cores; Python {info["python"]}, {packages}.', '',
             'TF32 is what `--amp off` runs on a card that has it: in convolutions, nowhere else. GiB: the peak of the '
             'memory that PyTorch allocates, weights included, the CUDA context not.', '',
             '| part | work | size | precision | result | GiB | note |', '|---|---|---|---|---|---|---|']
    if info['settings']['tiny']:
        lines[2:2] = ['**A trial of the code with tiny inputs: the numbers mean nothing.**', '']
    lines += [markdown_row(row) for row in rows]
    return '\n'.join(lines) + '\n'


def markdown_row(row):
    """A Row as a line of the table."""
    gib = '' if row.gib is None else f'{row.gib:.2f}'
    cells = row.part, row.work, row.size, row.precision, number(row), gib, row.note
    return f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |'


def number(row):
    """A Row's value with its unit; '' without one."""
    if row.value is None or not math.isfinite(row.value):
        return ''
    value = f'{row.value:.1e}' if row.unit == 'of the largest' else f'{row.value:.4g}'
    return f'{value} {row.unit}'


def line(at, row):
    """A Row as a line for the screen."""
    parts = row.part, row.work, row.size, row.precision, number(row)
    memory = '' if row.gib is None else f'{row.gib:.2f} GiB'
    return f'{at:6.0f} s  ' + '  '.join(part for part in (*parts, memory, row.note) if part)
