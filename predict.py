"""Photos in, masks out, by a trained network: DeepLab's segmentation or, with weights of Step 1, CAMs.

    python predict.py --weights segmentation.pth photo.jpg holiday/ --out masks

Reads  --weights (what they hold tells the network; classes and baseline are those in <session>.json beside them, where
       it is, unless flags say others), photos of any size and colour mode, upright by their EXIF orientation, and the
       photos directly in folders.
Writes <out>/<name>.png (labels with the data set's palette, in the photo's size), <out>/overlay/<name>.jpg (to look at:
       the mask over the photo with a legend and, with weights of Step 1, the CAM of each class), run.json, photos.json.
A photo whose files exist is skipped, so the same command continues a run that was stopped. run.json says what made the
files, photos.json of which photos; with other weights, flags or photos of the same name the command refuses. A photo
that cannot be read gets a line, the others go on, and the exit status is 2.

    import predict
    predictor = predict.load('segmentation.pth', crf=True)  # flags by their names
    mask, scores, found = predictor('photo.jpg')            # uint8 (H, W), float32 (classes, h, w), {name: fraction}
"""
import sys
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

from data.description import EXTENSIONS
from engine import cli, files, outputs, ranks, runinfo
from engine.errors import UserError

PHOTOS = 'photos.json'


def get_args_parser():
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('photos', nargs='+', help=f'photos, and folders of photos ({", ".join(EXTENSIONS)}; not below)')
    parser.add_argument('--weights', required=True, help="trained weights (.pth) of Step 3's DeepLab or of Step 1")
    parser.add_argument('--out', required=True, help='folder of the masks; pictures go to <out>/overlay')
    cli.add_dataset_flag(parser)
    parser.set_defaults(dataset=None)  # the classes that <session>.json beside the weights names, else VOC's
    parser.add_argument('--max_side', type=cli.side, default=640,
                        help='pixels: a photo with a longer side is shrunk to it for network and CRF, and its mask '
                             "enlarged again. Networks trained on VOC know photos of 500; more shows smaller things "
                             'and takes time and memory by its square')
    parser.add_argument('--scales', type=cli.scale, nargs='+', default=(1.,),
                        help='factors of that size whose results are averaged (CAMs: summed). More than one takes '
                             'longer and is mostly better: 0.5 0.75 1 1.25 1.5 1.75 in the published test')
    cli.add_switch(parser, '--flip', "average DeepLab's result with that of the flipped photo (CAMs always are)")
    cli.add_switch(parser, '--crf', 'refine by the dense CRF')
    parser.add_argument('--classes', type=names, metavar='NAME,NAME',
                        help='with weights of Step 1: draw the CAMs of these classes')
    parser.add_argument('--class_score', type=cli.unit_interval,
                        help="with weights of Step 1: draw the classes that the classifier's score, 0..1, is at least "
                             '(0.5)')
    parser.add_argument('--background_score', type=cli.unit_interval,
                        help='with weights of Step 1: a pixel is background where no CAM is above it, 0..1 (0.26)')
    cli.add_recipe_flags(parser, 'infer')
    cli.add_crf_flag(parser)
    cli.add_switch(parser, '--overwrite', 'do photos again whose files exist')
    cli.add_shard_flag(parser)
    cli.add_device_flags(parser)
    return parser


def names(text):
    """Class names from `dog,person` (argparse type)."""
    return tuple(name.strip() for name in cli.text(text).split(','))


def load(weights, **flags):
    """A predictor, for use from Python: a function from a photo to (mask, scores, found), a NamedTuple.

    weights: path of a .pth. flags: those of the command line that say how, by name: crf=True, scales=(1, 1.5),
    device='cuda', classes=('dog', 'person'). The photo: a path, or upright RGB, uint8 (H, W, 3).
    mask: uint8 (H, W), labels. scores: float32 (C, h, w) by which they were chosen, 0..1; (h, w) is (H, W) up to
    max_side, less above. found: {class name: fraction of the mask; with weights of Step 1 the classifier's score}.
    Raises UserError (engine/errors.py) for weights or flags that do not fit, TypeError for an unknown flag.
    """
    known = vars(get_args_parser().parse_args(['--weights=x', '--out=x', 'x']))
    unknown = sorted(flags.keys() - known.keys())
    if unknown:
        raise TypeError(f'unknown flag {unknown[0]!r}: one of {", ".join(known)}')
    return resolve_name('segmentation.predictor:load')(SimpleNamespace(**known | flags | {'weights': weights}))


