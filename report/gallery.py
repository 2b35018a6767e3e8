"""The report's pictures: the same images at every stage of the chain."""
import base64
import functools
import html
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.cams import read_cams
from data.images import read_image
from data.lists import read_list
from data.masks import read_mask, read_truth
from engine import files, parallel, pictures
from engine.workers import count_mask
from tool import metrics

SIDE = 320  # longest side, in pixels, of a picture on the page
SUFFIX = {'cam': '.npy', 'mask': '.png'}


@dataclass(frozen=True)
class Scored:
    """An image's id, its mIoU in % over the classes in it or predicted in it, and the labels of its ground truth.

    Without ground truth: None, and the labels of its mask.
    """
    name: str
    miou: float
    labels: tuple


def section(images, classes, workers=0, each=6):
    """The section of the page: `each` worst and best images by the last stage's masks, and the colours of the classes;
    without ground truth, the first images of the list.

    images: see report/page.py. Stages without files are left out; '' where no photo, ground truth or mask is there.
    """
    photos = images['photos'].find(read_list(images['list'], 'list'))
    ids = list(photos)
    if images['ground_truth']:
        ids = available(ids, images['ground_truth'], '.png')
    stages = [stage for stage in images['stages'] if available(ids, stage['folder'], SUFFIX[stage['kind']])]
    for stage in stages:
        ids = available(ids, stage['folder'], SUFFIX[stage['kind']])
    masks = [stage for stage in stages if stage['kind'] == 'mask']
    if not ids or not masks:
        return ''
    where, stage = html.escape(Path(images['list']).stem), html.escape(masks[-1]['title'])
    if images['ground_truth']:
        groups = extremes(ids, masks[-1]['folder'], images['ground_truth'], classes, workers, each)
        text = f'The extremes of {len(ids):,} images of {where}, by the mIoU that an image has by itself at ' \
               f'“{stage}”: the mean over the classes that are in it or were predicted in it.'
    else:
        groups = {'': [unscored(name, masks[-1]['folder'], classes) for name in ids[:2 * each]]}
        text = f'The first of {len(ids):,} images of {where}, without ground truth, with the classes of “{stage}”.'
    blocks = [(f'<h3>{title}</h3>' if title else '')
              + ''.join(card(item, photos[item.name], images, stages, classes) for item in group)
              for title, group in groups.items() if group]
    return f'<h2>Images</h2><p class="muted small">{text}</p>{palette(classes)}{"".join(blocks)}'


def extremes(ids, folder, ground_truth, classes, workers, each):
    """{'Worst', 'Best': `each` Scored} of the masks in a folder."""
    count = functools.partial(count_mask, predict_dir=Path(folder), gt_dir=Path(ground_truth), classes=classes)
    counts = [counts for counts, _ in parallel.map_images(count, ids, workers, 'report')]
    scored = sorted(map(score, ids, counts), key=lambda item: item.miou)
    return {'Worst': scored[:each], 'Best': scored[each:][::-1][:each]}


def unscored(name, folder, classes):
    """The Scored of an image (an id) without ground truth, from its mask in a folder."""
    mask = read_mask(Path(folder) / f'{name}.png', classes.colours)
    return Scored(name, None, tuple(label for label in np.unique(mask).tolist() if label < classes.num_classes))


def available(ids, folder, suffix):
    """Those of `ids` that have a file in a folder."""
    missing = set(files.missing_files(ids, folder, suffix))
    return [name for name in ids if name not in missing]


def score(name, counts):
    """The Scored of an image (an id) with its confusion counts."""
    shown = counts.sum(1) + counts[:, :-1].sum(0) > 0
    return Scored(name, float(metrics.class_iou(counts)[shown].mean()), tuple(np.flatnonzero(counts.sum(1)).tolist()))


def card(item, photo_path, images, stages, classes):
    """One image: its id, score and classes, and the strip of its pictures."""
    photo = read_image(photo_path, convert=True)
    cells = [picture(jpeg(photo), 'photo')]
    for stage in stages:
        path = Path(stage['folder']) / (item.name + SUFFIX[stage['kind']])
        if stage['kind'] == 'cam':
            heat = strongest(path, classes, photo.shape[:2])
            cells.append(picture(jpeg(pictures.overlay(photo, heat)), stage['title']))
        else:
            cells.append(picture(png(read_mask(path, classes.colours), classes.palette), stage['title'], 'mask'))
    if images['ground_truth']:
        truth = read_truth(Path(images['ground_truth']) / f'{item.name}.png', classes)
        cells.append(picture(png(truth, classes.palette), 'ground truth', 'mask'))
    present = ', '.join(classes.names[label] for label in item.labels if label)
    miou = '' if item.miou is None else f'<b>mIoU {item.miou:.1f}</b>'
    words = f'{miou}<span>{html.escape(present)}</span><span>{html.escape(item.name)}</span>'
    strip = f'<div class="strip" style="--n:{len(cells)}">{"".join(cells)}</div>'
    return f'<article class="card"><h4>{words}</h4>{strip}</article>'


def strongest(path, classes, size):
    """The strongest CAM per pixel of a file, float32 (H, W); 0 for an image of `size` (H, W) without any class."""
    cams = read_cams(path, classes.num_foreground)[1]
    return cams.max(0) if len(cams) else np.zeros(size, np.float32)


def picture(uri, title, kind='photo'):
    """One picture of a strip, with its caption."""
    title = html.escape(title)
    return f'<figure><img class="{kind}" src="{uri}" alt="{title}"><figcaption>{title}</figcaption></figure>'


def palette(classes):
    """The legend: every class with its colour."""
    colours = np.asarray(classes.palette).reshape(-1, 3)
    named = [*enumerate(classes.names), (metrics.IGNORE, 'ignored')]
    items = [f'<li><i style="background:rgb({" ".join(map(str, colours[label]))})"></i>{html.escape(name)}</li>'
             for label, name in named]
    return f'<ul class="legend">{"".join(items)}</ul>'


def jpeg(pixels):
    """A photo uint8 (H, W, 3) as a data URI, at most SIDE long."""
    return data_uri(Image.fromarray(pixels), 'jpeg', Image.Resampling.LANCZOS, quality=82)


def png(mask, colours):
    """A label mask (H, W) as a data URI of a palette PNG, at most SIDE long. colours: 768 integers."""
    image = Image.fromarray(mask)
    image.putpalette(colours)
    return data_uri(image, 'png', Image.Resampling.NEAREST, optimize=True)


def data_uri(image, kind, filter, **options):
    """A PIL image as a data URI."""
    image.thumbnail((SIDE, SIDE), filter)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f'data:image/{kind};base64,' + base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------- a sheet as a PNG

def save_sheet(images, path, classes, count=8):
    """A PNG of the first `count` images of the list: photo, what every stage made of it, ground truth.

    images: see report/page.py. classes: a ClassSet.
    """
    rows = []
    for name, photo_path in images['photos'].need(read_list(images['list'])[:count]).items():
        photo = read_image(photo_path)
        row = [photo]
        for stage in images['stages']:
            path_of = Path(stage['folder']) / (name + SUFFIX[stage['kind']])
            if stage['kind'] == 'cam':
                row.append(pictures.overlay(photo, strongest(path_of, classes, photo.shape[:2])))
            else:
                row.append(pictures.colour(read_mask(path_of, classes.colours), classes.palette))
        truth = read_truth(Path(images['ground_truth']) / f'{name}.png', classes)
        rows.append([*row, pictures.colour(truth, classes.palette)])
    figure = pictures.grid(rows, ('photo', *(stage['title'] for stage in images['stages']), 'ground truth'))
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
