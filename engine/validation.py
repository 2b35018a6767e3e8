"""What training measures after each epoch on the images of --val_list, without their masks."""
import sys

import torch
import torch.nn.functional as F

from data.lists import read_list
from engine.cli import VAL_LIST
from engine.device import autocast
from engine.files import repo_path
from engine.loading import validation_batches
from tool.affinity import affinity_loss, pair_labels
from tool.metrics import IGNORE, mean_average_precision


def validation_ids(args):
    """The ids of --val_list; [] where the flag is empty, or its default and missing (one line says so)."""
    if not args.val_list:
        return []
    if args.val_list == VAL_LIST and not repo_path(args.val_list).exists():
        print(f'no validation: {args.val_list} does not exist (voc12/prepare.py writes it)')
        return []
    return read_list(args.val_list, '--val_list')


def warn_of_shared_ids(ids, train_list, val_list=''):
    """One warning line where images `ids` to train on are images to test on too: the scores would be too good.

    val_list: the list to compare with; where it is '' or missing, the val.txt beside train_list.
    """
    candidates = [repo_path(path) for path in (val_list, repo_path(train_list).with_name('val.txt')) if path]
    path = next((path for path in candidates if path.is_file()), None)
    shared = sorted(set(ids) & set(read_list(path))) if path else []
    if shared:
        print(f'warning: {len(shared)} of the {len(ids)} ids of {train_list} are in {path} too ({shared[0]} the '
              'first): scores on them say nothing about new images', file=sys.stderr)


def validate_classification(net, dataset, args, device):
    """Classification loss and mean average precision on image-level labels: {'val/cls', 'val/mAP'}.

    Leaves the network in train mode.
    """
    logits, labels = [], []
    net.eval()
    with torch.no_grad():
        for batch in validation_batches(dataset, args.batch_size, args.num_workers, device):
            with autocast(device, args.amp):
                logits.append(net.class_logits(batch['image'].to(device)).float().cpu())
            labels.append(batch['label'])
    net.train()
    logits, labels = torch.cat(logits), torch.cat(labels)
    return {'val/cls': F.multilabel_soft_margin_loss(logits, labels).item(),
            'val/mAP': mean_average_precision(logits.numpy(), labels.numpy())}


def validate_affinity(net, dataset, args, device):
    """AffinityNet's loss terms, every image weighing the same: {'val/loss_bg', …}. Leaves the network in train mode."""
    rows = []
    net.eval()
    with torch.no_grad():
        for batch in validation_batches(dataset, args.batch_size, args.num_workers, device):
            with autocast(device, args.amp):
                affinity = net(batch['image'].to(device))
            pairs = pair_labels(batch['label'].to(device), IGNORE)
            rows += [affinity_loss(*one) for one in zip(affinity, *pairs)]
    net.train()
    return {f'val/{name}': torch.stack([row[name] for row in rows]).mean().item() for name in rows[0]}
