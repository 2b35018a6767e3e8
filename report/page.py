"""The report of a run: one HTML file with its numbers, curves and pictures inside, for any browser, without a network.

A description (report/chain.py makes one; all parts but title and rows may be absent) says what to show:
    title         str
    notes         [str]: paragraphs under the title
    supervision   extra supervision beside image-level labels, or ''
    rows          [{'stage', 'split', 'short', 'oracle', 'published': mIoU in % or None, and either 'here': mIoU in % or
                  'scores': JSON of eval.py or of segmentation's test.py, with 'entry': 'best' | 'fixed' | a variant;
                  'classes': names of those that 'here' is the mean over, all unless given}]
    runs          [{'title', 'session'}]: training runs, path without suffix (.losses.jsonl, .json)
    curves        [{'title', 'scores': JSON of eval.py --curve, 'classes': as in rows}]
    images        {'list', 'photos': a data.images.PhotoFolders, 'ground_truth': folder or '',
                  'stages': [{'title', 'folder', 'kind': 'cam' | 'mask'}]}
    commands      [{'name', 'line'}], with 'log_dir', where report/pipeline.py left how long each took
    credits       [str]: lines for the foot of the page
What does not exist yet is left out of the page.
"""
import html
import re
import string
import time
from pathlib import Path

from engine import files, runinfo
from engine.loss_log import read_loss_log
from report import figures, gallery, pipeline
from report.figures import number
from report.presets import mean_over

TEMPLATE = Path(__file__).with_name('template.html')


def build(description, path, classes, workers=0):
    """Write the report to `path` and return it. classes: a ClassSet. workers: processes that read the images' masks."""
    rows = [read_row(row) for row in description['rows']]
    curves = [(curve['title'], summary) for curve in description.get('curves', ()) if (summary := read_curve(curve))]
    runs = [read_run(run) for run in description.get('runs', ())]
    images = description.get('images')
    sections = [results_section(rows), losses_section(runs), curve_section(curves),
                classes_section(rows, next((row['classes'] for row in rows if row.get('classes')), classes.names)),
                gallery.section(images, classes, workers) if images else '',
                settings_section(runs), commands_section(description)]
    page = string.Template(TEMPLATE.read_text(encoding='utf-8')).substitute(
        title=html.escape(description['title']), header=header(description, rows),
        sections='\n'.join(filter(None, sections)), footer=footer(description))
    files.out_dir(Path(path).parent, 'report')
    files.save_text(path, page)
    return path


def publish(description, path, classes):
    """Write the report to `path`, print the table and where the report is. Returns the table as text."""
    table = text_table(description['rows']) if description['rows'] else 'no ground truth, so nothing is scored'
    print(f'\n{table}\n\nwrote {build(description, path, classes)}')
    return table


# ---------------------------------------------------------------- reading

def read_scores(path):
    """The content of a JSON file of scores; None where it does not exist. UserError: damaged."""
    return files.read_json(path, 'run the evaluation that writes it again')


def read_row(row):
    """A row with all its keys; beside 'here' 'class_iou' ({name: %}), 'images', 'threshold', None where unknown."""
    empty = dict.fromkeys(('here', 'published', 'class_iou', 'images', 'threshold')) | {'short': '', 'oracle': False}
    scores = read_scores(row['scores']) if 'scores' in row else None
    if scores is None:
        return empty | row
    if isinstance(scores.get('miou'), dict):  # segmentation/experiment/test.py: four variants
        found = {'here': scores['miou'][row['entry']], 'class_iou': scores['class_iou'][row['entry']]}
    else:  # eval.py
        entry = scores[row['entry']] or {}
        found = {'here': entry.get('miou'), 'class_iou': entry.get('class_iou'), 'threshold': entry.get('threshold')}
    if row.get('classes') and found['class_iou']:
        found['class_iou'] = {name: found['class_iou'][name] for name in row['classes']}
        found['here'] = mean_over(found['class_iou'], row['classes'])
    return empty | row | found | {'images': scores['images']}


def read_curve(curve):
    """What eval.py --curve wrote, its means over the curve's 'classes' where those are given; None: no such curve."""
    summary, names = read_scores(curve['scores']), curve.get('classes')
    wanted = 'curve_class_iou' if names else 'curve'
    if not summary or not summary.get(wanted):
        return None
    if not names:
        return summary
    means = {threshold: mean_over(class_iou, names) for threshold, class_iou in summary[wanted].items()}
    points = {kind: entry | {'miou': mean_over(entry['class_iou'], names)}
              for kind, entry in summary.items() if kind in ('best', 'fixed')}
    return summary | points | {'curve': means}


def read_run(run):
    """A training run with its 'log' (rows of losses) and 'info' (what engine/runinfo.py wrote; {} where absent)."""
    log, info = read_loss_log(f'{run["session"]}.losses.jsonl'), read_scores(f'{run["session"]}.json')
    return run | {'log': log, 'info': info or {}}


# ---------------------------------------------------------------- numbers

