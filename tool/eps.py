"""EPS: losses supervised by saliency maps (METHOD 8.1, 8.2) and its CAMs at inference (METHOD 4.4).

Explicit Pseudo-pixel Supervision, Lee et al., CVPR 2021, with SEAM's regularisation as in the PPC paper. All losses
look at the network's maps at their own size h×w; nothing is enlarged to the image.
"""
import torch
import torch.nn.functional as F

from tool import seam
from tool.cam import EPSILON, add_unflipped


def saliency_loss(cam, saliency, present, tau, alpha):
    """Mean squared error between a saliency map and the one that the CAMs explain. METHOD 8.1.

    cam (N, C, h, w) raw, saliency (N, 1, H, W) 0..1, present: seam.PresentChannels. The valid classes explain what is
    salient, the others and the background what is not: alpha·foreground + (1 − alpha)·(1 − background).
    """
    saliency = F.interpolate(saliency, cam.shape[2:], mode='nearest')
    foreground, background = explained(cam, saliency, present, tau)
    return F.mse_loss(alpha * foreground + (1 - alpha) * (1 - background), saliency)


def explained(cam, saliency, present, tau):
    """Summed softmax scores of the valid present classes, and of the others with the background: (N, 1, h, w) each.

    A class is valid where more than the fraction `tau` of its pixels are salient. saliency here (N, 1, h, w).
    """
    # Only the present channels are added up; absent classes count through the softmax's denominator.
    score = seam.select(cam.softmax(1), present)                                                   # (N, S, h, w)
    with torch.no_grad():
        inside = score.round()
        salient = (inside * saliency.round()).sum((2, 3), keepdim=True) / (inside + 1e-4).sum((2, 3), keepdim=True)
        valid = (salient > tau).to(score.dtype)                                                    # (N, S, 1, 1)
        valid[:, 0] = 0  # the background channel
    return (score * valid).sum(1, keepdim=True), (score * (1 - valid)).sum(1, keepdim=True)


def plain_losses(view1, view2, target, tau, alpha):
    """The named terms of EPS without contrast: {'saliency', 'cls'}, unweighted. METHOD 8.3. Arguments as in losses."""
    views = [at_feature_size(view) for view in (view1, view2)]
    saliency = sum(saliency_loss(view.cam, target.saliency, target.present, tau, alpha) for view in views) / 2
    cls = sum(seam.classification_loss(view.cam, target.label, view.size) for view in views) / 2
    return {'saliency': saliency, 'cls': cls}


def losses(view1, view2, target, tau, alpha):
    """EPS's named terms, unweighted: 'saliency', 'saliency_rv' (of the revised CAM), 'cls', 'rvmin', 'er', 'ecr'.

    view1, view2: tool.cam.View with revised CAMs; view 2 is a smaller copy of view 1. target: seam.Target with
    saliency. tau, alpha: fractions, see saliency_loss. er and ecr compare the views at view 2's feature size.
    """
    view1, view2 = (at_feature_size(view) for view in (view1, view2))
    out = {name: sum(saliency_loss(maps, target.saliency, target.present, tau, alpha) for maps in pair) / 2
           for name, pair in (('saliency', (view1.cam, view2.cam)), ('saliency_rv', (view1.revised, view2.revised)))}
    # Published: in the target of ecr, channel 0 passes for the background, which is last there. Here, as in SEAM, the
    # winner is taken among the foreground (METHOD 9.8).
    return out | seam.losses(view1, view2, target)


def at_feature_size(view):
    """The view as EPS's losses see it: its maps are compared at their own size, not at that of the images."""
    return view._replace(size=view.cam.shape[2:])


def multi_scale(cams_of, scaled, present, size):
    """CAMs of one image as EPS makes them, summed over scales and flips: (K, H, W), 0..1. METHOD 4.4.

    As tool.cam.multi_scale, but of softmaxed CAMs, enlarged in one go, and divided by their maximum.
    cams_of: function from images (2, 3, h, w) to raw CAMs (2, C, h', w'). scaled: per scale the image and its flip.
    present (K,): foreground indices from 0. size: (H, W) of the image.
    """
    total = 0.
    for images in scaled:
        total = add_unflipped(total, cams_of(images).float().softmax(1)[:, present + 1], size)
    return total / (total.amax((1, 2), keepdim=True) + EPSILON)
