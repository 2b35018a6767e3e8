"""Step 2, second part: train AffinityNet on what the CRFs under a low and a high background exponent agree on.

    python aff_train.py --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params --voc12_root VOC2012 \\
        --la_crf_dir runs/aff/crf/4.00 --ha_crf_dir runs/aff/crf/24.00 --session_name runs/aff/resnet38_aff

Reads  --train_list, <voc12_root>/JPEGImages, the two folders of aff_prepare.py, --weights.
Writes <session>.pth (weights for aff_infer.py), <session>.ckpt (for --resume), <session>.json (what the run was),
       <session>.losses.jsonl (every term of every step), <session>.affinity.png, TensorBoard events in --tblog_dir.
"""
from tool import cli

SMALLEST_CROP = 40  # pixels: 5×5 cells, the least that hold pairs


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--network', default='network.resnet38_aff', help='module whose class Net is trained')
    parser.add_argument('--voc12_root', default='VOC2012', help='folder of the VOC devkit (holds JPEGImages/)')
    cli.add_switch(parser, '--convert_rgb', 'turn grey, palette and CMYK images into RGB instead of refusing them')
    parser.add_argument('--la_crf_dir', required=True, help="aff_prepare.py's folder of the low alpha (4.00)")
    parser.add_argument('--ha_crf_dir', required=True, help="aff_prepare.py's folder of the high alpha (24.00)")
    cli.add_training_flags(parser, batch_size=8, lr=0.01)
    cli.add_worker_flag(parser)
    cli.add_device_flags(parser)
    return parser


def main(args):
    import torch

    from network import weights
    from tool import files
    from tool.affinity import WEIGHTS, affinity_loss, pair_labels
    from tool.training import Run, parameter_groups
    from voc12.affinity_data import AffinityCrops
    from voc12.affinity_files import check_alphas
    from voc12.classes import IGNORE, VOC

    device = cli.set_up(args)
    ids = files.read_list(args.train_list, '--train_list')
    check(args, len(ids))
    check_alphas(ids, args.la_crf_dir, args.ha_crf_dir)
    folders = args.voc12_root, args.la_crf_dir, args.ha_crf_dir
    dataset = AffinityCrops(ids, *folders, args.crop_size, train=True, convert_rgb=args.convert_rgb)
    validation = validation_set(args)
    pretrained = weights.read_weights(args.weights)
    net = weights.build_net(args.network, pretrained)
    weights.load_weights(net, pretrained, args.weights, required='backbone')
    cli.place(net, device, args.amp)

    optimizer = torch.optim.SGD(parameter_groups(net, args.lr, args.wt_dec), lr=args.lr, momentum=args.momentum)
    per_epoch = len(dataset) // args.batch_size
    run = Run(args.session_name, net, optimizer, device=device, amp=args.amp, seed=args.seed,
              batch_size=args.batch_size, steps_per_epoch=per_epoch, max_step=per_epoch * args.max_epoches, settings=vars(args), flags=args,
              tblog_dir=args.tblog_dir, workers=args.num_workers)
    for batch in run.batches(dataset):
        label = batch['label'].to(device, non_blocking=True)
        with cli.autocast(device, args.amp):
            affinity = net(batch['image'].to(device, non_blocking=True))
        run.update(affinity_loss(affinity, *pair_labels(label, IGNORE)), WEIGHTS)

        if run.due(args.picture_every) or run.step == run.max_step:
            run.log_figure('affinity', sheet(batch, affinity, VOC.palette))
        if run.epoch_ended and validation:
            run.log_scalars(validate(net, validation, args, device))
    run.finish()


def check(args, images):
    """Refuse settings that cannot work (UserError)."""
    from tool.pairs import STRIDE
    if images < args.batch_size:
        raise cli.UserError('--batch_size', f'{args.batch_size} is more than the {images} images listed', 'lower it')
    if args.crop_size % STRIDE or args.crop_size < SMALLEST_CROP:
        raise cli.UserError('--crop_size', f'{args.crop_size} is no multiple of {STRIDE} of at least {SMALLEST_CROP}',
                            'give 448, say')


def validation_set(args):
    """The images of --val_list that both CRF folders hold, their centres; None where there is none or no list."""
    from tool import files
    from voc12.affinity_data import AffinityCrops
    if not args.val_list:
        return None
    if not cli.repo_path(args.val_list).exists():
        print(f'no validation: {args.val_list} does not exist (voc12/prepare.py writes it)')
        return None
    ids = files.read_list(args.val_list, '--val_list')
    missing = {i for folder in (args.la_crf_dir, args.ha_crf_dir) for i in files.missing_files(ids, folder, '.npy')}
    found = [i for i in ids if i not in missing]
    print(f'validation: {len(found)} of the {len(ids)} images of {args.val_list} are in both CRF folders')
    if not found:
        return None
    folders = args.voc12_root, args.la_crf_dir, args.ha_crf_dir
    return AffinityCrops(found, *folders, args.crop_size, train=False, convert_rgb=args.convert_rgb)


def validate(net, dataset, args, device):
    """The loss terms on a data set, every image weighing the same: {'val/loss_bg', …}. Net in train mode after."""
    import torch

    from tool.affinity import affinity_loss, pair_labels
    from tool.loading import validation_batches
    from voc12.classes import IGNORE
    rows = []
    net.eval()
    with torch.no_grad():
        for batch in validation_batches(dataset, args.batch_size, args.num_workers, device):
            with cli.autocast(device, args.amp):
                affinity = net(batch['image'].to(device))
            pairs = pair_labels(batch['label'].to(device), IGNORE)
            rows += [affinity_loss(*one) for one in zip(affinity, *pairs)]
    net.train()
    return {f'val/{name}': torch.stack([row[name] for row in rows]).mean().item() for name in rows[0]}


def sheet(batch, affinity, palette, most=4):
    """The picture of a training step: images | labels of their cells | each cell's mean distance (1 − affinity)."""
    import cv2
    import numpy as np

    from tool import pictures, transforms
    from tool.random_walk import affinity_matrix
    rows = []
    affinity = affinity[:most].detach().float().cpu().numpy()
    for image, label, values in zip(batch['image'], batch['label'].numpy(), affinity):
        image, matrix = transforms.denormalise(image), affinity_matrix(values, *label.shape)
        neighbours = np.diff(matrix.indptr)
        heat = (1 - matrix.sum(1) / neighbours).reshape(label.shape)
        size = image.shape[1::-1]
        mask = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
        heat = cv2.resize(np.float32(heat / max(heat.max(), 1e-5)), size, interpolation=cv2.INTER_LINEAR)
        rows.append([image, pictures.colour(mask, palette), pictures.overlay(image, heat)])
    return pictures.grid(rows, ('image', 'labels of cells', 'distance to neighbours'))


if __name__ == '__main__':
    cli.run(main, get_args_parser())
