"""Step 3: segment images with a trained DeepLab; score val, or write the archive for the VOC server.

Reads   --weights (the <session>.pth of train.py), <voc12_root>/JPEGImages/<id>.jpg, for val <gt_dir>/<id>.png.
Writes  val:  <out_dir>/{single,single_crf,multi,multi_crf}/<id>.png and scores.json, with the four mIoU on the screen;
        test: <out_dir>/results/VOC2012/Segmentation/comp6_test_cls/<id>.png (multi-scale, CRF), and of them
        comp6_test_cls.tar.gz, checked file by file. <out_dir>/run.json: what made them. Done images are skipped.

    cd segmentation/experiment && python test.py --weights SEAM_deeplabv1_resnet38.pth --voc12_root ../../VOC2012
"""
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, whatever the working directory

from segmentation import predictions, server_archive
from segmentation.experiment import config as configs
from tool import cli, files
from tool.cli import UserError
from voc12.classes import VOC


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    configs.add_flags(parser, 'test')
    parser.add_argument('--weights', help='trained weights (<EXP_NAME>.pth unless given)')
    parser.add_argument('--split', choices=('val', 'test'), default='val',
                        help='val is scored, test goes to the VOC server')
    parser.add_argument('--infer_list', help='image ids (voc12/<split>.txt unless given)')
    parser.add_argument('--voc12_root', default='VOC2012', help='folder of the VOC devkit (holds JPEGImages/)')
    parser.add_argument('--gt_dir', help='ground truth of val (<voc12_root>/SegmentationClass unless given)')
    parser.add_argument('--out_dir', help='folder for the results (<EXP_NAME>_<split> unless given)')
    parser.add_argument('--out_logits', help='folder for the multi-scale logits, float16 (classes, H, W), '
                                             'about 8 MB an image (none unless given)')
    parser.add_argument('--crf_iters', type=cli.positive, default=10, help='iterations of the CRF')
    cli.add_switch(parser, '--overwrite', 'do again what exists')
    cli.add_switch(parser, '--convert_rgb', 'turn grey, palette and CMYK images into RGB instead of refusing them')
    cli.add_worker_flag(parser)
    cli.add_device_flags(parser)
    return parser


def main(args):
    config = configs.effective(args)
    root, weights = configs.located(args.voc12_root), Path(args.weights or f'{config.EXP_NAME}.pth')
    ids = files.read_list(args.infer_list or f'voc12/{args.split}.txt', '--infer_list')
    files.need_files(ids, root / 'JPEGImages', '.jpg', '--voc12_root')
    gt_dir = Path(args.gt_dir) if args.gt_dir else root / 'SegmentationClass'
    if args.split == 'val':
        files.need_files(ids, gt_dir, '.png', '--gt_dir; images without ground truth need --split test')

    from segmentation import model
    device = cli.set_up(args)
    net = cli.place(model.trained(config, weights), device, args.amp).eval()

    out_dir = files.out_dir(args.out_dir or f'{config.EXP_NAME}_{args.split}', '--out_dir')
    logits_dir = args.out_logits and files.out_dir(args.out_logits, '--out_logits')
    output = predictions.Output(folders(out_dir, args.split), logits_dir, args.crf_iters)
    if args.overwrite:
        output.clear(ids)
    todo = output.missing(ids)
    same_run(out_dir / 'run.json', what_decides(args, config, weights), done=len(ids) - len(todo))
    print(f'{len(todo)} of {len(ids)} images to do')
    if todo:
        segment(net, todo, root, config, output, device, args)
    if args.split == 'val':
        score(ids, output, gt_dir, out_dir, args)
    else:
        pack(ids, output, root, out_dir)


def folders(out_dir, split):
    """Variant → folder, made where missing: all four for val, the best one, where the server wants it, for test."""
    all_four = {name: name for name in predictions.VARIANTS}
    wanted = {'multi_crf': server_archive.FOLDER} if split == 'test' else all_four
    return {name: files.out_dir(out_dir / folder, '--out_dir') for name, folder in wanted.items()}


