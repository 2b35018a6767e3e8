"""The loss of Step 3. METHOD 7.1."""
import torch.nn.functional as F

from tool.metrics import IGNORE


def segmentation_loss(logits, mask):
    """Cross entropy, the mean over the labelled pixels (0 where there are none).

    logits float32 (N, C, H, W); mask int64 (N, H, W), IGNORE where unlabelled.
    """
    labelled = (mask != IGNORE).sum()
    return F.cross_entropy(logits, mask, ignore_index=IGNORE, reduction='sum') / labelled.clamp(min=1)
