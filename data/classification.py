"""Photos with their image-level labels: the data sets of Step 1. METHOD 3.1, 4.1, 8.2."""
import sys

import torch
from PIL import Image

from data.images import need_images
from data.labels import image_labels
from data.photos import Photos
from data.saliency import read_saliency
from data.transforms import Saliency, at_scale
from tool.seam import present_channels


class LabelledImages(Photos):
    """Items {'name', 'image': transform(PIL image), 'label': float32 (K,)}; a batch has its 'present' channels too.

    cls_labels: path of the labels (data/labels.py) of a ClassSet, `classes`, of K foreground classes.
    UserError, when made: an id without a label or a photo.
    """

    def __init__(self, ids, photos, cls_labels, classes, transform, convert_rgb=False):
        self.labels = torch.from_numpy(image_labels(ids, cls_labels, classes))
        self.transform = transform
        super().__init__(ids, photos, convert_rgb)

    def item(self, index, name, pixels):
        return {'image': self.transform(Image.fromarray(pixels)), 'label': self.labels[index]}

    @staticmethod
    def complete(batch):
        """A collated batch with its tool.seam.PresentChannels."""
        return batch | {'present': present_channels(batch['label'])}


class SalientImages(LabelledImages):
    """Items of LabelledImages with 'saliency': float32 (1, h, w), 0..1, transformed together with the image.

    saliency_dir: holds `<id>.png` (data/saliency.py); UserError when made where one is missing. The transform takes
    and returns image and Saliency.
    """

    def __init__(self, ids, photos, cls_labels, classes, transform, saliency_dir, convert_rgb=False):
        super().__init__(ids, photos, cls_labels, classes, transform, convert_rgb)
        self.maps, self.warned = need_images(ids, saliency_dir, ('.png',), '--saliency_dir'), set()

    def item(self, index, name, pixels):
        saliency = read_saliency(self.maps[name], pixels.shape[:2])
        if not saliency.any() and name not in self.warned:
            self.warned.add(name)  # in each process that loads images, once
            print(f'warning: {self.maps[name]}: saliency map is zero everywhere', file=sys.stderr)
        image, saliency = self.transform(Image.fromarray(pixels), Saliency(saliency[None].copy()))
        return {'image': image, 'label': self.labels[index],
                'saliency': saliency.as_subclass(torch.Tensor).float() / 255}


class MultiScaleImages(LabelledImages):
    """Items for inference: {'name', 'pixels': uint8 (H, W, 3), 'scaled': the image at each scale, float32 (3, h, w),
    'present': int64, the foreground indices of its classes}. An image without any class has no CAM: its 'scaled' is
    empty.
    """

    def __init__(self, ids, photos, cls_labels, classes, scales, convert_rgb=False):
        super().__init__(ids, photos, cls_labels, classes, None, convert_rgb)
        self.scales = scales

    @property
    def negatives(self):
        """The number of images without any class."""
        return int((~self.labels.any(1)).sum())

    def keep(self, ids):
        wanted = set(ids)
        self.labels = self.labels[[k for k, i in enumerate(self.ids) if i in wanted]]
        super().keep(ids)

    def item(self, index, name, pixels):
        scaled = [at_scale(pixels, scale) for scale in self.scales if self.labels[index].any()]
        return {'pixels': pixels, 'present': self.labels[index].nonzero()[:, 0], 'scaled': scaled}
