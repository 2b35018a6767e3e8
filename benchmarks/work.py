"""Our work of the networks, called exactly as the scripts call it: a training step of each, inference on a photo.

Every function makes its own input and returns a callable without arguments that does the work once.
"""
import contextlib
import io

import torch

from benchmarks import inputs
from contrast_infer import SCALES
from data import transforms
from engine import cams
from engine.device import autocast
from engine.training import parameter_groups
from tool.affinity import WEIGHTS, affinity_loss, pair_labels
from tool.cam import resize
from tool.metrics import IGNORE
from tool.pairs import STRIDE
from tool.recipes import RECIPES
from tool.seam import Target, present_channels

VIEW2_SIDE = 128


class Training:
    """A network in training, updated as engine.training.Run does: published groups, SGD, scaled gradients for fp16.

    fused: PyTorch's SGD in one kernel, which the scripts do not use.
    """

    def __init__(self, net, device, amp, momentum=5e-4, fused=False):
        self.net, self.device, self.amp = net.train(), device, amp
        with contextlib.redirect_stdout(io.StringIO()):  # parameter_groups prints the groups' sizes
            groups = parameter_groups(net, 0.01, 5e-4)
        self.optimizer = torch.optim.SGD(groups, lr=0.01, momentum=momentum, fused=fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == 'fp16')

    def update(self, terms, weights):
        """One optimiser step on the weighted sum of `terms`. Returns them, detached, unweighted."""
        total = sum(weights[name] * term for name, term in terms.items())
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: term.detach() for name, term in terms.items()}


# ---------------------------------------------------------------- training

def contrast_step(net, device, amp='off', batch=8, crop=448, fused=False):
    """A step of contrast_train.py (SEAM + PPC) from a batch on the device. The call returns the terms, unweighted.

    fused: as for Training.
    """
    recipe, training = RECIPES['seam'], Training(net, device, amp, fused=fused)
    image, label = inputs.images(batch, crop).to(device), inputs.labels(batch)

    def step():
        target = Target(label, present_channels(label)).to(device)
        image2 = resize(image, (VIEW2_SIDE, VIEW2_SIDE))
        with autocast(device, amp):
            view1, view2 = net.view(image, recipe.needs), net.view(image2, recipe.needs)
        return training.update(recipe.loss_terms(view1, view2, target), recipe.weights)

    return step


def affinity_step(net, device, amp='off', batch=8, crop=448):
    """A step of aff_train.py from a batch on the device. The call returns the terms, unweighted."""
    training = Training(net, device, amp)
    image = inputs.images(batch, crop).to(device)
    label = cell_labels(batch, crop // STRIDE).to(device)

    def step():
        with autocast(device, amp):
            affinity = net(image)
        return training.update(affinity_loss(affinity, *pair_labels(label, IGNORE)), WEIGHTS)

    return step


def cell_labels(batch, side):
    """Labels of cells, in patches, a fifth of them ignored: uint8 tensor (batch, side, side)."""
    values = torch.tensor([0, 0, 3, 8, IGNORE], dtype=torch.uint8)
    patches = values[torch.randint(len(values), (batch, 1, -(-side // 7), -(-side // 7)))]
    return patches.repeat_interleave(7, 2).repeat_interleave(7, 3)[:, 0, :side, :side].contiguous()


# ---------------------------------------------------------------- inference

def on_host(tensor, device):
    """A tensor in the memory that the scripts' loader uses: pinned for CUDA."""
    return tensor.pin_memory() if device.type == 'cuda' else tensor


def photo_cams(net, device, amp='off', size=inputs.SIZE):
    """contrast_infer.py on a photo of `size` (H, W), from the loader's tensors to the CAMs: float32 (K, H, W)."""
    recipe, net = RECIPES['seam'], net.eval()
    photo, present = inputs.photo(*size), present_classes()
    scaled = [on_host(image, device) for image in scaled_images(size)]

    def infer():
        with torch.inference_mode():
            return cams.photo_cams(net, recipe, photo, scaled, present, device, amp).cpu().numpy()

    return infer


def scaled_images(size):
    """A photo at all scales of contrast_infer.py, as the loader gives it: tensors (3, h, w)."""
    photo = inputs.photo(*size)
    return [transforms.at_scale(photo, scale) for scale in SCALES]


def present_classes():
    """The foreground indices, from 0, of the photo's present classes: tensor (2,)."""
    return inputs.labels(2)[1].nonzero()[:, 0]


def photo_affinities(net, device, amp='off', size=inputs.SIZE):
    """aff_infer.py's network on a padded photo of `size`: affinities (O, P), as an array."""
    net.eval()
    sides = [-(-side // STRIDE) * STRIDE for side in size]
    image = on_host(torch.randn(3, *sides), device)

    def infer():
        with torch.inference_mode():
            with autocast(device, amp):
                affinity = net(image[None].to(device, non_blocking=True))[0]
            return affinity.cpu().numpy()

    return infer
