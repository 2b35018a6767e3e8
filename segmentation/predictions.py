"""What the test keeps of an image: its label maps, by scale, with and without the CRF. No torch: workers import it."""
from dataclasses import dataclass
from pathlib import Path

from data.classes import ClassSet
from engine.crf_engine import CrfEngine
from engine.files import unfinished

# Single-scale and multi-scale, without and with CRF: the four numbers are the scores of these folders.
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

    def missing(self, ids):
        """The ids of which some result does not exist yet, in order."""
        return unfinished(ids, self.kinds)

    def clear(self, ids):
        """Remove what exists of `ids`: done first, so that a stopped run leaves no old results among its own."""
        for folder, suffix in self.kinds:
            for name in ids:
                (Path(folder) / (name + suffix)).unlink(missing_ok=True)
