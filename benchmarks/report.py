"""The measurements as tables (RESULTS.md), pictures (results.png, growth.png) and numbers (results.json)."""
import math
import os
import platform
import statistics
import textwrap

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, StrMethodFormatter

from benchmarks import floor, projection
from engine import files, machine, runinfo

PACKAGES = 'torch', 'torchvision', 'numpy', 'scipy', 'pydensecrf2'
HOW = ('The published side is `reference/`: the arithmetic of the published code written anew from its description, '
       'loops and copies included, and compared with golden files in `tests/`. Both sides get the same inputs and '
       'alternate in one process; their results are compared at every run. Times are medians, a ratio is the median '
       'over pairs (published over ours). Peak memory is what a first call adds to its process, each side in a fresh '
       'one. Floor: the least arithmetic or memory traffic of our formulation at the rates above.')
WIDTH = 120  # columns of RESULTS.md, but for its tables
BUSY = 0.7  # load average above which the machine counts as busy with other work


def describe(args):
    """What is measured where: a JSON-ready dict. Call it first: the benchmark's own work raises the load."""
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan')
    return runinfo.describe(vars(args)) | {
        'platform': f'{platform.system()} {platform.machine()}', 'processor': processor(), 'cores': machine.cores(),
        'threads': args.threads, 'load_before': load}


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


def median(result, side):
    """Median wall seconds an image of one side of a stage's result."""
    return statistics.median(result[side]['wall'])


def seconds(value):
    """A time in words: 3.2 ms, 1.45 s."""
    return f'{1000 * value:.3g} ms' if value < 1 else f'{value:.3g} s'


def write(out, info, stages, results, curves):
    """Write the report into the folder `out`.

    info: of describe, with 'rates'. stages: {name: table.Stage}. results: of frame.run, curves: of growth.measure; both
    may be empty.
    """
    by_name = {result['name']: result for result in results}
    hours = [] if info['settings']['quick'] else projection.full_run(by_name)
    files.save_json(out / 'results.json', {'info': info, 'stages': results, 'growth': curves, 'projection': hours})
    parts = [header(info), stage_table(stages, results, info), profile_table(stages, results), growth_table(curves),
             hours_table(hours)]
    lines = '\n\n'.join(part for part in parts if part).splitlines()
    files.save_text(out / 'RESULTS.md', '\n'.join(map(wrapped, lines)) + '\n')
    if any('wall_ratio' in result for result in results):
        save(out / 'results.png', ratio_chart(stages, results))
    if curves:
        save(out / 'growth.png', growth_chart(curves))
    print(f'wrote {out / "RESULTS.md"}')


def wrapped(line):
    """A line of Markdown at WIDTH columns; rows of tables stay whole."""
    if line.startswith('|'):
        return line
    return textwrap.fill(line, WIDTH, subsequent_indent='  ' * line.startswith('- '), break_long_words=False,
                         break_on_hyphens=False)


def header(info):
    """What was measured, where and how, and the reasons to doubt the numbers."""
    settings, rates = info['settings'], info['rates']
    command = 'python benchmarks/bench.py' + (' --quick' if settings['quick'] else '')
    packages = ', '.join(f'{name} {info["packages"][name]}' for name in PACKAGES)
    lines = [
        '# Every stage beside the published formulation', '',
        f'`{command}`, {info["time"]}, commit {info["git_commit"]}, on {info["processor"]}; '
        f'cores that it could use: {info["cores"]}, threads of PyTorch: {info["threads"]}; {info["platform"]}; '
        f'Python {info["python"]}, {packages}; float32.']
    for name in ('one core', 'all cores')[:1 if info['threads'] == 1 else 2]:
        lines.append(f'Rate of {name}: {rates[name]["flops"] / 1e9:.0f} GFLOP/s (matrix product or convolution), '
                     f'{rates[name]["bytes"] / 1e9:.1f} GB/s (copy).')
    lines += ['', HOW]
    if settings['quick']:
        lines += ['', '**The short form: small inputs, few repetitions. Ratios grow with the inputs; the full form '
                  'counts.**']
    if info['load_before'] > BUSY:
        lines += ['', f'**Measured on a busy machine (load average {info["load_before"]:.1f} before the start): '
                  'seconds and rates are too pessimistic; ratios, above all those of CPU time, hold better.**']
    lines += ['', 'Not measured: CUDA. `python benchmarks/gpu.py` measures, on a GPU, what only a GPU can tell.']
    return '\n'.join(lines)


def stage_table(stages, results, info):
    """Every stage's times, ratios, aims, memory, floor and agreement, and what is timed; '' without results."""
    if not results:
        return ''
    rows = table('stage', 'ours', 'published', 'ratio', 'of CPU time', 'aim', 'peak MiB, ours / published', 'floor',
                 'same results')
    for result in results:
        stage, cells = stages[result['name']], [''] * 4
        least, agreement = '', ''
        if 'wall_ratio' in result:
            least = floor.least_seconds(result, info['rates'])
            cells = [seconds(median(result, side)) for side in ('ours', 'published')]
            cells += [f'{result[kind]:.2f}' for kind in ('wall_ratio', 'cpu_ratio')]
            agreement = result['agreement']
        memory = ' / '.join(f'{result[side]["memory"] / 2 ** 20:.0f}' for side in ('ours', 'published'))
        extra = [f'{words} {value:.3g}' for words, value in result['extra'].items()]
        rows.append(row(stage.title, *cells, aim_words(stage, result), memory, seconds(least) if least else '',
                        '; '.join([agreement] * bool(agreement) + extra)))
    notes = ['', 'What is timed:']
    for stage in (stages[result['name']] for result in results):
        notes.append(f'- **{stage.title}**: {" ".join(stage.function.__doc__.split())} {stage.limit}'.rstrip())
    return '\n'.join(['## Stages, an image each', '', *rows, *notes])


