"""How toy/pretrain.py trains the small backbone: images in memory, the two stages, the score on the toy set."""
import functools
import time

import cv2
import numpy as np
import torch
from torch import nn

from data.crop import CropWindow
from data.transforms import normalise
from engine import parallel
from engine.checkpoint import save_tensors
from network import weights
from network.resnet38d import BLOCKS, FrozenResNet38, ResNet38
from tool import cam, metrics
from toy import make
from toy.glyphs import THINGS
from voc12.classes import VOC

CROP_SIDE = 64
SCENE_SIDES = (80, 96, 112)  # pixels; each batch draws a side


# ---------------------------------------------------------------- images in memory

def crop_of(number, seed):
    """The close view with this number: (image uint8 (64, 64, 3), index into THINGS)."""
    index = number % len(THINGS)
    return make.make_crop(np.random.default_rng([seed, 1, number]), THINGS[index], CROP_SIDE), index


def scene_of(number, seed):
    """The scene with this number: (image uint8 (H, W, 3), label float32 (20,))."""
    image, _, _, boxes = make.numbered_scene(seed, number)
    return image, image_label(boxes)


def image_label(boxes):
    """Which foreground classes the boxes name: float32 0/1, one entry a class."""
    present = {box[0] for box in boxes}
    return np.array([name in present for name in VOC.foreground], np.float32)


def jitter(rng, image):
    """Change light, contrast and colour cast of an image (H, W, 3) 0..255, and normalise it: float32."""
    gain = rng.uniform(.75, 1.25) * rng.uniform(.92, 1.08, 3).astype(np.float32)
    light = (image - np.float32(128)) * gain + (128 + rng.uniform(-20, 20))
    return normalise(light)


def augment_crop(rng, image):
    """A close view flipped, shifted by up to 6 pixels (edges repeated) and jittered: float32 (64, 64, 3)."""
    dy, dx = rng.integers(-6, 7, 2)
    shifted = image[np.clip(np.arange(CROP_SIDE) + dy, 0, CROP_SIDE - 1)]
    shifted = shifted[:, np.clip(np.arange(CROP_SIDE) + dx, 0, CROP_SIDE - 1)]
    return jitter(rng, shifted[:, ::-1] if rng.random() < .5 else shifted)


def augment_scene(rng, image, side):
    """A scene randomly scaled by 0.6 to 1.6, flipped, jittered, and cut or zero-padded to a square: float32."""
    scale = 1.6 ** rng.uniform(-1.09, 1)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)
    scaled = jitter(rng, scaled[:, ::-1] if rng.random() < .5 else scaled)
    window = CropWindow(side, *scaled.shape[:2], lambda largest: int(rng.integers(0, largest + 1)))
    return window.paste(window.cut(scaled.transpose(2, 0, 1))).transpose(1, 2, 0)


# ---------------------------------------------------------------- networks

def strided(net):
    """Put strides of 2 where a ResNet38 is dilated (b5, b6). The state dict keeps its keys and shapes."""
    for block in (net.b5, net.b6):
        block.conv_branch2a.stride = block.conv_branch1.stride = (2, 2)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = module.padding = (1, 1)
    return net


