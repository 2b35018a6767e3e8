"""What becomes of a network's scores for one photo: a mask of its size, a picture with a legend, a line of text.

No torch here: worker processes import this module.
"""
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from data.classes import ClassSet
from data.images import MIN_SIDE
from data.masks import save_mask
from engine import crf_workers, pictures
from engine.crf_engine import CrfEngine
from tool import seeds


class Prediction(NamedTuple):
    """What a network says of a photo.

    mask: uint8 (H, W), a label per pixel of the upright photo, 0 = background. scores: float32 (C, h, w), 0..1, whose
    strongest channel is the label; (h, w) is (H, W), less for photos that were shrunk. found: {class name: of DeepLab
    the fraction of the mask that it covers, of Step 1's networks the classifier's score}, both 0..1.
    """
    mask: np.ndarray
    scores: np.ndarray
    found: dict


class Cams(NamedTuple):
    """What a network of Step 1 makes of a photo. present (K,): foreground indices from 0 of the classes that are drawn.
    maps: their CAMs, float32 (K, h, w). scores: of all classes, float32 (foreground classes,), 0..1.
    """
    present: np.ndarray
    maps: np.ndarray
    scores: np.ndarray


# ---------------------------------------------------------------- from a network's scores to labels

@dataclass(frozen=True)
class OfProbabilities:
    """DeepLab: the likeliest class. crf_iters: iterations of the CRF that refines it, None for no CRF."""
    classes: ClassSet
    crf_iters: int
    engine: CrfEngine

    def labelled(self, pixels, probabilities):
        """Scores (K, h, w) and their labels (K,), ascending. probabilities: float32 (C, h, w)."""
        if self.crf_iters is None:
            return probabilities, np.arange(len(probabilities))
        return crf_workers.refine_scores(pixels, probabilities, self.crf_iters, self.engine)

    def found(self, probabilities, mask):
        """Prediction.found, the largest first."""
        counts = np.bincount(mask.ravel(), minlength=self.classes.num_classes) / mask.size
        return {self.classes.names[label]: float(counts[label])
                for label in np.argsort(-counts, kind='stable').tolist() if label and counts[label]}

    def entries(self, probabilities, mask):
        """The legend: (label, text) of each class of the mask."""
        return [(self.classes.names.index(name), f'{name} {percent(fraction)}')
                for name, fraction in self.found(probabilities, mask).items()]

    def line(self, probabilities, mask):
        """What was found, in words."""
        return ', '.join(text for _, text in self.entries(probabilities, mask)) or 'background alone'

    def picture(self, pixels, probabilities, mask):
        """The photo under its mask with a legend: uint8 (h', w', 3). mask: of the size of `pixels`."""
        entries = self.entries(probabilities, mask) or [(None, 'background alone')]
        return pictures.captioned(pictures.masked(pixels, mask, self.classes.palette), entries, self.classes.palette)


