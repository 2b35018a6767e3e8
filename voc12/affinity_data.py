"""Images for AffinityNet: crops with the labels of their cells to train on, padded images to infer. SPEC section 6."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset

from tool import files
from tool.affinity import cell_labels
from tool.pairs import STRIDE
from tool.transforms import ColorJitter, to_normalised
from voc12.affinity_files import read_probabilities
from voc12.classes import IGNORE
from voc12.dataset import image_folder


class AffinityCrops(Dataset):
    """Items {'name', 'image': float32 (3, crop, crop), 'label': uint8 (crop / 8, crop / 8), of cells, 255 = unknown}.

    low_dir, high_dir: folders of the CRF's probabilities under the low and the high alpha. crop: side in pixels, a
    multiple of 8. train: random colours, mirror and place of the crop; otherwise the centre of the image as it is.
    """

    def __init__(self, ids, voc12_root, low_dir, high_dir, crop, train, convert_rgb=False):
        self.ids, self.folder, self.dirs = ids, image_folder(voc12_root), (Path(low_dir), Path(high_dir))
        self.crop, self.train, self.convert_rgb = crop, train, convert_rgb
        self.colours = ColorJitter(0.3, 0.3, 0.3, 0.1)
        self.normalise = to_normalised()
        files.need_files(ids, self.folder, '.jpg', '--voc12_root')

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        name = self.ids[index]
        pixels = files.read_image(self.folder / f'{name}.jpg', self.convert_rgb)
        maps = [read_probabilities(folder / f'{name}.npy', pixels.shape[:2]) for folder in self.dirs]
        if self.train:
            pixels = np.asarray(self.colours(Image.fromarray(pixels)))
        places = [crop_place(side, self.crop, self.train) for side in pixels.shape[:2]]
        mirror = self.train and bool(torch.rand(()) < 0.5)
        # Padded with 0 before normalising, as published; Step 1 pads after it (SPEC section 9, item 6).
        image = crop_maps(pixels.transpose(2, 0, 1), places, self.crop, mirror)
        low, high = ((labels, crop_maps(scores, places, self.crop, mirror)) for labels, scores in maps)
        image = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        return {'name': name, 'image': self.normalise(image), 'label': torch.from_numpy(cell_labels(low, high, IGNORE))}


def crop_place(side, crop, random):
    """Where a side of an image meets a side of the crop: (slice of the image, slice of the crop)."""
    spare = abs(side - crop)
    start = int(torch.randint(spare + 1, ())) if random else spare // 2
    if side > crop:
        return slice(start, start + crop), slice(None)
    return slice(None), slice(start, start + side)


def crop_maps(maps, places, size, mirror):
    """Crop maps (K, H, W) at `places` (crop_place of both sides) to (K, size, size), 0 outside; perhaps mirrored."""
    (rows, out_rows), (columns, out_columns) = places
    out = np.zeros((len(maps), size, size), maps.dtype)
    out[:, out_rows, out_columns] = maps[:, rows, columns]
    return out[:, :, ::-1] if mirror else out


class PaddedImages(Dataset):
    """Items {'name', 'pixels': uint8 (H, W, 3), 'image': float32 (3, H8, W8)}.

    The image is normalised, then padded with zeros, to the right and below, to multiples of 8.
    """

    def __init__(self, ids, voc12_root, convert_rgb=False):
        self.ids, self.folder, self.convert_rgb = ids, image_folder(voc12_root), convert_rgb
        self.normalise = to_normalised()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        pixels = files.read_image(self.folder / f'{self.ids[index]}.jpg', self.convert_rgb)
        image = self.normalise(Image.fromarray(pixels))
        image = F.pad(image, (0, -image.shape[2] % STRIDE, 0, -image.shape[1] % STRIDE))
        return {'name': self.ids[index], 'pixels': pixels, 'image': image}
