"""The settings at which the toy VOC is run: a small network on small crops. Words for the command lines of the scripts.

What differs from the published recipe, and why: images are 128×96, so crops and views shrink; new heads must learn from
600 images instead of 10,582, so momentum is 0.9 (the published 5e-4 is measured beside it in the README).
"""
from tool.cli import REPO

BACKBONE = REPO / 'voc12' / 'toy_backbone.pth'
IMAGES = {'train': 600, 'val': 150}

CONTRAST_TRAIN = ('--crop_size', 112, '--resize_long', 96, 160, '--view2_size', 64, '--batch_size', 8, '--max_epoches', 8,
                  '--lr', 0.01, '--momentum', 0.9, '--amp', 'bf16', '--picture_every', 0)
CONTRAST_INFER = ('--amp', 'bf16')
