"""What the classes of a data set are: their number, names, order and colours, and how its masks store them."""
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassSet:
    """The classes of a data set. Background is class 0 (and channel 0) everywhere in this project.

    name: how reports call the data set. foreground: the foreground class names; the name at index k
    is label k + 1 in masks and column k of the image-level labels. colours: 768 integers 0..255 (256 RGB triples);
    () for the VOC colour map. stored: the label of each value 0..255 that a ground-truth mask may store, 255 where the
    pixel does not count, −1 for values that none has; () where masks store the labels themselves.
    """
    name: str
    foreground: tuple
    colours: tuple = ()
    stored: tuple = ()

    @property
    def num_foreground(self):
        """Number of foreground classes (VOC: 20), the length of an image-level label."""
        return len(self.foreground)

    @property
    def num_classes(self):
        """Number of classes with the background (VOC: 21), the number of network channels."""
        return len(self.foreground) + 1

    @property
    def names(self):
        """All class names, 'background' first."""
        return ('background',) + self.foreground

    @property
    def palette(self):
        """The colours of masks and pictures: 768 integers 0..255 (256 RGB triples), label 255 included."""
        return list(self.colours) or colour_map()


def colour_map():
    """The colour map of the VOC devkit: the bits of a label dealt out in turn to R, G and B, high bits first."""
    palette = []
    for label in range(256):
        red = green = blue = 0
        for bit in range(8):
            red |= (label >> (3 * bit) & 1) << (7 - bit)
            green |= (label >> (3 * bit + 1) & 1) << (7 - bit)
            blue |= (label >> (3 * bit + 2) & 1) << (7 - bit)
        palette += [red, green, blue]
    return palette
