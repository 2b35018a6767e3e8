"""Step 1: train the classifier with a baseline's losses and pixel-to-prototype contrast, from image-level labels.

    python contrast_train.py --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params --voc12_root VOC2012 \\
        --session_name runs/contrast/resnet38_contrast --batch_size 8
    python contrast_train.py --baseline eps --saliency_dir SALImages ...          (EPS; extra supervision: saliency)

Reads  --train_list, <voc12_root>/JPEGImages, --cls_labels, --weights; for EPS <saliency_dir>/<id>.png.
Writes <session>.pth (weights for contrast_infer.py), <session>.ckpt (for --resume), <session>.json (what the run was),
       <session>.losses.jsonl (every term of every step), <session>.maps.png, TensorBoard events in --tblog_dir.
"""
from tool import baselines, cli

TERMS = {  # name: (default weight for SEAM, for EPS, for EPS without contrast), what it is
    'cls': ((1., 1., 1.), 'classification, both views'),
    'saliency': ((None, 1., 1.), 'the saliency that the CAM explains, both views (EPS: 1)'),
    'saliency_rv': ((None, 1., None), 'the same of the revised CAM (EPS: 1)'),
    'rvmin': ((1., 1., None), 'adaptive min pooling of the revised CAM (SEAM)'),
    'er': ((1., 1., None), 'equivariance between the views (SEAM)'),
    'ecr': ((1., 1., None), 'equivariant cross regularisation (SEAM)'),
    'cross_prototype': ((0.1, 0.1, None), "contrast with the other view's prototypes"),
    'cross_cam': ((0.1, 0.1, None), "contrast with the other view's pseudo labels"),
    'intra': ((0.1, 0.1, None), 'contrast within a view: semi-hard prototypes, hard pixels'),
}
# Published EPS trains 20,000 steps of 8 images; the last 170 come after the end of its 15-epoch schedule, at about
# 1/7000 of the learning rate, and are left out here.
DEFAULTS = {  # as tool/baselines.py says: SEAM, EPS, EPS without contrast
    'network': ('network.resnet38_contrast', 'network.resnet38_eps_contrast', 'network.resnet38_eps_contrast'),
    'max_epoches': (8, 15, 15), 'bg_threshold': (0.20, 0.10, 0.10), 'prototype_share': (1 / 8, 1 / 16, 1 / 16),
    'saliency_dir': (None, '', ''), 'tau': (None, 0.4, 0.4), 'alpha': (None, 0.5, 0.5),
    'save_layout': (None, 'ours', 'ours'),
    **{f'w_{name}': weights for name, (weights, _) in TERMS.items()},
}


def get_args_parser():
    parser = baselines.Parser(DEFAULTS, description=__doc__.split('\n')[0])
    parser.add_argument('--network', default='network.resnet38_contrast',
                        help=f'module whose class Net is trained; {baselines.PLAIN}: EPS without contrast')
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
    parser.add_argument('--saliency_dir', help='folder of the saliency maps <id>.png, 8-bit grey (EPS)')
    parser.add_argument('--tau', type=cli.unit_interval,
                        help='share of a class that must be salient for it to explain the saliency (EPS: 0.4)')
    parser.add_argument('--alpha', type=cli.unit_interval,
                        help='share of the foreground, not the background, in the explained saliency (EPS: 0.5)')
    parser.add_argument('--save_layout', choices=('ours', 'published'),
                        help='of <session>.pth (EPS): background first (ours), or last and proj_fc for fc_proj')
    for name, ((weight, *_), meaning) in TERMS.items():
        parser.add_argument(f'--w_{name}', type=float, default=weight, help=f'weight of {meaning}; 0 switches it off')
    cli.add_worker_flag(parser)
    cli.add_device_flags(parser)
    return parser


