"""The curve over background scores as published: every file read again for each of the 60 scores. METHOD 5.

Plain twin of engine/evaluation.py: evaluate_cams, and of tool/metrics.py: score_histogram, curve_confusions.
"""
import os

import numpy as np
from PIL import Image


def curve(ids, predict_dir, gt_dir, num_classes=21, scores=tuple(i / 100.0 for i in range(60))):
    """mIoU in percent for each background score. Reads <predict_dir>/<id>.npy (CAM dicts) and <gt_dir>/<id>.png."""
    return [miou(ids, predict_dir, gt_dir, num_classes, score) for score in scores]


def miou(ids, predict_dir, gt_dir, num_classes, score):
    """One pass over the files: a stack of all classes, its argmax, and counting class by class."""
    true, predicted, hit = np.zeros(num_classes), np.zeros(num_classes), np.zeros(num_classes)
    for image in ids:
        cams = np.load(os.path.join(predict_dir, f'{image}.npy'), allow_pickle=True).item()  # ours, read as published
        height, width = list(cams.values())[0].shape
        stack = np.zeros((num_classes, height, width), np.float32)
        for key in cams.keys():
            stack[key + 1] = cams[key]
        stack[0, :, :] = score
        predict = np.argmax(stack, axis=0).astype(np.uint8)
        gt = np.array(Image.open(os.path.join(gt_dir, f'{image}.png')))
        counted = gt < 255
        right = (predict == gt) * counted
        for c in range(num_classes):
            predicted[c] += np.sum((predict == c) * counted)
            true[c] += np.sum((gt == c) * counted)
            hit[c] += np.sum((gt == c) * right)
    return np.mean([hit[c] / (true[c] + predicted[c] - hit[c] + 1e-10) for c in range(num_classes)]) * 100
