"""Make the small backbone that the demo starts from: the stand-in for ImageNet weights.

    python voc12/toy_pretrain.py --out voc12/toy_backbone.pth

Reads:  nothing but the graphics of the toy VOC (voc12/toy.py), from which it draws its own images.
Writes: <out>, the state dict of a ResNet-38 (network/resnet38d.py) of width 1/8 in float16, BatchNorm statistics
        included; rewritten every --save_every steps.

Two stages, both with one cycle of the learning rate and trainable BatchNorm. First single things are told apart (all
classes and distractors, close views); the network has strides where it is later dilated, so that this is cheap.
Then the dilated network learns which classes are in a scene, from image-level labels only. The scenes are of another
seed than any toy set should use. At the end the plain CAMs of the second stage's head are scored on the toy set.
About half an hour on two cores with bfloat16 arithmetic.
"""
import functools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository, whatever the working directory

import cv2
import numpy as np

from tool import cli, files, parallel
from voc12 import toy
from voc12.classes import VOC
from voc12.toy_glyphs import THINGS

CROP_SIDE = 64
SCENE_SIDES = (80, 96, 112)  # pixels; one is drawn for each batch


# ---------------------------------------------------------------- images in memory

def crop_of(number, seed):
    """The close view with this number: (image uint8 (64, 64, 3), index into THINGS)."""
    index = number % len(THINGS)
    return toy.make_crop(np.random.default_rng([seed, 1, number]), THINGS[index], CROP_SIDE), index


def scene_of(number, seed):
    """The scene with this number: (image uint8 (H, W, 3), label float32 (20,))."""
    image, _, _, boxes = toy.numbered_scene(seed, number)
    return image, image_label(boxes)


def image_label(boxes):
    """Which foreground classes the boxes name: float32 0/1, one entry a class."""
    present = {box[0] for box in boxes}
    return np.array([name in present for name in VOC.foreground], np.float32)


def normalise(image):
    """An image (H, W, 3), 0..255, as the networks take it: float32, ImageNet mean and deviation."""
    from tool.transforms import MEAN, STD
    return (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)


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
    """A scene scaled by 0.6 to 1.6, flipped, jittered, cut or zero-padded to a square at random: float32."""
    scale = 1.6 ** rng.uniform(-1.09, 1)
    scaled = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    scaled = jitter(rng, scaled[:, ::-1] if rng.random() < .5 else scaled)
    out = np.zeros((side, side, 3), np.float32)
    source, target = [], []
    for length in scaled.shape[:2]:
        free = side - length
        offset = int(rng.integers(0, abs(free) + 1))
        source.append(slice(0, length) if free >= 0 else slice(offset, offset + side))
        target.append(slice(offset, offset + length) if free >= 0 else slice(0, side))
    out[tuple(target)] = scaled[tuple(source)]
    return out


# ---------------------------------------------------------------- networks

def strided(net):
    """Put strides of 2 where a ResNet38 is dilated (b5, b6). The state dict keeps its keys and shapes."""
    from torch import nn
    for block in (net.b5, net.b6):
        block.conv_branch2a.stride = block.conv_branch1.stride = (2, 2)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = module.padding = (1, 1)
    return net


def initialise(net):
    """He initialisation; blocks with an identity shortcut begin as the identity (their last convolution is zero)."""
    from torch import nn
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    for _, block in net.blocks():
        if block.conv_branch1 is None:
            nn.init.zeros_(block.conv_branch2b1.weight)


def with_head(backbone, outputs):
    """The backbone with a linear map on conv6, without bias as in the CAM networks: a module with .backbone, .head."""
    from torch import nn
    head = nn.Conv2d(backbone.channels['conv6'], outputs, 1, bias=False)
    nn.init.normal_(head.weight, std=.01)
    return nn.ModuleDict({'backbone': backbone, 'head': head})


def score_map(net, x):
    """Images (N, 3, H, W) → class scores at every position (N, outputs, h, w)."""
    return net['head'](net['backbone'].features(x)['conv6'])


