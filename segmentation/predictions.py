"""What the test keeps of an image: its label maps, by scale, with and without the CRF. No torch: workers import it."""
import dataclasses
from pathlib import Path

import numpy as np

from tool import crf, files
from voc12.classes import VOC

# Single-scale and multi-scale, without and with CRF: the four numbers are the scores of these folders.
VARIANTS = ('single', 'single_crf', 'multi', 'multi_crf')


@dataclasses.dataclass(frozen=True)
class Output:
    """Where an image's results go. folders: variant → folder of `<id>.png`, only those wanted. logits: folder of the
    multi-scale logits `<id>.npy`, float16 (C, H, W), or None. crf_iters: iterations of the CRF."""
    folders: dict
    logits: object
    crf_iters: int

    def missing(self, ids):
        """The ids of which some result does not exist yet, in order."""
        absent = {name for folder in self.folders.values() for name in files.missing_files(ids, folder, '.png')}
        if self.logits:
            absent.update(files.missing_files(ids, self.logits, '.npy'))
        return [name for name in ids if name in absent]

    def clear(self, ids):
        """Remove what exists of `ids`: done first, so that a stopped run leaves no old results among its own."""
        for name in ids:
            for folder in self.folders.values():
                (Path(folder) / f'{name}.png').unlink(missing_ok=True)
            if self.logits:
                (Path(self.logits) / f'{name}.npy').unlink(missing_ok=True)


def save(output, name, pixels, scores, logits):
    """Write an image's results, the CRF's included.

    pixels: uint8 (H, W, 3). scores: {'single', 'multi' or one of them: class probabilities float32 (C, H, W)}.
    logits: float16 (C, H, W), or None.
    """
    for scale, probabilities in scores.items():
        if scale in output.folders:
            write(output, scale, name, probabilities.argmax(0))
        if f'{scale}_crf' in output.folders:
            write(output, f'{scale}_crf', name, refine(pixels, probabilities, output.crf_iters))
    if output.logits:
        files.save_npy(Path(output.logits) / f'{name}.npy', logits)


def write(output, variant, name, labels):
    """Write one label map (H, W)."""
    files.save_mask(Path(output.folders[variant]) / f'{name}.png', labels, VOC.palette)


def refine(pixels, probabilities, iterations):
    """The CRF of SPEC section 7: probabilities float32 (C, H, W) → labels uint8 (H, W).

    Classes that the CRF's clipping makes constant over the whole image count as absent, which leaves the result exactly
    as it is with all C labels (tool/crf.py) and costs less. No pixel can choose one: it has a likelier label.
    """
    kept = np.flatnonzero(probabilities.max((1, 2)) > crf.CLIP)
    settings = dataclasses.replace(crf.DEEPLAB, iterations=iterations)
    marginals = crf.refine_probabilities(pixels, probabilities[kept], settings, absent=len(probabilities) - len(kept))
    return crf.label_map(marginals, kept)
