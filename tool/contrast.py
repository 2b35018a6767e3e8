"""Pixel-to-prototype contrast (SPEC section 3; the paper's section 3): tensor code, no loop over pixels or classes.

The functions take maps and features and nothing else. Everything is float32.
"""
import torch
import torch.nn.functional as F

from tool.cam import resize, score_norm

TERMS = ('cross_prototype', 'cross_cam', 'intra')
RANKED = slice(3, 13)  # semi-hard prototypes: the 4th to the 13th most similar


@torch.no_grad()
def pseudo_labels(rv, label, bg_threshold):
    """Scores and pseudo labels of a view from its revised CAMs.

    rv (N, C, h, w), label (N, C − 1) → scores (N, C, h, w), about 0..1, all classes; labels (N, h, w) int64, only
    classes of the image-level label and background.
    """
    scores = score_norm(rv)
    scores[:, 0] = bg_threshold  # a constant, so the background's top-k are ties: as published (SPEC section 9, item 7)
    allowed = F.pad(label, (1, 0), value=1.)[:, :, None, None]
    return scores, (scores * allowed).softmax(1).argmax(1)


@torch.no_grad()
def prototypes(scores, features, k):
    """One prototype a class: the score-weighted mean of the features at its k best positions in the whole batch.

    scores (N, C, h, w), features (N, D, h, w) → (C, D), L2-normalised. As published, classes that no image carries
    get one as well (SPEC section 9, item 3): they serve as negatives.
    """
    values, positions = scores.transpose(0, 1).flatten(1).topk(k, dim=1)           # (C, k)
    chosen = features.permute(0, 2, 3, 1).flatten(0, 2)[positions]                  # (C, k, D)
    mean = (values[:, :, None] * chosen).sum(1) / values.sum(1, keepdim=True)
    return F.normalize(mean, dim=1)


def intra_view(similarity, labels):
    """Intra-view contrast with semi-hard prototypes and hard pixel sampling.

    similarity (P, C): pixels to the prototypes of their own view, over temperature. labels (P,) int64.
    A pixel's negatives are the prototypes ranked 4..13 by similarity; its own may be among them. Of a class's n ≥ 2
    pixels, floor(n/2) random ones count, and floor(n/2) semi-hard ones (the end of the int(0.6 n) least similar).
    Kept as published: the sum over classes is divided by all classes seen, those with one pixel included.
    """
    own = similarity.gather(1, labels[:, None])
    ranked = similarity.sort(1, descending=True).values[:, RANKED]
    loss = torch.cat([own, ranked], 1).logsumexp(1) - own[:, 0]
    with torch.no_grad():
        weight, seen = _sampling_weights(own[:, 0], labels, similarity.shape[1])
    return (weight * loss).sum() / seen


def _sampling_weights(own, labels, num_classes):
    """Weight of each pixel's loss (P,), zero where not sampled, and the number of classes seen (0-dim tensor)."""
    count = torch.zeros(num_classes, dtype=torch.float64, device=own.device)
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


def terms(view1, view2, label, *, wanted=TERMS, bg_threshold=0.20, share=1 / 8, temperature=0.1):
    """The named contrast terms {'cross_prototype', 'cross_cam', 'intra'}, unweighted; only those `wanted`.

    view1, view2: (features (N, D, h, w), rv (N, C, h, w)). View 1 is brought to the size of view 2's maps (16×16 as
    published). label (N, C − 1). share: the share of one image's positions that a prototype averages.
    """
    size = view2[0].shape[2:]
    k = max(1, int(size[0] * size[1] * share))
    similarity, labels = {}, {}
    prepared = []
    for features, rv in (view1, view2):
        features, rv = (resize(m.float(), size) if m.shape[2:] != size else m.float() for m in (features, rv))
        scores, pseudo = pseudo_labels(rv, label, bg_threshold)
        prepared.append((F.normalize(features, dim=1).permute(0, 2, 3, 1).flatten(0, 2), pseudo.flatten(),
                         prototypes(scores, features.detach(), k)))
    for i, (z, pseudo, _) in enumerate(prepared):
        labels[i] = pseudo
        for j, (_, _, table) in enumerate(prepared):
            similarity[i, j] = z @ table.T / temperature
    ce = F.cross_entropy
    out = {}
    if 'cross_prototype' in wanted:
        out['cross_prototype'] = (ce(similarity[0, 1], labels[0]) + ce(similarity[1, 0], labels[1])) / 2
    if 'cross_cam' in wanted:
        out['cross_cam'] = (ce(similarity[0, 0], labels[1]) + ce(similarity[1, 1], labels[0])) / 2
    if 'intra' in wanted:
        out['intra'] = (intra_view(similarity[0, 0], labels[0]) + intra_view(similarity[1, 1], labels[1])) / 2
    return out
