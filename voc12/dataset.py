"""Images of a VOC-shaped folder with their image-level labels."""
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from tool import files
from tool.cli import UserError
from tool.transforms import Saliency, at_scale
from voc12.classes import VOC
from voc12.saliency import read_saliency


def image_folder(voc12_root):
    """The folder of the photos in a devkit."""
    return Path(voc12_root) / 'JPEGImages'


class LabelledImages(Dataset):
    """Items {'name', 'image': transform(PIL image), 'label': float32 (foreground classes,)}.

    Checked when made, before any work is done: every id has a label and an image file (UserError naming the first).
    """

    def __init__(self, ids, voc12_root, cls_labels, transform, convert_rgb=False):
        self.folder, self.ids, self.transform, self.convert_rgb = image_folder(voc12_root), ids, transform, convert_rgb
        labels = files.read_labels(cls_labels, VOC.num_foreground)
        self.labels = torch.from_numpy(files.labels_of(ids, labels, cls_labels))
        files.need_files(ids, self.folder, '.jpg', '--voc12_root')

    def need_classes(self, cls_labels):
        """Check that every image carries a class, which a CAM needs. UserError naming the first that does not."""
        empty = [i for i, label in zip(self.ids, self.labels) if not label.any()]
        if empty:
            raise UserError(cls_labels, f'{empty[0]} has no class ({len(empty)} such images)', 'take them off the list')

    def keep(self, ids):
        """Restrict the data set to some of its ids, in the data set's order."""
        wanted = set(ids)
        kept = [k for k, i in enumerate(self.ids) if i in wanted]
        self.ids, self.labels = [self.ids[k] for k in kept], self.labels[kept]

    def pixels(self, index):
        """The photo: uint8 (H, W, 3)."""
        return files.read_image(self.folder / (self.ids[index] + '.jpg'), self.convert_rgb)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        image = self.transform(Image.fromarray(self.pixels(index)))
        return {'name': self.ids[index], 'image': image, 'label': self.labels[index]}


class SalientImages(LabelledImages):
    """Items of LabelledImages with 'saliency': float32 (1, h, w), 0..1, transformed together with the image.

    saliency_dir: holds `<id>.png` (voc12/saliency.py); UserError when made where one is missing. The transform takes
    and returns image and Saliency.
    """

    def __init__(self, ids, voc12_root, cls_labels, transform, saliency_dir, convert_rgb=False):
        super().__init__(ids, voc12_root, cls_labels, transform, convert_rgb)
        self.saliency_dir = Path(saliency_dir)
        files.need_files(ids, self.saliency_dir, '.png', '--saliency_dir')

    def __getitem__(self, index):
        name, pixels = self.ids[index], self.pixels(index)
        saliency = read_saliency(self.saliency_dir / (name + '.png'), pixels.shape[:2])
        image, saliency = self.transform(Image.fromarray(pixels), Saliency(saliency[None].copy()))
        return {'name': name, 'image': image, 'label': self.labels[index],
                'saliency': saliency.as_subclass(torch.Tensor).float() / 255}


class MultiScaleImages(LabelledImages):
    """Items for inference: {'name', 'pixels': uint8 (H, W, 3), 'scaled': a tensor (2, 3, h, w) per scale — the image
    and its mirror image —, 'label'}."""

    def __init__(self, ids, voc12_root, cls_labels, scales, convert_rgb=False):
        super().__init__(ids, voc12_root, cls_labels, None, convert_rgb)
        self.scales = scales

    def __getitem__(self, index):
        pixels = self.pixels(index)
        scaled = [at_scale(pixels, scale) for scale in self.scales]
        return {'name': self.ids[index], 'pixels': pixels, 'label': self.labels[index],
                'scaled': [torch.stack([image, image.flip(2)]) for image in scaled]}
