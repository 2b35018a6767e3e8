"""The report's plots, by matplotlib: numbers in, a `data:` URI of an SVG out, narrow enough to be read on a phone."""
import base64
import io
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from engine.files import atomic

FONTS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"  # as the page's
INK, MUTED, FAINT, ACCENT, WARM = '#1b2733', '#66727f', '#dfe4ea', '#1f5fa8', '#c2571a'
GOOD, BAD = '#1a7f4b', '#b3352b'
WIDTH = 4.1  # inches, of every figure
STYLE = {
    'font.size': 9.5, 'axes.titlesize': 9.5, 'axes.labelsize': 9, 'xtick.labelsize': 8.5, 'ytick.labelsize': 8.5,
    'legend.fontsize': 9, 'text.color': INK, 'axes.labelcolor': MUTED, 'xtick.color': MUTED, 'ytick.color': MUTED,
    'axes.edgecolor': '#b8c0c9', 'axes.spines.top': False, 'axes.spines.right': False, 'axes.linewidth': .7,
    'xtick.major.width': .7, 'ytick.major.width': .7, 'xtick.major.size': 3, 'ytick.major.size': 0,
    'axes.grid': True, 'axes.grid.axis': 'y', 'axes.axisbelow': True, 'grid.color': FAINT, 'grid.linewidth': .7,
    'legend.frameon': False, 'lines.linewidth': 1.4, 'figure.facecolor': 'none', 'axes.facecolor': 'none',
    'svg.fonttype': 'none', 'svg.hashsalt': 'report',  # text stays text; the same numbers give the same bytes
}


def number(value, signed=False):
    """A percentage as text, one decimal, with a true minus sign; '' for None."""
    return '' if value is None else f'{value:{"+" if signed else ""}.1f}'.replace('-', '\u2212')


