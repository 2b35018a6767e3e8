"""One pass of the network over an image's scales, for the single-scale and the multi-scale result at once."""
import torch

from tool import cli
from tool.cam import resize


def scales_of(multi):
    """The scales to load: 1, which the single-scale result needs, then the others of `multi`."""
    return [1.0] + [scale for scale in multi if scale != 1]


@torch.no_grad()
def logits(net, scaled, size, config, device, amp):
    """Logits of one image: single-scale and multi-scale, both float32 (C, H, W) on `device`.

    scaled: the image at scales_of(config.TEST_MULTISCALE), float32 (3, h, w) each. size: (H, W) of the image.
    Single-scale: the image as it is, without its mirror image. Multi-scale: the mean over TEST_MULTISCALE and, with
    TEST_FLIP, the mirror images; the network brings logits to the size of its input, from there they go to `size`.
    """
    single, total = None, 0
    for scale, image in zip(scales_of(config.TEST_MULTISCALE), scaled):
        x = image[None].to(device, non_blocking=True)
        if config.TEST_FLIP and scale in config.TEST_MULTISCALE:
            x = torch.cat([x, x.flip(3)])
        with cli.autocast(device, amp):
            y = net(x)
        y = resize(y.float(), size)
        single = y[0] if single is None else single
        if scale in config.TEST_MULTISCALE:
            total = total + (y[0] + y[1].flip(2) if len(y) > 1 else y[0])
    return single, total / (len(config.TEST_MULTISCALE) * (2 if config.TEST_FLIP else 1))
