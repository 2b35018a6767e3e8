"""The settings at which the toy VOC is run: a small network on small crops. Words for the command lines of the scripts.

What differs from the published recipe, and why: images are 128×96, so crops, views and scales shrink; new heads must
learn from 600 images instead of 10,582, so momentum is 0.9 (the published 5e-4 is measured beside it in the README).
"""

BACKBONE = 'voc12/toy_backbone.pth'  # from the repository's root
IMAGES = {'train': 600, 'val': 150}

# Score of seeds and random walk: the best for CAMs of a toy set of another seed (toy.py --seed 1), to 0.05. For EPS,
# whose softmax gives clearer zeros, that is the middle of two: 0.23 without contrast, 0.17 with it.
BACKGROUND = {'seam': 0.40, 'eps': 0.20}

CONTRAST_TRAIN = ('--crop_size', 112, '--resize_long', 96, 160, '--view2_size', 64, '--batch_size', 8,
                  '--max_epoches', 6, '--lr', 0.01, '--momentum', 0.9, '--picture_every', 0)
CONTRAST_INFER = {baseline: ('--scales', 1, 1.5, '--out_cam_pred_alpha', score)
                  for baseline, score in BACKGROUND.items()}
EVAL_SEEDS = {baseline: ('--t', score) for baseline, score in BACKGROUND.items()}
ALPHAS = (1, 8)  # of aff_prepare.py: a CAM is background below 0.50 and below 0.20 by them, on both sides of BACKGROUND
AFF_TRAIN = ('--crop_size', 96, '--batch_size', 8, '--max_epoches', 8, '--lr', 0.01, '--momentum', 0.9,
             '--picture_every', 0)
# Maps are 16×12 cells: a walk of 64 steps of radius 5 would cover them.
AFF_INFER = ('--bg', BACKGROUND['seam'], '--beta', 16, '--logt', 4)
SEGMENTATION_TRAIN = ('--DATA_RANDOMCROP', 96, '--DATA_RANDOMSCALE', 0.8, 1.5, '--TRAIN_BATCHES', 10,
                      '--TRAIN_ITERATION', 1000, '--TRAIN_LR', 0.01, '--TRAIN_BN_MOM', 0.05, '--picture_every', 0)
SEGMENTATION_TEST = ('--TEST_MULTISCALE', 0.75, 1, 1.25, 1.5)


def counts():
    """Words for voc12/toy.py: the numbers of images."""
    return [word for split, n in IMAGES.items() for word in (f'--{split}', n)]


def extra(baseline):
    """{step of tool/chain.py: words} that bring the published recipe down to the toy VOC."""
    words = {'contrast_train': CONTRAST_TRAIN, 'segmentation_train': SEGMENTATION_TRAIN,
             'segmentation_test': SEGMENTATION_TEST}
    for tail in ('', '_val'):
        words |= {f'contrast_infer{tail}': CONTRAST_INFER[baseline], f'eval_seeds{tail}': EVAL_SEEDS[baseline]}
    if baseline == 'seam':
        words['aff_train'] = AFF_TRAIN
        words |= {f'aff_infer{crf}{tail}': AFF_INFER for crf in ('', '_crf') for tail in ('', '_val')}
    return words
