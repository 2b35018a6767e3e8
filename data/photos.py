"""The base of all data sets: the photos of a list of ids; and photos that belong to no data set."""
from torch.utils.data import Dataset

from data.images import read_image
from engine.errors import UserError


class Photos(Dataset):
    """The photos of a list of ids. Subclasses say what an item is (`item`).

    photos: a data.images.PhotoFolders. UserError, when made, where a photo is missing: before any work is done.
    """

    def __init__(self, ids, photos, convert_rgb=False):
        self.ids, self.convert_rgb = ids, convert_rgb
        # As text: a Path takes five times the memory, in each process that loads images.
        self.paths = {name: str(path) for name, path in photos.need(ids).items()}

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        name = self.ids[index]
        pixels = read_image(self.paths[name], self.convert_rgb)
        return {'name': name, **self.item(index, name, pixels)}

    def keep(self, ids):
        """Restrict the data set to some of its ids, in the data set's order."""
        wanted = set(ids)
        self.ids = [i for i in self.ids if i in wanted]

    def item(self, index, name, pixels):
        """The entries of an item, but for its 'name'. pixels: the photo, uint8 (H, W, 3)."""
        raise NotImplementedError  # abstract: every data set has its own


class AnyPhotos(Dataset):
    """Photos wherever they lie. Items {'name', 'pixels': the photo as `shrink` leaves it, uint8 (h, w, 3), 'size': its
    own (H, W)}, upright and of any colour mode; {'name', 'problem': the UserError} where a photo cannot be read.

    paths: {name: Path}. shrink: function from uint8 (H, W, 3) to what the network is to see.
    """

    def __init__(self, paths, shrink):
        self.paths, self.names, self.shrink = paths, list(paths), shrink

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        try:
            pixels = read_image(self.paths[name], convert=True)
        except UserError as error:
            return {'name': name, 'problem': error}
        return {'name': name, 'pixels': self.shrink(pixels), 'size': pixels.shape[:2]}
