"""Step 1: train the classifier with a baseline's losses and pixel-to-prototype contrast, from image-level labels.

    python contrast_train.py --weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params --voc12_root VOC2012 \\
        --session_name runs/contrast/resnet38_contrast --batch_size 8
    python contrast_train.py --baseline eps --saliency_dir SALImages ...          (EPS; extra supervision: saliency)

Reads  --train_list, <voc12_root>/JPEGImages, --cls_labels, --weights; for EPS <saliency_dir>/<id>.png. --dataset says
       which these are for another data set.
Writes <session>.pth (weights for contrast_infer.py), <session>.ckpt (for --resume), <session>.json (what the run was),
       <session>.losses.jsonl (every term of every step), <session>.maps.png, TensorBoard events in --tblog_dir.
"""
from data.lists import read_list
from engine import cli
from engine.errors import UserError


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    cli.add_recipe_flags(parser, 'train')
    cli.add_image_flags(parser)
    cli.add_label_flag(parser)
    cli.add_training_flags(parser)
    parser.add_argument('--resize_long', type=cli.side, nargs=2, default=(448, 768), metavar=('LOW', 'HIGH'),
                        help='range of the random long side in pixels, before cropping')
    cli.add_device_flags(parser)
    return parser


def main(args):
    # Imported here, because --help need not wait for torch.
    import torch

    from engine.datasets import check_photos, training_images, validation_images
    from engine.device import set_up
    from engine.networks import network_for_training
    from engine.runinfo import fingerprint, fingerprint_of_ids
    from engine.training import Run, parameter_groups
    from engine.training_pictures import cam_figure
    from engine.validation import validate_classification, warn_of_shared_ids
    from engine.views import TrainingViews
    from network.weights import to_published_eps

    recipe = cli.chosen_recipe(args, 'train')
    data = cli.chosen_dataset(args, train_list='train_aug', val_list='val')
    ids = read_list(args.train_list, '--train_list')
    check(args, recipe, len(ids))
    warn_of_shared_ids(ids, args.train_list, args.val_list)
    device = set_up(args, args.session_name)
    net = network_for_training(args, device, recipe, num_classes=data.classes.num_classes)
    dataset, validation = training_images(ids, args, recipe, data), validation_images(args, data)
    check_photos(dataset, '--train_list')
    if validation:
        check_photos(validation, '--val_list')

    optimizer = torch.optim.SGD(parameter_groups(net, args.lr, args.wt_dec), lr=args.lr, momentum=args.momentum)
    run = Run(args.session_name, net, optimizer, device=device, args=args,
              before=cli.values_before(get_args_parser(), args), images=len(ids), batch_size=args.batch_size,
              epochs=args.max_epoches, accumulate=args.accumulate,
              inputs={'train_ids': fingerprint_of_ids(ids),
                      'labels': fingerprint(len(ids), dataset.labels.numpy().tobytes())})
    views = TrainingViews(net, recipe, run.parts, args.amp)
    for batch in run.batches(dataset):
        views.look_ahead(batch)
        for part in run.parts.of(batch):
            view1, view2, target = views.of(part)
            run.update(recipe.loss_terms(view1, view2, target), recipe.weights)

        if run.picture_due:
            figure = cam_figure(part['image'], view1, target, recipe.bg_threshold, data.classes.palette)
            run.log_figure('maps', figure)
        if run.epoch_ended and validation:
            run.validate(lambda: validate_classification(net, validation, args, device))
    run.finish(to_published_eps if args.save_layout == 'published' else dict)


def check(args, recipe, images):
    """Refuse or warn about settings that cannot work or do not do what a reader of the paper expects."""
    if images < args.batch_size:
        raise UserError('--batch_size', f'{args.batch_size} is more than the {images} images of the list', 'lower it')
    if not recipe.terms:
        raise UserError('--w_cls', 'all weights are 0, there is nothing to train', 'leave at least one')
    if args.batch_size < 8 and 'projection' in recipe.needs:
        print(f'warning: total batch {args.batch_size} < 8: prototypes are taken over the batch, and published numbers '
              'come from batches of 8 or 9')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
