"""Step 1: train the classifier with SEAM's losses and pixel-to-prototype contrast, from image-level labels.

    python contrast_train.py --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params --voc12_root VOC2012 \\
        --session_name runs/contrast/resnet38_contrast --batch_size 8

Reads  --train_list, <voc12_root>/JPEGImages, --cls_labels, --weights.
Writes <session>.pth (weights for contrast_infer.py), <session>.ckpt (for --resume), <session>.json (what the run was),
       <session>.losses.jsonl (every term of every step), <session>.maps.png, TensorBoard events in --tblog_dir.
"""
from tool import cli

TERMS = {  # name: (default weight, what it is)
    'cls': (1., 'classification, both views'),
    'rvmin': (1., 'adaptive min pooling of the revised CAM (SEAM)'),
    'er': (1., 'equivariance between the views (SEAM)'),
    'ecr': (1., 'equivariant cross regularisation (SEAM)'),
    'cross_prototype': (0.1, "contrast with the other view's prototypes"),
    'cross_cam': (0.1, "contrast with the other view's pseudo labels"),
    'intra': (0.1, 'contrast within a view: semi-hard prototypes, hard pixels'),
}


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--network', default='network.resnet38_contrast', help='module whose class Net is trained')
    cli.add_data_flags(parser)
    cli.add_training_flags(parser, batch_size=8, lr=0.01)
    parser.add_argument('--resize_long', type=cli.positive, nargs=2, default=(448, 768), metavar=('LOW', 'HIGH'),
                        help='range of the random long side in pixels, before cropping')
    parser.add_argument('--view2_size', type=cli.positive, default=128, help='side of the second view in pixels')
    parser.add_argument('--bg_threshold', type=cli.unit_interval, default=0.20,
                        help='background score of the pseudo labels in the contrast')
    parser.add_argument('--temperature', type=float, default=0.1, help='of the contrast')
    parser.add_argument('--prototype_share', type=cli.unit_interval, default=1 / 8,
                        help="share of one image's positions that a prototype averages, taken over the whole batch")
    for name, (weight, meaning) in TERMS.items():
        parser.add_argument(f'--w_{name}', type=float, default=weight, help=f'weight of {meaning}; 0 switches it off')
    cli.add_worker_flag(parser)
    cli.add_device_flags(parser)
    return parser


def main(args):
    import torch

    from network import weights
    from tool import contrast, files, seam, transforms
    from tool.cam import resize
    from tool.training import Run, parameter_groups
    from voc12.classes import VOC
    from voc12.dataset import LabelledImages

    device = cli.select_device(args.device)
    torch.manual_seed(args.seed)
    pretrained = weights.read_weights(args.weights)
    net = weights.build_net(args.network, pretrained, num_classes=VOC.num_classes)
    weights.load_weights(net, pretrained, args.weights, required='backbone')
    cli.place(net, device, args.amp)

    augment = transforms.classification_train(args.crop_size, *sorted(args.resize_long))
    ids = files.read_list(args.train_list, '--train_list')
    dataset = LabelledImages(ids, args.voc12_root, args.cls_labels, augment, args.convert_rgb)
    validation = validation_set(args)
    term_weights = {name: getattr(args, f'w_{name}') for name in TERMS}
    contrast_terms = [name for name in contrast.TERMS if term_weights[name]]
    check(args, len(dataset), contrast_terms)

    optimizer = torch.optim.SGD(parameter_groups(net, args.lr, args.wt_dec), lr=args.lr, momentum=args.momentum)
    per_epoch = len(dataset) // args.batch_size
    run = Run(args.session_name, net, optimizer, device=device, amp=args.amp, seed=args.seed, batch_size=args.batch_size,
              steps_per_epoch=per_epoch, max_step=per_epoch * args.max_epoches, settings=vars(args), flags=args,
              tblog_dir=args.tblog_dir, workers=args.num_workers)
    small = (args.view2_size, args.view2_size)
    for batch in run.batches(dataset):
        present = seam.present_channels(batch['label']).to(device)
        label = batch['label'].to(device, non_blocking=True)
        image = batch['image'].to(device, non_blocking=True)
        image2 = resize(image, small)
        with cli.autocast(device, args.amp):
            cam1, rv1, f1 = net.maps(image)
            cam2, rv2, f2 = net.maps(image2)
        terms = seam.terms((cam1.float(), rv1, image.shape[2:]), (cam2.float(), rv2, small), label, present, small)
        terms |= contrast.terms((f1, rv1), (f2, rv2), label, wanted=contrast_terms, bg_threshold=args.bg_threshold,
                                share=args.prototype_share, temperature=args.temperature)
        run.update({name: term for name, term in terms.items() if term_weights[name]}, term_weights)

        if run.due(args.picture_every) or run.step == run.max_step:
            run.log_figure('maps', sheet(image, cam1, rv1, label, args.bg_threshold, VOC.palette))
        if run.epoch_ended and validation:
            run.log_scalars(validate(net, validation, args, device))
    run.finish()


