"""SEAM's losses (METHOD 3.2, 3.3), on the present channels only. Plain twin: reference/contrast_loss.py, seam_losses.

An image carries one or two of the classes. Absent channels are zero in every term but the classification loss, so the
maps of the present classes are selected first (`present_channels`, `select`) and only these are enlarged and compared.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from tool.cam import max_norm, resize, winner_take_all


class PresentChannels(NamedTuple):
    """Which channels of each image count. index (N, S) int64: background first, then the present classes, padded
    with the background. mask (N, S, 1, 1): 1 for the background and the present classes, 0 for padding."""
    index: torch.Tensor
    mask: torch.Tensor

    def to(self, device):
        return PresentChannels(*(t.to(device, non_blocking=True) for t in self))


class Target(NamedTuple):
    """What the losses know of a batch of images.

    label (N, C − 1): image-level labels, 0 or 1 per foreground class. present: the channels that they allow.
    saliency (N, 1, H, W), 0..1, of view 1's images; None for a baseline without saliency. pools: the two
    tool.contrast.Pool, on the views' device, of the total batch that these images are a part of; None where they are
    all of it.
    """
    label: torch.Tensor
    present: PresentChannels
    saliency: torch.Tensor = None
    pools: tuple = None

    def to(self, device):
        return Target(*(None if value is None else value.to(device) if isinstance(value, PresentChannels)
                        else value.to(device, non_blocking=True) for value in self))


def present_channels(label):
    """The PresentChannels of image-level labels (N, C − 1). Call it on the CPU: their number depends on the values."""
    slots = max(1, int(label.sum(1).max()))
    mask, foreground = label.sort(dim=1, descending=True, stable=True)
    mask, foreground = mask[:, :slots], (foreground[:, :slots] + 1) * (mask[:, :slots] > 0)
    first = torch.zeros(len(label), 1)
    return PresentChannels(torch.cat([first.long(), foreground], 1), torch.cat([first + 1, mask], 1)[:, :, None, None])


def select(maps, present):
    """The present channels of maps (N, C, h, w): (N, S, h, w); padding slots are zero, which no term sees."""
    return maps.gather(1, present.index[:, :, None, None].expand(-1, -1, *maps.shape[2:])) * present.mask


def classification_loss(cam, label, size):
    """Multilabel soft margin of the spatial mean of the CAM at `size` against the label.

    cam (N, C, h, w) at feature size, label (N, C − 1), size (H, W). Enlarging is linear, so the mean of the enlarged
    CAM is a weighted mean of the small one: its weights are the column means of the two interpolation matrices.
    """
    rows, columns = (_interpolation_mean(small, large, cam) for small, large in zip(cam.shape[2:], size))
    # One product. An einsum's backward pass has products of inner size 1, for which PyTorch compiles a kernel on CUDA:
    # that needs a C compiler on the machine that trains.
    logits = cam.flatten(2) @ (rows[:, None] * columns).flatten()
    return F.multilabel_soft_margin_loss(logits[:, 1:], label)


def _interpolation_mean(small, large, like):
    """Weight (small,) of each sample in the mean of its linear enlargement, corners aligned, to `large` samples."""
    unit = torch.eye(small, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(unit, large, mode='linear', align_corners=True)[0].mean(1)


def rvmin_loss(revised):
    """Adaptive min pooling: mean of the ReLU of the lowest quarter of pixels of the strongest foreground map.

    revised (N, S − 1, H, W): revised CAMs of the present classes at view size. The loss keeps them from lighting up
    everywhere.
    """
    # The published code multiplies by the label first, so absent classes contribute 0: the maximum is at least 0.
    strongest = F.relu(revised.max(1).values).flatten(1)
    lowest = strongest.topk(max(1, strongest.shape[1] // 4), largest=False, sorted=False).values
    return lowest.mean()


def cross_regularisation(target, revised, num_channels, fraction=0.2):
    """ECR of one direction: the mean of the largest `fraction` of |target − revised| per image.

    target (N, S, h, w): what `ecr_target` makes of the other view's CAMs, no gradient. revised (N, S, h, w): normalised
    revised CAMs, background first. The fraction is of all num_channels·h·w entries; those of absent channels are zero.
    """
    difference = (target - revised).abs().flatten(1)
    k = int(num_channels * target.shape[2] * target.shape[3] * fraction)
    if difference.shape[1] > k:
        difference = difference.topk(k, sorted=False).values
    return difference.sum(1).mean() / k


def classification(view1, view2, target):
    """The classification term of both views, {'cls'}, unweighted."""
    return {'cls': sum(classification_loss(view.cam, target.label, view.size) / 2 for view in (view1, view2))}


def ecr_target(foreground, present):
    """The target of ECR: normalised CAMs of the present classes (N, S − 1, h, w) → with background (N, S, h, w).

    The background is 1 − the strongest class, and of the classes all but the strongest are cleared. METHOD 3.3.
    """
    return winner_take_all(foreground)


def losses(view1, view2, target, ecr_target=ecr_target):
    """The named terms of SEAM: {'cls', 'rvmin', 'er', 'ecr'}, unweighted.

    view1, view2: tool.cam.View with revised CAMs. target: Target. ecr_target: function of the arguments of ecr_target.
    er and ecr compare the views at view 2's size.
    """
    out = classification(view1, view2, target)
    out['rvmin'] = 0.
    normalised = []
    for view in (view1, view2):
        cam = resize(select(view.cam, target.present)[:, 1:], view.size)
        revised = resize(select(view.revised, target.present), view.size)
        out['rvmin'] = out['rvmin'] + rvmin_loss(revised[:, 1:]) / 2
        normalised += [resize(max_norm(maps), view2.size) for maps in (cam, revised)]
    cam1, revised1, cam2, revised2 = normalised
    channels = view1.cam.shape[1]
    out['er'] = (cam1 - cam2).abs().sum() / (len(target.label) * (channels - 1) * math.prod(view2.size))
    target1, target2 = (ecr_target(cam.detach(), target.present) for cam in (cam1, cam2))
    out['ecr'] = (cross_regularisation(target2, revised1, channels)
                  + cross_regularisation(target1, revised2, channels))
    return out
