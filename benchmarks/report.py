"""The measurements as tables (RESULTS.md), pictures (results.png, growth.png) and numbers (results.json)."""
import os
import platform
import statistics

from benchmarks import floor, projection
from tool import files, runinfo

BUSY = 0.7  # load average from which on the machine counts as shared with other work


def describe(args):
    """What is measured where: a JSON-ready dict. Call it first: the benchmark's own work raises the load."""
    import torch
    device = torch.device(args.device) if args.device != 'cpu' else None
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan')
    return runinfo.describe(vars(args), device) | {
        'processor': processor(), 'cores': os.cpu_count(), 'threads': args.threads, 'load_before': load}


def processor():
    """The CPU's name."""
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.split(':')[1].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def line(result):
    """A stage's result in one line, for the screen."""
    memory = ' / '.join(f'{result[side]["memory"] / 2 ** 20:.0f}' for side in ('ours', 'published'))
    if 'wall_ratio' not in result:
        return f'{result["name"]}: peak MiB {memory}'
    ours, published = (median(result, side) for side in ('ours', 'published'))
    return (f'{result["name"]}: {seconds(ours)} against {seconds(published)}, ratio {result["wall_ratio"]:.2f} '
            f'(CPU {result["cpu_ratio"]:.2f}), peak MiB {memory}, {result["agreement"]}')


def median(result, side, kind='wall'):
    return statistics.median(result[side][kind])


def seconds(value):
    """A time in words: 3.2 ms, 1.45 s."""
    return f'{1000 * value:.3g} ms' if value < 1 else f'{value:.3g} s'


def write(out, info, stages, results, curves, sweep):
    """Write all of the report into the folder `out`. stages: {name: Stage}; results: of frame.run; curves: of growth.measure; sweep: rows of cuda.sweep."""
    by_name = {result['name']: result for result in results}
    hours = [] if info['settings']['quick'] else projection.full_run(by_name, info['settings']['device'] == 'cuda')
    files.save_json(out / 'results.json', {'info': info, 'stages': results, 'growth': curves, 'projection': hours, 'cuda': sweep})
    parts = [header(info), stage_table(stages, results, info), growth_table(curves), hours_table(hours, info), cuda_table(sweep, info)]
    files.save_text(out / 'RESULTS.md', '\n\n'.join(part for part in parts if part) + '\n')
    if any('wall_ratio' in result for result in results):
        save(out / 'results.png', ratio_chart(stages, results))
    if curves:
        save(out / 'growth.png', growth_chart(curves))
    print(f'wrote {out / "RESULTS.md"}')


def header(info):
    packages = ', '.join(f'{name} {info["packages"][name]}' for name in ('torch', 'torchvision', 'numpy', 'scipy', 'pydensecrf2'))
    rates = {name: (rate['flops'] / 1e9, rate['bytes'] / 1e9) for name, rate in info['rates'].items()}
    device = '' if info['settings']['device'] == 'cpu' else f' Networks and losses on {info["device"]}.'
    text = f"""# Every stage beside the published formulation

`python benchmarks/bench.py{' --quick' if info['settings']['quick'] else ''}{'' if not device else ' --device cuda'}`, {info['time']}, commit {info['git_commit']}.{device}
{info['processor']}, {info['cores']} cores, {info['threads']} threads of PyTorch; {info['platform']}; Python {info['python']}, {packages}; float32.
Measured rates: one core {rates['one core'][0]:.0f} GFLOP/s (large matrix product or 3x3 convolution) and {rates['one core'][1]:.1f} GB/s (copy);
{'the device' if device else 'all cores'} {rates['all cores'][0]:.0f} GFLOP/s and {rates['all cores'][1]:.1f} GB/s.

The published side is `benchmarks/published/`: the arithmetic of the published code written anew from its description, loops and copies included,
compared with golden files in `tests/`. Both sides get the same inputs, alternate in one process, and the results are compared at
every run. Times are medians; a ratio is the median over pairs (published over ours). Peak memory is what a first call adds to the
process, each side in a process of its own. Floor: least arithmetic or memory traffic of our formulation at the rates above."""
    if info['settings']['quick']:
        text += '\n\n**The short form: small inputs, few repetitions. Ratios grow with the inputs; the full form counts.**'
    if info['load_before'] > BUSY:
        text += (f'\n\n**Measured on a busy machine (load average {info["load_before"]:.1f} before the start): seconds and rates are too '
                 'pessimistic; ratios, above all those of CPU time, hold better.**')
    if info['settings']['device'] == 'cpu':
        text += '\n\nNot measured: CUDA. No GPU was at hand; `python benchmarks/bench.py --device cuda` makes the same tables on one.'
    return text


def stage_table(stages, results, info):
    rows = ['| stage | ours | published | ratio | of CPU time | aim | peak MiB, ours / published | floor | same results |', '|---|---|---|---|---|---|---|---|---|']
    for result in results:
        stage = stages[result['name']]
        memory = ' / '.join(f'{result[side]["memory"] / 2 ** 20:.0f}' for side in ('ours', 'published'))
        if 'wall_ratio' not in result:
            rows.append(f'| {stage.title} | | | | | {aim_words(stage, result)} | {memory} | | {extra_words(result)} |')
            continue
        least = floor.least_seconds(result, info['rates'])
        rows.append(f'| {stage.title} | {seconds(median(result, "ours"))} | {seconds(median(result, "published"))} '
                    f'| {result["wall_ratio"]:.2f} | {result["cpu_ratio"]:.2f} | {aim_words(stage, result)} | {memory} '
                    f'| {seconds(least) if least else ""} | {result["agreement"]}{extra_words(result)} |')
    notes = [f'- **{stages[r["name"]].title}**: {" ".join(stages[r["name"]].setup.__doc__.split())} {stages[r["name"]].limit}'.rstrip()
             for r in results]
    return '\n'.join(['## Stages, an image each', '', *rows, '', 'What is timed:', *notes])


