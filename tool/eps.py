"""EPS: losses supervised by saliency maps (METHOD 8.1 to 8.3) and its CAMs at inference (METHOD 4.4).

Explicit Pseudo-pixel Supervision, Lee et al., CVPR 2021, with SEAM's regularisation as in the PPC paper. All losses
look at the network's maps at their own size h×w; nothing is enlarged to the image.
"""
import torch
import torch.nn.functional as F

from tool import seam
from tool.cam import EPSILON, add_unflipped, resize


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


def view_saliency(saliency, view):
    """The saliency of view 1's images (N, 1, H, W) as a view shows them: at the view's own size. METHOD 8.1."""
    return saliency if saliency.shape[2:] == view.size else resize(saliency, view.size)


def plain_losses(views, target, tau, alpha):
    """The named terms of EPS without contrast, {'saliency', 'cls'}, unweighted, averaged over the views. METHOD 8.3.

    views: tool.cam.View of the crop, alone in plain EPS, and perhaps of its smaller copy. Others as in losses.
    """
    terms = [{'saliency': saliency_loss(view.cam, view_saliency(target.saliency, view), target.present, tau, alpha),
              'cls': seam.classification_loss(view.cam, target.label, at_feature_size(view).size)} for view in views]
    return {name: sum(term[name] for term in terms) / len(views) for name in terms[0]}


def losses(view1, view2, target, tau, alpha, ecr_target='published'):
    """EPS's named terms, unweighted: 'saliency', 'saliency_rv' (of the revised CAM), 'cls', 'rvmin', 'er', 'ecr'.

    view1, view2: tool.cam.View with revised CAMs; view 2 is a smaller copy of view 1. target: seam.Target with
    saliency. tau, alpha: fractions, see saliency_loss. ecr_target: a key of ECR_TARGETS. er and ecr compare the views
    at view 2's feature size.
    """
    out = {'saliency': 0., 'saliency_rv': 0.}
    for view in (view1, view2):
        saliency = view_saliency(target.saliency, view)
        for name, maps in (('saliency', view.cam), ('saliency_rv', view.revised)):
            out[name] = out[name] + saliency_loss(maps, saliency, target.present, tau, alpha) / 2
    return out | seam.losses(at_feature_size(view1), at_feature_size(view2), target, ECR_TARGETS[ecr_target])


def published_ecr_target(foreground, present):
    """The target of ECR as EPS's published code makes it. METHOD 8.2. Arguments and result as in seam.ecr_target.

    The background is 1 − the strongest class. Then, of all channels but the first foreground class of the data set, the
    background among them, all but the largest are cleared.
    """
    maps = torch.cat([1 - foreground.amax(1, keepdim=True), foreground], 1)                        # (N, S, h, w)
    # Kept as published: the code, written for background first, spares channel 0, which is a class where the background
    # is last (METHOD 9.8).
    spared = (present.index == 1)[:, :, None, None]
    largest = maps.masked_fill(spared, 0.).amax(1, keepdim=True)
    return torch.where(spared | (maps >= largest), maps, 0.)


ECR_TARGETS = {'published': published_ecr_target, 'seam': seam.ecr_target}


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
