"""The loss of Step 3. METHOD 7.1."""
import torch.nn.functional as F

from tool.metrics import IGNORE


def labelled_pixels(mask):
    """The number of labelled pixels of mask (N, H, W), 0-dim."""
    return (mask != IGNORE).sum()


def segmentation_loss(logits, mask, labelled=None, parts=1):
    """Cross entropy, the mean over the labelled pixels (0 where there are none).

    logits float32 (N, C, H, W); mask int64 (N, H, W), IGNORE where unlabelled. labelled: labelled_pixels of the total
    batch, of whose `parts` equal parts this is one; of this mask unless given. The mean over the parts is the loss of
    the total batch.
    """
    labelled = labelled_pixels(mask) if labelled is None else labelled
    return parts * F.cross_entropy(logits, mask, ignore_index=IGNORE, reduction='sum') / labelled.clamp(min=1)
