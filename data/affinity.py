"""Images for AffinityNet: crops with the labels of their cells to train on, padded images to infer. METHOD 6.2, 6.4."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data.crop import CropWindow, centre
from data.photos import Photos
from data.probabilities import read_probabilities
from data.transforms import ColorJitter, random_offset, to_normalised
from tool.affinity import cell_labels
from tool.metrics import IGNORE
from tool.pairs import STRIDE


class AffinityCrops(Photos):
    """Items {'name', 'image': float32 (3, crop, crop), 'label': uint8 (crop / stride, crop / stride), 255 = unknown}.

    low_dir, high_dir: folders of the CRF's probabilities under the low and the high alpha, of num_classes classes.
    crop: side in pixels, a multiple of stride. train: random colours, flip and place of the crop; otherwise the centre
    of the image as it is. stride: pixels per cell.
    """

    def __init__(self, ids, photos, low_dir, high_dir, num_classes, crop, train, convert_rgb=False, stride=STRIDE):
        super().__init__(ids, photos, convert_rgb)
        self.dirs, self.num_classes = (Path(low_dir), Path(high_dir)), num_classes
        self.crop, self.train, self.stride = crop, train, stride
        self.colours = ColorJitter(0.3, 0.3, 0.3, 0.1)
        self.normalise = to_normalised()

    def item(self, index, name, pixels):
        size = pixels.shape[:2]
        (low_labels, low), (high_labels, high) = (
            read_probabilities(folder / f'{name}.npy', self.num_classes, size) for folder in self.dirs)
        if self.train:
            pixels = np.asarray(self.colours(Image.fromarray(pixels)))
        window = CropWindow(self.crop, *size, random_offset if self.train else centre)
        flip = self.train and bool(torch.rand(()) < 0.5)

        def crop(maps):
            cropped = window.paste(window.cut(maps))
            return cropped[:, :, ::-1] if flip else cropped
        # Padded with 0 before normalising, as published; Step 1 pads after it (METHOD 9.6).
        image = Image.fromarray(np.ascontiguousarray(crop(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)))
        label = cell_labels((low_labels, crop(low)), (high_labels, crop(high)), IGNORE, self.stride)
        return {'image': self.normalise(image), 'label': torch.from_numpy(label)}


class PaddedImages(Photos):
    """Items {'name', 'pixels': uint8 (H, W, 3), 'image': float32 (3, H8, W8)}.

    The image is normalised, then padded with zeros, to the right and below, to multiples of stride.
    """

    def __init__(self, ids, photos, convert_rgb=False, stride=STRIDE):
        super().__init__(ids, photos, convert_rgb)
        self.stride = stride
        self.normalise = to_normalised()

    def item(self, index, name, pixels):
        image = self.normalise(Image.fromarray(pixels))
        image = F.pad(image, (0, -image.shape[2] % self.stride, 0, -image.shape[1] % self.stride))
        return {'pixels': pixels, 'image': image}
