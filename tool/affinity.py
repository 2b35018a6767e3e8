"""AffinityNet: affinities, their labels, the loss (Ahn and Kwak, CVPR 2018). METHOD 1.5, 6.2, 6.3.

Pair geometry is in tool/pairs.py. Plain twin of the labels: reference/affinity_labels.py.
"""
import numpy as np
import torch

from tool.pairs import STRIDE, cell_means, pair_views

EPSILON = 1e-5
# Published: half of the loss for pairs of one label (background and foreground equally), half for pairs of two.
WEIGHTS = {'loss_bg': 1 / 4, 'loss_fg': 1 / 4, 'loss_neg': 1 / 2}


def affinities(features):
    """Affinity of each pair, exp(−mean over channels |f_i − f_j|): features (N, D, h, w) → (N, O, P) in 0..1."""
    return torch.exp(-PairDistance.apply(features)).flatten(2)


class PairDistance(torch.autograd.Function):
    """Mean over channels of |f_i − f_j| for each pair: features (N, D, h, w) → (N, O, rows, columns of first cells).

    Only the features are kept for the backward pass, which forms the differences again. Plain autograd would keep every
    difference: 34 maps for each of 448 channels, 150 MB an image at a crop of 448.
    """

    @staticmethod
    def forward(ctx, features):
        ctx.save_for_backward(features)
        first, seconds = pair_views(features)
        distance = features.new_empty(len(features), len(seconds), *first.shape[2:])
        difference = torch.empty_like(first)
        for k, second in enumerate(seconds):
            torch.sub(first, second, out=difference)
            torch.mean(difference.abs_(), 1, out=distance[:, k])
        return distance

    @staticmethod
    def backward(ctx, gradient):
        features, = ctx.saved_tensors
        first, seconds = pair_views(features)
        result = torch.zeros_like(features)
        to_first, to_seconds = pair_views(result)
        gradient = gradient / features.shape[1]
        difference = torch.empty_like(first)
        for k, (second, to_second) in enumerate(zip(seconds, to_seconds)):
            torch.sub(first, second, out=difference)
            difference.sign_().mul_(gradient[:, k, None])
            to_first += difference
            to_second -= difference
        return result


def cell_labels(low, high, ignore, stride=STRIDE):
    """What the CRFs under a low and a high alpha (much and little background) agree on, cell by cell.

    low, high: (classes (K,), scores (K, H, W)), with label 0 = background; scores are 0 outside the image.
    stride: pixels per cell.
    Returns uint8 (h, w): a class where even `low` sees it, background where even `high` sees it, `ignore` elsewhere and
    outside the image.
    """
    (low_label, low_score), (high_label, high_score) = (_strongest(*maps, stride) for maps in (low, high))
    label = low_label.copy()
    label[low_label == 0] = ignore
    label[high_label == 0] = 0
    label[np.maximum(low_score, high_score) < EPSILON] = ignore
    return label


def _strongest(classes, scores, stride):
    """Each cell's label and its mean score: uint8 (h, w), float32 (h, w)."""
    means = cell_means(scores, stride)
    return np.asarray(classes, np.uint8)[means.argmax(0)], means.max(0)


def pair_labels(label, ignore):
    """The kinds of pairs. label (N, h, w): mask values (0 = background) or ignore → bg, fg, neg, bool (N, O, P).

    bg: both background. fg: both the same class. neg: different. Pairs with an ignored cell are none of the three.
    """
    first, seconds = pair_views(label)
    first, second = first[:, None], torch.stack(seconds, 1)
    valid = (first != ignore) & (second != ignore)
    same = valid & (first == second)
    return tuple(pairs.flatten(2) for pairs in (same & (first == 0), same & (first != 0), valid & ~same))


def pair_counts(bg, fg, neg):
    """The number of pairs of each kind, int64 (3,)."""
    return torch.stack([pairs.sum() for pairs in (bg, fg, neg)])


def affinity_loss(affinity, bg, fg, neg, counts=None, parts=1):
    """Cross entropy of the affinities with what the labels say of the pairs, one term per kind of pair.

    affinity: (N, O, P) in 0..1. bg, fg, neg: bool (N, O, P). Returns dict of scalars, not weighted (WEIGHTS does that):
    'loss_bg', 'loss_fg': mean −log(aff + 1e-5); 'loss_neg': mean −log(1 + 1e-5 − aff). A kind without pairs gives 0.
    counts: pair_counts of the total batch, of whose `parts` equal parts this is one; of these pairs unless given. The
    mean of a term over the parts is its value on the total batch.
    """
    counts = pair_counts(bg, fg, neg) if counts is None else counts
    alike = -torch.log(affinity + EPSILON)
    different = -torch.log(1 + EPSILON - affinity)
    return {name: parts * (pairs * cost).sum() / (count + EPSILON)
            for name, pairs, cost, count in zip(WEIGHTS, (bg, fg, neg), (alike, alike, different), counts)}
