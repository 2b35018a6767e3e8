"""Images of a VOC-shaped folder with their image-level labels."""
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from tool import files
from tool.cli import UserError
from tool.transforms import at_scale
from voc12.classes import VOC


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

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        image = files.read_image(self.folder / (self.ids[index] + '.jpg'), self.convert_rgb)
        return {'name': self.ids[index], 'image': self.transform(Image.fromarray(image)), 'label': self.labels[index]}


class MultiScaleImages(LabelledImages):
    """Items for inference: {'name', 'pixels': uint8 (H, W, 3), 'scaled': a tensor (2, 3, h, w) per scale — the image
    and its mirror image —, 'label'}."""

    def __init__(self, ids, voc12_root, cls_labels, scales, convert_rgb=False):
        super().__init__(ids, voc12_root, cls_labels, None, convert_rgb)
        self.scales = scales

    def __getitem__(self, index):
        pixels = files.read_image(self.folder / (self.ids[index] + '.jpg'), self.convert_rgb)
        scaled = [at_scale(pixels, scale) for scale in self.scales]
        return {'name': self.ids[index], 'pixels': pixels, 'label': self.labels[index],
                'scaled': [torch.stack([image, image.flip(2)]) for image in scaled]}
