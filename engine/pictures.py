"""Pictures that people look at: heat maps, coloured masks, legends, grids; arrays in, arrays or figures out. No torch.
"""
import functools
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from engine.files import atomic

LEAST_SIDE = 480  # pixels: smaller photos are enlarged, so that a legend of readable letters fits below them
LETTERS = 16  # height of a legend's letters in pixels
GAP = 8  # pixels between the parts of a picture


def overlay(image, heat, strength=0.55):
    """A heat map 0..1 (H, W) over a uint8 image (H, W, 3), in matplotlib's jet: uint8 (H, W, 3)."""
    colours = colormaps['jet'](np.clip(heat, 0, 1))[..., :3] * 255
    return np.uint8(np.round(image * (1 - strength) + colours * strength))


def colour(mask, palette):
    """A label mask (H, W) in the colours of a palette of 768 integers: uint8 (H, W, 3)."""
    return np.asarray(palette, np.uint8).reshape(-1, 3)[mask]


def grid(rows, titles, names=None, cell=1.9):
    """A figure of pictures. rows: list of lists of uint8 arrays; titles: per column; names: per row.

    cell: width of a picture in inches. The caller saves or closes the figure.
    """
    height, width = rows[0][0].shape[:2]
    figure = Figure(figsize=(cell * len(titles), cell * len(rows) * height / width + 0.3), layout='constrained')
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            axes[i, j].imshow(picture)
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].spines[:].set_visible(False)
            if i == 0:
                axes[i, j].set_title(titles[j], fontsize=9)
        if names:
            axes[i, 0].set_ylabel(names[i], fontsize=7)
    return figure


# ---------------------------------------------------------------- photos with legends

def visible(image, resample=Image.Resampling.BICUBIC):
    """A picture, uint8 (h, w) or (h, w, 3), enlarged until its long side has LEAST_SIDE pixels."""
    height, width = image.shape[:2]
    factor = LEAST_SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return image if factor <= 1 else np.asarray(Image.fromarray(image).resize(size, resample))


def masked(image, mask, palette, strength=0.5):
    """A photo, uint8 (h, w, 3), under its mask, uint8 (h, w): objects tinted, outlined in their colour; made visible().

    palette: 768 integers. The background stays as it is.
    """
    image, mask = visible(image), visible(mask, Image.Resampling.NEAREST)
    colours = colour(mask, palette)
    tinted = np.where(mask[..., None] > 0, np.uint8(np.round(image * (1 - strength) + colours * strength)), image)
    # An outline lies on both sides of a border: where a label is not that of all neighbours.
    inner, outer = (change(mask, np.ones((3, 3), np.uint8)) for change in (cv2.erode, cv2.dilate))
    return np.where((inner != outer)[..., None], np.where(mask[..., None] > 0, colours, 255), tinted).astype(np.uint8)


@functools.lru_cache(maxsize=None)
def font():
    """The letters of legends: DejaVu Sans, which comes with matplotlib and has those of most alphabets."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'), LETTERS)


def captioned(picture, entries, palette):
    """A picture, uint8 (h, w, 3), above its legend on white, which has as many lines as it needs: uint8 (h', w', 3).

    entries: list of (label, text), label None for a text without a colour. palette: 768 integers, the labels' colours.
    """
    lengths = [LETTERS + round(font().getlength(text)) + 3 * GAP for _, text in entries]
    width, line = max(picture.shape[1], GAP + max(lengths)), LETTERS + GAP
    places, x, y = [], GAP, GAP
    for length in lengths:
        if places and x + length > width:
            x, y = GAP, y + line
        places.append((x, y))
        x += length
    legend = Image.new('RGB', (width, y + line), 'white')
    draw = ImageDraw.Draw(legend)
    for (x, y), (label, text) in zip(places, entries):
        if label is not None:
            fill = tuple(palette[3 * label:3 * label + 3])
            draw.rectangle((x, y, x + LETTERS - 1, y + LETTERS - 1), fill=fill, outline='black')
            x += LETTERS + GAP
        draw.text((x, y + LETTERS // 2), text, fill='black', font=font(), anchor='lm')
    picture = np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
    return np.concatenate([picture, np.asarray(legend)])


def tiled(pictures, columns=3):
    """Pictures, uint8 (h, w, 3), in rows of at most `columns`, on white: uint8 (h', w', 3)."""
    rows = []
    for start in range(0, len(pictures), columns):
        group = pictures[start:start + columns]
        height = max(picture.shape[0] for picture in group)
        group = [np.pad(picture, ((0, height - picture.shape[0]), (0, GAP), (0, 0)), constant_values=255)
                 for picture in group]
        rows.append(np.concatenate(group, 1))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
                           for row in rows])


def save_jpeg(path, image):
    """Write uint8 (H, W, 3) as a JPEG without blurred colours, atomically."""
    with atomic(path) as temporary:
        Image.fromarray(image).save(temporary, 'jpeg', quality=90, subsampling=0)