def main(args):
    import torch

    from network import weights
    from tool import contrast, eps, seam
    from tool.cam import resize
    from tool.training import Run, parameter_groups
    from voc12.classes import VOC

    baselines.check(args, DEFAULTS)
    device = cli.set_up(args)
    pretrained = weights.read_weights(args.weights, args.background_last)
    net = weights.build_net(args.network, pretrained, num_classes=VOC.num_classes)
    weights.load_weights(net, pretrained, args.weights, required='backbone')
    cli.place(net, device, args.amp)

    dataset, validation = training_set(args), validation_set(args)
    term_weights = {name: getattr(args, f'w_{name}') or 0. for name in TERMS}
    contrast_terms = [name for name in contrast.TERMS if term_weights[name]]
    check(args, len(dataset), contrast_terms)

    optimizer = torch.optim.SGD(parameter_groups(net, args.lr, args.wt_dec), lr=args.lr, momentum=args.momentum)
    per_epoch = len(dataset) // args.batch_size
    run = Run(args.session_name, net, optimizer, device=device, amp=args.amp, seed=args.seed,
              batch_size=args.batch_size, steps_per_epoch=per_epoch, max_step=per_epoch * args.max_epoches,
              settings=vars(args), flags=args, tblog_dir=args.tblog_dir, workers=args.num_workers)
    small = (args.view2_size, args.view2_size)
    for batch in run.batches(dataset):
        present = seam.present_channels(batch['label']).to(device)
        label = batch['label'].to(device, non_blocking=True)
        image = batch['image'].to(device, non_blocking=True)
        image2 = resize(image, small)
        with cli.autocast(device, args.amp):
            cam1, rv1, f1 = net.maps(image)
            cam2, rv2, f2 = net.maps(image2)
        if args.baseline == 'eps':
            saliency = batch['saliency'].to(device, non_blocking=True)
            terms = eps.terms((cam1.float(), rv1), (cam2.float(), rv2), label, present, saliency, args.tau, args.alpha)
        else:
            terms = seam.terms((cam1.float(), rv1, image.shape[2:]), (cam2.float(), rv2, small), label, present, small)
        if contrast_terms:
            terms |= contrast.terms((f1, rv1), (f2, rv2), label, wanted=contrast_terms, bg_threshold=args.bg_threshold,
                                    share=args.prototype_share, temperature=args.temperature)
        run.update({name: term for name, term in terms.items() if term_weights[name]}, term_weights)

        if run.due(args.picture_every) or run.step == run.max_step:
            maps = {'saliency': batch.get('saliency'), 'CAM': cam1, 'revised CAM': rv1}
            run.log_figure('maps', sheet(image, maps, label, args.bg_threshold, VOC.palette))
        if run.epoch_ended and validation:
            run.log_scalars(validate(net, validation, args, device))
    run.finish()
    if args.save_layout == 'published':
        run.save_weights(weights.to_published_eps(net.state_dict()))


def check(args, images, contrast_terms):
    """Refuse or warn about settings that cannot work or do not do what a reader of the paper expects."""
    if images < args.batch_size:
        raise cli.UserError('--batch_size', f'{args.batch_size} is more than the {images} images of the list',
                            'lower it')
    if not any(getattr(args, f'w_{name}') for name in TERMS):
        raise cli.UserError('--w_cls', 'all weights are 0, there is nothing to train', 'leave at least one')
    if args.batch_size < 8 and contrast_terms:
        print(f'warning: total batch {args.batch_size} < 8: prototypes are taken over the batch, and published numbers '
              'come from batches of 8 or 9')


def training_set(args):
    """The images of --train_list, augmented; for EPS with their saliency maps."""
    from tool import files, transforms
    from voc12.dataset import LabelledImages, SalientImages
    augment = transforms.classification_train(args.crop_size, *sorted(args.resize_long))
    ids = files.read_list(args.train_list, '--train_list')
    if args.baseline == 'eps':
        print(f'extra supervision: saliency ({args.saliency_dir})')
        return SalientImages(ids, args.voc12_root, args.cls_labels, augment, args.saliency_dir, args.convert_rgb)
    return LabelledImages(ids, args.voc12_root, args.cls_labels, augment, args.convert_rgb)


def validation_set(args):
    """The images of --val_list, whole, long side that of the crop; None where the flag is empty or the list missing."""
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
    """Classification loss and mean average precision on image-level labels: {'val/cls', 'val/mAP'}.

    Leaves the network in train mode.
    """
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


def sheet(image, maps, label, bg_threshold, palette, most=4):
    """The picture of a training step: its first images with their maps, and the contrast's pseudo labels.

    maps: {title: saliency (N, 1, H, W) or CAMs (N, C, h, w)}; None, and so without a column, where a baseline has none.
    """
    from tool import contrast, pictures, transforms
    from tool.cam import max_norm
    image, label = image[:most], label[:most]
    maps = {title: m[:most].detach().float() for title, m in maps.items() if m is not None}
    heat = {title: m[:, 0] if title == 'saliency' else (max_norm(m)[:, 1:] * label[:, :, None, None]).amax(1)
            for title, m in maps.items()}
    heat = {title: m.cpu().numpy() for title, m in heat.items()}
    pseudo = {}
    if 'revised CAM' in maps:  # without it there is no contrast
        _, labels = contrast.pseudo_labels(maps['revised CAM'], label, bg_threshold)
        pseudo['pseudo label'] = labels.cpu().numpy()
    return pictures.training_sheet([transforms.denormalise(x) for x in image], heat, pseudo, palette)


if __name__ == '__main__':
    cli.run(main, get_args_parser())
