"""The DeepLab test of Step 3, the evaluation, the start-up of a script."""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import inputs
from benchmarks.frame import Case
from data import segmentation as data
from data.cams import save_cams
from data.classes import ClassSet
from data.masks import save_mask
from engine import files
from engine.device import to_device
from engine.evaluation import evaluate_cams
from engine.files import REPO
from network import deeplab as networks
from reference import curve as published
from reference.networks import multi_scale_logits
from segmentation import inference
from segmentation.experiment import config as configs
from tool.metrics import CURVE, IGNORE
from voc12.classes import VOC


def deeplab(options, size, name='deeplabv2_resnet101', width=1.0):
    """Multi-scale logits of one photo: six scales and their flips, without the CRF."""
    device = torch.device(options.device)
    config = configs.Config()
    net = inputs.network(networks.build, name=name, num_classes=VOC.num_classes, width=width)
    net = to_device(net, device, 'off').eval()
    image = data.normalise(inputs.photo(*size))
    scaled = [data.at_scale(image, scale) for scale in inference.scales_of(config.TEST_MULTISCALE)]
    order = [inference.scales_of(config.TEST_MULTISCALE).index(scale) for scale in config.TEST_MULTISCALE]

    def ours():
        return inference.logits(net, scaled, size, config, device, 'off')[1].cpu()

    def theirs():
        return multi_scale_logits(net, [scaled[k].to(device) for k in order], size).cpu()

    return Case(ours, theirs, lambda a, b: inputs.close(a, b, 1e-4, 'logits'), flops=lambda: inputs.flops_of(ours))


def write_images(folder, images, size, num_foreground):
    """Write synthetic CAMs (one to three classes) and ground truth of `size` (H, W) under `folder`. Returns the ids."""
    rng = np.random.default_rng(0)
    ids = [f'{n:06d}' for n in range(images)]
    for name in ('cam', 'gt'):
        files.out_dir(folder / name, '--out')
    for image in ids:
        keys = rng.choice(num_foreground, rng.integers(1, 4), replace=False)
        save_cams(folder / 'cam' / f'{image}.npy', keys, [rng.random(size, np.float32) for _ in keys])
        gt = rng.choice([0, IGNORE, *(keys + 1)], [side // 8 + 1 for side in size]).astype(np.uint8)
        save_mask(folder / 'gt' / f'{image}.png', gt.repeat(8, 0).repeat(8, 1)[:size[0], :size[1]], VOC.palette)
    return ids


def curve(options, images=200, size=inputs.SIZE, num_classes=VOC.num_classes):
    """eval.py --curve on files: 60 background scores. The published side reads all files again for each score; two of
    its passes are timed.
    """
    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name)
    classes = ClassSet('numbered', tuple(f'class {k}' for k in range(1, num_classes)))
    ids = write_images(root, images, size, classes.num_foreground)
    some = CURVE[::30]

    def ours(_=folder):  # the argument keeps the temporary folder alive
        return evaluate_cams(ids, root / 'cam', root / 'gt', classes, CURVE).miou

    def theirs():
        return published.curve(ids, root / 'cam', root / 'gt', num_classes, some)

    read = images * size[0] * size[1] * (2 * 4 + 1)
    return Case(ours, theirs, lambda a, b: inputs.close(a[::30], b, 1e-6, 'mIoU'), bytes=read, single_core=True,
                published_fraction=len(some) / len(CURVE))


def start_up(options):
    """`contrast_train.py --help`. Published: torch, torchvision and the networks are imported before the flags are
    read.
    """
    script = 'import torch, torchvision, numpy, PIL, scipy.sparse; from torch.utils.tensorboard import SummaryWriter'

    def ours():
        command = [sys.executable, REPO / 'contrast_train.py', '--help']
        return subprocess.run(command, check=True, capture_output=True).stdout

    def theirs():
        subprocess.run([sys.executable, '-c', script], check=True, capture_output=True)

    def check(text, _):
        assert b'--weights' in text
        return 'the help is printed'

    return Case(ours, theirs, check, single_core=True, in_process=False)
