"""CRF, and Step 2: the CRF's labels for AffinityNet, the labels of its pairs, the random walk."""
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import inputs
from benchmarks.frame import Case
from data.cams import save_cams
from data.probabilities import read_probabilities
from engine import files
from engine.crf_workers import write_probabilities
from reference import affinity_labels as published_labels
from reference.walk import dense_walk
from tool import affinity, seeds
from tool import crf as dense
from tool.metrics import IGNORE
from tool.pairs import pair_views
from tool.random_walk import walk
from voc12.classes import VOC

try:
    from reference import crf as published
except ImportError:  # pydensecrf is an option: without it our side alone can be run
    published = None


def crf_bytes(labels, pixels, iterations=10):
    """Least traffic of mean field: each iteration takes each label's map through a lattice of 2 and a lattice of 5
    dimensions, with d + 1 corners a pixel, written and read once, float32.
    """
    return iterations * labels * pixels * 4 * 2 * (3 + 6)


def crf(options, size=inputs.SIZE, num_classes=VOC.num_classes):
    """contrast_infer.py's CRF of a seed with two classes, on PyTorch, as a worker process runs it; published:
    pydensecrf with all labels. The kernel of positions is kept, as for photos of one size; the first call makes it.
    """
    torch.set_num_threads(1)
    height, width = size
    photo = inputs.photo(height, width)
    classes, cams = inputs.cams(height, width)
    labels = seeds.label_map(classes, cams, 0.26)
    wanted = [0, *(classes + 1)]

    def ours():
        return dense.label_map(dense.refine_labels(photo, labels[None], wanted, num_classes, dense.SEED)[0], wanted)

    def theirs():
        return published.labels_crf(photo, labels, num_labels=num_classes).argmax(0)

    return Case(ours, theirs if published else None, inputs.alike, bytes=crf_bytes(len(wanted) + 1, labels.size),
                single_core=True)


def aff_prepare(options, size=inputs.SIZE, alphas=(4., 24.)):
    """aff_prepare.py on one image: from the CAMs to the files of two alphas. Both sides as for the CRF of a seed."""
    torch.set_num_threads(1)
    height, width = size
    photo = inputs.photo(height, width)
    classes, cams = inputs.cams(height, width)
    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name)
    out = {side: {alpha: files.out_dir(root / side / f'{alpha:.2f}', '--out_crf') for alpha in alphas}
           for side in ('ours', 'published')}
    Image.fromarray(photo).save(root / 'photo.jpg', quality=95)
    save_cams(root / 'photo.npy', classes, cams)

    def ours(_=folder):  # the argument keeps the temporary folder alive
        write_probabilities(('photo', root / 'photo.jpg'), root, out['ours'], iterations=10,
                            num_classes=VOC.num_classes, convert_rgb=False, overwrite=True)

    def theirs(_=folder):
        image = np.asarray(Image.open(root / 'photo.jpg'))
        maps = np.load(root / 'photo.npy', allow_pickle=True).item()  # ours, read as published
        stack = np.zeros((VOC.num_classes, *image.shape[:2]), np.float32)
        for key, value in maps.items():
            stack[key + 1] = value
        for alpha, path in out['published'].items():
            stack[0] = np.power(1 - stack[1:].max(0), alpha)
            np.save(path / 'photo.npy', published.affinity_crf(image, stack.argmax(0)))

    def check(*_):
        words = []
        for alpha in alphas:
            labels, scores = read_probabilities(out['ours'][alpha] / 'photo.npy', VOC.num_classes)
            whole = np.load(out['published'][alpha] / 'photo.npy')
            words.append(inputs.alike(labels[scores.argmax(0)], whole.argmax(0), what=f'alpha {alpha:g}'))
        disk = {side: sum(path.stat().st_size for path in (root / side).rglob('*.npy')) for side in out}
        case.extra['disk, ours over published'] = disk['ours'] / disk['published']
        return ', '.join(words)

    case = Case(ours, theirs if published else None, check, bytes=2 * crf_bytes(len(classes) + 2, height * width),
                single_core=True)
    return case


def affinity_labels(options, repeats=10):
    """The labels of a crop's pairs from the two CRFs' scores: cells, then pairs."""
    torch.set_num_threads(1)  # the cells' labels are made in a loader's worker
    classes, cams = inputs.cams(448, 448)
    maps = []
    for alpha in (4, 24):
        stack = seeds.with_background(cams, seeds.alpha_background(cams, alpha)).astype(np.float16)
        stack[:, 400:] = 0  # outside the image
        maps.append(stack)
    labels = np.append(0, classes + 1)
    full = np.zeros((2, VOC.num_classes, 448, 448), np.float32)
    full[:, labels] = maps

    def ours():
        for _ in range(repeats):
            cells = affinity.cell_labels((labels, maps[0]), (labels, maps[1]), IGNORE)
            pairs = affinity.pair_labels(torch.from_numpy(cells)[None], IGNORE)
        return cells, pairs

    def theirs():
        for _ in range(repeats):
            cells = published_labels.cell_labels(*full)
            pairs = published_labels.pair_labels(cells)
        return cells, pairs

    def check(a, b):
        for mine, other in zip(a[1], b[1]):
            assert (mine[0].numpy() == (other > 0)).all()
        return inputs.alike(a[0], b[0], 1, 'cells and pairs')

    return Case(ours, theirs, check, count=repeats, single_core=True,
                bytes=repeats * (sum(m.nbytes for m in maps) + 3 * 34 * 52 * 48))


def random_walk(options, size=inputs.SIZE, logt=6):
    """scores · T^(2^logt) for the background and two classes."""
    height, width = (-(-side // 8) for side in size)
    first, seconds = pair_views(np.zeros((height, width)))
    affinity = np.random.default_rng(0).random((len(seconds), first.size), np.float32) ** 0.25
    scores = inputs.smooth(3, height, width)

    def ours():
        return walk(scores, affinity, 8, 2 ** logt)

    def theirs():
        return dense_walk(scores, affinity, 8, logt)

    nonzero = 69 * height * width
    # A step reads 12 bytes an entry (value and column).
    return Case(ours, theirs, lambda a, b: inputs.close(a, b, 1e-4, 'walked scores'), single_core=True,
                flops=lambda: 2 * 3 * nonzero * 2 ** logt, bytes=12 * nonzero * 2 ** logt)


def random_walk_memory(options, size):
    """The random walk. Dense: a single squaring of the six, which needs no more memory than all six."""
    case = random_walk(options, size)
    case.published = random_walk(options, size, logt=1).published
    return case
