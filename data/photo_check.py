"""A quick look at photos before hours of work: headers and end markers, seconds for ten thousand files. No torch here.

What is found is what data/images.py, read_image, refuses. A file that is damaged between header and end is not found.
"""
from data.images import MIN_SIDE, opened_image, orientation, read_image

ENDS = {'JPEG': b'\xff\xd9', 'PNG': b'IEND\xaeB`\x82'}  # the last bytes of a whole file


def check_photo(path, convert=False):
    """UserError where a photo would be refused later (as by read_image). Returns whether EXIF says that it is turned.

    Files whose header or end is not that of a plain RGB photo are read through, which decides.
    """
    with opened_image(path) as image:
        with open(path, 'rb') as file:
            end = ENDS.get(image.format, b'')
            file.seek(max(0, file.seek(0, 2) - len(end)))
            whole = bool(end) and file.read() == end
        plain = whole and image.mode == 'RGB' and min(image.size) >= MIN_SIDE
        turned = orientation(image) != 1
    if not plain:
        read_image(path, convert)
    return turned
