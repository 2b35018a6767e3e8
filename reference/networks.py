"""The networks' forward passes as published: one image at a time, all channels, a dense PCM.

METHOD 1.1 to 1.3, 1.6, 4.1, 7.2. They run on the layers of our networks, whose names are the published ones.
Plain twin of network/resnet38d.py: ResNet38.features; network/resnet38_contrast.py: Net.forward; network/heads.py:
revise (pcm); tool/cam.py: multi_scale, score_norm (multi_scale_cams); network/deeplab.py: DeepLab.forward;
segmentation/inference.py: logits (multi_scale_logits).
"""
import numpy as np
import torch
import torch.nn.functional as F

EPSILON = 1e-5


def enlarge(maps, size):
    """Maps (N, C, h, w) → (N, C, *size), bilinear, corners aligned."""
    return F.interpolate(maps, size, mode='bilinear', align_corners=True)


def residual(block, x):
    """A pre-activation block of ResNet-38 → output, activated input."""
    activated = F.relu(block.bn_branch2a(x))
    shortcut = x if block.conv_branch1 is None else block.conv_branch1(activated)
    y = F.relu(block.bn_branch2b1(block.conv_branch2a(activated)))
    if hasattr(block, 'dropout_2b1'):
        y = block.conv_branch2b1(block.dropout_2b1(y))
        y = block.conv_branch2b2(block.dropout_2b2(F.relu(block.bn_branch2b2(y))))
    else:
        y = block.conv_branch2b1(y)
    return y + shortcut, activated


def resnet38(net, x):
    """Image x (N, 3, H, W) → conv4, conv5, conv6 (METHOD 1.1)."""
    x = net.conv1a(x)
    for name in ('b2', 'b2_1', 'b2_2', 'b3', 'b3_1', 'b3_2', 'b4', 'b4_1', 'b4_2', 'b4_3', 'b4_4', 'b4_5'):
        x, _ = residual(getattr(net, name), x)
    x, conv4 = residual(net.b5, x)
    x, _ = residual(net.b5_1, x)
    x, _ = residual(net.b5_2, x)
    x, conv5 = residual(net.b6, x)
    x, _ = residual(net.b7, x)
    return conv4, conv5, F.relu(net.bn7(x))


def deeplab_forward(net, x):
    """A DeepLab: logits (N, C, H, W). The head is the network's own."""
    backbone = net.backbone
    if hasattr(backbone, 'conv1a'):
        features = resnet38(backbone, x)[-1]
    else:
        features = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(x))))
        for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
            features = layer(features)
    return enlarge(net.head(features), x.shape[2:])


def contrast_forward(net, x):
    """resnet38_contrast: CAM and revised CAM at image size, features and revised CAM at stride 8."""
    conv4, conv5, top = resnet38(net, x)
    top = net.dropout7(top)
    cam = net.fc8(top)
    projected = F.relu(net.fc_proj(top))
    n, c, h, w = cam.shape
    with torch.no_grad():
        spread = F.relu(cam.detach())
        highest = torch.max(spread.view(n, c, -1), dim=-1)[0].view(n, c, 1, 1) + EPSILON
        spread = F.relu(spread - EPSILON) / highest
        spread[:, 0] = 1 - torch.max(spread[:, 1:], dim=1)[0]
        strongest = torch.max(spread[:, 1:], dim=1, keepdim=True)[0]
        spread[:, 1:][spread[:, 1:] < strongest] = 0
    low, high = F.relu(net.f8_3(conv4.detach())), F.relu(net.f8_4(conv5.detach()))
    revised = pcm(spread, net.f9(torch.cat([enlarge(x, (h, w)), low, high], dim=1)))
    return enlarge(cam, x.shape[2:]), enlarge(revised, x.shape[2:]), projected, revised


def pcm(spread, features):
    """The PCM's product with its dense affinity matrix: spread (N, C, h, w), features (N, D, h, w) → (N, C, h, w)."""
    n, _, h, w = spread.shape
    features = features.view(n, -1, h * w)
    features = features / (torch.norm(features, dim=1, keepdim=True) + EPSILON)
    affinity = F.relu(torch.matmul(features.transpose(1, 2), features))
    affinity = affinity / (torch.sum(affinity, dim=1, keepdim=True) + EPSILON)
    return torch.matmul(spread.view(n, -1, h * w), affinity).view(n, -1, h, w)


def multi_scale_cams(net, pairs, label, size):
    """contrast_infer.py's CAMs of one image: {foreground index from 0: float32 (H, W)} of the present classes.

    pairs: (2, 3, h, w) per scale, the image and its flip. label: array (20,). size: (H, W) of the image.
    """
    maps = []
    for pair in pairs:
        for flipped in (False, True):
            with torch.no_grad():
                _, revised, _, _ = contrast_forward(net, pair[flipped:flipped + 1])
                cam = F.interpolate(revised[:, 1:], size, mode='bilinear', align_corners=False)[0]
            cam = cam.cpu().numpy() * label.reshape(-1, 1, 1)
            maps.append(np.flip(cam, axis=-1) if flipped else cam)
    total = np.sum(maps, axis=0)
    total[total < 0] = 0
    highest, lowest = np.max(total, (1, 2), keepdims=True), np.min(total, (1, 2), keepdims=True)
    total[total < lowest + EPSILON] = 0
    normalised = (total - lowest - EPSILON) / (highest - lowest + EPSILON)
    return {k: normalised[k] for k in range(len(label)) if label[k] > 1e-5}


def multi_scale_logits(net, images, size):
    """The segmentation test's mean of logits (C, H, W) at `size`, over scales and flips, one pass for each.

    images: the image at every scale, (3, h, w).
    """
    total = 0
    with torch.no_grad():
        for image in images:
            x = image[None]
            straight, flipped = deeplab_forward(net, x), torch.flip(deeplab_forward(net, torch.flip(x, [3])), [3])
            total = total + enlarge(straight, size) + enlarge(flipped, size)
    return (total / (2 * len(images)))[0]