def check(args, images, contrast_terms):
    """Refuse or warn about settings that cannot work or do not do what a reader of the paper expects."""
    if images < args.batch_size:
        raise cli.UserError('--batch_size', f'{args.batch_size} is more than the {images} images of the list', 'lower it')
    if not any(getattr(args, f'w_{name}') for name in TERMS):
        raise cli.UserError('--w_cls', 'all weights are 0, there is nothing to train', 'leave at least one')
    if args.batch_size < 8 and contrast_terms:
        print(f'warning: total batch {args.batch_size} < 8: prototypes are taken over the batch, and published numbers '
              'come from batches of 8 or 9')


def validation_set(args):
    """The images of --val_list, whole, at the long side of the crop; None where the flag is empty or the list absent."""
    from tool import files, transforms
    from voc12.dataset import LabelledImages
    if not args.val_list:
        return None
    if not cli.repo_path(args.val_list).exists():
        print(f'no validation: {args.val_list} does not exist (voc12/prepare.py writes it)')
        return None
    return LabelledImages(files.read_list(args.val_list, '--val_list'), args.voc12_root, args.cls_labels,
                          transforms.classification_val(args.crop_size), args.convert_rgb)


def validate(net, dataset, args, device):
    """Classification loss and mean average precision on image-level labels: {'val/cls', 'val/mAP'}. Net in train mode after."""
    import torch
    import torch.nn.functional as F

    from tool.loading import validation_batches
    from tool.metrics import mean_average_precision
    logits, labels = [], []
    net.eval()
    with torch.no_grad():
        for batch in validation_batches(dataset, args.batch_size, args.num_workers, device):
            with cli.autocast(device, args.amp):
                logits.append(net.class_logits(batch['image'].to(device)).float().cpu())
            labels.append(batch['label'])
    net.train()
    logits, labels = torch.cat(logits), torch.cat(labels)
    return {'val/cls': F.multilabel_soft_margin_loss(logits, labels).item(),
            'val/mAP': mean_average_precision(logits.numpy(), labels.numpy())}


def sheet(image, cam, rv, label, bg_threshold, palette, most=4):
    """The picture of a training step: its first images with their maps (tool.pictures.training_sheet)."""
    from tool import contrast, pictures, transforms
    from tool.cam import max_norm
    image, cam, rv, label = (t[:most].detach().float() for t in (image, cam, rv, label))
    present = label[:, :, None, None]
    heat = [(max_norm(m)[:, 1:] * present).amax(1).cpu().numpy() for m in (cam, rv)]
    _, pseudo = contrast.pseudo_labels(rv, label, bg_threshold)
    return pictures.training_sheet([transforms.denormalise(x) for x in image], *heat, pseudo.cpu().numpy(), palette)


if __name__ == '__main__':
    cli.run(main, get_args_parser())