@dataclass(frozen=True)
class OfCams:
    """Step 1: the strongest CAM above the background score. settings: crf_workers.SeedSettings. crf: whether to refine
    by them. threshold: the classifier's score from which a class is drawn, None where the user named the classes.
    """
    settings: crf_workers.SeedSettings
    crf: bool
    threshold: float

    @property
    def classes(self):
        """The ClassSet."""
        return self.settings.classes

    @property
    def engine(self):
        """The CrfEngine."""
        return self.settings.engine

    def labelled(self, pixels, cams):
        """As OfProbabilities.labelled. cams: a Cams."""
        labels = np.append(0, cams.present + 1)
        if self.crf and len(cams.present):
            return crf_workers.refine_seeds(pixels, cams.present, cams.maps, self.settings), labels
        return seeds.with_background(cams.maps, self.settings.background), labels

    def found(self, cams, mask):
        """Prediction.found, the highest score first: the classes that are drawn."""
        order = sorted(cams.present.tolist(), key=lambda k: -cams.scores[k])
        return {self.classes.foreground[k]: float(cams.scores[k]) for k in order}

    def entries(self, cams, mask):
        """As OfProbabilities.entries: each class that is drawn, with the classifier's score."""
        return [(self.classes.names.index(name), f'{name} {score:.2f}')
                for name, score in self.found(cams, mask).items()]

    def line(self, cams, mask):
        """The classes that are drawn with their scores; where there are none, the most likely one."""
        if len(cams.present):
            return ', '.join(text for _, text in self.entries(cams, mask))
        best = int(cams.scores.argmax())
        return f'no class scores {self.threshold:g} or more (highest: {self.classes.foreground[best]} ' \
               f'{cams.scores[best]:.2f})'

    def picture(self, pixels, cams, mask):
        """The photo under its mask, and under the CAM of each class: uint8 (h', w', 3)."""
        entries, palette = self.entries(cams, mask) or [(None, self.line(cams, mask))], self.classes.palette
        tiles = [pictures.captioned(pictures.masked(pixels, mask, palette), entries, palette)]
        places = {k + 1: place for place, k in enumerate(cams.present.tolist())}
        for label, text in entries:
            if label is not None:
                heat = pictures.overlay(pixels, cams.maps[places[label]])
                tiles.append(pictures.captioned(pictures.visible(heat), [(label, f'CAM of {text}')], palette))
        return pictures.tiled(tiles)


def percent(fraction):
    """A fraction in whole percent, for people."""
    return '< 1 %' if fraction < 0.005 else f'{100 * fraction:.0f} %'


def label_map(scores, labels, size):
    """The label of the strongest score at each pixel of `size` (H, W), the first on a tie: uint8 (H, W).

    scores (K, h, w), labels (K,). Where the sizes differ, the scores of the classes that are strongest anywhere are
    enlarged (bilinear), one after the other: all at once would take gigabytes for the photos of some cameras.
    """
    small = np.asarray(labels, np.uint8)[scores.argmax(0)]
    if small.shape == tuple(size):
        return small
    mask, best = np.zeros(size, np.uint8), np.full(size, -np.inf, np.float32)
    for score, label in zip(scores, np.asarray(labels).tolist()):
        if (small == label).any():
            large = cv2.resize(np.float32(score), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
            mask[large > best] = label
            np.maximum(best, large, out=best)
    return mask


# ---------------------------------------------------------------- photos

def shrunk(pixels, max_side):
    """A photo, uint8 (H, W, 3), in its shape, but with sides of MIN_SIDE to max_side pixels: uint8 (h, w, 3)."""
    height, width = pixels.shape[:2]
    factor = max_side / max(height, width)
    if factor >= 1:
        return pixels
    size = tuple(max(MIN_SIDE, round(side * factor)) for side in (width, height))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def complete(pixels, raw, size, after):
    """The Prediction of a photo of `size` (H, W). pixels: what the network saw of it, uint8 (h, w, 3). raw: what it
    said, as `after` (an OfProbabilities or OfCams) takes it.
    """
    scores, labels = after.labelled(pixels, raw)
    dense = np.zeros((after.classes.num_classes, *pixels.shape[:2]), np.float32)
    dense[labels] = scores
    mask = label_map(scores, labels, size)
    return Prediction(mask, dense, after.found(raw, mask))


def write(photo, paths, pixels, raw, size, after):
    """Write the mask and the picture of a photo: {'mask', 'overlay': path}. Returns a line that says what was found.

    photo: its path, for the line. All else as in `complete`.
    """
    scores, labels = after.labelled(pixels, raw)
    mask = label_map(scores, labels, size)
    pictures.save_jpeg(paths['overlay'], after.picture(pixels, raw, label_map(scores, labels, pixels.shape[:2])))
    save_mask(paths['mask'], mask, after.classes.palette)
    return f'{photo}: {after.line(raw, mask)}'