def table(*titles):
    """The first two rows of a Markdown table."""
    return [row(*titles), row(*['---'] * len(titles))]


def row(*cells):
    """A row of a Markdown table."""
    return f'| {" | ".join(cells)} |'


def aim_words(stage, result):
    """The aims of a stage, those given as numbers with 'met' or 'missed'."""
    words = []
    if stage.aim:
        words.append(f'{stage.aim:g}x: {"met" if result["wall_ratio"] >= stage.aim else "MISSED"}')
    if stage.memory_aim:
        fraction = result['ours']['memory'] / max(1, result['published']['memory'])
        verdict = 'met' if fraction <= stage.memory_aim else 'MISSED'
        words.append(f'{stage.memory_aim:g} of the published peak: {fraction:.2f}, {verdict}')
    return '; '.join(words + [stage.aim_text] * bool(stage.aim_text))


def profile_table(stages, results):
    """What the profiler saw of our side of each stage; '' where it saw none."""
    profiled = [result for result in results if result.get('hottest')]
    if not profiled:
        return ''
    rows = table('stage', 'own time, % of the whole')
    for result in profiled:
        words = (f'`{name}` {100 * fraction:.0f}%' for name, fraction in result['hottest'])
        rows.append(row(stages[result['name']].title, ', '.join(words)))
    how = ("One call of ours under PyTorch's profiler, or Python's where PyTorch is not most of it. Forward and "
           'backward count apart; functions of libraries stand under their own names.')
    return '\n'.join(['## Where ours spends its time', '', how, '', *rows])


def growth_table(curves):
    """The exponents of the curves; '' without curves."""
    if not curves:
        return ''
    rows = table('stage', 'against', 'from', 'to', 'ours: exponent, last time', 'published')
    for curve in curves:
        cells = []
        for side in ('ours', 'published'):
            known = side in curve['exponents']
            last = curve[side][-1] if known else None
            cells.append(f'{curve["exponents"][side]:.2f}, {seconds(last[1])} at {last[0]}' if known else '')
        first, last = curve['ours'][0][0], curve['ours'][-1][0]
        rows.append(row(curve['title'], curve['axis'], str(first), str(last), *cells))
    fit = 'Seconds of a call ~ place on the axis^exponent, least squares over the points (`growth.png`).'
    return '\n'.join(['## How cost grows', '', fit, '', *rows])


def hours_table(hours):
    """The projected core-hours of the full run; '' where a stage that it needs was not measured."""
    if not hours:
        return ''
    rows = table('part', 'images', 'ours: network core-hours', 'ours: other core-hours',
                 'published: network core-hours', 'published: other core-hours')
    for part in hours:
        cells = (f'{h:.1f}' for h in (*part['ours'], *part['published']))
        rows.append(row(part['part'], f'{part["images"]:,}', *cells))
    total = [sum(part[side][k] for part in hours) for side in ('ours', 'published') for k in (0, 1)]
    rows.append(row('**all**', '', *(f'**{h:.0f}**' for h in total)))
    how = ' '.join(projection.__doc__.split('\n\n')[1].split())
    return '\n'.join(['## The full VOC run, projected', '', how, '', *rows])


def ratio_chart(stages, results):
    """Bars from 1 to the ratio on a logarithmic axis, the aims as ticks."""
    timed = [result for result in results if 'wall_ratio' in result][::-1]
    ratios = [result['wall_ratio'] for result in timed]
    aims = [stages[result['name']].aim or 1 for result in timed]
    figure = Figure((9, 0.45 * len(timed) + 1.2))
    axes = figure.subplots()
    axes.barh([stages[result['name']].title for result in timed], [ratio - 1 for ratio in ratios], left=1, height=0.6,
              color='#4477aa')
    for y, (ratio, aim) in enumerate(zip(ratios, aims)):
        axes.text(1.06 * max(ratio, aim), y, f'{ratio:.2f}' if ratio < 10 else f'{ratio:.0f}', va='center')
        if aim > 1:
            axes.plot([aim] * 2, [y - 0.42, y + 0.42], color='#cc3311', linewidth=2)
    axes.set_xscale('log')
    axes.set_xlim(min(0.9, *ratios), 1.5 * max(ratios + aims))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlabel('published over ours, wall time (red: the aim)')
    return figure


def growth_chart(curves):
    """Seconds against size, both logarithmic; the exponents in the legends."""
    rows = math.ceil(len(curves) / 4)
    figure = Figure((13, 2.9 * rows), layout='constrained')
    cells = figure.subplots(rows, 4, squeeze=False).ravel()
    for axes, curve in zip(cells, curves):
        for side, colour in (('ours', '#4477aa'), ('published', '#cc3311')):
            if curve[side]:
                label = f'{side}: {curve["exponents"][side]:.2f}' if side in curve['exponents'] else side
                axes.plot(*zip(*curve[side]), 'o-', color=colour, label=label)
        axes.set(xscale='log', yscale='log', title=curve['title'], xlabel=curve['axis'])
        places = [place for place, _ in curve['ours']]  # those measured, and no others, have a tick
        axes.set_xticks(places, list(map(str, places)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(title='exponent', fontsize=8, framealpha=0.6)
    for axes in cells[len(curves):]:
        axes.remove()
    return figure


def save(path, figure):
    """Write a figure as a PNG, atomically."""
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches='tight')
