"""SEAM's losses (SPEC section 3), on the present channels only.

An image carries one or two of the classes. Absent channels are zero in every term but the classification loss, so
the maps of the present ones are taken out first (`present_channels`, `take`) and only these are enlarged and compared.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from tool.cam import max_norm, resize, winner_take_all


class Present(NamedTuple):
    """Which channels of each image count. index (N, K) int64: background first, then the present classes, padded
    with the background. mask (N, K, 1, 1): 1 for the background and the present classes, 0 for padding."""
    index: torch.Tensor
    mask: torch.Tensor

    def to(self, device):
        return Present(*(t.to(device, non_blocking=True) for t in self))


def present_channels(label):
    """The Present of image-level labels (N, foreground classes). Call it on the CPU: K depends on the values."""
    slots = max(1, int(label.sum(1).max()))
    mask, foreground = label.sort(dim=1, descending=True, stable=True)
    mask, foreground = mask[:, :slots], (foreground[:, :slots] + 1) * (mask[:, :slots] > 0)
    first = torch.zeros(len(label), 1)
    return Present(torch.cat([first.long(), foreground], 1), torch.cat([first + 1, mask], 1)[:, :, None, None])


def take(maps, present):
    """The present channels of maps (N, C, h, w): (N, K, h, w); padding slots are zero, which no term sees."""
    return maps.gather(1, present.index[:, :, None, None].expand(-1, -1, *maps.shape[2:])) * present.mask


def classification_loss(cam, label, size):
    """Multilabel soft margin of the spatial mean of the CAM at `size` against the label.

    cam (N, C, h, w) before enlargement, label (N, C − 1). Enlarging is linear, so its mean is a weighted mean of the
    small map: the row and column weights are the column means of the two interpolation matrices.
    """
    rows, columns = (_interpolation_mean(small, large, cam) for small, large in zip(cam.shape[2:], size))
    logits = torch.einsum('nchw,h,w->nc', cam, rows, columns)
    return F.multilabel_soft_margin_loss(logits[:, 1:], label)


def _interpolation_mean(small, large, like):
    """Weight (small,) of each sample in the mean of its linear enlargement, corners aligned, to `large` samples."""
    unit = torch.eye(small, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(unit, large, mode='linear', align_corners=True)[0].mean(1)


def rvmin_loss(rv):
    """Adaptive min pooling: mean of the ReLU of the lowest quarter of pixels of the strongest foreground map.

    rv (N, K − 1, H, W): revised CAMs of the present classes at view size. Keeps them from lighting up everywhere.
    """
    # Absent classes are zero in the published product with the label, hence the ReLU before the quarter is chosen.
    strongest = F.relu(rv.max(1).values).flatten(1)
    lowest = strongest.topk(strongest.shape[1] // 4, largest=False, sorted=False).values
    return lowest.mean()


def cross_regularisation(target, rv, num_channels, share=0.2):
    """ECR of one direction: the mean of the largest `share` of |onehot(target) − rv| per image.

    target (N, K − 1, h, w): normalised foreground CAMs of the other view, no gradient. rv (N, K, h, w): normalised
    revised CAMs, background first.
    The share is taken of all num_channels·h·w entries; those of absent channels are zero.
    """
    difference = (winner_take_all(target.detach()) - rv).abs().flatten(1)
    k = int(num_channels * target.shape[2] * target.shape[3] * share)
    if difference.shape[1] > k:
        difference = difference.topk(k, sorted=False).values
    return difference.sum(1).mean() / k


def terms(view1, view2, label, present, common):
    """The named terms of SEAM: {'cls', 'rvmin', 'er', 'ecr'}, unweighted.

    view1, view2: (cam, cam_rv, (H, W)) — maps (N, C, h, w) at feature size and the size of the view they came from.
    label (N, C − 1), present: its present channels. common: (h, w) at which er and ecr compare the views.
    """
    out = {'cls': 0., 'rvmin': 0.}
    normalised = []
    for cam, rv, size in (view1, view2):
        out['cls'] = out['cls'] + classification_loss(cam, label, size) / 2
        cam, rv = resize(take(cam, present)[:, 1:], size), resize(take(rv, present), size)
        out['rvmin'] = out['rvmin'] + rvmin_loss(rv[:, 1:]) / 2
        normalised += [resize(max_norm(m), common) for m in (cam, rv)]
    cam1, rv1, cam2, rv2 = normalised
    channels = view1[0].shape[1]
    out['er'] = (cam1 - cam2).abs().sum() / (len(label) * (channels - 1) * common[0] * common[1])
    out['ecr'] = cross_regularisation(cam2, rv1, channels) + cross_regularisation(cam1, rv2, channels)
    return out