def extra_words(result):
    return ''.join(f'; {words} {value:.3g}' for words, value in result['extra'].items())


def aim_words(stage, result):
    """The aims of a stage, each with 'met' or 'missed'."""
    words = []
    if stage.aim:
        words.append(f'{stage.aim:g}x: {"met" if result["wall_ratio"] >= stage.aim else "MISSED"}')
    if stage.memory_aim:
        share = result['ours']['memory'] / max(1, result['published']['memory'])
        words.append(f'memory at most {stage.memory_aim:g} of published: {share:.2f}, {"met" if share <= stage.memory_aim else "MISSED"}')
    return '; '.join(words + [stage.aim_text] * bool(stage.aim_text))


def growth_table(curves):
    if not curves:
        return ''
    rows = ['| stage | against | from | to | ours: exponent, last time | published |', '|---|---|---|---|---|---|']
    for curve in curves:
        cells = [f'{curve["exponents"][side]:.2f}, {seconds(curve[side][-1][1])} at {curve[side][-1][0]}' if side in curve['exponents'] else ''
                 for side in ('ours', 'published')]
        rows.append(f'| {curve["title"]} | {curve["axis"]} | {curve["ours"][0][0]} | {curve["ours"][-1][0]} | {cells[0]} | {cells[1]} |')
    return '\n'.join(['## How cost grows', '', 'Cost ~ position^exponent, least squares over the points (`growth.png`).', '', *rows])


def hours_table(hours, info):
    if not hours:
        return ''
    unit = 'GPU' if info['settings']['device'] == 'cuda' else 'core'
    rows = [f'| part | images | ours: network {unit}-hours | ours: other core-hours | published: network {unit}-hours | published: other core-hours |',
            '|---|---|---|---|---|---|']
    for row in hours:
        rows.append(f'| {row["part"]} | {row["images"]:,} | ' + ' | '.join(f'{h:.1f}' for side in ('ours', 'published') for h in row[side]) + ' |')
    total = [sum(row[side][k] for row in hours) for side in ('ours', 'published') for k in (0, 1)]
    rows.append('| **all** | | ' + ' | '.join(f'**{h:.0f}**' for h in total) + ' |')
    return '\n'.join(['## The full VOC run, projected', '', ' '.join(projection.__doc__.split('\n\n')[1].split()), '', *rows])


def cuda_table(sweep, info):
    if not sweep:
        return ''
    rows = ['| work | batch | precision | ours, images/s | published | floor | peak GiB, ours | published |', '|---|---|---|---|---|---|---|---|']
    for row in sweep:
        rows.append(f'| {row["work"]} | {row["batch"]} | {row["precision"]} | {row["ours"]:.1f} | {row["published"]:.1f} | {row["floor"]:.1f} '
                    f'| {row["ours_memory"] / 2 ** 30:.2f} | {row["published_memory"] / 2 ** 30:.2f} |')
    return '\n'.join([f'## Width 1, crop 448, on {info["device"]}', '',
                      'The published side stays in float32. Floor: counted operations at the measured float32 rate.', '', *rows])


def ratio_chart(stages, results):
    """Bars of the ratios on a logarithmic axis, the aims as ticks."""
    from matplotlib.figure import Figure
    timed = [result for result in results if 'wall_ratio' in result][::-1]
    figure = Figure((8, 0.5 * len(timed) + 1.2))
    axes = figure.subplots()
    axes.barh([stages[r['name']].title for r in timed], [r['wall_ratio'] for r in timed], color='#4477aa')
    for row, result in enumerate(timed):
        axes.text(result['wall_ratio'], row, f' {result["wall_ratio"]:.1f}', va='center')
        if stages[result['name']].aim:
            axes.plot([stages[result['name']].aim] * 2, [row - 0.4, row + 0.4], color='#cc3311', linewidth=2)
    axes.axvline(1, color='black', linewidth=0.8)
    axes.set_xscale('log')
    axes.set_xlabel('published over ours, wall time (red: the aim)')
    return figure


def growth_chart(curves):
    """Seconds against size, both logarithmic; the exponents in the legends."""
    from matplotlib.figure import Figure
    figure = Figure((13, 2.9 * -(-len(curves) // 4)), layout='constrained')
    cells = figure.subplots(-(-len(curves) // 4), 4, squeeze=False).ravel()
    for axes, curve in zip(cells, curves):
        for side, colour in (('ours', '#4477aa'), ('published', '#cc3311')):
            if curve[side]:
                label = f'{side}: {curve["exponents"][side]:.2f}' if side in curve['exponents'] else side
                axes.plot(*zip(*curve[side]), 'o-', color=colour, label=label)
        axes.set(xscale='log', yscale='log', title=curve['title'], xlabel=curve['axis'], ylabel='seconds')
        axes.legend(title='exponent', fontsize=8)
    for axes in cells[len(curves):]:
        axes.remove()
    return figure


def save(path, figure):
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches='tight')
