"""The data sets that Steps 1 and 2 train on, as the flags describe them, and a look at all photos before training."""
import torch

from data import transforms
from data.affinity import AffinityCrops
from data.classification import LabelledImages, SalientImages
from data.photo_check import check_photo
from engine.errors import UserError
from engine.parallel import progress
from engine.ranks import own_shard
from engine.validation import validation_ids


def check_photos(dataset, title):
    """Look at all photos of a data set (data.photos.Photos) before the first step. title: of the progress bar.

    UserError naming the first photo that is broken, too small or not RGB, and how many there are. Items of photos that
    EXIF turns are loaded whole: files made from them by a program that ignores EXIF have another size. Of several
    processes each looks at its share.
    """
    problems, turned = [], []
    for index in progress(own_shard(None).of(range(len(dataset))), title):
        try:
            if check_photo(dataset.paths[dataset.ids[index]], dataset.convert_rgb):
                turned.append(index)
        except UserError as error:
            problems.append(error)
    if problems:
        first = problems[0]
        raise UserError(first.what, f'{first.wrong} ({len(problems)} of the {len(dataset)} photos are unfit)', first.do)
    with torch.random.fork_rng(devices=[]):
        for index in turned:
            dataset[index]


def training_images(ids, args, recipe, data):
    """The images `ids`, augmented; with their saliency maps for a recipe that learns from them (one line says so).

    data: a data.description.DataSet.
    """
    augment = transforms.classification_train(args.crop_size, *sorted(args.resize_long))
    labelled = ids, data.photos(args.voc12_root), args.cls_labels, data.classes, augment
    if recipe.saliency:
        print(f'extra supervision: saliency ({args.saliency_dir})')
        return SalientImages(*labelled, args.saliency_dir, args.convert_rgb)
    return LabelledImages(*labelled, args.convert_rgb)


def validation_images(args, data):
    """The images of --val_list, whole, their long side that of the crop; None where there are none."""
    ids = validation_ids(args)
    return LabelledImages(ids, data.photos(args.voc12_root), args.cls_labels, data.classes,
                          transforms.classification_val(args.crop_size), args.convert_rgb) if ids else None


def affinity_crops(ids, args, data, stride, train):
    """Step 2's images `ids` with the labels of their pairs. stride: pixels per cell. train: augmented, or whole."""
    return AffinityCrops(ids, data.photos(args.voc12_root), args.la_crf_dir, args.ha_crf_dir, data.classes.num_classes,
                         args.crop_size, train, args.convert_rgb, stride)