def difference(row):
    """Here minus published; None where either is missing."""
    return None if row['here'] is None or row['published'] is None else row['here'] - row['published']


def text_table(rows):
    """The Model Zoo table as text: stage, split, here, published, difference; the last two where a row has them."""
    rows = [read_row(row) for row in rows]
    lines = [('mIoU in %', 'split', 'here', 'published', 'difference')]
    lines += [(row['stage'], row['split'], number(row['here']), number(row['published']), number(difference(row), True))
              for row in rows]
    width, shown = max(len(line[0]) for line in lines), 5 if any(row['published'] is not None for row in rows) else 3
    return '\n'.join(f'{stage:{width}}  {split:<6}' + ''.join(f'{text:>12}' for text in (here, *rest)[:shown - 2])
                     for stage, split, here, *rest in lines)


# ---------------------------------------------------------------- sections

def header(description, rows):
    """Title, notes, and the steps of the chain with their mIoU, each split its own line of figures."""
    parts = [f'<h1>{html.escape(description["title"])}</h1>']
    if description.get('supervision'):
        parts.append(f'<p class="tag">extra supervision: {html.escape(description["supervision"])}</p>')
    parts += [f'<p>{html.escape(note)}</p>' for note in description.get('notes', ())]
    steps = [row for row in rows if row['short'] and row['here'] is not None]
    if steps:
        items = [f'<li><b>{number(row["here"])}</b><span>{html.escape(row["short"] + ", " + row["split"])}</span></li>'
                 for row in headline(steps)]
        parts.append(f'<ul class="path">{"".join(items)}</ul>'
                     '<p class="muted small">mIoU in %, background included, after each step.</p>')
    return '\n'.join(parts)


def headline(steps):
    """The figures at the top: the steps on the training images, then the last one on the others."""
    first = steps[0]['split']
    others = [row for row in steps if row['split'] != first]
    return [row for row in steps if row['split'] == first] + others[-1:]


def results_section(rows):
    """The table: published | here | difference, a group of rows per split; '' without rows."""
    if not rows:
        return ''
    published = any(row['published'] is not None for row in rows)
    titles = ('Published', 'Here', 'Difference') if published else ('Here',)
    head = '<th>Stage</th>' + ''.join(f'<th class="num">{title}</th>' for title in titles) + '<th class="bar"></th>'
    body = []
    for split in dict.fromkeys(row['split'] for row in rows):
        group = [row for row in rows if row['split'] == split]
        images = next((f'{row["images"]:,} images' for row in group if row['images']), '')
        body.append(f'<tr class="split"><th colspan="{len(titles) + 2}">{html.escape(split)} '
                    f'<span class="muted">{images}</span></th></tr>')
        body += [table_row(row, published) for row in group]
    counted = 'the classes named above' if any(row.get('classes') for row in rows) else 'all classes'
    notes = [f'Every figure is mIoU in % over {counted}, background included, on the split that it stands under.']
    if any(row['oracle'] for row in rows):
        notes.append('The best threshold is the background score picked with the ground truth that it is scored on '
                     '(an oracle): an upper bound, as papers report it, that nobody has without masks. '
                     'The fixed one is chosen beforehand.')
    if any(row['split'] == 'val' for row in rows):
        notes.append('Seeds and masks are made with the image-level labels of their images, on val too; '
                     'DeepLab sees the image alone.')
    return f'<h2>Results</h2><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>' \
           + ''.join(f'<p class="muted small">{note}</p>' for note in notes)


def table_row(row, published):
    """One row of the table; a dash where nothing was measured yet."""
    at = f' <span class="muted">at {row["threshold"]:.2f}</span>' if row['threshold'] is not None else ''
    cells = [f'<td>{html.escape(row["stage"])}{at}</td>']
    change = difference(row)
    sign = '' if change is None else ' up' if change >= 0 else ' down'
    cells.append(f'<td class="num"><b>{number(row["here"]) or "–"}</b></td>')
    if published:
        cells.insert(1, f'<td class="num">{number(row["published"])}</td>')
        cells.append(f'<td class="num{sign}">{number(change, True)}</td>')
    kind = ' class="oracle"' if row['oracle'] else ''
    bar = '' if row['here'] is None else f'<i{kind} style="width:{row["here"]:.1f}%"></i>'
    return f'<tr>{"".join(cells)}<td class="bar">{bar}</td></tr>'


def losses_section(runs):
    """Loss curves of every training run that has a log."""
    plots = [plot(figures.losses(run['log']), f'loss curves of {run["title"]}', run['title'], run_line(run))
             for run in runs if run['log']]
    return section('Training', plots, 'Each term before its weight; the first panel is the weighted sum. '
                   'Line: mean of the steps around; band: their 10th to 90th percentile.')


def run_line(run):
    """A training run's size in a few words."""
    info = run['info']
    words = {'total_batch': 'batch ', 'seed': 'seed ', 'device': ''}
    found = [f'{word}{info[key]}' for key, word in words.items() if key in info]
    return ', '.join([f'{len(run["log"]):,} steps', *found])


