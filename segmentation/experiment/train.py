"""Step 3: train DeepLab on pseudo masks.

Reads   DATA_PSEUDO_GT/<id>.png (config.py or --pseudo_gt) of --train_list, <voc12_root>/JPEGImages/<id>.jpg, --weights.
        Ground truth in <voc12_root>/SegmentationClass, where there is some, only for a line that scores the masks.
Writes  <session>.pth (state dict), .ckpt (for --resume), .json (the effective config and the environment),
        .losses.jsonl, .predictions.png, and TensorBoard logs.

    cd segmentation/experiment && python train.py --pseudo_gt ../../out_rw \\
        --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params
"""
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, whatever the working directory

from segmentation.experiment import config as configs
from tool import cli, files
from tool.cli import UserError
from voc12.classes import IGNORE, VOC


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    configs.add_flags(parser, 'train')
    parser.add_argument('--voc12_root', default='VOC2012', help='folder of the VOC devkit (holds JPEGImages/)')
    parser.add_argument('--train_list', default='voc12/train_aug.txt', help='image ids to train on')
    parser.add_argument('--tblog_dir', default='./tblog', help='TensorBoard folder')
    cli.add_switch(parser, '--convert_rgb', 'turn grey, palette and CMYK images into RGB instead of refusing them')
    cli.add_worker_flag(parser)
    cli.add_device_flags(parser)
    cli.add_run_flags(parser)
    return parser


def main(args):
    config = configs.effective(args)
    ids = files.read_list(args.train_list, '--train_list')
    check_sizes(config, len(ids))

    import torch
    from segmentation import model, preflight
    from tool import training
    from voc12.dataset import image_folder
    from voc12.segmentation_data import Augmentation, PseudoMasks
    device = cli.set_up(args)
    net = cli.place(model.pretrained(config, configs.located(config.MODEL_BACKBONE_PRETRAIN)), device, args.amp)

    root, mask_dir = configs.located(args.voc12_root), configs.located(config.DATA_PSEUDO_GT)
    masks = preflight.check(ids, image_folder(root), mask_dir, root / 'SegmentationClass', VOC, args.num_workers)
    print(masks.text(VOC.names))
    jitter = (config.DATA_RANDOM_H, config.DATA_RANDOM_S, config.DATA_RANDOM_V)
    augmentation = Augmentation(config.DATA_RANDOMCROP, config.DATA_RANDOMSCALE, jitter, config.DATA_RANDOMFLIP)
    dataset = PseudoMasks(ids, root, mask_dir, augmentation, args.convert_rgb)

    groups = training.parameter_groups(net, config.TRAIN_LR, config.TRAIN_WEIGHT_DECAY)
    optimizer = torch.optim.SGD(groups, config.TRAIN_LR, momentum=config.TRAIN_MOMENTUM)
    run = training.Run(config.EXP_NAME, net, optimizer, device=device, amp=args.amp, seed=args.seed,
                       batch_size=config.TRAIN_BATCHES, steps_per_epoch=len(ids) // config.TRAIN_BATCHES,
                       max_step=config.TRAIN_ITERATION, settings=all_settings(args, config), flags=args,
                       tblog_dir=args.tblog_dir, workers=args.num_workers, power=config.TRAIN_POWER)
    for batch in run.batches(dataset):
        image = batch['image'].to(device, non_blocking=True)
        mask = batch['mask'].to(device, non_blocking=True)
        with cli.autocast(device, args.amp):
            logits = net(image)
        run.update({'loss_seg': segmentation_loss(logits.float(), mask)}, {'loss_seg': 1.})
        if run.due(args.picture_every) or run.step == run.max_step:
            run.log_figure('predictions', sheet(batch, logits))
    run.finish()


def check_sizes(config, images):
    """UserError for settings that cannot train: no pseudo masks, too few images, a batch too small for the network."""
    if not config.DATA_PSEUDO_GT:
        raise UserError('--pseudo_gt', 'no folder of pseudo masks is set',
                        'give it, or set DATA_PSEUDO_GT in config.py')
    if config.TRAIN_BATCHES > images:
        raise UserError('--TRAIN_BATCHES', f'{config.TRAIN_BATCHES} is more than the {images} images of the list',
                        'lower it')
    if config.MODEL_NAME == 'deeplabv2' and config.TRAIN_BATCHES < 2:
        raise UserError('--TRAIN_BATCHES', "deeplabv2 cannot train on 1 image a step (its global branch's BatchNorm)",
                        'use at least 2')


def all_settings(args, config):
    """The effective config and the flags in one dict, EXP_NAME under the name that all training scripts use."""
    settings = {**vars(args), **dataclasses.asdict(config)}
    return {**settings, 'session_name': settings.pop('EXP_NAME')}


def segmentation_loss(logits, mask):
    """Cross entropy, the mean over the labelled pixels (0 where there are none).

    logits float32 (N, C, H, W); mask int64 (N, H, W), IGNORE where unlabelled. SPEC section 7.
    """
    import torch.nn.functional as F
    labelled = (mask != IGNORE).sum()
    return F.cross_entropy(logits, mask, ignore_index=IGNORE, reduction='sum') / labelled.clamp(min=1)


def sheet(batch, logits, most=4):
    """A figure of the first images of a batch: photo, pseudo mask, prediction."""
    from tool import pictures, transforms
    predicted = logits[:most].argmax(1).cpu().numpy()
    rows = [[transforms.denormalise(image), *(pictures.colour(labels, VOC.palette) for labels in (mask.numpy(), guess))]
            for image, mask, guess in zip(batch['image'], batch['mask'], predicted)]
    return pictures.grid(rows, ('image', 'pseudo mask', 'prediction'))


if __name__ == '__main__':
    cli.run(main, get_args_parser())