def draw(draw_on, height, *args):
    """The figure of WIDTH × height inches on which draw_on(figure, *args) has drawn, as a `data:` URI of an SVG."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout='constrained')
        draw_on(figure, *args)
        figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
    svg = buffer.getvalue().replace("'DejaVu Sans'", FONTS)  # laid out in a wide font, shown in the reader's
    return 'data:image/svg+xml;base64,' + base64.b64encode(svg.encode()).decode()


# ---------------------------------------------------------------- losses

def losses(log):
    """Loss curves, one small panel per term, the sum first. log: rows {'step', 'loss', <term>…} → data URI.

    Line: mean over neighbouring steps; band: their 10th to 90th percentile.
    """
    terms = [name for name in log[-1] if name not in ('step', 'loss')]
    names = ['loss', *(terms if len(terms) > 1 else [])]  # a single term is the sum
    lines = 1 + math.ceil((len(names) - 1) / 2)
    return draw(draw_losses, 1.75 if lines == 1 else 1.15 + 1.05 * (lines - 1), log, names, lines)


def draw_losses(figure, log, names, lines):
    """The panels of `losses`: the sum over the whole width, the terms in two columns below."""
    steps = np.array([row['step'] for row in log])
    cells = figure.add_gridspec(lines, 2, height_ratios=[1.25] + [1] * (lines - 1))
    for index, name in enumerate(names):
        axes = figure.add_subplot(cells[0, :] if index == 0 else cells[1 + (index - 1) // 2, (index - 1) % 2])
        loss_panel(axes, steps, np.array([row.get(name, np.nan) for row in log], float), most=50 if index else 100)
        title = 'sum of all terms' if index == 0 and names[1:] else name.removeprefix('loss_').replace('_', ' ')
        axes.set_title(title, loc='left', color=INK)
        if index >= len(names) - 2:
            axes.set_xlabel('step')


def loss_panel(axes, steps, values, most):
    """One term over the steps, binned to `most` points."""
    parts = np.array_split(np.arange(len(steps)), min(most, len(steps)))
    x = [steps[part].mean() for part in parts]
    if len(steps) > most:
        low, high = (np.array([np.nanpercentile(values[part], q) for part in parts]) for q in (10, 90))
        axes.fill_between(x, low, high, color=ACCENT, alpha=.18, lw=0)
    axes.plot(x, [np.nanmean(values[part]) for part in parts], color=ACCENT)
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    axes.set_ylim(bottom=min(0, np.nanmin(values)))
    axes.locator_params(nbins=4)


# ---------------------------------------------------------------- thresholds

def threshold_curves(curves):
    """mIoU over the background score. curves: list of (title, what eval.py --curve writes to JSON) → data URI."""
    return draw(draw_threshold_curves, 2.7, curves)


def draw_threshold_curves(figure, curves):
    """The plot of `threshold_curves`, on any figure: a line per curve, its best and its fixed threshold marked."""
    axes = figure.subplots()
    for (title, summary), colour in zip(curves, (ACCENT, WARM, GOOD, MUTED)):
        axes.plot([float(t) for t in summary['curve']], list(summary['curve'].values()), color=colour)
        best, fixed = summary['best'], summary['fixed']
        axes.plot(best['threshold'], best['miou'], 'o', color=colour, ms=5.5,
                  label=f'{title}: best {best["miou"]:.1f} at {best["threshold"]:.2f}')
        axes.plot(fixed['threshold'], fixed['miou'], 'o', color=colour, ms=5.5, mfc='white',
                  label=f'{title}: fixed {fixed["miou"]:.1f} at {fixed["threshold"]:.2f}')
    axes.set(xlabel='background score', ylabel='mIoU (%)', ylim=(0, None), xlim=(0, None))
    axes.xaxis.set_major_formatter(FormatStrFormatter('%.1f'))
    legend(figure, axes, min(2, len(curves)))


def save_threshold_curve(path, title, summary):
    """Write the plot of one curve as a PNG. title: its name. summary: what eval.py --curve writes to JSON."""
    with matplotlib.rc_context(STYLE | {'figure.facecolor': 'white'}), atomic(path) as temporary:
        figure = Figure(figsize=(6, 4), dpi=100, layout='constrained')
        draw_threshold_curves(figure, [(f' {title}' if title.startswith('_') else title, summary)])  # _: no legend
        figure.savefig(temporary)


# ---------------------------------------------------------------- classes

def class_bars(stages, names):
    """IoU per class along the steps: a bar to the last, a dot for each, the last value and its change from the first.

    stages: list of (title, {class name: IoU in %}), in the order of the steps. names: of the classes, from the top.
    Returns a data URI.
    """
    return draw(draw_class_bars, .205 * len(names) + .8, stages, names)


def draw_class_bars(figure, stages, names):
    """The plot of `class_bars`."""
    colours = [*matplotlib.colormaps['YlGnBu'](np.linspace(.35, .8, len(stages) - 1)), WARM]
    values = np.array([[iou[name] for name in names] for _, iou in stages])
    y = np.arange(len(names))[::-1]
    axes = figure.subplots()
    axes.barh(y, values[-1], height=.62, color='#e9edf2')
    axes.hlines(y, values.min(0), values.max(0), color='#b8c0c9', lw=1, zorder=2)
    for (title, _), row, colour in zip(stages, values, colours):
        axes.plot(row, y, 'o', ms=5, color=colour, mec='white', mew=.5, label=title, zorder=3, clip_on=False)
    for position, first, last in zip(y, values[0], values[-1]):
        axes.text(118, position, number(last), ha='right', va='center', color=INK)
        if len(stages) > 1:
            colour = MUTED if abs(last - first) < .05 else GOOD if last > first else BAD
            axes.text(137, position, number(last - first, True), ha='right', va='center', color=colour)
    axes.set(yticks=y, yticklabels=names, xticks=range(0, 101, 20), xlim=(0, 137),
             ylim=(-.7, len(names) - .3))
    axes.set_xlabel('IoU (%)', x=50 / 137)  # below the middle of 0 to 100
    axes.tick_params(axis='y', colors=INK)
    axes.grid(False)
    axes.grid(axis='x')
    axes.spines['bottom'].set_bounds(0, 100)
    axes.spines['left'].set_visible(False)
    legend(figure, axes, min(3, len(stages)))


def legend(figure, axes, columns):
    """The legend above a plot, to be read line by line (matplotlib fills it column by column)."""
    handles, labels = axes.get_legend_handles_labels()
    order = [i for column in range(columns) for i in range(column, len(labels), columns)]
    made = figure.legend([handles[i] for i in order], [labels[i] for i in order], loc='outside upper left',
                         ncols=columns, columnspacing=1.2, handletextpad=.2, borderpad=0)
    for text in made.get_texts():
        text.set_parse_math(False)  # a user's text may hold dollar signs, which else begin a formula
