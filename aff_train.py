"""Step 2, second part: train AffinityNet on what the CRFs under a low and a high background exponent agree on.

    python aff_train.py --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params --voc12_root VOC2012 \\
        --la_crf_dir runs/aff/crf/4.00 --ha_crf_dir runs/aff/crf/24.00 --session_name runs/aff/resnet38_aff

Reads  --train_list, <voc12_root>/JPEGImages, the two folders of aff_prepare.py, --weights.
Writes <session>.pth (weights for aff_infer.py), <session>.ckpt (for --resume), <session>.json (what the run was),
       <session>.losses.jsonl (every term of every step), <session>.affinity.png, TensorBoard events in --tblog_dir.
"""
from data.lists import read_list
from data.probabilities import check_alphas
from engine import cli, files
from engine.errors import UserError
from tool.metrics import IGNORE

NETWORK = 'network.resnet38_aff'  # unless --network or --backbone says otherwise
SMALLEST_CROP = 5  # cells a side, the least that hold pairs


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--network', before=NETWORK, help=f'module whose class Net is trained ({NETWORK})')
    cli.add_backbone_flags(parser, 'train')
    cli.add_image_flags(parser)
    parser.add_argument('--la_crf_dir', required=True, help="aff_prepare.py's folder of the low alpha (4.00)")
    parser.add_argument('--ha_crf_dir', required=True, help="aff_prepare.py's folder of the high alpha (24.00)")
    parser.add_argument('--max_epoches', type=cli.positive, default=8, help='epochs')
    cli.add_training_flags(parser)
    cli.add_device_flags(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    import torch

    from engine import distributed
    from engine.datasets import affinity_crops, check_photos
    from engine.device import autocast, set_up
    from engine.networks import network_for_training
    from engine.outputs import origin
    from engine.runinfo import fingerprint_of_ids
    from engine.training import Run, parameter_groups
    from engine.training_pictures import affinity_figure
    from engine.validation import validate_affinity, validation_ids, warn_of_shared_ids
    from tool.affinity import WEIGHTS, affinity_loss, pair_counts, pair_labels

    cli.choose_backbone(args, NETWORK)
    device = set_up(args, args.session_name)
    data = cli.chosen_dataset(args, train_list='train_aug', val_list='val')
    ids = read_list(args.train_list, '--train_list')
    check(args, len(ids))
    warn_of_shared_ids(ids, args.train_list, args.val_list)
    check_alphas(ids, args.la_crf_dir, args.ha_crf_dir, data.classes.num_classes)
    net = network_for_training(args, device, method='affinity_features')
    check_crop(args.crop_size, net.stride)
    dataset = affinity_crops(ids, args, data, net.stride, train=True)
    val_ids = in_both_folders(validation_ids(args), args)
    validation = val_ids and affinity_crops(val_ids, args, data, net.stride, train=False)
    check_photos(dataset, '--train_list')
    if validation:
        check_photos(validation, '--val_list')

    optimizer = torch.optim.SGD(parameter_groups(net, args.lr, args.wt_dec), lr=args.lr, momentum=args.momentum)
    run = Run(args.session_name, net, optimizer, device=device, args=args,
              before=cli.values_before(get_args_parser(), args), images=len(ids), batch_size=args.batch_size,
              epochs=args.max_epoches, accumulate=args.accumulate, inputs={
                  'train_ids': fingerprint_of_ids(ids), 'low_alpha': origin(args.la_crf_dir, '.npy'),
                  'high_alpha': origin(args.ha_crf_dir, '.npy')})
    for batch in run.batches(dataset):
        pairs = pair_labels(batch['label'].to(device, non_blocking=True), IGNORE)
        counts = distributed.total(pair_counts(*pairs))
        for part in run.parts.of(batch | {'pairs': pairs}):
            with autocast(device, args.amp):
                affinity = net(part['image'].to(device, non_blocking=True))
            run.update(affinity_loss(affinity, *part['pairs'], counts, run.parts.count), WEIGHTS)

        if run.picture_due:
            run.log_figure('affinity', affinity_figure(part, affinity, data.classes.palette))
        if run.epoch_ended and validation:
            run.validate(lambda: validate_affinity(net, validation, args, device))
    run.finish()


def check(args, images):
    """Refuse settings that cannot work (UserError)."""
    if images < args.batch_size:
        raise UserError('--batch_size', f'{args.batch_size} is more than the {images} images listed', 'lower it')


def check_crop(side, stride):
    """Refuse a crop that is not made of the network's cells, or holds no pairs of them (UserError). side: in pixels."""
    smallest = SMALLEST_CROP * stride
    if side % stride or side < smallest:
        raise UserError('--crop_size', f'{side} is no multiple of {stride} of at least {smallest}',
                        'give 448, for example')


def in_both_folders(ids, args):
    """Those of the validation `ids` that both CRF folders hold; one line says how many."""
    if not ids:
        return []
    found = set(ids).difference(*(files.missing_files(ids, folder, '.npy')
                                  for folder in (args.la_crf_dir, args.ha_crf_dir)))
    print(f'validation: {len(found)} of the {len(ids)} images of {args.val_list} are in both CRF folders')
    return [i for i in ids if i in found]


if __name__ == '__main__':
    cli.run(main, get_args_parser())
