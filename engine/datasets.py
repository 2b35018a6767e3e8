"""The data sets of Step 1's training, as the flags describe them."""
from data import transforms
from data.classification import LabelledImages, SalientImages
from engine.validation import validation_ids


def training_images(ids, args, recipe, classes):
    """The images `ids`, augmented; with their saliency maps for a recipe that learns from them (one line says so)."""
    augment = transforms.classification_train(args.crop_size, *sorted(args.resize_long))
    labelled = ids, args.voc12_root, args.cls_labels, classes.num_foreground, augment
    if recipe.saliency:
        print(f'extra supervision: saliency ({args.saliency_dir})')
        return SalientImages(*labelled, args.saliency_dir, args.convert_rgb)
    return LabelledImages(*labelled, args.convert_rgb)


def validation_images(args, classes):
    """The images of --val_list, whole, their long side that of the crop; None where there are none."""
    ids = validation_ids(args)
    return LabelledImages(ids, args.voc12_root, args.cls_labels, classes.num_foreground,
                          transforms.classification_val(args.crop_size), args.convert_rgb) if ids else None