def curve_section(curves):
    """mIoU of the seeds over the background score."""
    if not curves:
        return ''
    image = plot(figures.threshold_curves(curves), 'mIoU of the seeds over the background score', 'Seeds', '')
    return section('Background threshold', [image], 'A pixel is background where no class scores above it. The best '
                   'threshold (filled dot) is found with the ground truth: an oracle. The fixed one (open dot) is not.')


def classes_section(rows, names):
    """IoU per class: a plot per split, and all the numbers."""
    steps = [row for row in rows if row['short'] and row['class_iou']]
    splits = {}
    for row in steps:
        splits.setdefault(row['split'], []).append(row)
    plots = [plot(figures.class_bars([(row['short'], row['class_iou']) for row in group], names),
                  f'IoU per class on {split}', split,
                  f'from {group[0]["short"]} to {group[-1]["short"]}' if group[1:] else '')
             for split, group in splits.items()]
    text = 'Bar and first number: the last step. Dots: every step. Second number: the change from first to last.'
    return section('IoU per class', plots, text) + class_table(splits, names) if plots else ''


def class_table(splits, names):
    """All IoU per class, split and step; scrolls sideways where it does not fit."""
    steps = [(row, ' first' if row is group[0] else '') for group in splits.values() for row in group]
    groups = ''.join(f'<th class="first" colspan="{len(group)}">{html.escape(split)}</th>'
                     for split, group in splits.items())
    head = ''.join(f'<th class="num{first}">{html.escape(row["short"])}</th>' for row, first in steps)

    def line(title, values, kind=''):
        cells = ''.join(f'<td class="num{first}">{number(value)}</td>' for value, (_, first) in zip(values, steps))
        return f'<tr{kind}><th>{html.escape(title)}</th>{cells}</tr>'
    body = [line(name, [row['class_iou'][name] for row, _ in steps]) for name in names]
    body.append(line('mean', [row['here'] for row, _ in steps], ' class="total"'))
    return f'<h3>All numbers</h3><div class="scroll"><table><thead><tr><th></th>{groups}</tr>' \
           f'<tr><th>IoU in %</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def settings_section(runs):
    """What each training run was set to, and the environment of the last one (of this process where there is none)."""
    runs = [run for run in runs if run['info']]
    info = runs[-1]['info'] if runs else runinfo.describe({})
    environment = {'commit': info['git_commit'], 'python': info['python'], **info['packages'],
                   'platform': info['platform'], 'device': info['device'], 'time': info['time']}
    blocks = [details(run['title'], run['info']['settings']) for run in runs]
    return '<h2>Settings and environment</h2>' + ''.join(blocks) + details('Environment', environment)


def details(title, values):
    """A block that opens: a list of names and values, those that are empty or off left out."""
    items = ''.join(f'<div><dt>{html.escape(str(key))}</dt><dd>{html.escape(plain(value))}</dd></div>'
                    for key, value in values.items() if value not in (None, '', False))
    return f'<details><summary>{html.escape(title)}</summary><dl>{items}</dl></details>'


def plain(value):
    """A setting as text: lists without brackets."""
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def commands_section(description):
    """The commands that made the run, with the time each took."""
    if not description.get('commands'):
        return ''
    items = []
    for command in description['commands']:
        seconds = pipeline.read_record(description['log_dir'], command['name'])['seconds']
        took = '' if seconds is None else f' <span class="muted">{duration(seconds)}</span>'
        line = re.sub(r'(--\w+)', r'<span class="flag">\1</span>', html.escape(command['line']))
        items.append(f'<li><code>{line}</code>{took}</li>')
    return '<h2>Commands</h2><p class="muted small">From the repository’s folder, with the time each took.</p>' \
           f'<ol class="commands">{"".join(items)}</ol>'


def duration(seconds):
    """Seconds in words: '42 s', '3 min 05 s', '2 h 10 min'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes:02d} min'
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'


def footer(description):
    """The method's citation, credits, and when the page was made."""
    lines = ['Method: Ye Du, Zehua Fu, Qingjie Liu, Yunhong Wang. <a href="https://arxiv.org/abs/2110.07110">Weakly '
             'Supervised Semantic Segmentation by Pixel-to-Prototype Contrast</a>. CVPR 2022.',
             *map(html.escape, description.get('credits', ())),
             f'Page made {time.strftime("%Y-%m-%d %H:%M")} at commit {runinfo.git_commit()}.']
    return '\n'.join(f'<p>{line}</p>' for line in lines)


# ---------------------------------------------------------------- markup

def section(title, plots, text):
    """A heading, a line of text and plots side by side; '' without plots."""
    if not plots:
        return ''
    return f'<h2>{title}</h2><p class="muted small">{text}</p><div class="plots">{"".join(plots)}</div>'


def plot(uri, alt, title, text):
    """A plot with its heading."""
    caption = f'<p class="muted small">{html.escape(text)}</p>' if text else ''
    return f'<figure><h3>{html.escape(title)}</h3>{caption}<img src="{uri}" alt="{html.escape(alt)}"></figure>'
