"""DeepLab on the device: a training step, and the multi-scale test of a photo."""
import torch

from benchmarks import inputs, work
from benchmarks.gpu_parts.measure import BEST, Row, attempt_mode, placed, speed
from data import segmentation as data
from engine.device import autocast
from network import deeplab as networks
from segmentation import inference
from segmentation.experiment.config import Config
from segmentation.losses import segmentation_loss
from voc12.classes import VOC

NAMES = 'deeplabv1_resnet38', 'deeplabv2_resnet101'  # of SEAM's and of EPS's experiment


def rows(settings):
    """Rows of both networks; a trial runs only the ResNet-38, whose width can be scaled down."""
    config, device = Config(), settings.place
    batch, crop, photo = (2, 64, (40, 52)) if settings.tiny else (config.TRAIN_BATCHES, config.DATA_RANDOMCROP,
                                                                  inputs.SIZE)
    for name in NAMES[:1] if settings.tiny else NAMES:
        def train(mode):
            return speed(training_step(network(name, mode, settings), device, mode.amp, batch, crop), batch, settings)

        def test(mode):
            return speed(photo_probabilities(network(name, mode, settings), device, mode.amp, photo), 1, settings)

        for precision in BEST:
            size = f'{name}, crop {crop}, batch {batch}'
            yield attempt_mode(Row('deeplab', 'segmentation_train', size, precision), settings, train)
            size = f'{name}, photo {photo[0]}x{photo[1]}'
            yield attempt_mode(Row('deeplab', 'segmentation_test', size, precision), settings, test)


def network(name, mode, settings):
    """A DeepLab with random weights, on the device."""
    width = 1 / 16 if settings.tiny else 1.
    with torch.device(settings.place):
        net = inputs.network(networks.build, name=name, num_classes=VOC.num_classes, width=width)
    return placed(net, mode, settings.place)


def training_step(net, device, amp, batch, crop):
    """A step of segmentation/experiment/train.py, from a batch on the device."""
    config = Config()
    training = work.Training(net, device, amp, config.TRAIN_MOMENTUM)
    image = inputs.images(batch, crop).to(device)
    mask = work.cell_labels(batch, crop).long().to(device)

    def step():
        with autocast(device, amp):
            logits = net(image)
        return training.update({'loss_seg': segmentation_loss(logits.float(), mask)}, {'loss_seg': 1.})

    return step


def photo_probabilities(net, device, amp, size):
    """segmentation/experiment/test.py's network on a photo: probabilities (C, H, W) of all scales and flips."""
    config, net = Config(), net.eval()
    image = data.normalise(inputs.photo(*size))
    scaled = [work.on_host(data.at_scale(image, scale), device)
              for scale in inference.scales_of(config.TEST_MULTISCALE)]

    def infer():
        single, multi = inference.logits(net, scaled, size, config, device, amp)
        return [scores.softmax(0).cpu().numpy() for scores in (single, multi)]

    return infer
