"""One photo in, a mask out, by a trained network of Step 3 or Step 1: what predict.py and `import predict` run."""
import functools
import os

import numpy as np
import torch

from data import segmentation, transforms
from data.description import read_dataset, trained_classes
from data.images import read_image
from engine import cli, runinfo
from engine.cams import photo_cams
from engine.crf_engine import CrfEngine, chosen_engine
from engine.crf_workers import SeedSettings
from engine.device import arrays, autocast, choose_precision, select_device, to_device
from engine.errors import UserError
from engine.networks import network_for_inference
from network import deeplab, names
from network.weights import describe, read_weights
from segmentation import inference, model, prediction
from segmentation.experiment.config import Config
from tool.crf import DEEPLAB

# Flags that networks of Step 1 alone have a use for, and what counts as not given.
OF_STEP_1 = {'classes': None, 'class_score': None, 'background_score': None, 'baseline': None, 'network': None,
             'map': None, 'crf_alpha': None, 'background_last': False}
CLASS_SCORE, BACKGROUND_SCORE = 0.5, 0.26  # unless given; the latter is that of contrast_infer.py's seeds


def load(args, device=None):
    """The predictor of the network in args.weights, recognised by its tensors: an OfDeepLab or an OfStep1.

    args: the flags of predict.py; 'auto' and what depends on the network is filled in. device: torch.device; None: that
    of args.device, with its precision.
    UserError: weights that cannot be read, of no such network or of other classes; flags that do not fit the network.
    """
    if device is None:
        device = select_device(args.device)
        args.amp = choose_precision(device, args.amp)
    state = read_weights(args.weights, args.background_last)
    classes = class_set(args)
    name = deeplab.name_of(state)
    if name:
        return OfDeepLab(args, classes, device, name, state)
    if 'fc8.weight' not in state and not args.network:
        raise UserError(args.weights, f'holds {describe(state)}, which makes no mask by itself',
                        "give weights of Step 3's DeepLab or of Step 1")
    return OfStep1(args, classes, device, state)


class Predictor:
    """A network that predicts photos. after: what follows the network (segmentation/prediction.py). decides: the
    flags that the result depends on, JSON-ready.
    """

    def __call__(self, image):
        """The prediction.Prediction of a photo: its path, or upright RGB, uint8 (H, W, 3), sides of at least 8 pixels.

        UserError: a path that is no photo. ValueError: another array.
        """
        if isinstance(image, (str, os.PathLike)):
            image = read_image(image, convert=True)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f'a photo is a path or RGB, uint8 (H, W, 3), not {image.dtype} {image.shape}')
        pixels = self.shrink(image)
        return prediction.complete(pixels, self.look(pixels), image.shape[:2], self.after)

    @property
    def shrink(self):
        """What is done to a photo before the network sees it: a function of uint8 (H, W, 3)."""
        return functools.partial(prediction.shrunk, max_side=self.args.max_side)

    def look(self, pixels):
        """What the network says of a photo, uint8 (h, w, 3), as self.after takes it."""
        raise NotImplementedError  # abstract: OfDeepLab and OfStep1 have their own

    def decided(self, network, flags):
        """The flags `flags` and those that all networks have, as `decides`; the CRF's only where there is one."""
        flags = ('max_side', 'scales', *flags, 'amp', 'crf', *(('crf_iters', 'crf_engine') if self.args.crf else ()))
        return {'network': network, 'class_names': self.after.classes.names,
                **{flag: getattr(self.args, flag) for flag in flags}}


class OfDeepLab(Predictor):
    """A DeepLab: probabilities of all classes. METHOD 7.2. name: as network.deeplab calls it. state: its tensors."""

    def __init__(self, args, classes, device, name, state):
        for flag, absent in OF_STEP_1.items():
            if getattr(args, flag) != absent:
                raise UserError(f'--{flag}', f'is of networks of Step 1, and {args.weights} holds a DeepLab',
                                'leave it out')
        self.args, self.device = args, device
        self.config = Config(MODEL_NAME=name.split('_', 1)[0], TEST_MULTISCALE=tuple(args.scales), TEST_FLIP=args.flip,
                             **backbone_of(args, name.split('_', 1)[1]))
        net = model.trained(self.config, args.weights, classes.num_classes, state)
        self.net = to_device(net, device, args.amp).eval()
        args.crf_iters = args.crf_iters or DEEPLAB.iterations
        self.after = prediction.OfProbabilities(classes, args.crf_iters if args.crf else None, engine_of(args, device))
        self.decides = self.decided(self.config.network_in_words, ('flip',))

    def look(self, pixels):
        """Probabilities, float32 (C, h, w)."""
        image = segmentation.normalise(pixels)
        # All scales go to the device before the network starts: a copy from ordinary memory would wait for it.
        scaled = [segmentation.at_scale(image, scale).to(self.device)
                  for scale in inference.scales_of(self.config.TEST_MULTISCALE)]
        logits = inference.logits(self.net, scaled, pixels.shape[:2], self.config, self.device, self.args.amp)[1]
        return logits.softmax(0).cpu().numpy()


