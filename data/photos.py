"""The base of all data sets: the photos of a list of ids."""
from torch.utils.data import Dataset

from data.images import read_image


class Photos(Dataset):
    """The photos of a list of ids. Subclasses say what an item is (`item`).

    photos: a data.images.PhotoFolders. UserError, when made, where a photo is missing: before any work is done.
    """

    def __init__(self, ids, photos, convert_rgb=False):
        self.ids, self.convert_rgb = ids, convert_rgb
        self.paths = photos.need(ids)

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
        raise NotImplementedError
