"""Pixel-to-prototype contrast (METHOD 3.4 to 3.6; the paper's section 3): no loop over pixels or classes.

The functions take maps and features and nothing else. Everything is float32.
Plain twin: reference/contrast_loss.py, contrast_losses.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from tool.cam import resize, score_norm

TERMS = ('cross_prototype', 'cross_cam', 'intra')
SEMI_HARD_RANKS = slice(3, 13)  # semi-hard prototypes: the 4th to the 13th most similar


@dataclass(frozen=True)
class Pool:
    """What a total batch decides about one view, without gradient. P = N·h·w pixels, one after the other.

    prototypes (C, D): L2-normalised. labels (P,): pseudo labels, mask values. weights (P,): of the pixels' losses in
    the intra-view term, and seen, 0-dim, the number of classes that their sum is divided by; None where not wanted.
    count: the number of equal parts of the batch, of one of which labels and weights are.
    """
    prototypes: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor = None
    seen: torch.Tensor = None
    count: int = 1

    def of(self, part):
        """The pool as a tool.part.Part of the batch needs it."""
        weights = None if self.weights is None else part.of(self.weights)
        return replace(self, labels=part.of(self.labels), weights=weights, count=part.count)


@torch.no_grad()
def pseudo_labels(revised, label, bg_threshold):
    """Scores and pseudo labels of a view from its revised CAMs. METHOD 3.4.

    revised (N, C, h, w), label (N, C − 1) → scores (N, C, h, w), about 0..1, all classes; labels (N, h, w) int64, mask
    values, only classes of the image-level label and background.
    """
    scores = score_norm(revised)
    scores[:, 0] = bg_threshold  # a constant, so all pixels tie for the background's prototype (METHOD 9.7)
    allowed = F.pad(label, (1, 0), value=1.)[:, :, None, None]
    return scores, (scores * allowed).softmax(1).argmax(1)


@torch.no_grad()
def prototypes(scores, features, k):
    """One prototype a class: the score-weighted mean of the features at its k best pixels in the whole batch.

    scores (N, C, h, w), features (N, D, h, w) → (C, D), L2-normalised. As published, classes that no image carries
    get a prototype too (METHOD 9.3): it serves as a negative.
    """
    values, pixels = best_pixels(scores.transpose(0, 1).flatten(1), k)              # (C, k)
    chosen = features.permute(0, 2, 3, 1).flatten(0, 2)[pixels]                     # (C, k, D)
    mean = (values[:, :, None] * chosen).sum(1) / values.sum(1, keepdim=True)
    return F.normalize(mean, dim=1)


def best_pixels(scores, k):
    """The k largest of each row of scores (C, P), and where they are: (C, k) each. Of equal scores the first count.

    Published: topk, whose choice among equal scores depends on the device, the version and P (METHOD 9.7).
    """
    values, pixels = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], pixels[:, :k]


def intra_view(similarity, labels, weights, seen):
    """Intra-view contrast with semi-hard prototypes and hard pixel sampling. METHOD 3.6.

    similarity (P, C): pixels to the prototypes of their own view, over temperature. labels (P,) int64. weights, seen:
    of `sample`. A pixel's negatives are the prototypes ranked 4..13 by similarity; its own may be among them.
    """
    own = similarity.gather(1, labels[:, None])
    ranked = similarity.sort(1, descending=True).values[:, SEMI_HARD_RANKS]
    loss = torch.cat([own, ranked], 1).logsumexp(1) - own[:, 0]
    return (weights * loss).sum() / seen


@torch.no_grad()
def sample(similarity, labels):
    """The pixels whose losses count in the intra-view term. METHOD 3.6. Arguments as in intra_view, of the total batch.

    Of a class's n ≥ 2 pixels, floor(n/2) random ones count, and floor(n/2) semi-hard ones (the end of the int(0.6 n)
    least similar). Returns the weight of each pixel's loss (P,), zero where not sampled, and the number of classes seen
    (0-dim tensor). Kept as published: the classes with one pixel are among those seen.
    """
    own = similarity.gather(1, labels[:, None])[:, 0]
    count = torch.zeros(similarity.shape[1], dtype=torch.float64, device=own.device)
    count.scatter_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
    n = count[labels]
    half, band = (n / 2).floor(), (0.6 * n).floor()
    random = _rank_within(torch.rand_like(own), labels, count) < half
    rank = _rank_within(own, labels, count)
    semi_hard = (rank >= band - half) & (rank < band)
    weight = (random.double() + semi_hard.double()) / (2 * half).clamp(min=1)
    return weight.to(own.dtype), (count > 0).sum()


def _rank_within(values, labels, count):
    """Rank (P,) of each value among those of its own class, ascending, from 0; float64."""
    order = values.argsort()
    order = order[labels[order].argsort(stable=True)]
    start = count.cumsum(0) - count
    rank = torch.empty(len(values), dtype=torch.float64, device=values.device)
    rank[order] = torch.arange(len(values), dtype=torch.float64, device=values.device) - start[labels[order]]
    return rank


def comparable(view1, view2):
    """The maps that the contrast compares: features and revised CAMs of view 1, then of view 2, float32 (N, …, h, w).

    Those of view 1 are brought to the size of view 2's (16×16 as published).
    """
    size = view2.features.shape[2:]
    return [resize(maps.float(), size) if maps.shape[2:] != size else maps.float()
            for view in (view1, view2) for maps in (view.features, view.revised)]


def unit_pixels(features):
    """The L2-normalised features (N, D, h, w) of each pixel: (P, D)."""
    return F.normalize(features, dim=1).permute(0, 2, 3, 1).flatten(0, 2)


def similarity(pixels, pool, temperature):
    """Similarity of each pixel (P, D) to each prototype of a Pool, over temperature: (P, C)."""
    return pixels @ pool.prototypes.T / temperature


@torch.no_grad()
def pools(maps, label, *, wanted=TERMS, bg_threshold=0.20, fraction=1 / 8, temperature=0.1):
    """The Pool of either view. maps: of `comparable`, for all images of the total batch. Others as in losses."""
    found = []
    for features, revised in (maps[:2], maps[2:]):
        scores, labels = pseudo_labels(revised, label, bg_threshold)
        k = max(1, int(features.shape[2] * features.shape[3] * fraction))
        pool = Pool(prototypes(scores, features, k), labels.flatten())
        if 'intra' in wanted:
            weights, seen = sample(similarity(unit_pixels(features), pool, temperature), pool.labels)
            pool = replace(pool, weights=weights, seen=seen)
        found.append(pool)
    return found


def losses(view1, view2, label, *, total=None, wanted=TERMS, bg_threshold=0.20, fraction=1 / 8, temperature=0.1):
    """The named contrast terms {'cross_prototype', 'cross_cam', 'intra'}, unweighted; only those `wanted`.

    view1, view2: tool.cam.View with revised CAMs and features. label (N, C − 1). bg_threshold: background score 0..1 of
    the pseudo labels. fraction: of one image's pixels, the number that a prototype averages over the whole batch.
    total: the two Pools of a total batch that the views are a part of; None where they are all of it. The mean of a
    term over the parts is its value on the total batch.
    """
    maps = comparable(view1, view2)
    one, two = total or pools(maps, label, wanted=wanted, bg_threshold=bg_threshold, fraction=fraction,
                              temperature=temperature)
    pixels1, pixels2 = unit_pixels(maps[0]), unit_pixels(maps[2])
    own1, own2 = similarity(pixels1, one, temperature), similarity(pixels2, two, temperature)
    ce = F.cross_entropy
    out = {}
    if 'cross_prototype' in wanted:
        cross1, cross2 = similarity(pixels1, two, temperature), similarity(pixels2, one, temperature)
        out['cross_prototype'] = (ce(cross1, one.labels) + ce(cross2, two.labels)) / 2
    if 'cross_cam' in wanted:
        out['cross_cam'] = (ce(own1, two.labels) + ce(own2, one.labels)) / 2
    if 'intra' in wanted:
        out['intra'] = sum(pool.count * intra_view(own, pool.labels, pool.weights, pool.seen)
                           for own, pool in ((own1, one), (own2, two))) / 2
    return out