class OfStep1(Predictor):
    """A classifier of Step 1: CAMs of the classes that it believes in, or that the user names. METHOD 4.1, 4.4."""

    def __init__(self, args, classes, device, state):
        fill_in(args, state)
        self.recipe = cli.chosen_recipe(args, 'infer')
        self.named = None if args.classes is None else indices(args.classes, classes)
        self.args, self.device = args, device
        self.net = network_for_inference(args, device, self.recipe, num_classes=classes.num_classes)
        print(f'--baseline {args.baseline}, --network {args.network}')
        settings = SeedSettings(args.background_score, self.recipe.seed_crf, self.recipe.crf_iters,
                                self.recipe.crf_alpha, classes, engine_of(args, device))
        self.after = prediction.OfCams(settings, args.crf, None if self.named is not None else args.class_score)
        flags = ['background_score', 'baseline', 'map', 'background_last']
        flags.append('class_score' if self.named is None else 'classes')
        self.decides = self.decided(cli.network_in_words(args), flags)

    def look(self, pixels):
        """A prediction.Cams. The classifier scores the photo at its own scale, without the flip."""
        # As in OfDeepLab.look.
        images = {scale: transforms.at_scale(pixels, scale).to(self.device) for scale in {1, *self.args.scales}}
        with torch.inference_mode():
            with autocast(self.device, self.args.amp):
                logits = self.net.class_logits(images[1][None])
            scores, present = logits[0].float().sigmoid(), self.named
            if present is None:
                scores = scores.cpu()
                present = np.flatnonzero(scores.numpy() >= self.args.class_score)
            scaled = (images[scale] for scale in self.args.scales)
            cams = photo_cams(self.net, self.recipe, pixels, scaled, torch.from_numpy(present), self.device,
                              self.args.amp)
        return prediction.Cams(present, *arrays(cams, scores))


def class_set(args):
    """The ClassSet: of --dataset or, where it is not given, of the names that the <session>.json beside the weights
    holds, else VOC's. UserError: weights that were trained on other classes."""
    stored = runinfo.settings_of(args.weights).get('classes')
    classes = read_dataset(args.dataset or 'voc12').classes
    if not args.dataset and isinstance(stored, list) and stored != list(classes.foreground):
        return trained_classes(args.weights, stored)
    runinfo.check_classes(args.weights, classes)
    return classes


def backbone_of(args, seen):
    """{'MODEL_BACKBONE', 'MODEL_STRIDE'} of a DeepLab: of --backbone and --stride, else as the <session>.json beside
    the weights says. seen: the backbone by the tensors' names, which do not tell timm's networks apart, nor strides.

    UserError: a network of timm that neither names.
    """
    stored, stride = names.recorded(runinfo.settings_of(args.weights), 'MODEL_BACKBONE', 'MODEL_STRIDE')
    backbone = args.backbone or (stored if seen == 'timm' else seen)
    if seen == 'timm' and not backbone.startswith(names.TIMM):
        raise UserError('--backbone', f'{args.weights} holds a DeepLab on a network of timm, and no <session>.json '
                                      'beside it says which', 'give its name, with --stride if that was 16')
    return {'MODEL_BACKBONE': backbone, 'MODEL_STRIDE': args.stride or stride}


def engine_of(args, device):
    """The CrfEngine that --crf asks for."""
    return chosen_engine(args.crf_engine, device) if args.crf else CrfEngine()


def fill_in(args, state):
    """Fill in Step 1's flags that cli.chosen_recipe does not: scores, and eps_plain for a network without PCM of which
    nothing else is known."""
    if args.baseline is None and 'baseline' not in runinfo.settings_of(args.weights) and 'f9.weight' not in state:
        args.baseline = 'eps_plain'
    args.class_score = CLASS_SCORE if args.class_score is None else args.class_score
    args.background_score = BACKGROUND_SCORE if args.background_score is None else args.background_score


def indices(wanted, classes):
    """The foreground indices of class names, ascending, int64 (K,). UserError naming one that the ClassSet lacks."""
    for name in wanted:
        if name not in classes.foreground:
            raise UserError('--classes', f'{name!r} is no class of {classes.name}',
                            f'choose from {", ".join(classes.foreground)}')
    return np.array(sorted({classes.foreground.index(name) for name in wanted}), np.int64)
