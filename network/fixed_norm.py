"""BatchNorm whose statistics and parameters are fixed while gradients flow, as a scale and a shift."""
import torch
from torch import nn


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's BatchNorm2d, which `fix` turns into x · scale + shift for training, with the running statistics.

    PyTorch's own then keeps its input for the backward pass, though no gradient needs it: of a ResNet-38 that is two
    fifths of all that is kept. The result differs by rounding.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for name in ('scale', 'shift'):  # not saved: they follow from what is
            self.register_buffer(name, None, persistent=False)

    def fix(self, mode):
        """From now on: statistics never those of the batch; mode: scale and shift, made once here, or (eval) as before.
        """
        self.eval()
        self.scale = self.shift = None
        if mode:
            with torch.no_grad():
                scale = self.weight * (self.running_var + self.eps).rsqrt()
                shift = self.bias - self.running_mean * scale
            self.scale, self.shift = scale[:, None, None], shift[:, None, None]

    def forward(self, x):
        if self.scale is None:
            return super().forward(x)
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype))

    def _load_from_state_dict(self, *args, **options):
        super()._load_from_state_dict(*args, **options)
        if self.scale is not None:
            self.fix(True)


def fix_batch_norms(net, mode):
    """Fix every BatchNorm in a network (BatchNorm2d.fix; PyTorch's own are put into eval mode)."""
    for module in net.modules():
        if isinstance(module, BatchNorm2d):
            module.fix(mode)
        elif isinstance(module, nn.BatchNorm2d):
            module.eval()
