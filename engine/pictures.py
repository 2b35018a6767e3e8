"""Pictures that people look at: heat maps, coloured masks, grids; arrays in, arrays or figures out. No torch here."""
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure


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
