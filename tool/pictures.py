"""Pictures that people look at: heat maps, coloured masks, grids. Arrays in, arrays or matplotlib figures out."""
import numpy as np


def overlay(image, heat, strength=0.55):
    """A heat map 0..1 (H, W) over a uint8 image (H, W, 3), in matplotlib's jet: uint8 (H, W, 3)."""
    from matplotlib import colormaps
    colours = colormaps['jet'](np.clip(heat, 0, 1))[..., :3] * 255
    return np.uint8(np.round(image * (1 - strength) + colours * strength))


def colour(mask, palette):
    """A label mask (H, W) in the colours of a palette of 768 integers: uint8 (H, W, 3)."""
    return np.asarray(palette, np.uint8).reshape(-1, 3)[mask]


def grid(rows, titles, names=None, cell=1.9):
    """A figure of pictures. rows: list of lists of uint8 arrays; titles: one per column; names: one per row.

    cell: width of a picture in inches. The caller saves or closes the figure.
    """
    from matplotlib.figure import Figure
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


def training_sheet(images, heat, labels, palette):
    """The sheet that training shows, a row per image: image | heat maps | label maps.

    images: uint8 (H, W, 3) each. heat: {title: maps (N, h, w), 0..1}, laid over the image. labels: {title: label maps
    (N, h, w)}, in the palette's colours. Maps of any size are brought to the image's.
    """
    import cv2
    rows = []
    for k, image in enumerate(images):
        size = image.shape[1::-1]
        warm = [cv2.resize(maps[k].astype(np.float32), size, interpolation=cv2.INTER_LINEAR) for maps in heat.values()]
        masks = [cv2.resize(maps[k].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for maps in labels.values()]
        rows.append([image, *(overlay(image, m) for m in warm), *(colour(mask, palette) for mask in masks)])
    return grid(rows, ('image', *heat, *labels))
