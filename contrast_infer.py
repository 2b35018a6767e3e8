"""Step 1: turn images into CAM seeds: multi-scale, with flips, for the classes of the image-level label.

    python contrast_infer.py --weights runs/contrast/resnet38_contrast.pth --infer_list voc12/train.txt \\
        --voc12_root VOC2012 --out_cam runs/contrast/cam --out_cam_pred runs/contrast/cam_pred \\
        --out_crf runs/contrast/crf

Reads  --weights, --infer_list, <voc12_root>/JPEGImages, --cls_labels, and <session>.json beside the weights, where it
       is, for --baseline and --network.
Writes <out_cam>/<id>.npy (pickled dict {class 0..: float32 (H, W)} of the present classes), <out_cam_pred>/<id>.png
       (argmax with a constant background score), <out_crf>/<id>.png (that argmax refined by the dense CRF; with
       --baseline eps the CRF of the scores themselves, which are the pseudo masks of Step 3).
An image whose files all exist is skipped, so the same command continues a run that was stopped. run.json in each folder
says what made its files; with other weights or flags the command refuses.
"""
from data.lists import read_list
from engine import cli, files, outputs, ranks, runinfo
from engine.errors import UserError

SCALES = (0.5, 1.0, 1.5, 2.0)


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--weights', required=True, help='weights of the trained network (.pth)')
    cli.add_recipe_flags(parser, 'infer')
    cli.add_inference_flags(parser, 'train')
    cli.add_image_flags(parser)
    cli.add_label_flag(parser)
    parser.add_argument('--scales', type=cli.scale, nargs='+', default=SCALES,
                        help='factors of the image size whose CAMs are summed')
    parser.add_argument('--out_cam', help='folder of the CAMs (.npy)')
    parser.add_argument('--out_cam_pred', help='folder of the seeds (.png)')
    parser.add_argument('--out_cam_pred_alpha', type=cli.unit_interval, default=0.26,
                        help='background score of the seeds, 0..1')
    parser.add_argument('--out_crf', help='folder of the seeds after the CRF (.png)')
    cli.add_crf_flag(parser)
    cli.add_device_flags(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    import torch

    from data.classification import MultiScaleImages
    from engine.cams import photo_cams
    from engine.crf_engine import CrfEngine, chosen_engine
    from engine.crf_workers import SeedSettings, write_seeds
    from engine.device import set_up
    from engine.loading import single_items
    from engine.networks import network_for_inference
    from engine.parallel import WorkerPool, progress

    shard, recipe = ranks.own_shard(args.shard), cli.chosen_recipe(args, 'infer')
    data = cli.chosen_dataset(args, infer_list='train')
    runinfo.check_classes(args.weights, data.classes)
    device = set_up(args)
    engine = chosen_engine(args.crf_engine, device) if args.out_crf else CrfEngine()
    folders = output_folders(args)
    ids = read_list(args.infer_list, '--infer_list')
    dataset = MultiScaleImages(ids, data.photos(args.voc12_root), args.cls_labels, data.classes, args.scales,
                               args.convert_rgb)
    net = network_for_inference(args, device, recipe, num_classes=data.classes.num_classes)
    dataset.keep(outputs.begin(what_is_made(args, recipe, folders), ids, args.overwrite, shard))
    own = len(shard.of(ids))
    print(f'{shard}{args.infer_list}: {own} images, {own - len(dataset)} done already, {len(args.scales)} scales with '
          'flips')
    if dataset.negatives:
        print(f'{dataset.negatives} images have no class: their CAM files are empty, their masks all background')
    settings = SeedSettings(args.out_cam_pred_alpha, recipe.seed_crf, recipe.crf_iters, recipe.crf_alpha, data.classes,
                            engine)
    workers = engine.workers(args.num_workers) if args.out_crf else 0

    with WorkerPool(workers) as pool, torch.inference_mode():
        for item in progress(single_items(dataset, args.num_workers, device), f'{shard}CAMs', len(dataset)):
            present, pixels = item['present'], item['pixels']
            cams = photo_cams(net, recipe, pixels, item['scaled'], present, device, args.amp)
            paths = {kind: folder / (item['name'] + suffix) for kind, (folder, suffix) in folders.items()}
            pool.submit(write_seeds, paths, pixels, present.numpy(), cams.cpu().numpy(), settings)


def output_folders(args):
    """{'cam' | 'pred' | 'crf': (folder, suffix)} of the outputs asked for; the folders are made. UserError: none."""
    wanted = {'cam': (args.out_cam, '--out_cam', '.npy'), 'pred': (args.out_cam_pred, '--out_cam_pred', '.png'),
              'crf': (args.out_crf, '--out_crf', '.png')}
    folders = {kind: (files.out_dir(folder, flag), suffix) for kind, (folder, flag, suffix) in wanted.items() if folder}
    if not folders:
        raise UserError('--out_cam', 'no output folder is given', 'give --out_cam, --out_cam_pred or --out_crf')
    return folders


def what_is_made(args, recipe, folders):
    """The outputs.Output of each folder of output_folders. Every kind names only what decides its own content."""
    cams = {'weights': args.weights, 'weights_sha256': runinfo.digest(args.weights), 'baseline': args.baseline,
            'network': cli.network_in_words(args), 'background_last': args.background_last, 'map': recipe.map,
            'scales': args.scales, 'amp': args.amp, 'cls_labels': runinfo.digest(files.repo_path(args.cls_labels))}
    seeds = cams | {'out_cam_pred_alpha': args.out_cam_pred_alpha}
    # Where the CRF refines the scores (EPS), the seeds' background score has no part in it.
    refined = cams if recipe.crf_alpha is not None else seeds
    made = {'cam': {'kind': 'CAMs', **cams}, 'pred': {'kind': 'seeds', **seeds},
            'crf': {'kind': 'seeds after the CRF', **refined, 'crf_iters': recipe.crf_iters,
                    'crf_alpha': recipe.crf_alpha, 'crf_engine': args.crf_engine}}
    return [outputs.Output(folder, suffix, made[kind]) for kind, (folder, suffix) in folders.items()]


if __name__ == '__main__':
    cli.run(main, get_args_parser())
