"""oneDNN's blocked memory layout, in which a CPU runs whole backbones faster."""
import torch


def to_mkldnn(x, net):
    """An image batch x in oneDNN's blocked layout where `net` only infers, on a CPU in float32; elsewhere x unchanged.

    In PyTorch's own layout each convolution first turns its input into blocks and in the end its output back, and on
    one thread 1×1 convolutions do not reach oneDNN at all. Weights stay as they are, results are equal to a few units
    in the last place, and `to_dense` leads back.
    """
    infers = not (torch.is_grad_enabled() or net.training)
    fits = x.device.type == 'cpu' and x.dtype == torch.float32 and not torch.is_autocast_enabled('cpu')
    return x.to_mkldnn() if infers and fits and torch.backends.mkldnn.is_available() else x


def to_dense(x):
    """A map in PyTorch's own layout."""
    return x.to_dense() if x.is_mkldnn else x
