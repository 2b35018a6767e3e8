"""Images for DeepLab: with their pseudo masks, augmented, to train on; at several scales to test. SPEC section 7."""
import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from tool import files
from tool.transforms import MEAN, STD
from voc12.classes import IGNORE
from voc12.dataset import image_folder

cv2.setNumThreads(0)  # the loader's processes are the parallelism, and OpenCV's threads do not survive a fork


def normalise(image):
    """RGB image uint8 (H, W, 3) → float32 (H, W, 3), ImageNet mean and deviation."""
    return (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)


def uniform(low, high):
    """A random number in low..high, from torch's generator: the training loop seeds it for every image."""
    return low + (high - low) * float(torch.rand(()))


def whole(low, high):
    """A random whole number, low and high included."""
    return int(torch.randint(low, high + 1, ()))


class Augmentation:
    """HSV jitter, mirror, scale, normalise, crop, in this order, of an image and its mask together.

    crop: side in pixels. scale: (low, high) of the random factor. hsv: the most by which hue (in OpenCV's 0..179, two
    degrees a unit), saturation and value (0..255) are shifted, up or down. flip: probability of the mirror image.
    """

    def __init__(self, crop, scale, hsv, flip):
        self.crop, self.scale, self.hsv, self.flip = crop, scale, hsv, flip

    def __call__(self, image, mask):
        """image uint8 (H, W, 3), mask uint8 (H, W) → float32 (3, crop, crop), int64 (crop, crop)."""
        if any(self.hsv):  # the way to HSV and back is not exact, so it is not gone for nothing
            image = shift_hsv(image, [whole(-most, most) for most in self.hsv])
        if uniform(0, 1) < self.flip:
            image, mask = image[:, ::-1], mask[:, ::-1]
        image, mask = rescale(image, mask, uniform(*self.scale))
        image, mask = self.random_crop(image, mask)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)

    def random_crop(self, image, mask):
        """Normalise and crop at random; a side that is too short is padded with 0 and, in the mask, IGNORE.

        The crop is cut first, which leaves less to normalise; the padding is zero after normalising, as in the
        published order.
        """
        size = self.crop
        canvas, labels = np.zeros((size, size, 3), np.float32), np.full((size, size), IGNORE, np.int64)
        source, target = [], []
        for side in mask.shape:
            start = whole(0, abs(side - size))
            inside, outside = slice(start, start + size), slice(start, start + side)
            source.append(inside if side > size else slice(None))
            target.append(slice(None) if side > size else outside)
        canvas[tuple(target)] = normalise(image[tuple(source)])
        labels[tuple(target)] = mask[tuple(source)]
        return canvas, labels


def shift_hsv(image, shift):
    """Shift hue (round its circle), saturation and value (clipped) of an RGB image uint8 (H, W, 3)."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.int16) + np.int16(shift)
    hsv[..., 0] %= 180
    return cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)


def rescale(image, mask, factor):
    """Resize image (OpenCV bicubic) and mask (nearest) by one factor."""
    height, width = mask.shape
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return (cv2.resize(image, size, interpolation=cv2.INTER_CUBIC),
            cv2.resize(np.ascontiguousarray(mask), size, interpolation=cv2.INTER_NEAREST))


class PseudoMasks(Dataset):
    """Items {'name', 'image': float32 (3, crop, crop), 'mask': int64 (crop, crop)} for training.

    mask_dir: `<id>.png`. transform: an Augmentation. UserError, when made, where an image or a mask is missing.
    """

    def __init__(self, ids, voc12_root, mask_dir, transform, convert_rgb=False):
        self.ids, self.folder, self.mask_dir = ids, image_folder(voc12_root), mask_dir
        self.transform, self.convert_rgb = transform, convert_rgb
        files.need_files(ids, self.folder, '.jpg', '--voc12_root')
        files.need_files(ids, mask_dir, '.png', '--pseudo_gt')

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        name = self.ids[index]
        image = files.read_image(self.folder / f'{name}.jpg', self.convert_rgb)
        image, mask = self.transform(image, files.read_mask(f'{self.mask_dir}/{name}.png'))
        return {'name': name, 'image': image, 'mask': mask}


class ScaledImages(Dataset):
    """Items {'name', 'pixels': uint8 (H, W, 3), 'scaled': a float32 (3, h, w) per scale} for testing.

    Resized by OpenCV bicubic AFTER normalising, as published: values may overshoot the range of the image.
    """

    def __init__(self, ids, voc12_root, scales, convert_rgb=False):
        self.ids, self.folder, self.scales, self.convert_rgb = ids, image_folder(voc12_root), scales, convert_rgb
        files.need_files(ids, self.folder, '.jpg', '--voc12_root')

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        name = self.ids[index]
        pixels = files.read_image(self.folder / f'{name}.jpg', self.convert_rgb)
        image = normalise(pixels)
        return {'name': name, 'pixels': pixels, 'scaled': [at_scale(image, scale) for scale in self.scales]}


def at_scale(image, scale):
    """A normalised image float32 (H, W, 3), resized to rounded sides: tensor float32 (3, round(H·s), round(W·s))."""
    if scale != 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
