"""Step 1's losses as published: all channels at view size, loops over classes and pixels. METHOD 3.2 to 3.6.

Plain twin of tool/seam.py: losses (seam_losses), of tool/contrast.py: losses (contrast_losses), pseudo_labels and
prototypes (labels_and_prototypes), intra_view (intra, hard_pixels), and of tool/cam.py: max_norm, winner_take_all
(background_first, then max_onehot). The contrast's weight 0.1 is included, as in the published log.
"""
import random

import torch
import torch.nn.functional as F

SMALL = 128        # side of view 2, at which er and ecr compare the views
TEMPERATURE = 0.1
WEIGHT = 0.1       # of each contrast term


def enlarge(maps, size):
    """Maps (N, C, h, w) → (N, C, *size), bilinear, corners aligned."""
    return F.interpolate(maps, size, mode='bilinear', align_corners=True)


def losses(view1, view2, label, bg_threshold=0.20, small=(SMALL, SMALL)):
    """All terms of a step: 'cls1', 'cls2', 'rvmin1', 'rvmin2', 'er', 'ecr', 'cross_prototype', 'cross_cam', 'intra'.

    view1, view2: (cam, revised, features, small revised): cam and revised (N, C, H, W) at the size of the view,
    features (N, D, h, w) and the revised CAM again, (N, C, h, w), at stride 8. label (N, C − 1). small: size of view 2.
    The loss is (cls1 + cls2)/2 + (rvmin1 + rvmin2)/2 plus the other five.
    """
    with_bg = torch.cat([torch.ones(len(label), 1, device=label.device), label], 1)[:, :, None, None]
    out = seam_losses(*view1[:2], *view2[:2], with_bg, small)
    return out | contrast_losses(view1[2:], view2[2:], with_bg, bg_threshold)


def contrast_losses(view1, view2, with_bg, bg_threshold=0.20):
    """The contrast terms. view1, view2: (features, revised CAM) at stride 8, as in losses; with_bg (N, C, 1, 1)."""
    (f1, revised1), (f2, revised2) = view1, view2
    size = f2.shape[2:]
    f1, revised1 = enlarge(f1, size), enlarge(revised1, size)
    labels1, prototypes1 = labels_and_prototypes(revised1, f1, with_bg, bg_threshold)
    labels2, prototypes2 = labels_and_prototypes(revised2, f2, with_bg, bg_threshold)
    f1, f2 = (F.normalize(f, dim=1).permute(0, 2, 3, 1).reshape(-1, f.shape[1]) for f in (f1, f2))
    return {
        'cross_prototype': WEIGHT * (nce(f1, labels1, prototypes2) + nce(f2, labels2, prototypes1)) / 2,
        'cross_cam': WEIGHT * (nce(f1, labels2, prototypes1) + nce(f2, labels1, prototypes2)) / 2,
        'intra': WEIGHT * (intra(f1, labels1, prototypes1) + intra(f2, labels2, prototypes2)) / 2}


def seam_losses(cam1, revised1, cam2, revised2, with_bg, small):
    """SEAM's terms on all channels. Maps (N, C, H, W) at the sizes of the two views, with_bg (N, C, 1, 1)."""
    foreground = with_bg[:, 1:, 0, 0]
    out = {}
    for name, cam, revised in (('1', cam1, revised1), ('2', cam2, revised2)):
        logits = F.adaptive_avg_pool2d(cam, (1, 1))[:, 1:, 0, 0]
        out['cls' + name] = F.multilabel_soft_margin_loss(logits, foreground)
        out['rvmin' + name] = adaptive_min_pooling((revised * with_bg)[:, 1:])
    cam1, revised1 = (enlarge(max_norm(maps), small) * with_bg for maps in (cam1, revised1))
    cam2, revised2 = (max_norm(maps) * with_bg for maps in (cam2, revised2))
    out['er'] = torch.mean(torch.abs(cam1[:, 1:] - cam2[:, 1:]))
    target1, target2 = (max_onehot(background_first(cam.detach())) for cam in (cam1, cam2))
    channels = cam1.shape[1]
    k = int(channels * small[0] * small[1] * 0.2)
    out['ecr'] = 0.
    for target, revised in ((target2, revised1), (target1, revised2)):
        difference = torch.abs(target - revised).reshape(len(revised), -1)
        out['ecr'] = out['ecr'] + torch.mean(torch.topk(difference, k, dim=-1)[0])
    return out


def adaptive_min_pooling(maps):
    """Mean of the ReLU of the lowest quarter of pixels of the strongest map: maps (N, C, H, W), foreground."""
    n, _, h, w = maps.shape
    k = h * w // 4
    strongest = torch.max(maps, dim=1)[0]
    lowest = torch.topk(strongest.view(n, -1), k, dim=-1, largest=False)[0]
    return torch.sum(F.relu(lowest)) / (k * n)