def segment(net, ids, root, config, output, device, args):
    """Predict the images `ids`: the network here, the CRF and the writing in worker processes behind it."""
    from segmentation import inference
    from tool.loading import single_items
    from tool.parallel import Background, progress
    from voc12.segmentation_data import ScaledImages
    dataset = ScaledImages(ids, root, inference.scales_of(config.TEST_MULTISCALE), args.convert_rgb)
    loaders = min(2, args.num_workers)  # reading is quick beside the network and the CRF
    with Background(args.num_workers) as background:
        for item in progress(single_items(dataset, loaders, device), 'segment', total=len(dataset)):
            single, multi = inference.logits(net, item['scaled'], item['pixels'].shape[:2], config, device, args.amp)
            scores = {'single': single, 'multi': multi} if 'single' in output.folders else {'multi': multi}
            scores = {name: value.softmax(0).cpu().numpy() for name, value in scores.items()}
            background.submit(predictions.save, output, item['name'], item['pixels'], scores,
                              multi.half().cpu().numpy() if output.logits else None)


def what_decides(args, config, weights):
    """All that the predictions depend on, JSON-ready."""
    return {'experiment': args.experiment, 'network': config.network, 'weights': str(weights),
            'weights_sha256': hashlib.sha256(weights.read_bytes()).hexdigest(), 'scales': list(config.TEST_MULTISCALE),
            'flip': config.TEST_FLIP, 'crf_iters': args.crf_iters, 'amp': args.amp}


def same_run(path, now, done):
    """Write what makes the predictions to `path`. UserError where `done` > 0 of them were made otherwise."""
    then = json.loads(path.read_text()) if path.exists() else {}
    changed = [key for key in now if then.get(key) != now[key] and key != 'weights']  # the same weights may have moved
    if changed and done:
        raise UserError(path.parent, f'holds {done} predictions made with another {", ".join(changed)}',
                        'add --overwrite, or choose another --out_dir')
    files.save_json(path, now)


def score(ids, output, gt_dir, out_dir, args):
    """Score the four variants, print the four numbers, write scores.json."""
    from tool.evaluation import evaluate
    results = {name: evaluate(ids, folder, gt_dir, VOC, 'png', workers=args.num_workers)
               for name, folder in output.folders.items()}
    list_name = str(args.infer_list or f'voc12/{args.split}.txt')
    miou = {name: float(result.miou[0]) for name, result in results.items()}
    files.save_json(out_dir / 'scores.json', {
        'list': list_name, 'images': len(ids), 'gt_dir': str(gt_dir), 'miou': miou,
        'class_iou': {name: dict(zip(VOC.names, result.class_iou[0].tolist())) for name, result in results.items()},
        'run': json.loads((out_dir / 'run.json').read_text())})
    print(table(miou, len(ids), list_name))


def table(miou, images, list_name):
    """The four numbers, and what the CRF changes. miou: variant → percent."""
    lines = [f'mIoU in % on {images} images of {list_name}',
             f'{"":14}{"without CRF":>12}{"with CRF":>12}{"change":>12}']
    for scale in ('single', 'multi'):
        before, after = miou[scale], miou[f'{scale}_crf']
        lines.append(f'{scale + "-scale":14}{before:12.2f}{after:12.2f}{after - before:+12.2f}')
    return '\n'.join(lines)


def pack(ids, output, root, out_dir):
    """Write the server's archive and check every file in it."""
    from voc12.dataset import image_folder
    archive = out_dir / 'comp6_test_cls.tar.gz'
    server_archive.write(archive, ids, output.folders['multi_crf'])
    server_archive.check(archive, ids, image_folder(root))
    print(f'wrote {archive}: {len(ids)} results, all well formed')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
