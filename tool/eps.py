"""EPS: losses supervised by saliency maps (SPEC section 8) and its CAMs at inference (SPEC section 4).

Explicit Pseudo-pixel Supervision, Lee et al., CVPR 2021, with SEAM's regularisation as in the PPC paper. All losses
look at the network's maps at their own size h×w; nothing is enlarged to the image.
"""
import torch
import torch.nn.functional as F

from tool import seam
from tool.cam import EPSILON


def saliency_loss(cam, saliency, present, tau, alpha):
    """Mean squared error between a saliency map and the one that the CAMs explain.

    cam (N, C, h, w) raw, saliency (N, 1, H, W) 0..1, present: a seam.Present. The valid classes explain what is
    salient, the others and the background what is not: alpha·foreground + (1 − alpha)·(1 − background).
    """
    saliency = F.interpolate(saliency, cam.shape[2:], mode='nearest')
    foreground, background = explained(cam, saliency, present, tau)
    return F.mse_loss(alpha * foreground + (1 - alpha) * (1 - background), saliency)


def explained(cam, saliency, present, tau):
    """Summed softmax scores of the valid present classes, and of the others with the background: (N, 1, h, w) each.

    A class is valid where more than `tau` of its pixels are salient. saliency here (N, 1, h, w).
    """
    # Only the present channels are added up; absent classes count through the softmax's denominator.
    score = seam.take(cam.softmax(1), present)                                                    # (N, K, h, w)
    with torch.no_grad():
        inside = score.round()
        share = (inside * saliency.round()).sum((2, 3), keepdim=True) / (inside + 1e-4).sum((2, 3), keepdim=True)
        valid = (share > tau).to(score.dtype)                                                     # (N, K, 1, 1)
        valid[:, 0] = 0  # the background channel
    return (score * valid).sum(1, keepdim=True), (score * (1 - valid)).sum(1, keepdim=True)


def terms(view1, view2, label, present, saliency, tau, alpha):
    """EPS's named terms, unweighted: 'cls', 'saliency' and, with revised CAMs, 'saliency_rv', 'rvmin', 'er', 'ecr'.

    view1, view2: (cam, cam_rv) at feature size, (N, C, h, w) each; cam_rv None for a network without PCM.
    label (N, C − 1), present: its present channels. saliency (N, 1, H, W), 0..1, of view 1, of which view 2 is a
    smaller copy. er and ecr compare the views at view 2's feature size.
    """
    views = (view1, view2)
    sizes = [cam.shape[2:] for cam, _ in views]
    out = {'saliency': sum(saliency_loss(cam, saliency, present, tau, alpha) for cam, _ in views) / 2}
    if view1[1] is None:
        cls = [seam.classification_loss(cam, label, size) for (cam, _), size in zip(views, sizes)]
        return out | {'cls': sum(cls) / 2}
    out['saliency_rv'] = sum(saliency_loss(rv, saliency, present, tau, alpha) for _, rv in views) / 2
    # Published: in the target of ecr, channel 0 passes for the background, which is last there. Here, as in SEAM, the
    # winner is taken among the foreground (SPEC section 9).
    return out | seam.terms(*((cam, rv, size) for (cam, rv), size in zip(views, sizes)), label, present, sizes[1])


def multi_scale(cams_of, scaled, channels, size):
    """CAMs of one image as EPS makes them, summed over scales and mirror images: (K, H, W), 0..1. SPEC section 4.

    As tool.cam.multi_scale, but of softmaxed CAMs, enlarged in one go, and divided by their maximum.
    cams_of: function from images (2, 3, h, w) to raw CAMs (2, C, h', w'). scaled: such a pair per scale.
    channels (K,): those of the present classes. size: (H, W) of the image.
    """
    total = 0.
    for pair in scaled:
        scores = cams_of(pair).float().softmax(1)[:, channels]
        scores = F.interpolate(scores, size, mode='bilinear', align_corners=False)
        total = total + scores[0] + scores[1].flip(2)
    return total / (total.amax((1, 2), keepdim=True) + EPSILON)
