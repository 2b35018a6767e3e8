"""Step 1: turn images into CAM seeds: multi-scale, with mirror images, for the classes of the image-level label.

    python contrast_infer.py --weights runs/contrast/resnet38_contrast.pth --infer_list voc12/train.txt \\
        --voc12_root VOC2012 --out_cam runs/contrast/cam --out_cam_pred runs/contrast/cam_pred \\
        --out_crf runs/contrast/crf

Reads  --weights, --infer_list, <voc12_root>/JPEGImages, --cls_labels.
Writes <out_cam>/<id>.npy (pickled dict {class 0..: float32 (H, W)} of the present classes), <out_cam_pred>/<id>.png
       (argmax with a constant background score), <out_crf>/<id>.png (that argmax refined by the dense CRF; with
       --baseline eps the CRF of the scores themselves, which are the pseudo masks of Step 3).
An image whose files all exist is skipped, so a run that was stopped is started again with the same command.
"""
import functools
from pathlib import Path

from tool import baselines, cli

SCALES = (0.5, 1.0, 1.5, 2.0)
DEFAULTS = {  # as tool/baselines.py says: SEAM, EPS, EPS without contrast
    'network': ('network.resnet38_contrast', 'network.resnet38_eps_contrast', 'network.resnet38_eps_contrast'),
    'crf_iters': (10, 5, 5), 'alpha': (None, 8., 8.), 'map': ('revised', None, None),
}


def get_args_parser():
    parser = baselines.Parser(DEFAULTS, description=__doc__.split('\n')[0])
    parser.add_argument('--weights', required=True, help='weights of the trained network (.pth)')
    parser.add_argument('--network', default='network.resnet38_contrast',
                        help=f'module whose class Net is run; {baselines.PLAIN}: EPS without contrast')
    parser.add_argument('--infer_list', default='voc12/train.txt', help='image ids')
    cli.add_data_flags(parser)
    parser.add_argument('--scales', type=cli.positive_number, nargs='+', default=SCALES,
                        help='image scales that are summed')
    parser.add_argument('--map', choices=('revised', 'plain'), default='revised',
                        help='CAMs as the PCM revises them, or as the classifier makes them (EPS: always plain)')
    parser.add_argument('--out_cam', help='folder of the CAMs (.npy)')
    parser.add_argument('--out_cam_pred', help='folder of the seeds (.png)')
    parser.add_argument('--out_cam_pred_alpha', type=cli.unit_interval, default=0.26,
                        help='background score of the seeds')
    parser.add_argument('--out_crf', help='folder of the seeds after the CRF (.png)')
    parser.add_argument('--crf_iters', type=cli.positive, default=10, help='mean-field iterations of the CRF')
    parser.add_argument('--alpha', type=cli.positive_number,
                        help='exponent of the background score (1 - strongest class)^alpha in the CRF (EPS: 8)')
    cli.add_switch(parser, '--overwrite', 'redo images whose files exist')
    cli.add_worker_flag(parser)
    cli.add_device_flags(parser)
    return parser


def main(args):
    import torch

    from network import weights
    from tool import cam, eps, files, parallel
    from tool.loading import single_items
    from voc12.classes import VOC
    from voc12.dataset import MultiScaleImages

    baselines.check(args, DEFAULTS)
    device = cli.set_up(args)
    outputs = output_files(args)
    ids = files.read_list(args.infer_list, '--infer_list')
    dataset = MultiScaleImages(ids, args.voc12_root, args.cls_labels, args.scales, args.convert_rgb)
    dataset.need_classes(args.cls_labels)
    dataset.keep([i for i in ids if args.overwrite or not all(path(i).exists() for path in outputs.values())])
    print(f'{args.infer_list}: {len(ids)} images, {len(ids) - len(dataset)} done already, '
          f'{len(args.scales)} scales with mirror images')
    state = weights.read_weights(args.weights, args.background_last)
    net = weights.build_net(args.network, state, num_classes=VOC.num_classes)
    weights.load_weights(net, state, args.weights)
    cli.place(net, device, args.amp).eval()

    def plain(x):  # without the PCM
        return net.fc8(net.features(x)['conv6'])

    if args.baseline == 'eps':
        cams_of = functools.partial(eps.multi_scale, plain)
    else:
        cams_of = functools.partial(cam.multi_scale, plain if args.map == 'plain' else lambda x: net.maps(x)[1])
    with parallel.Background(args.num_workers if args.out_crf else 0) as background, torch.inference_mode():
        for item in parallel.progress(single_items(dataset, args.num_workers, device), 'CAMs', len(dataset)):
            classes = item['label'].nonzero()[:, 0]
            scaled = [pair.to(device, non_blocking=True) for pair in item['scaled']]
            with cli.autocast(device, args.amp):
                cams = cams_of(scaled, classes + 1, item['pixels'].shape[:2])
            paths = {kind: path(item['name']) for kind, path in outputs.items()}
            background.submit(write, paths, item['pixels'], classes.numpy(), cams.cpu().numpy(),
                              args.out_cam_pred_alpha, args.alpha, args.crf_iters, VOC.num_classes, VOC.palette)


def output_files(args):
    """{'cam' | 'pred' | 'crf': function from id to path} of the outputs asked for; their folders are made."""
    from tool import files
    wanted = {'cam': (args.out_cam, '--out_cam', '.npy'), 'pred': (args.out_cam_pred, '--out_cam_pred', '.png'),
              'crf': (args.out_crf, '--out_crf', '.png')}
    folders = {kind: (files.out_dir(folder, flag), suffix) for kind, (folder, flag, suffix) in wanted.items() if folder}
    if not folders:
        raise cli.UserError('--out_cam', 'no output folder is given', 'give --out_cam, --out_cam_pred or --out_crf')
    pictures = [folder.resolve() for folder, suffix in folders.values() if suffix == '.png']
    if len(set(pictures)) < len(pictures):
        raise cli.UserError('--out_crf', 'is the folder of --out_cam_pred', 'give another folder')
    return {kind: (lambda name, folder=folder, suffix=suffix: Path(folder) / (name + suffix))
            for kind, (folder, suffix) in folders.items()}


def write(paths, image, classes, cams, background, alpha, crf_iters, num_classes, palette):
    """Write the outputs of one image. Runs in a worker process: no torch here.

    image: uint8 (H, W, 3). classes (K,): foreground indices 0.., cams (K, H, W) theirs. background: its constant score.
    alpha None (SEAM): the CRF refines the seeds' hard labels; as published, all num_classes labels count in its
    normaliser. alpha a number (EPS): it refines the scores of the present classes and background (1 − strongest)^alpha.
    """
    from dataclasses import replace

    from tool import crf, files, seeds
    if 'cam' in paths:
        files.save_npy(paths['cam'], dict(zip(classes.tolist(), cams)))
    labels, wanted = seeds.label_map(classes, cams, background), [0, *(classes + 1)]
    if 'pred' in paths:
        files.save_mask(paths['pred'], labels, palette)
    if 'crf' in paths:
        if alpha is None:
            settings = replace(crf.SEED, iterations=crf_iters)
            refined = crf.refine_labels(image, labels[None], wanted, num_classes, settings)[0]
        else:
            scores = seeds.with_background(cams, seeds.alpha_background(cams, alpha))
            refined = crf.refine_probabilities(image, scores, replace(crf.EPS, iterations=crf_iters))
        files.save_mask(paths['crf'], crf.label_map(refined, wanted), palette)


if __name__ == '__main__':
    cli.run(main, get_args_parser())