def max_norm(maps):
    """ReLU, then each map stretched from its minimum to its maximum: 0..1."""
    maps = F.relu(maps)
    n, c = maps.shape[:2]
    highest = torch.max(maps.view(n, c, -1), dim=-1)[0].view(n, c, 1, 1)
    lowest = torch.min(maps.view(n, c, -1), dim=-1)[0].view(n, c, 1, 1)
    return F.relu(maps - lowest - 1e-5) / (highest - lowest + 1e-5)


def background_first(cam):
    """The CAM with 1 − its strongest foreground class in channel 0."""
    cam = cam.clone()
    cam[:, 0] = 1 - torch.max(cam[:, 1:], dim=1)[0]
    return cam


def max_onehot(maps):
    """Maps with all foreground channels but the strongest set to 0, pixel by pixel."""
    maps = maps.clone()
    strongest = torch.max(maps[:, 1:], dim=1, keepdim=True)[0]
    maps[:, 1:][maps[:, 1:] != strongest] = 0
    return maps


@torch.no_grad()
def labels_and_prototypes(revised, features, with_bg, bg_threshold):
    """Pseudo labels (N·h·w,) and prototypes (C, D) of one view, a class at a time.

    revised (N, C, h, w), features (N, D, h, w), with_bg (N, C, 1, 1).
    """
    n, c, h, w = revised.shape
    scores = F.relu(revised)
    highest = torch.max(scores.view(n, c, -1), dim=-1)[0].view(n, c, 1, 1)
    lowest = torch.min(scores.view(n, c, -1), dim=-1)[0].view(n, c, 1, 1)
    scores[scores < lowest + 1e-5] = 0
    scores = (scores - lowest - 1e-5) / (highest - lowest + 1e-5)
    scores[:, 0] = bg_threshold
    labels = torch.argmax(F.softmax(scores * with_bg, dim=1), dim=1).view(-1)
    flat = features.permute(0, 2, 3, 1).reshape(n * h * w, -1)
    prototypes = torch.zeros(c, flat.shape[1], device=flat.device)
    for k in range(c):
        values, pixels = best_pixels(scores[:, k].reshape(-1), h * w // 8)
        prototypes[k] = torch.sum(values.unsqueeze(-1) * flat[pixels], dim=0) / torch.sum(values)
    return labels, F.normalize(prototypes, dim=-1)


def best_pixels(scores, number):
    """The `number` largest of scores (P,) and where they are; of equal ones the first.

    Published: torch.topk, which does not say which it takes of equal ones (METHOD 9.7).
    """
    values, pixels = torch.sort(scores, descending=True, stable=True)
    return values[:number], pixels[:number]


def nce(features, labels, prototypes):
    """Mean over pixels of −log of the own prototype's exponential over that of all. features (P, D), labels (P,)."""
    own = torch.exp(torch.sum(features * prototypes[labels], dim=-1) / TEMPERATURE)
    every = torch.sum(torch.exp(torch.matmul(features, prototypes.transpose(0, 1)) / TEMPERATURE), dim=-1)
    return torch.mean(-1 * torch.log(own / every))


def intra(features, labels, prototypes):
    """Semi-hard prototypes, then hard pixels class by class; the divisor counts classes skipped for too few pixels.

    features (P, D), labels (P,), prototypes (C, D).
    """
    pixels, classes = len(features), len(prototypes)
    positives = prototypes[labels]
    repeated = prototypes.unsqueeze(0).repeat(pixels, 1, 1)                                  # (P, C, D)
    similarity = torch.sum(features.unsqueeze(1) * repeated, dim=-1) / TEMPERATURE
    # Published: negatives drawn at random for every pixel, in a loop, and never used.
    for _ in range(pixels):
        random.sample(range(classes), 10)
    ranks = torch.sort(similarity, dim=-1, descending=True)[1][:, 3:13]
    negatives = torch.gather(repeated, 1, ranks.unsqueeze(-1).expand(-1, -1, repeated.shape[-1]))    # (P, 10, D)
    own = torch.exp(torch.sum(features * positives, dim=-1) / TEMPERATURE)
    others = torch.sum(torch.exp(torch.sum(features.unsqueeze(1) * negatives, dim=-1) / TEMPERATURE), dim=-1)
    loss = torch.zeros(1, device=features.device)
    seen = 0
    for k in range(classes):
        members = torch.nonzero(labels == k)[:, 0]
        n = len(members)
        if n == 0:
            continue
        seen += 1
        if n < 2:
            continue
        loss = loss + hard_pixels(own[members], others[members])
    return loss[0] / seen


def hard_pixels(own, others):
    """Mean −log over half the pixels of one class at random and as many from the end of its 60% least similar ones."""
    n = len(own)
    half, band = n // 2, int(0.6 * n)
    drawn = torch.tensor(random.sample(range(n), half), device=own.device)
    hardest = torch.sort(own.detach())[1][:band][band - half:]
    chosen = torch.cat([drawn, hardest])
    return torch.mean(-1 * torch.log(own[chosen] / (own[chosen] + others[chosen])))
