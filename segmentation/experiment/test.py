"""Step 3: segment images with a trained DeepLab; score val, or write the archive for the VOC server.

Reads   --weights (the <session>.pth of train.py), <voc12_root>/JPEGImages/<id>.jpg, for val <gt_dir>/<id>.png.
Writes  val:  <out_dir>/{single,single_crf,multi,multi_crf}/<id>.png and scores.json, with the four mIoU on the screen;
        test: <out_dir>/results/VOC2012/Segmentation/comp6_test_cls/<id>.png (multi-scale, CRF), and their archive
        comp6_test_cls.tar.gz, checked file by file. <out_dir>/run.json: the settings. Done images are skipped.

    cd segmentation/experiment && python test.py --weights SEAM_deeplabv1_resnet38.pth --voc12_root ../../VOC2012
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, whatever the working directory

from data.images import need_images
from data.lists import read_list
from data.masks import need_objects
from engine import cli, files, outputs, ranks, runinfo
from engine.evaluation import absent_text, evaluate_masks
from segmentation import predictions, server_archive
from segmentation.experiment import config as configs


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    configs.add_flags(parser, 'test')
    parser.add_argument('--weights', help='trained weights (<EXP_NAME>.pth unless given)')
    parser.add_argument('--split', choices=('val', 'test'), default='val',
                        help='val is scored, test goes to the VOC server')
    cli.add_inference_flags(parser, 'val, or test with --split test')
    cli.add_image_flags(parser)
    parser.add_argument('--gt_dir', help="ground truth of val (the data set's; voc12: <voc12_root>/SegmentationClass)")
    parser.add_argument('--out_dir', help='folder for the results (<EXP_NAME>_<split> unless given)')
    parser.add_argument('--out_logits', help='folder for the multi-scale logits, float16 (classes, H, W), '
                                             'about 8 MB an image (none unless given)')
    parser.add_argument('--crf_iters', type=cli.positive, default=10, help='iterations of the CRF')
    cli.add_crf_flag(parser)
    cli.add_device_flags(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    from data.segmentation import ScaledImages
    from engine.crf_engine import chosen_engine
    from engine.device import set_up, to_device
    from engine.distributed import wait_for_all
    from segmentation import inference, model

    shard = ranks.own_shard(args.shard)
    config, data = configs.effective(args), cli.chosen_dataset(args, infer_list=args.split)
    device = set_up(args)
    engine = chosen_engine(args.crf_engine, device)
    root, weights = configs.located(args.voc12_root), Path(args.weights or f'{config.EXP_NAME}.pth')
    runinfo.check_classes(weights, data.classes)
    ids = read_list(args.infer_list, '--infer_list')
    photos, gt_dir = data.photos(root), args.split == 'val' and args.gt_dir and configs.located(args.gt_dir)
    dataset = ScaledImages(ids, photos, inference.scales_of(config.TEST_MULTISCALE), args.convert_rgb)
    if gt_dir:
        need_images(ids, gt_dir, ('.png',), '--gt_dir; images without ground truth need --split test')
        need_objects(ids, gt_dir, data.classes)
    net = to_device(model.trained(config, weights, data.classes.num_classes), device, args.amp).eval()

    out_dir = files.out_dir(args.out_dir or f'{config.EXP_NAME}_{args.split}', '--out_dir')
    logits_dir = args.out_logits and files.out_dir(args.out_logits, '--out_logits')
    server = args.split == 'test' and args.dataset == 'voc12'
    output = predictions.Output(folders(out_dir, server), logits_dir, args.crf_iters, data.classes, engine)
    made = what_decides(args, config, weights)
    homes = [(folder, suffix, logits_dir if suffix == '.npy' else out_dir) for folder, suffix in output.kinds]
    dataset.keep(outputs.begin([outputs.Output(folder, suffix, made, home) for folder, suffix, home in homes], ids,
                               args.overwrite, shard))
    print(f'{shard}{len(dataset)} of {len(shard.of(ids))} images to do')
    inference.segment(net, dataset, config, output, device, args, f'{shard}segment')
    wait_for_all()
    if not ranks.is_main():
        return
    missing = len(files.unfinished(ids, output.kinds))
    if missing:
        print(f'{shard}{missing} of {len(ids)} images are left to other shards; once they are done, run the command '
              'without --shard')
    elif gt_dir:
        score(ids, args.infer_list, output, gt_dir, out_dir, args.num_workers, made)
    elif server:
        pack(ids, output, photos, out_dir)
    else:
        print(f'wrote {out_dir}: masks of {len(ids)} images; no ground truth, no scores')


def folders(out_dir, server):
    """{variant: folder}, made where missing: all four; for the VOC server multi-scale + CRF, where it expects that."""
    all_four = {name: name for name in predictions.VARIANTS}
    wanted = {'multi_crf': server_archive.FOLDER} if server else all_four
    return {name: files.out_dir(out_dir / folder, '--out_dir') for name, folder in wanted.items()}


def what_decides(args, config, weights):
    """The settings that the predictions depend on, as a JSON-ready dict."""
    return {'kind': 'predictions', 'experiment': args.experiment, 'network': config.network_in_words,
            'weights': str(weights), 'weights_sha256': runinfo.digest(weights), 'scales': list(config.TEST_MULTISCALE),
            'flip': config.TEST_FLIP, 'crf_iters': args.crf_iters, 'crf_engine': args.crf_engine, 'amp': args.amp}


def score(ids, list_name, output, gt_dir, out_dir, num_workers, made):
    """Score the four variants, print the four numbers, write scores.json. made: what_decides."""
    results = {name: evaluate_masks(ids, folder, gt_dir, output.classes, num_workers)
               for name, folder in output.folders.items()}
    miou = {name: float(result.miou[0]) for name, result in results.items()}
    class_iou = {name: dict(zip(output.classes.names, result.class_iou[0].tolist()))
                 for name, result in results.items()}
    occurring = {name: float(result.miou_occurring[0]) for name, result in results.items()}
    files.save_json(out_dir / 'scores.json', {
        'list': str(list_name), 'images': len(ids), 'gt_dir': str(gt_dir), 'miou': miou, 'class_iou': class_iou,
        'miou_occurring': occurring, 'run': made})
    print(table(miou, len(ids), list_name))
    for name, result in results.items():
        absent = absent_text(result.counts[0])
        if absent:
            print(f'{name}: {absent}')


def table(miou, images, list_name):
    """The four numbers, and what the CRF changes. miou: variant → percent."""
    lines = [f'mIoU in % on {images} images of {list_name}',
             f'{"":14}{"without CRF":>12}{"with CRF":>12}{"change":>12}']
    for scale in ('single', 'multi'):
        before, after = miou[scale], miou[f'{scale}_crf']
        lines.append(f'{scale + "-scale":14}{before:12.2f}{after:12.2f}{after - before:+12.2f}')
    return '\n'.join(lines)


def pack(ids, output, photos, out_dir):
    """Write the server's archive and check every file in it."""
    archive = out_dir / 'comp6_test_cls.tar.gz'
    server_archive.write(archive, ids, output.folders['multi_crf'])
    server_archive.check(archive, ids, photos, output.classes)
    print(f'wrote {archive}: {len(ids)} results, all well formed')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
