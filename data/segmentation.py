"""Images for DeepLab: with their pseudo masks, augmented, to train on; at several scales to test. METHOD 7."""
import cv2
import numpy as np
import torch

from data.crop import CropWindow
from data.masks import read_mask
from data.photos import Photos
from data.transforms import normalise, random_integer, random_number, random_offset
from engine.files import need_files
from tool.metrics import IGNORE


class Augmentation:
    """HSV jitter, flip, scale, normalise, crop, in this order, of an image and its mask together.

    crop: side in pixels. scale: (low, high) of the random factor. hsv: the most by which hue (in OpenCV's 0..179, two
    degrees a unit), saturation and value (0..255) are shifted, up or down. flip: probability of the flip.
    """

    def __init__(self, crop, scale, hsv, flip):
        self.crop, self.scale, self.hsv, self.flip = crop, scale, hsv, flip

    def __call__(self, image, mask):
        """image uint8 (H, W, 3), mask uint8 (H, W) → float32 (3, crop, crop), int64 (crop, crop).

        Outside the image the crop is 0 and its mask IGNORE.
        """
        if any(self.hsv):  # skip the lossy HSV round trip if there is nothing to shift
            image = shift_hsv(image, [random_integer(-most, most) for most in self.hsv])
        if random_number(0, 1) < self.flip:
            image, mask = image[:, ::-1], mask[:, ::-1]
        image, mask = rescale(image, mask, random_number(*self.scale))
        window = CropWindow(self.crop, *mask.shape, random_offset)
        # Cut before normalising, which then has less to do; padded after it, as in the published order.
        image = normalise(window.cut(image.transpose(2, 0, 1)).transpose(1, 2, 0)).transpose(2, 0, 1)
        mask = window.paste(window.cut(mask).astype(np.int64), IGNORE)
        return torch.from_numpy(window.paste(image)), torch.from_numpy(mask)


def shift_hsv(image, shift):
    """Shift hue (round its circle), saturation and value (clipped) of an RGB image uint8 (H, W, 3)."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.int16) + np.int16(shift)
    hsv[..., 0] %= 180
    return cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)


def rescale(image, mask, factor):
    """Resize image (OpenCV bicubic) and mask (nearest) by one factor."""
    return (resize_by(image, factor, cv2.INTER_CUBIC),
            resize_by(np.ascontiguousarray(mask), factor, cv2.INTER_NEAREST))


def resize_by(image, factor, interpolation):
    """OpenCV's resize of an array (H, W) or (H, W, 3) to rounded sides, sampled at steps of exactly 1/factor pixels.

    Given the rounded sides instead, OpenCV would sample at steps of W / round(W · factor) pixels. METHOD 7.1, 7.2.
    Plain twin: reference/resize.py.
    """
    height, width = image.shape[:2]
    if round(min(height, width) * factor) < 1:  # OpenCV refuses to make an empty image; here a pixel is left
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return cv2.resize(image, size, interpolation=interpolation)
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=interpolation)


class PseudoMasks(Photos):
    """Items {'name', 'image': float32 (3, crop, crop), 'mask': int64 (crop, crop)} for training.

    mask_dir: `<id>.png`, of a ClassSet, `classes`. transform: an Augmentation.
    UserError, when made, where an image or a mask is missing.
    """

    def __init__(self, ids, photos, mask_dir, classes, transform, convert_rgb=False):
        super().__init__(ids, photos, convert_rgb)
        self.mask_dir, self.classes, self.transform = mask_dir, classes, transform
        need_files(ids, mask_dir, '.png', '--pseudo_gt')

    def item(self, index, name, pixels):
        image, mask = self.transform(pixels, read_mask(f'{self.mask_dir}/{name}.png', self.classes.colours))
        return {'image': image, 'mask': mask}


class ScaledImages(Photos):
    """Items {'name', 'pixels': uint8 (H, W, 3), 'scaled': a float32 (3, h, w) per scale} for testing.

    Resized by OpenCV bicubic AFTER normalising, as published: values may overshoot the range of the image.
    """

    def __init__(self, ids, photos, scales, convert_rgb=False):
        super().__init__(ids, photos, convert_rgb)
        self.scales = scales

    def item(self, index, name, pixels):
        image = normalise(pixels)
        return {'pixels': pixels, 'scaled': [at_scale(image, scale) for scale in self.scales]}


def at_scale(image, scale):
    """A normalised image float32 (H, W, 3), resized by a factor: tensor float32 (3, round(H·s), round(W·s))."""
    if scale != 1:
        image = resize_by(image, scale, cv2.INTER_CUBIC)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
