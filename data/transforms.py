"""Image transforms: torchvision's, plus a random long-side resize, a faster hue jitter and random numbers of torch.

Random transforms draw from torch's generator, which the training loader seeds for every image (engine/loading.py).
"""
import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from network.convention import MEAN, STD

# One thread per image: the loader's processes are the parallelism, and OpenCV's threads do not survive a fork.
cv2.setNumThreads(0)


def random_number(low, high):
    """A random number in low..high."""
    return low + (high - low) * float(torch.rand(()))


def random_integer(low, high):
    """A random whole number, low and high included."""
    return int(torch.randint(low, high + 1, ()))


def random_offset(largest):
    """The offset of a random crop: a whole number in 0..largest (data/crop.py)."""
    return random_integer(0, largest)


class ColorJitter(v2.ColorJitter):
    """torchvision's ColorJitter, except that OpenCV shifts the hue of PIL images, in an eighth of the time.

    Both work in HSV of 8 bits. They differ by 0.2 grey levels in the mean; OpenCV's is nearer to an exact rotation.
    """

    def _call_kernel(self, functional, inpt, *args, **kwargs):
        if functional is v2.functional.adjust_hue and isinstance(inpt, Image.Image):
            return shift_hue(inpt, *args, **kwargs)
        return super()._call_kernel(functional, inpt, *args, **kwargs)


def shift_hue(image, hue_factor):
    """Shift the hue of an RGB PIL image by hue_factor (-0.5..0.5) of the full circle."""
    hsv = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2HSV_FULL)  # hue 0..255: addition wraps round the circle
    hsv[..., 0] += np.uint8(round(hue_factor * 256) % 256)
    return Image.fromarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


class RandomLongSide(v2.Transform):
    """Resize, keeping the shape, so that the long side is a whole number drawn from low..high. Bicubic for images.

    Where the two are equal, as in validation, nothing is drawn.
    """

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs):
        size = v2.functional.get_size(flat_inputs[0])
        target = self.low if self.low == self.high else random_integer(self.low, self.high)
        # Multiplied first, then divided, as published: a ratio computed first may round a half to the other side.
        return {'size': [max(1, round(side * target / max(size))) for side in size]}

    def transform(self, inpt, params):
        return self._call_kernel(v2.functional.resize, inpt, params['size'],
                                 interpolation=v2.InterpolationMode.BICUBIC, antialias=True)


class Saliency(tv_tensors.Mask):
    """A saliency map, uint8 (1, H, W), that moves with its image, as a mask does: no colour change, no normalisation.

    Saliency is continuous, so it is resized bicubically as its image is, not by nearest neighbour as a mask.
    """


@v2.functional.register_kernel('resize', Saliency)
def _resize_saliency(saliency, size, **kwargs):
    resized = v2.functional.resize_image(saliency.as_subclass(torch.Tensor), size, **kwargs)
    return tv_tensors.wrap(resized, like=saliency)


def normalise(image):
    """RGB image (H, W, 3), 0..255 → float32 (H, W, 3), ImageNet mean and deviation."""
    return (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)


def to_normalised():
    """PIL image → normalised float32 tensor (3, H, W)."""
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def classification_train(crop, low, high):
    """The augmentation of Step 1 (METHOD 3.1): a PIL image → float32 (3, crop, crop).

    With a Saliency as second argument both move together: → the image and a Saliency (1, crop, crop), zero outside.
    The published crop is padded with zeros after normalising. Padding with the mean before normalising gives the
    same, and then only the crop is normalised, not the whole image.
    """
    outside = {tv_tensors.Image: list(MEAN), Saliency: 0}
    return v2.Compose([
        RandomLongSide(low, high), v2.RandomHorizontalFlip(), ColorJitter(0.3, 0.3, 0.3, 0.1),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.RandomCrop(crop, pad_if_needed=True, fill=outside), v2.Normalize(MEAN, STD, inplace=True)])


def classification_val(crop):
    """Whole images for validation: the long side resized to `crop`, padded with zeros to crop × crop."""
    return v2.Compose([
        RandomLongSide(crop, crop), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD), v2.CenterCrop(crop)])


def at_scale(image, scale):
    """A uint8 image (H, W, 3), resized by PIL bicubic to rounded sides: normalised float32 (3, round(H·s), round(W·s)).

    No side becomes 0.
    """
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image)
    return to_normalised()(picture if scale == 1 else picture.resize(size, Image.Resampling.BICUBIC))


def denormalise(image):
    """A normalised tensor (3, H, W) back to uint8 (H, W, 3), for pictures."""
    image = image.detach().float().cpu() * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy().astype(np.uint8)
