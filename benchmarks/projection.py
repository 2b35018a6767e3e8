"""The full VOC run (10,582 images, three steps) in hours, from the stages measured at the sizes of that run.

Networks: the floating-point operations of each pass are counted at full size and width 1 without running them, and cost
what an operation cost in the 'cam_inference' stage (width 1). All else: the measured CPU time of an image.
"""
import statistics

import torch

from benchmarks import inputs
from contrast_infer import SCALES
from network import deeplab, resnet38_aff, resnet38_contrast
from reference.networks import contrast_forward
from segmentation.experiment.config import Config
from voc12.classes import VOC

TRAIN, VAL, EPOCHS, DEEPLAB_IMAGES = 10582, 1449, 8, 20_000 * 10
CROP, VIEW2_SIDE = 448, 128
NEEDED = ('cam_inference', 'contrast_loss', 'data_loading', 'crf', 'aff_prepare', 'affinity_labels', 'random_walk')


def full_run(results):
    """[{'part', 'images', 'ours', 'published': (core-hours of the network, of all else)}]; [] where a stage is missing.

    results: {stage name: result of frame.run}.
    """
    if not all(name in results for name in NEEDED):
        return []
    flops = network_flops()
    rows = []
    for part, images, network, loss_stages, other_stages in (
            ('Step 1, training', TRAIN * EPOCHS, 'contrast_train', ['contrast_loss'], ['data_loading']),
            ('Step 1, CAMs and CRF', TRAIN, 'contrast_infer', [], ['crf']),
            ('Step 2, aff_prepare', TRAIN, None, [], ['aff_prepare']),
            ('Step 2, training', TRAIN * EPOCHS, 'aff_train', [], ['affinity_labels']),
            ('Step 2, random walk', TRAIN, 'aff_infer', [], ['random_walk']),
            ('Step 3, training', DEEPLAB_IMAGES, 'deeplab_train', [], []),
            ('Step 3, multi-scale test on val', VAL, 'deeplab_test', [], [])):
        row = {'part': part, 'images': images}
        for side in ('ours', 'published'):
            seconds = {name: statistics.median_high(results[name][side]['cpu']) for name in NEEDED}
            per_flop = seconds['cam_inference'] / results['cam_inference']['flops']
            network_seconds = per_flop * flops.get(network, 0) + sum(seconds[name] for name in loss_stages)
            other = sum(seconds[name] for name in other_stages)
            row[side] = network_seconds * images / 3600, other * images / 3600
        rows.append(row)
    return rows


def network_flops():
    """Operations of one image in each use of a network: {use: number}. Counted on shapes alone (PyTorch's meta device).

    A training pass counts three forward passes (gradients of inputs and of weights cost one each).
    """
    with torch.device('meta'):
        net, aff = resnet38_contrast.Net(VOC.num_classes).eval(), resnet38_aff.Net().eval()
        segment = deeplab.build('deeplabv1_resnet38', VOC.num_classes).eval()

    def contrast(x):
        return contrast_forward(net, x)  # the same operations; net.view asks for autocast, which the meta device lacks

    def forward(call, height, width):
        with torch.no_grad():
            return inputs.flops_of(lambda: call(torch.empty(1, 3, round(height), round(width), device='meta')))

    def scales(call, factors):
        height, width = inputs.SIZE
        return 2 * sum(forward(call, height * factor, width * factor) for factor in factors)

    return {'contrast_train': 3 * (forward(contrast, CROP, CROP) + forward(contrast, VIEW2_SIDE, VIEW2_SIDE)),
            'contrast_infer': scales(contrast, SCALES),
            'aff_train': 3 * forward(aff, CROP, CROP), 'aff_infer': forward(aff, *inputs.SIZE),
            'deeplab_train': 3 * forward(segment, CROP, CROP),
            'deeplab_test': scales(segment, Config().TEST_MULTISCALE)}
