"""Step 2, first part: refine the CAMs by the CRF under a low and a high background exponent, the labels of AffinityNet.

    python aff_prepare.py --voc12_root VOC2012 --cam_dir runs/contrast/cam --out_crf runs/aff/crf

Reads  --infer_list, <voc12_root>/JPEGImages, <cam_dir>/<id>.npy (contrast_infer.py --out_cam).
Writes <out_crf>/4.00/<id>.npy and <out_crf>/24.00/<id>.npy, a folder per --alpha: pickled dicts {0: background,
       k + 1: class k} of the present classes' probabilities, float16 (H, W): aff_train.py's --la_crf_dir, --ha_crf_dir.
An image whose files all exist is skipped, so the same command continues a run that was stopped. run.json in each folder
says what made its files; with other weights or flags the command refuses.
"""
from functools import partial
from pathlib import Path

from data.lists import read_list
from engine import cli, files, outputs, ranks
from engine.errors import UserError


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    cli.add_inference_flags(parser, 'train_aug')
    cli.add_image_flags(parser)
    parser.add_argument('--cam_dir', required=True, help='folder of the CAMs (.npy)')
    parser.add_argument('--out_crf', required=True, help='folder of the results, with one folder per alpha in it')
    parser.add_argument('--alpha', type=cli.positive_number, nargs='+', default=(4., 24.),
                        help='background exponents: its score is (1 - strongest CAM)^alpha; one or more')
    parser.add_argument('--crf_iters', type=cli.positive, default=10, help='mean-field iterations of the CRF')
    cli.add_crf_flag(parser)
    cli.add_worker_flag(parser)
    cli.add_device_flag(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    from engine.crf_engine import chosen_engine
    from engine.crf_workers import write_probabilities
    from engine.device import select_device
    from engine.parallel import map_images

    shard, data = ranks.own_shard(args.shard), cli.chosen_dataset(args, infer_list='train_aug')
    engine = chosen_engine(args.crf_engine, select_device(args.device))
    names = [f'{alpha:.2f}' for alpha in args.alpha]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise UserError('--alpha', f'gives the folder {twice} twice', 'name each exponent once')
    ids = read_list(args.infer_list, '--infer_list')
    photos = data.photos(args.voc12_root).need(ids)
    files.need_files(ids, args.cam_dir, '.npy', '--cam_dir')
    folders = {alpha: files.out_dir(Path(args.out_crf) / name, '--out_crf') for alpha, name in zip(args.alpha, names)}
    made = {'kind': 'class probabilities after the CRF', 'cams_sha256': outputs.origin(args.cam_dir, '.npy'),
            'crf_iters': args.crf_iters, 'crf_engine': args.crf_engine}
    wanted = outputs.begin([outputs.Output(folder, '.npy', {**made, 'alpha': alpha})
                            for alpha, folder in folders.items()], ids, args.overwrite, shard)
    own = len(shard.of(ids))
    print(f'{shard}{args.infer_list}: {own} images, {own - len(wanted)} done already, alpha {" ".join(names)}')
    refine = partial(write_probabilities, cam_dir=Path(args.cam_dir), folders=folders, iterations=args.crf_iters,
                     num_classes=data.classes.num_classes, convert_rgb=args.convert_rgb, overwrite=args.overwrite,
                     engine=engine)
    map_images(refine, [(name, photos[name]) for name in wanted], engine.workers(args.num_workers), f'{shard}CRF')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
