"""Files that the test writes for an image. No torch here: worker processes import this module."""
from dataclasses import dataclass

from data.classes import ClassSet
from engine.crf_engine import CrfEngine

# Label maps: single-scale and multi-scale, without and with CRF. The four numbers are the scores of these folders.
VARIANTS = ('single', 'single_crf', 'multi', 'multi_crf')


@dataclass(frozen=True)
class Output:
    """Where an image's results go. folders: variant → folder (Path) of `<id>.png`, only those wanted. logits: folder
    of the multi-scale logits `<id>.npy`, float16 (C, H, W), or None. crf_iters: iterations of the CRF; engine: what
    runs it.
    """
    folders: dict
    logits: object
    crf_iters: int
    classes: ClassSet
    engine: CrfEngine = CrfEngine()

    @property
    def kinds(self):
        """(folder, suffix) of each kind of file."""
        return [(folder, '.png') for folder in self.folders.values()] + [(self.logits, '.npy')] * bool(self.logits)
