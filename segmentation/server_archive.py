"""The archive that the PASCAL VOC evaluation server takes (comp6), written and checked file by file.

Reads   --check FILE (.tar.gz), --list (the ids it must hold), <voc12_root>/JPEGImages/<id>.jpg (their sizes).
Writes  one line: the archive is good, or `error: …` and what is wrong with it (exit status 2).

    python segmentation/server_archive.py --check comp6_test_cls.tar.gz --list voc12/test.txt --voc12_root VOC2012
"""
import gzip
import io
import sys
import tarfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository, whatever the working directory

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.description import read_dataset
from data.images import image_size
from data.lists import read_list
from engine import cli, files
from engine.errors import UserError

FOLDER = 'results/VOC2012/Segmentation/comp6_test_cls'  # in the archive, as the devkit prescribes
WRONG = 'write the archive again with segmentation/experiment/test.py --split test'


def write(path, ids, predict_dir):
    """Pack `<predict_dir>/<id>.png` of `ids` under FOLDER. The same files give the same bytes."""
    with files.atomic(path) as temporary, open(temporary, 'wb') as file, \
            gzip.GzipFile('', 'wb', compresslevel=1, fileobj=file, mtime=0) as packed, \
            tarfile.open(fileobj=packed, mode='w') as archive:
        for name in ids:
            data = (Path(predict_dir) / f'{name}.png').read_bytes()
            entry = tarfile.TarInfo(f'{FOLDER}/{name}.png')
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))


def check(path, ids, photos, classes):
    """Read the archive through and check each file: palette PNG, VOC's colours, the image's size, labels in range.

    ids: those that the archive must hold, no more and no fewer. photos: a data.images.PhotoFolders. classes: a
    ClassSet. Nothing is unpacked; nothing is returned where all is well. UserError naming the file and what is wrong.
    """
    paths = photos.need(ids)
    expected = {f'{FOLDER}/{name}.png': name for name in ids}
    try:
        with tarfile.open(path, 'r:gz') as archive:
            for entry in archive:
                if entry.isdir() and f'{FOLDER}/'.startswith(entry.name.rstrip('/') + '/'):
                    continue
                if entry.name not in expected or not entry.isfile():
                    raise UserError(path, f'holds {entry.name}, none of the {len(ids)} results or one twice', WRONG)
                size = image_size(paths[expected.pop(entry.name)])
                check_png(f'{path}:{entry.name}', archive.extractfile(entry).read(), size, classes)
    except FileNotFoundError:
        raise UserError(path, 'archive not found', 'correct --check') from None
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(path, f'not a whole .tar.gz archive ({error})', WRONG) from error
    if expected:
        missing = sorted(expected.values())
        raise UserError(path, f'lacks {len(missing)} of {len(ids)} results, {missing[0]} for one', WRONG)


def check_png(name, data, size, classes):
    """UserError unless `data` is a palette PNG with the classes' colours, of `size` (H, W), with class labels only."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, labels, palette = (image.format, image.mode), np.asarray(image), image.getpalette()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(name, f'cannot be read ({error})', WRONG) from error
    if kind != ('PNG', 'P'):
        raise UserError(name, f'is {kind[0]} of mode {kind[1]}, not a palette PNG', WRONG)
    if labels.shape != size:
        raise UserError(name, f'is {labels.shape[0]}x{labels.shape[1]} (height x width), its image {size[0]}x{size[1]}',
                        WRONG)
    if labels.max() >= classes.num_classes:
        raise UserError(name, f'holds the label {labels.max()}, of 0..{classes.num_classes - 1}', WRONG)
    if palette[:3 * classes.num_classes] != classes.palette[:3 * classes.num_classes]:
        raise UserError(name, f'has another palette than {classes.name}', WRONG)


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--check', required=True, metavar='FILE', help='archive to check')
    parser.add_argument('--list', default='voc12/test.txt', help='list of the image ids that it must hold')
    parser.add_argument('--voc12_root', default='VOC2012', help='folder of the VOC devkit (holds JPEGImages/)')
    return parser


def main(args):
    ids, data = read_list(args.list, '--list'), read_dataset('voc12')
    check(args.check, ids, data.photos(args.voc12_root), data.classes)
    print(f'{args.check}: {len(ids)} results, all well formed')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
