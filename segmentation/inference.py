"""DeepLab's test: a pass over the scales of an image gives the single-scale and multi-scale logits. METHOD 7.2."""
import torch

from engine.crf_workers import write_segmentation
from engine.device import arrays, autocast
from engine.loading import single_items
from engine.parallel import WorkerPool, progress
from tool.cam import resize

LOADERS = 2  # processes that read images, which is quick compared with the network and the CRF


def scales_of(multi):
    """The scales to load: 1, which the single-scale result needs, then the others of `multi`."""
    return [1.0] + [scale for scale in multi if scale != 1]


@torch.no_grad()
def logits(net, scaled, size, config, device, amp):
    """Logits of one image: single-scale and multi-scale, both float32 (C, H, W) on `device`.

    scaled: the image at scales_of(config.TEST_MULTISCALE), float32 (3, h, w) each. size: (H, W) of the image.
    Single-scale: the image as it is, without its flip. Multi-scale: the mean over TEST_MULTISCALE and, with TEST_FLIP,
    the flips. The network resizes logits to its input's size; from that size they are resized to `size`.
    """
    single, total = None, 0
    for scale, image in zip(scales_of(config.TEST_MULTISCALE), scaled):
        x = image[None].to(device, non_blocking=True)
        if config.TEST_FLIP and scale in config.TEST_MULTISCALE:
            x = torch.cat([x, x.flip(3)])
        with autocast(device, amp):
            y = net(x)
        y = resize(y.float(), size)
        single = y[0] if single is None else single
        if scale in config.TEST_MULTISCALE:
            total = total + (y[0] + y[1].flip(2) if len(y) > 1 else y[0])
    return single, total / (len(config.TEST_MULTISCALE) * (2 if config.TEST_FLIP else 1))


def segment(net, dataset, config, output, device, args, title):
    """Predict a data.segmentation.ScaledImages: the network here, CRF and writing in worker processes behind it, or
    here too where the CRF runs on a GPU.

    output: segmentation.predictions.Output. args: flags with num_workers and amp. title: of the progress bar.
    """
    with WorkerPool(output.engine.workers(args.num_workers)) as workers:
        for item in progress(single_items(dataset, min(LOADERS, args.num_workers), device), title, len(dataset)):
            single, multi = logits(net, item['scaled'], item['pixels'].shape[:2], config, device, args.amp)
            scores = {'single': single, 'multi': multi} if 'single' in output.folders else {'multi': multi}
            *probabilities, kept = arrays(*(value.softmax(0) for value in scores.values()),
                                          multi.half() if output.logits else torch.empty(0))
            workers.submit(write_segmentation, output, item['name'], item['pixels'], dict(zip(scores, probabilities)),
                           kept if output.logits else None)
