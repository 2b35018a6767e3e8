"""Step 2, last part: spread the CAMs by a random walk over AffinityNet's affinities, into pseudo masks.

    python aff_infer.py --weights runs/aff/resnet38_aff.pth --voc12_root VOC2012 --infer_list voc12/train_aug.txt \\
        --cam_dir runs/contrast/cam --out_rw runs/aff/rw

Reads  --weights, --infer_list, <voc12_root>/JPEGImages, <cam_dir>/<id>.npy (contrast_infer.py --out_cam).
Writes <out_rw>/<id>.png (labels with the VOC palette; with --crf after the CRF) and, on demand, <out_rw_npy>/<id>.npy:
       pickled dict {class 0..: float32 (H, W)} of the walked CAMs, so that eval.py --curve sweeps the background without
       a second inference.
An image whose files all exist is skipped, so a run that was stopped is started again with the same command.
"""
from pathlib import Path

from tool import cli


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--weights', required=True, help='weights of the trained AffinityNet (.pth)')
    parser.add_argument('--network', default='network.resnet38_aff', help='module whose class Net is run')
    parser.add_argument('--infer_list', default='voc12/train.txt', help='image ids')
    parser.add_argument('--voc12_root', default='VOC2012', help='folder of the VOC devkit (holds JPEGImages/)')
    cli.add_switch(parser, '--convert_rgb', 'turn grey, palette and CMYK images into RGB instead of refusing them')
    parser.add_argument('--cam_dir', required=True, help='folder of the CAMs (.npy)')
    parser.add_argument('--out_rw', required=True, help='folder of the pseudo masks (.png)')
    parser.add_argument('--out_rw_npy', help='folder of the walked CAMs (.npy)')
    parser.add_argument('--bg', type=background, default=0.27, metavar='SCORE|alpha',
                        help='background score 0..1 that walks with the CAMs, or the word alpha: (1 - strongest CAM)^alpha')
    parser.add_argument('--alpha', type=cli.positive_number, default=6., help='exponent of --bg alpha')
    parser.add_argument('--beta', type=cli.positive_number, default=8., help='exponent of the affinities')
    parser.add_argument('--logt', type=cli.non_negative, default=6, help='the walk makes 2^logt steps')
    cli.add_switch(parser, '--crf', "refine the masks by DeepLab's CRF")
    parser.add_argument('--crf_iters', type=cli.positive, default=10, help='mean-field iterations of --crf')
    cli.add_switch(parser, '--overwrite', 'redo images whose files exist')
    cli.add_worker_flag(parser)
    cli.add_device_flags(parser)
    return parser


def background(text):
    """The value of --bg: 'alpha' or a number in 0..1 (argparse type)."""
    return text if text == 'alpha' else cli.unit_interval(text)


def main(args):
    import torch

    from network import weights
    from tool import files, parallel
    from tool.loading import single_items
    from voc12.affinity_data import PaddedImages
    from voc12.dataset import image_folder

    device = cli.set_up(args)
    ids = files.read_list(args.infer_list, '--infer_list')
    files.need_files(ids, image_folder(args.voc12_root), '.jpg', '--voc12_root')
    files.need_files(ids, args.cam_dir, '.npy', '--cam_dir')
    folders = {'rw': (files.out_dir(args.out_rw, '--out_rw'), '.png')}
    if args.out_rw_npy:
        folders['npy'] = files.out_dir(args.out_rw_npy, '--out_rw_npy'), '.npy'
    missing = {i for folder, suffix in folders.values() for i in files.missing_files(ids, folder, suffix)}
    wanted = ids if args.overwrite else [i for i in ids if i in missing]
    print(f'{args.infer_list}: {len(ids)} images, {len(ids) - len(wanted)} done already')
    state = weights.read_weights(args.weights)
    net = weights.build_net(args.network, state)
    weights.load_weights(net, state, args.weights)
    cli.place(net, device, args.amp).eval()

    dataset = PaddedImages(wanted, args.voc12_root, args.convert_rgb)
    settings = {name: getattr(args, name) for name in ('bg', 'alpha', 'beta', 'logt', 'crf', 'crf_iters')}
    with parallel.Background(args.num_workers) as workers, torch.inference_mode():
        for item in parallel.progress(single_items(dataset, args.num_workers, device), 'random walk', len(dataset)):
            with cli.autocast(device, args.amp):
                affinity = net(item['image'][None].to(device, non_blocking=True))[0]
            paths = {kind: folder / (item['name'] + suffix) for kind, (folder, suffix) in folders.items()}
            cam_path = Path(args.cam_dir) / f'{item["name"]}.npy'
            workers.submit(refine, paths, cam_path, item['pixels'], affinity.cpu().numpy(), settings)


def refine(paths, cam_path, image, affinity, settings):
    """Walk, and write the outputs of one image. Runs in a worker process: no torch here.

    paths: {'rw': .png, perhaps 'npy': .npy}. image: uint8 (H, W, 3). affinity: (O, P). settings: dict of the flags.
    """
    import numpy as np

    from tool import crf, files, random_walk, seeds
    from tool.pairs import cell_means
    from voc12.affinity_files import read_cams
    from voc12.classes import VOC
    size = image.shape[:2]
    classes, cams = read_cams(cam_path, size)
    score = seeds.alpha_background(cams, settings['alpha']) if settings['bg'] == 'alpha' else settings['bg']
    # A first row of ones walks along: it stays 1 but where a cell reaches beyond the image.
    scores = seeds.with_background(seeds.with_background(cams, score), 1)
    walked = random_walk.walk(cell_means(scores), affinity, settings['beta'], 2 ** settings['logt'])
    unit, *scores = random_walk.to_pixels(walked, *size)
    if 'npy' in paths:
        # Divided by it, a constant background score is the same number everywhere, and may be chosen afterwards.
        files.save_npy(paths['npy'], {k: cam / unit for k, cam in zip(classes.tolist(), scores[1:])})
    if settings['crf']:
        scores = deeplab_crf(image, np.stack(scores), settings['crf_iters'], VOC.num_classes)
    files.save_mask(paths['rw'], crf.label_map(scores, [0, *(classes + 1)]), VOC.palette)


def deeplab_crf(image, scores, iterations, num_classes):
    """The CRF of the segmentation stage on walked scores (1 + K, H, W): divided by their sum, they are its probabilities."""
    from dataclasses import replace

    import numpy as np

    from tool import crf
    scores = np.maximum(scores, 0)
    probabilities = scores / np.maximum(scores.sum(0), crf.CLIP)
    settings = replace(crf.DEEPLAB, iterations=iterations)
    return crf.refine_probabilities(image, probabilities, settings, absent=num_classes - len(scores))


if __name__ == '__main__':
    cli.run(main, get_args_parser())
