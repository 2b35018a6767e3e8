"""What training shows: figures of a batch with the maps and masks that a step made of it."""
import cv2
import numpy as np

from data.transforms import denormalise
from engine.pictures import colour, grid, overlay
from tool.cam import max_norm
from tool.contrast import pseudo_labels
from tool.random_walk import affinity_matrix

SHOWN = 4  # images of a batch that a figure shows


def training_figure(images, heat, labels, palette):
    """A figure of a training step, a row per image: image | heat maps | label maps.

    images: normalised tensors (3, H, W). heat: {title: maps (N, h, w), 0..1}, laid over the image. labels: {title:
    label maps (N, h, w)}, in the palette's colours. Maps of any size are brought to the image's.
    """
    rows = []
    for k, image in enumerate(images):
        image = denormalise(image)
        size = image.shape[1::-1]
        warm = [cv2.resize(maps[k].astype(np.float32), size, interpolation=cv2.INTER_LINEAR) for maps in heat.values()]
        masks = [cv2.resize(maps[k].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
                 for maps in labels.values()]
        rows.append([image, *(overlay(image, m) for m in warm), *(colour(mask, palette) for mask in masks)])
    return grid(rows, ('image', *heat, *labels))


def cam_figure(image, view, target, bg_threshold, palette):
    """Step 1's training_figure: saliency, CAM, revised CAM and the contrast's pseudo labels, where a baseline has them.

    image (N, 3, H, W). view: its tool.cam.View. target: tool.seam.Target. bg_threshold: of the pseudo labels, or None.
    """
    label = target.label[:SHOWN]
    heat, labels = {}, {}
    if target.saliency is not None:
        heat['saliency'] = target.saliency[:SHOWN, 0].cpu().numpy()
    for title, maps in (('CAM', view.cam), ('revised CAM', view.revised)):
        if maps is not None:
            normalised = max_norm(maps[:SHOWN].detach().float())[:, 1:] * label[:, :, None, None]
            heat[title] = normalised.amax(1).cpu().numpy()
    if view.revised is not None and bg_threshold is not None:
        labels['pseudo label'] = pseudo_labels(view.revised[:SHOWN].float(), label, bg_threshold)[1].cpu().numpy()
    return training_figure(image[:SHOWN], heat, labels, palette)


def affinity_figure(batch, affinity, palette):
    """Step 2's training_figure: labels of the cells, and each cell's mean distance (1 − affinity) to its neighbours.

    batch: of data.affinity.AffinityCrops. affinity: tensor (N, O, P).
    """
    labels, heat = batch['label'].numpy(), []
    for values, label in zip(affinity[:SHOWN].detach().float().cpu().numpy(), labels):
        matrix = affinity_matrix(values, *label.shape)
        distance = (1 - matrix.sum(1) / np.diff(matrix.indptr)).reshape(label.shape)
        heat.append(distance / max(distance.max(), 1e-5))
    return training_figure(batch['image'][:SHOWN], {'distance to neighbours': heat}, {'labels of cells': labels},
                           palette)


def segmentation_figure(batch, logits, palette):
    """Step 3's training_figure: pseudo mask and prediction.

    batch: of data.segmentation.PseudoMasks. logits: tensor (N, C, H, W).
    """
    predicted = logits[:SHOWN].argmax(1).cpu().numpy()
    return training_figure(batch['image'][:SHOWN], {}, {'pseudo mask': batch['mask'].numpy(), 'prediction': predicted},
                           palette)
