"""The one crop of training images: where a crop of fixed side meets an image that may be larger or smaller."""
import numpy as np


class CropWindow:
    """A square crop of `side` pixels of an image of height × width; the outside of a smaller image is padding.

    offset: function from the largest possible offset to a whole number in 0..that, called for the rows, then for the
    columns. A random one makes a random crop: where the image is smaller, its place in the crop is what is drawn.
    """

    def __init__(self, side, height, width, offset):
        self.side = side
        (self.rows, self.to_rows), (self.columns, self.to_columns) = (self._meet(n, offset) for n in (height, width))

    def _meet(self, length, offset):
        """(slice of the image, slice of the crop) of one side."""
        start = offset(abs(length - self.side))
        if length > self.side:
            return slice(start, start + self.side), slice(None)
        return slice(None), slice(start, start + length)

    def cut(self, maps):
        """The part of maps (…, H, W), array or tensor, that lies inside the crop."""
        return maps[..., self.rows, self.columns]

    def paste(self, part, fill=0):
        """A crop (…, side, side) with what `cut` gave in its place and `fill` outside the image."""
        crop = np.full((*part.shape[:-2], self.side, self.side), fill, part.dtype)
        crop[..., self.to_rows, self.to_columns] = part
        return crop


def centre(largest):
    """The offset of a centred crop."""
    return largest // 2