def initialise(net):
    """He initialisation; blocks with an identity shortcut begin as the identity (their last convolution is zero)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    for name in BLOCKS:
        block = getattr(net, name)
        if block.conv_branch1 is None:
            nn.init.zeros_(block.conv_branch2b1.weight)


def with_head(backbone, outputs):
    """ModuleDict of 'backbone' and 'head', a 1×1 convolution of the high level without bias, as in the CAM networks."""
    head = nn.Conv2d(backbone.channels['high'], outputs, 1, bias=False)
    nn.init.normal_(head.weight, std=.01)
    return nn.ModuleDict({'backbone': backbone, 'head': head})


def score_map(net, x):
    """Images (N, 3, H, W) → class scores of every cell (N, outputs, h, w)."""
    return net['head'](net['backbone'].features(x)['high'])


def to_batch(images):
    """Normalised images (H, W, 3) of one size → tensor (N, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().contiguous()


# ---------------------------------------------------------------- training

def one_cycle(step, steps):
    """Factor on the learning rate: up in a straight line over a tenth of the steps, then down half a cosine to 0."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return .5 * (1 + np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up)))


def train(net, draw_batch, criterion, steps, lr, check, check_every, name, frozen=()):
    """AdamW with one cycle of the learning rate down to almost zero.

    draw_batch(step) → images (N, 3, H, W), targets; criterion(pooled scores (N, outputs), targets) → loss.
    check(step) is called every check_every steps and after the last; what it returns goes to the log.
    frozen: modules that are trained in the first tenth of the steps only, BatchNorm statistics included.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(one_cycle, steps=steps))
    start, losses = time.time(), []
    for step in range(1, steps + 1):
        net.train()
        for module in frozen if step > steps // 10 else ():
            module.eval().requires_grad_(False)
        images, targets = draw_batch(step)
        with torch.autocast('cpu', torch.bfloat16):
            scores = score_map(net, images)
        loss = criterion(scores.float().mean((2, 3)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise ArithmeticError(f'{name}: the loss is {losses[-1]} at step {step}')
        if step % check_every == 0 or step == steps:
            print(f'{name} step {step}/{steps}  loss {np.mean(losses):.4f}  {check(step)}  {time.time() - start:.0f} s',
                  flush=True)
            losses = []


def pretrain_on_crops(backbone, args):
    """Stage 1: classification of single things. Trains `backbone` in place."""
    crops = parallel.map_images(functools.partial(crop_of, seed=args.seed), range(args.crops), args.num_workers,
                                'close views')
    images, labels = [crop[0] for crop in crops], torch.tensor([crop[1] for crop in crops])
    held_out = len(images) // 20
    rng = np.random.default_rng([args.seed, 2])
    net = with_head(backbone, len(THINGS))

    def draw_batch(step):
        chosen = rng.integers(held_out, len(images), 64)
        return to_batch([augment_crop(rng, images[i]) for i in chosen]), labels[chosen]

    @torch.no_grad()
    def check(step):
        net.eval()
        right = 0
        for i in range(0, held_out, 64):
            chosen = slice(i, min(i + 64, held_out))
            batch = to_batch([normalise(image) for image in images[chosen]])
            right += (score_map(net, batch).mean((2, 3)).argmax(1) == labels[chosen]).sum().item()
        return f'held-out accuracy {100 * right / held_out:.1f}'

    train(net, draw_batch, torch.nn.functional.cross_entropy, args.crop_steps, 3e-3, check, args.save_every, 'crops')


def without_dropout(net):
    """Switch off the spatial dropout of the two bottleneck blocks, which makes a training as short as this worse."""
    for block in (net.b6, net.b7):
        block.dropout_2b1.p = block.dropout_2b2.p = 0.
    return net


def pretrain_on_scenes(backbone, args):
    """Stage 2: classification of scenes from image-level labels. Trains `backbone` in place; returns the net."""
    scenes = parallel.map_images(functools.partial(scene_of, seed=args.seed), range(args.scenes), args.num_workers,
                                 'scenes')
    labels = torch.from_numpy(np.stack([scene[1] for scene in scenes]))
    rng = np.random.default_rng([args.seed, 3])
    net = with_head(backbone, VOC.num_foreground)
    # Freeze the layers that Step 1 freezes too: at full resolution they would take a quarter of the time.
    stem = [getattr(backbone, name) for name in FrozenResNet38.not_trained]

    def draw_batch(step):
        chosen, side = rng.integers(0, len(scenes), 16), int(rng.choice(SCENE_SIDES))
        return to_batch([augment_scene(rng, scenes[i][0], side) for i in chosen]), labels[chosen]

    def check(step):
        save_half(backbone, args.out)
        return report(*evaluate(net, args.check_images))

    train(net, draw_batch, torch.nn.functional.multilabel_soft_margin_loss, args.scene_steps, 2e-3, check,
          args.save_every, 'scenes', stem)
    return net


def save_half(backbone, path):
    """Write a backbone's state dict, floating-point tensors as float16."""
    state = {key: value.half() if value.is_floating_point() else value.clone()
             for key, value in backbone.state_dict().items()}
    save_tensors(path, state)


def pretrain(args):
    """Both stages, with the settings of toy/pretrain.py; writes --out and prints what came out."""
    backbone = without_dropout(ResNet38(width=1 / 8))
    if args.crop_weights:
        weights.load_weights(backbone, weights.read_weights(args.crop_weights), args.crop_weights)
    else:
        with_strides = strided(without_dropout(ResNet38(width=1 / 8)))
        initialise(with_strides)
        pretrain_on_crops(with_strides, args)
        backbone.load_state_dict(with_strides.state_dict())
        save_half(backbone, args.out)
    net = pretrain_on_scenes(backbone, args)
    backbone.load_state_dict(torch.load(args.out, weights_only=True))  # the report is of the weights rounded to float16
    print(f'{args.out}: {report(*evaluate(net, 3 * args.check_images))}')


# ---------------------------------------------------------------- evaluation

def evaluate(net, count, seed=0):
    """Score the plain CAMs and the classification on `count` train images of the default toy set.

    Single scale, ReLU, each present class divided by its maximum. Returns mIoU (background included) at each of
    the thresholds metrics.CURVE, and mAP; both in percent.
    """
    net.eval()
    histogram = np.zeros((VOC.num_classes, VOC.num_foreground, len(metrics.CURVE) + 1), np.int64)
    scores, labels = [], []
    for number in range(count):
        image, mask, _, boxes = make.numbered_scene(seed, number)
        label = image_label(boxes)
        with torch.no_grad():
            maps = score_map(net, to_batch([normalise(image)]))
            cams = cam.peak_norm(cam.resize(maps, mask.shape))[0].numpy()
        present = label > 0
        histogram[:, present] += metrics.score_histogram(mask, cams[present], metrics.CURVE, VOC.num_classes)
        scores.append(maps.mean((2, 3))[0].numpy())
        labels.append(label)
    curve = metrics.mean_iou(metrics.curve_confusions(histogram))
    return curve, 100 * metrics.mean_average_precision(np.array(scores), np.array(labels))


def report(curve, mean_ap):
    """An evaluation in a line of text."""
    return f'plain CAM mIoU {curve.max():.1f} at threshold {curve.argmax() / len(curve):.2f}  mAP {mean_ap:.1f}'
