"""A training image of Step 1 from file to crop, as published: PIL, then NumPy on the whole image. METHOD 3.1.

Plain twin of data/transforms.py: classification_train.
"""
import random

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(path, crop, low, high, jitter=(0.3, 0.3, 0.3, 0.1)):
    """The image at `path`, long side drawn from low..high, as a float32 tensor (3, crop, crop).

    jitter: factors of brightness, contrast, saturation, hue.
    """
    image = Image.open(path).convert('RGB')
    image = resize_long(image, low, high)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = transforms.ColorJitter(*jitter)(image)
    image = normalise(np.asarray(image))
    image = random_crop(image, crop)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def resize_long(image, low, high):
    """Resize a PIL image, bicubic, so that its long side is a whole number drawn from low..high."""
    target = random.randint(low, high)
    width, height = image.size
    long = max(width, height)
    size = int(round(width * target / long)), int(round(height * target / long))
    return image.resize(size, resample=Image.Resampling.BICUBIC)


def normalise(image):
    """Array (H, W, 3), 0..255 → float32 (H, W, 3), ImageNet mean and deviation, a channel at a time."""
    out = np.empty(image.shape, np.float32)
    for k in range(3):
        out[..., k] = (image[..., k] / 255. - MEAN[k]) / STD[k]
    return out


def random_crop(image, crop):
    """A random crop × crop part of an array (H, W, 3); a shorter side lies at a random place among zeros."""
    height, width = image.shape[:2]
    rows, columns = min(crop, height), min(crop, width)
    top, left = random.randint(0, height - rows), random.randint(0, width - columns)
    to_top, to_left = random.randint(0, crop - rows), random.randint(0, crop - columns)
    container = np.zeros((crop, crop, 3), np.float32)
    container[to_top:to_top + rows, to_left:to_left + columns] = image[top:top + rows, left:left + columns]
    return container
