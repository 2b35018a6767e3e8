"""The choice of the CRF's engine, --crf_engine: checked before any work starts, then handed to worker processes.

No torch here: it crosses to processes that may do without.
"""
from dataclasses import dataclass

from engine.errors import UserError
from tool import crf

REQUIREMENTS = {'torch': 'requirements.txt', 'pydensecrf': 'requirements-pydensecrf.txt'}


@dataclass(frozen=True)
class CrfEngine:
    """What runs the CRF. name: of tool.crf.ENGINES. device: a torch device's name, 'cpu' for pydensecrf."""
    name: str = 'torch'
    device: str = 'cpu'

    def workers(self, num_workers):
        """Processes that run the CRF: none on a GPU, which the main process feeds by itself."""
        return num_workers if self.device == 'cpu' else 0

    @property
    def options(self):
        """Keyword arguments of tool.crf's functions."""
        return {'engine': self.name, 'device': self.device}


def chosen_engine(name, device='cpu'):
    """The CrfEngine of --crf_engine for a script whose networks run on `device`, a torch.device or its name.

    UserError where the engine cannot be loaded.
    """
    try:
        crf.load_engine(name)
    except crf.EngineMissing as error:
        raise UserError(f'--crf_engine {name}', error, f'pip install -r {REQUIREMENTS[name]}') from None
    return CrfEngine(name, str(device) if name == 'torch' else 'cpu')
