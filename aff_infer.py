"""Step 2, last part: spread the CAMs by a random walk over AffinityNet's affinities, into pseudo masks.

    python aff_infer.py --weights runs/aff/resnet38_aff.pth --voc12_root VOC2012 --infer_list voc12/train_aug.txt \\
        --cam_dir runs/contrast/cam --out_rw runs/aff/rw --out_rw_crf runs/aff/rw_crf

Reads  --weights, --infer_list, <voc12_root>/JPEGImages, <cam_dir>/<id>.npy (contrast_infer.py --out_cam).
Writes <out_rw>/<id>.png (labels with the VOC palette; with --crf after the CRF) and, on demand, from the same walk:
       <out_rw_crf>/<id>.png (labels after the CRF, so that one inference gives both) and <out_rw_npy>/<id>.npy (pickled
       dict {class 0..: float32 (H, W)} of the walked CAMs, so that eval.py --curve sweeps the background).
An image whose files all exist is skipped, so the same command continues a run that was stopped. run.json in each folder
says what made its files; with other weights or flags the command refuses.
"""
from pathlib import Path

from data.lists import read_list
from engine import cli, files, outputs, ranks, runinfo
from engine.errors import UserError

NETWORK = 'network.resnet38_aff'  # unless --network or --backbone says otherwise


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--weights', required=True, help='weights of the trained AffinityNet (.pth)')
    parser.add_argument('--network', help=f'module whose class Net is run ({NETWORK})')
    cli.add_backbone_flags(parser, 'infer')
    cli.add_inference_flags(parser, 'train')
    cli.add_image_flags(parser)
    parser.add_argument('--cam_dir', required=True, help='folder of the CAMs (.npy)')
    parser.add_argument('--out_rw', required=True, help='folder of the pseudo masks (.png)')
    parser.add_argument('--out_rw_crf', help='folder of the same masks refined by a CRF (.png)')
    parser.add_argument('--out_rw_npy', help='folder of the walked CAMs (.npy)')
    parser.add_argument('--bg', type=cli.word_or('alpha', cli.unit_interval), default=0.27, metavar='SCORE|alpha',
                        help='background score 0..1 that walks with the CAMs, or the word alpha: '
                             '(1 - strongest CAM)^alpha')
    parser.add_argument('--alpha', type=cli.positive_number, default=6., help='exponent of --bg alpha')
    parser.add_argument('--beta', type=cli.positive_number, default=8., help='exponent of the affinities')
    parser.add_argument('--logt', type=cli.number(int, low=0, high=20), default=6,
                        help='the walk makes 2^logt steps')
    cli.add_switch(parser, '--crf', 'refine the masks of --out_rw by a CRF')
    parser.add_argument('--crf_setting', choices=('deeplab', 'published'), default='deeplab',
                        help="which: DeepLab's, or the one that is commented out in the published script")
    parser.add_argument('--crf_iters', type=cli.positive,
                        help='mean-field iterations of the CRF (deeplab: 10; published: 1)')
    cli.add_crf_flag(parser)
    cli.add_device_flags(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    import torch

    from data.affinity import PaddedImages
    from engine.crf_engine import CrfEngine, chosen_engine
    from engine.crf_workers import WalkSettings, write_pseudo_mask
    from engine.device import autocast, set_up
    from engine.loading import single_items
    from engine.networks import network_for_inference
    from engine.parallel import WorkerPool, progress

    shard = ranks.own_shard(args.shard)
    cli.choose_backbone(args, NETWORK, stored=True)
    data = cli.chosen_dataset(args, infer_list='train')
    runinfo.check_classes(args.weights, data.classes)
    device = set_up(args)
    engine = chosen_engine(args.crf_engine, device) if args.crf or args.out_rw_crf else CrfEngine()
    ids = read_list(args.infer_list, '--infer_list')
    files.need_files(ids, args.cam_dir, '.npy', '--cam_dir')
    net = network_for_inference(args, device, method='affinity_features')
    dataset = PaddedImages(ids, data.photos(args.voc12_root), args.convert_rgb, net.stride)
    made = what_is_made(args)
    dataset.keep(outputs.begin(list(made.values()), ids, args.overwrite, shard))
    own = len(shard.of(ids))
    print(f'{shard}{args.infer_list}: {own} images, {own - len(dataset)} done already')
    settings = WalkSettings(args.bg, args.alpha, args.beta, args.logt, args.crf_setting, args.crf_iters, data.classes,
                            engine, net.stride)

    with WorkerPool(engine.workers(args.num_workers)) as pool, torch.inference_mode():
        for item in progress(single_items(dataset, args.num_workers, device), f'{shard}random walk', len(dataset)):
            with autocast(device, args.amp):
                affinity = net(item['image'][None].to(device, non_blocking=True))[0]
            paths = {kind: output.folder / (item['name'] + output.suffix) for kind, output in made.items()}
            cam_path = Path(args.cam_dir) / f'{item["name"]}.npy'
            pool.submit(write_pseudo_mask, paths, cam_path, item['pixels'], affinity.cpu().numpy(), settings)


def what_is_made(args):
    """{'rw': the masks, 'crf': those after the CRF, 'npy': the walked CAMs; where asked for: outputs.Output}.

    The folders are made. UserError: --out_rw_crf, and no unrefined masks to set beside it.
    """
    if args.crf and args.out_rw_crf:
        raise UserError('--crf', 'both folders would hold the masks after the CRF', 'leave out --crf or --out_rw_crf')
    walked = {'weights': args.weights, 'weights_sha256': runinfo.digest(args.weights),
              'network': cli.network_in_words(args), 'cams_sha256': outputs.origin(args.cam_dir, '.npy'), 'bg': args.bg,
              'alpha': args.alpha if args.bg == 'alpha' else None, 'beta': args.beta, 'logt': args.logt,
              'amp': args.amp}
    plain = {'kind': 'pseudo masks', **walked, 'crf': False}
    refined = plain | {'crf': True, 'crf_setting': args.crf_setting, 'crf_iters': args.crf_iters,
                       'crf_engine': args.crf_engine}
    made = {'crf' if args.crf else 'rw': ('--out_rw', args.out_rw, '.png', refined if args.crf else plain)}
    if args.out_rw_crf:
        made['crf'] = '--out_rw_crf', args.out_rw_crf, '.png', refined
    if args.out_rw_npy:
        made['npy'] = '--out_rw_npy', args.out_rw_npy, '.npy', {'kind': 'walked CAMs', **walked}
    return {kind: outputs.Output(files.out_dir(folder, flag), suffix, content)
            for kind, (flag, folder, suffix, content) in made.items()}


if __name__ == '__main__':
    cli.run(main, get_args_parser())
