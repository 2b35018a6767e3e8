"""Step 3: train DeepLab on pseudo masks.

Reads   DATA_PSEUDO_GT/<id>.png (config.py or --pseudo_gt) of --train_list, <voc12_root>/JPEGImages/<id>.jpg, --weights.
        Ground truth in <voc12_root>/SegmentationClass, where it exists, only to print the mIoU of the masks.
Writes  <session>.pth (state dict), .ckpt (for --resume), .json (the effective config and the environment),
        .losses.jsonl, .predictions.png, and TensorBoard logs.

    cd segmentation/experiment && python train.py --pseudo_gt ../../out_rw \\
        --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params
"""
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, whatever the working directory

from data.lists import read_list
from engine import cli
from engine.errors import UserError
from segmentation.experiment import config as configs


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    configs.add_flags(parser, 'train')
    cli.add_image_flags(parser)
    parser.add_argument('--train_list', help="list of image ids to train on (the data set's train_aug)")
    cli.add_switch(parser, '--allow_unusual_masks', 'train on masks that are mostly background, mostly without any '
                                                    'object or mostly ignored')
    cli.add_device_flags(parser)
    cli.add_run_flags(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    import torch

    from data.segmentation import Augmentation, PseudoMasks
    from engine import distributed
    from engine.datasets import check_photos
    from engine.device import autocast, set_up, to_device
    from engine.runinfo import fingerprint, fingerprint_of_ids
    from engine.training import Run, parameter_groups
    from engine.training_pictures import segmentation_figure
    from engine.validation import warn_of_shared_ids
    from segmentation import model, preflight
    from segmentation.losses import labelled_pixels, segmentation_loss

    config, data = configs.effective(args), cli.chosen_dataset(args, train_list='train_aug')
    ids = read_list(args.train_list, '--train_list')
    check(config, len(ids))
    warn_of_shared_ids(ids, args.train_list)
    device = set_up(args, config.EXP_NAME)
    net = model.pretrained(config, configs.located(config.MODEL_BACKBONE_PRETRAIN), data.classes.num_classes)
    net = to_device(model.over_processes(net, device), device, args.amp)

    root, mask_dir = configs.located(args.voc12_root), configs.located(config.DATA_PSEUDO_GT)
    photos = data.photos(root)
    masks = preflight.check(ids, photos, mask_dir, data.truth(root), data.classes, args.num_workers,
                            args.allow_unusual_masks)
    print(masks.text(data.classes.names))
    augmentation = Augmentation(config.DATA_RANDOMCROP, config.DATA_RANDOMSCALE, config.jitter, config.DATA_RANDOMFLIP)
    dataset = PseudoMasks(ids, photos, mask_dir, data.classes, augmentation, args.convert_rgb)
    check_photos(dataset, '--train_list')

    groups = parameter_groups(net, config.TRAIN_LR, config.TRAIN_WEIGHT_DECAY)
    optimizer = torch.optim.SGD(groups, config.TRAIN_LR, momentum=config.TRAIN_MOMENTUM)
    run = Run(config.EXP_NAME, net, optimizer, device=device, args=args, settings=all_settings(args, config),
              before=all_settings(args, configs.EXPERIMENTS[args.experiment]) | get_args_parser().before,
              images=len(ids), batch_size=config.TRAIN_BATCHES, max_step=config.TRAIN_ITERATION,
              schedule_steps=config.TRAIN_ITERATION + 1,  # as published, in this step alone (METHOD 7.1)
              power=config.TRAIN_POWER, inputs={'train_ids': fingerprint_of_ids(ids),
                                                'pseudo_masks': fingerprint(len(ids), masks.pixels.tobytes())})
    for batch in run.batches(dataset):
        image = batch['image'].to(device, non_blocking=True)
        mask = batch['mask'].to(device, non_blocking=True)
        with autocast(device, args.amp):
            logits = net(image)
        labelled = distributed.total(labelled_pixels(mask))
        run.update({'loss_seg': segmentation_loss(logits.float(), mask, labelled, run.parts.count)}, {'loss_seg': 1.})
        if run.picture_due:
            run.log_figure('predictions', segmentation_figure(batch, logits, data.classes.palette))
    run.finish()


def check(config, images):
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
    """The config and the flags in one dict; EXP_NAME is called session_name in it, as in the other training scripts."""
    settings = {**vars(args), **dataclasses.asdict(config)}
    return {**settings, 'session_name': settings.pop('EXP_NAME')}


if __name__ == '__main__':
    cli.run(main, get_args_parser())