def to_batch(images):
    """Normalised images (H, W, 3) of one size → tensor (N, 3, H, W)."""
    import torch
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
    import torch
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
    import torch
    crops = parallel.map_images(functools.partial(crop_of, seed=args.seed), range(args.crops), args.num_workers, 'close views')
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
            batch = to_batch([normalise(image) for image in images[i:min(i + 64, held_out)]])
            right += (score_map(net, batch).mean((2, 3)).argmax(1) == labels[i:min(i + 64, held_out)]).sum().item()
        return f'held-out accuracy {100 * right / held_out:.1f}'

    train(net, draw_batch, torch.nn.functional.cross_entropy, args.crop_steps, 3e-3, check, args.save_every, 'crops')


def without_dropout(net):
    """Switch the spatial dropout of the two bottleneck blocks off: training this short is better without it."""
    for block in (net.b6, net.b7):
        block.dropout_2b1.p = block.dropout_2b2.p = 0.
    return net


def pretrain_on_scenes(backbone, args):
    """Stage 2: which classes a scene shows, from image-level labels. Trains `backbone` in place; returns the net."""
    import torch
    from network.resnet38d import FrozenResNet38
    scenes = parallel.map_images(functools.partial(scene_of, seed=args.seed), range(args.scenes), args.num_workers, 'scenes')
    labels = torch.from_numpy(np.stack([scene[1] for scene in scenes]))
    rng = np.random.default_rng([args.seed, 3])
    net = with_head(backbone, VOC.num_foreground)
    # The layers that Step 1 does not train either; at full resolution they would take a quarter of the time.
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
    import torch
    state = {key: value.half() if value.is_floating_point() else value.clone()
             for key, value in backbone.state_dict().items()}
    with files.atomic(path) as temporary:
        torch.save(state, temporary)


# ---------------------------------------------------------------- evaluation

def evaluate(net, count, seed=0):
    """Score the plain CAMs and the classification on `count` train images of the default toy set.

    Single scale, ReLU, each present class divided by its maximum. Returns mIoU (background included) at each of
    the thresholds metrics.CURVE, and mAP; both in percent.
    """
    import torch
    from tool import cam, metrics
    net.eval()
    histogram = np.zeros((VOC.num_classes, VOC.num_foreground, len(metrics.CURVE) + 1), np.int64)
    scores, labels = [], []
    for number in range(count):
        image, mask, _, boxes = toy.numbered_scene(seed, number)
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
    """One line about an evaluation."""
    return f'plain CAM mIoU {curve.max():.1f} at threshold {curve.argmax() / len(curve):.2f}  mAP {mean_ap:.1f}'


# ---------------------------------------------------------------- command line

def get_args_parser():
    parser = cli.ArgumentParser(description='Pretrain the small backbone of the demo.')
    parser.add_argument('--out', default=str(cli.REPO / 'voc12' / 'toy_backbone.pth'), help='weights file to write')
    parser.add_argument('--crops', type=cli.positive, default=24000, help='close views to draw for stage 1')
    parser.add_argument('--crop_steps', type=cli.positive, default=2400, help='steps of stage 1, of 64 images')
    parser.add_argument('--crop_weights', help='begin with stage 2, from these weights (of an interrupted run: its --out)')
    parser.add_argument('--scenes', type=cli.positive, default=10000, help='scenes to draw for stage 2')
    parser.add_argument('--scene_steps', type=cli.positive, default=4500, help='steps of stage 2, of 16 images')
    parser.add_argument('--save_every', type=cli.positive, default=500, help='steps between saving and log lines')
    parser.add_argument('--check_images', type=cli.positive, default=200,
                        help='toy images on which each saved state is scored; three times as many at the end')
    parser.add_argument('--seed', type=cli.non_negative, default=20220624,
                        help='seed; keep it apart from the seeds of toy sets, or their images are trained on')
    cli.add_worker_flag(parser)
    return parser


def main(args):
    import torch
    from network import weights
    from network.resnet38d import ResNet38
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # on a CPU, numbers under 1e-38 cost a hundred ordinary ones
    files.out_dir(Path(args.out).parent, '--out')
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
    backbone.load_state_dict(torch.load(args.out, weights_only=True))  # what is reported holds for the rounded weights
    print(f'{args.out}: {report(*evaluate(net, 3 * args.check_images))}')


if __name__ == '__main__':
    cli.run(main, get_args_parser())
