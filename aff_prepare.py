"""Step 2, first part: refine the CAMs by the CRF under a low and a high background exponent, the labels of AffinityNet.

    python aff_prepare.py --voc12_root VOC2012 --cam_dir runs/contrast/cam --out_crf runs/aff/crf

Reads  --infer_list, <voc12_root>/JPEGImages, <cam_dir>/<id>.npy (contrast_infer.py --out_cam).
Writes <out_crf>/4.00/<id>.npy and <out_crf>/24.00/<id>.npy, a folder per --alpha: pickled dicts {0: background,
       k + 1: class k} of the present classes' probabilities, float16 (H, W): aff_train.py's --la_crf_dir, --ha_crf_dir.
An image whose files all exist is skipped, so a run that was stopped is started again with the same command.
"""
from functools import partial
from pathlib import Path

from tool import cli


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--infer_list', default='voc12/train_aug.txt', help='image ids')
    parser.add_argument('--voc12_root', default='VOC2012', help='folder of the VOC devkit (holds JPEGImages/)')
    cli.add_switch(parser, '--convert_rgb', 'turn grey, palette and CMYK images into RGB instead of refusing them')
    parser.add_argument('--cam_dir', required=True, help='folder of the CAMs (.npy)')
    parser.add_argument('--out_crf', required=True, help='folder of the results, with one folder per alpha in it')
    parser.add_argument('--alpha', type=cli.positive_number, nargs='+', default=(4., 24.),
                        help='background exponents: its score is (1 - strongest CAM)^alpha; one or more')
    parser.add_argument('--crf_iters', type=cli.positive, default=10, help='mean-field iterations of the CRF')
    cli.add_switch(parser, '--overwrite', 'redo images whose files exist')
    cli.add_worker_flag(parser)
    return parser


def main(args):
    from tool import files, parallel
    from voc12.dataset import image_folder
    names = [f'{alpha:.2f}' for alpha in args.alpha]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise cli.UserError('--alpha', f'gives the folder {twice} twice', 'name each exponent once')
    ids = files.read_list(args.infer_list, '--infer_list')
    images = image_folder(args.voc12_root)
    files.need_files(ids, images, '.jpg', '--voc12_root')
    files.need_files(ids, args.cam_dir, '.npy', '--cam_dir')
    folders = {alpha: files.out_dir(Path(args.out_crf) / name, '--out_crf') for alpha, name in zip(args.alpha, names)}
    missing = {i for folder in folders.values() for i in files.missing_files(ids, folder, '.npy')}
    wanted = ids if args.overwrite else [i for i in ids if i in missing]
    print(f'{args.infer_list}: {len(ids)} images, {len(ids) - len(wanted)} done already, alpha {" ".join(names)}')
    refine = partial(prepare, images=images, cam_dir=Path(args.cam_dir), folders=folders, iterations=args.crf_iters,
                     convert_rgb=args.convert_rgb, overwrite=args.overwrite)
    parallel.map_images(refine, wanted, args.num_workers, 'CRF')


def prepare(name, images, cam_dir, folders, iterations, convert_rgb, overwrite):
    """Write one image's files. Runs in a worker process: no torch here. folders: {alpha: folder}.

    All alphas are computed even where some files exist: they share the CRF's labels, so that a run which was
    interrupted between two of them writes the same bytes as one that was not.
    """
    from dataclasses import replace

    import numpy as np

    from tool import crf, files, seeds
    from voc12.affinity_files import read_cams
    from voc12.classes import VOC
    image = files.read_image(images / f'{name}.jpg', convert_rgb)
    classes, cams = read_cams(cam_dir / f'{name}.npy', image.shape[:2])
    label_maps = [seeds.label_map(classes, cams, seeds.alpha_background(cams, alpha)) for alpha in folders]
    labels = [0, *(classes + 1).tolist()]
    settings = replace(crf.AFFINITY, iterations=iterations)
    refined = crf.refine_labels(image, label_maps, labels, VOC.num_classes, settings)
    # Below float16's normal range a number takes ten times as long to convert, and is nothing beside the label's own.
    refined[refined < np.finfo(np.float16).smallest_normal] = 0
    for folder, probabilities in zip(folders.values(), refined):
        path = folder / f'{name}.npy'
        if overwrite or not path.exists():
            files.save_npy(path, dict(zip(labels, probabilities.astype(np.float16))))


if __name__ == '__main__':
    cli.run(main, get_args_parser())