def main(args):
    # Imported here, because --help need not wait for torch.
    from data.photos import AnyPhotos
    from engine.device import set_up
    from engine.distributed import wait_for_all
    from engine.loading import single_items
    from engine.parallel import WorkerPool, progress
    from segmentation import predictor as predictors
    from segmentation.prediction import write

    shard, photos = ranks.own_shard(args.shard), named(photo_files(args.photos), args.out)
    device = set_up(args)
    predictor = predictors.load(args, device)
    made = what_is_made(args, predictor)
    todo = outputs.begin(list(made.values()), list(photos), args.overwrite, shard)
    note_photos(photos, list(made.values()), args.overwrite)
    own = len(shard.of(list(photos)))
    print(f'{shard}{own} photos, {own - len(todo)} done already')
    dataset = AnyPhotos({name: photos[name] for name in todo}, predictor.shrink)
    unread = 0
    with progress(single_items(dataset, args.num_workers, device), f'{shard}predict', len(dataset)) as bar, \
            WorkerPool(predictor.after.engine.workers(args.num_workers), bar.write) as pool:
        for item in bar:
            if 'problem' in item:
                unread += 1
                bar.write(f'warning: {item["problem"]}', sys.stderr)
                continue
            paths = {kind: output.folder / (item['name'] + output.suffix) for kind, output in made.items()}
            pool.submit(write, photos[item['name']], paths, item['pixels'], predictor.look(item['pixels']),
                        item['size'], predictor.after)
    wait_for_all()  # a launcher ends all processes when one ends with an error
    if unread:
        raise UserError('photos', f'{unread} of {own} could not be read (see the warnings above)',
                        'replace them, or leave them out')


# ---------------------------------------------------------------- which photos

def photo_files(paths):
    """The files that `paths` name: files as they are, and of folders the photos in them, in order.

    UserError: no such file, a folder without a photo. One line says what else lies in the folders.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith('.'))
            photos = [entry for entry in inside if entry.suffix.lower() in EXTENSIONS]
            if not photos:
                raise UserError(path, f'is a folder without photos ({", ".join(EXTENSIONS)})', 'give another')
            others = [entry.name for entry in inside if entry not in set(photos)]
            if others:
                print(f'{path}: {len(others)} files do not end as photos do and are left out ({others[0]} the first)')
            found += photos
        elif path.exists():
            found.append(path)
        else:
            raise UserError(path, 'photo not found', 'correct the path')
    return found


def named(paths, out):
    """{name of the results: path}. UserError: two photos of one name, whose results would be one file; photos in <out>.
    """
    photos = {}
    for path in paths:
        other = photos.setdefault(path.stem, path)
        if other is not path and not path.samefile(other):
            raise UserError(path, f'has the name of {other}, and their masks would be one file',
                            'rename one, or give them in two commands with two folders --out')
        if path.resolve().parent in (Path(out).resolve(), Path(out, 'overlay').resolve()):
            raise UserError('--out', f'{out} holds the photo {path.name}, which a result could replace',
                            'choose another folder')
    return photos


def note_photos(photos, made, overwrite):
    """Write into <out>/photos.json of which photos the results are: {name: bytes in the file}.

    photos: of all shards. made: the outputs.Output of the results. UserError where a result that exists is of another
    photo of the same name, or of one that was changed since; with overwrite such results are removed.
    """
    note = made[0].run_file.with_name(PHOTOS)
    with outputs.alone(note.parent) as is_alone:
        known = files.read_json(note, 'remove it, and add --overwrite') or {}
        now = {name: path.stat().st_size for name, path in photos.items()}
        if not isinstance(known, dict):
            raise UserError(note, 'does not say of which photos the masks are', 'remove it, and add --overwrite')
        for name in sorted(photos.keys() - set(outputs.unfinished(made, photos))):
            if known.get(name) == now[name]:
                continue
            if not (overwrite and is_alone):
                raise UserError(note.with_name(f'{name}.png'), f'is of another photo than {photos[name]}, or of one '
                                'that was changed', 'choose another folder --out, or add --overwrite')
            outputs.remove(made, [name])
        if known != known | now:
            files.save_json(note, known | now)


def what_is_made(args, predictor):
    """{'mask', 'overlay': the outputs.Output of its files}; the folders are made."""
    out = files.out_dir(args.out, '--out')
    made = {'kind': 'predictions', 'weights': args.weights, 'weights_sha256': runinfo.digest(args.weights),
            **predictor.decides}
    return {'mask': outputs.Output(out, '.png', made),
            'overlay': outputs.Output(files.out_dir(out / 'overlay', '--out'), '.jpg', made, home=out)}


if __name__ == '__main__':
    cli.run(main, get_args_parser())
