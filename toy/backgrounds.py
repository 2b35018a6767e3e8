"""Backgrounds of the toy VOC: places, which occur with their classes and so mislead a CAM, and textures."""
import numpy as np

from toy.glyphs import cloud_noise, random_colour

# Which classes belong to which place: rails under trains, water under boats, sky behind aeroplanes.
PLACES = {
    'sky': ('aeroplane', 'bird'),
    'sea': ('boat',),
    'road': ('car', 'bus', 'motorbike', 'bicycle'),
    'rail': ('train',),
    'grass': ('cow', 'sheep', 'horse', 'dog'),
    'room': ('bottle', 'chair', 'diningtable', 'sofa', 'tvmonitor', 'pottedplant', 'cat', 'person')}
PLACE_OF = {name: place for place, names in PLACES.items() for name in names}


def mix(first, second, amount):
    """Two colours (3,) mixed by amount (h, w), 0..1 → (h, w, 3)."""
    amount = amount[..., None]
    return first * amount + second * (1 - amount)


def clouds(rng, height, width, first, second, strength=.35, base=3):
    """Two colours mixed by smooth noise."""
    return mix(first, second, np.clip(.5 + strength * cloud_noise(rng, height, width, base=base), 0, 1))


def stripes(rng, height, width, first, second):
    """Wavy stripes at any angle, 6 to 30 pixels a period, soft or hard."""
    y, x = np.mgrid[:height, :width]
    angle, period, hardness = rng.uniform(0, np.pi), rng.uniform(6, 30), rng.uniform(1, 5)
    phase = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    wave = np.sin(phase + .5 * cloud_noise(rng, height, width, octaves=3)) * hardness
    return mix(first, second, wave.clip(-1, 1) * .5 + .5)


def texture(rng, height, width):
    """A background without a place: clouds, stripes, a gradient, or patches. float32 (height, width, 3), about 0..255.
    """
    first, second = random_colour(rng), random_colour(rng)
    kind = rng.integers(4)
    if kind == 0:
        return clouds(rng, height, width, first, second)
    if kind == 1:
        return stripes(rng, height, width, first, second)
    if kind == 2:
        down, right = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
        ramp = np.broadcast_to(down if rng.random() < .5 else right, (height, width))
        return mix(first, second, ramp) + 12 * cloud_noise(rng, height, width)[..., None]
    patches = (cloud_noise(rng, height, width, octaves=4) > 0).astype(np.float32)
    return mix(first, second, patches) + 8 * cloud_noise(rng, height, width)[..., None]


def sky(rng, height, width):
    """Blue with white clouds."""
    return clouds(rng, height, width, random_colour(rng, .57, (.3, .7), (.7, 1)),
                  random_colour(rng, .6, (0, .15), (.85, 1)), .3)


def sea(rng, height, width):
    """Water with waves that run across."""
    y = np.mgrid[:height, :width][0]
    water = clouds(rng, height, width, random_colour(rng, .56, (.5, .9), (.4, .8)),
                   random_colour(rng, .53, (.3, .7), (.6, .95)), base=6)
    return water + 14 * np.sin(y * rng.uniform(.5, 1.2) + 2 * cloud_noise(rng, height, width, octaves=3))[..., None]


def grass(rng, height, width):
    """Fine mottled green."""
    return clouds(rng, height, width, random_colour(rng, .28, (.5, .9), (.3, .6)),
                  random_colour(rng, .24, (.4, .8), (.5, .8)), base=8)


def road(rng, height, width):
    """Asphalt with a dashed line."""
    y, x = np.mgrid[:height, :width]
    asphalt = random_colour(rng, None, (0, .08), (.3, .55)) + 10 * cloud_noise(rng, height, width, base=12)[..., None]
    asphalt[(abs(y - height * .55) < 2) & (x % 36 < 20)] = 235
    return asphalt


def rail(rng, height, width):
    """Gravel, sleepers and two rails."""
    y, x = np.mgrid[:height, :width]
    gravel = clouds(rng, height, width, random_colour(rng, .08, (.1, .35), (.3, .5)),
                    random_colour(rng, .08, (.05, .2), (.5, .7)), base=16)
    gravel[(x % 14 < 5) & (abs(y - height * .5) < height * .25)] = random_colour(rng, .07, (.3, .5), (.2, .35))
    for line in (.32, .68):
        gravel[abs(y - height * line) < 1.6] = 190
    return gravel


def floor(rng, height, width):
    """Wooden boards."""
    y = np.mgrid[:height, :width][0]
    boards = clouds(rng, height, width, random_colour(rng, .08, (.3, .6), (.4, .7)),
                    random_colour(rng, .08, (.3, .6), (.3, .6)))
    boards[(y + 4 * cloud_noise(rng, height, width, octaves=2)) % 12 < 1] *= .7
    return boards


def wall(rng, height, width):
    """Wallpaper: pale stripes or any texture."""
    if rng.random() < .5:
        return texture(rng, height, width)
    return stripes(rng, height, width, random_colour(rng, None, (.1, .4), (.6, .95)),
                   random_colour(rng, None, (.1, .4), (.6, .95)))


GROUND = {'sea': sea, 'grass': grass, 'road': road, 'rail': rail, 'room': floor}


def place(rng, height, width, name):
    """The background of a place (a key of PLACES): ground below a random horizon, sky, wall or a texture above.

    Returns float32 (height, width, 3), RGB about 0..255.
    """
    if name == 'sky':
        return sky(rng, height, width)
    horizon = int(height * rng.uniform(.3, .6))
    if name == 'room':
        above = wall
    else:
        above = sky if rng.random() < .6 else texture
    return np.concatenate([above(rng, horizon, width), GROUND[name](rng, height - horizon, width)]).astype(np.float32)
