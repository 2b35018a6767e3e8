"""Resizing by an exact factor, pixel by pixel, as OpenCV does it where it is given fx and fy. METHOD 7.1, 7.2.

Plain twin of data/segmentation.py: resize_by. The result has rounded sides, but its pixel x samples the image at
(x + 0.5) / factor − 0.5 (bicubic) or at x / factor (nearest), whatever the rounded side is.
"""
import math

import numpy as np

A = -0.75  # OpenCV's parameter of the cubic kernel


def nearest(image, factor):
    """Array (H, W) or (H, W, K) → (round(H · factor), round(W · factor), …), of its own values."""
    height, width = image.shape[:2]
    out = np.empty((round(height * factor), round(width * factor), *image.shape[2:]), image.dtype)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x] = image[min(int(y / factor), height - 1), min(int(x / factor), width - 1)]
    return out


def bicubic(image, factor):
    """Float array (H, W) or (H, W, K) → float64 (round(H · factor), round(W · factor), …); edges are repeated."""
    height, width = image.shape[:2]
    out = np.zeros((round(height * factor), round(width * factor), *image.shape[2:]))
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for row, vertical in taps(y, factor, height):
                for column, horizontal in taps(x, factor, width):
                    out[y, x] += vertical * horizontal * image[row, column]
    return out


def taps(place, factor, length):
    """The four (pixel, weight) along one side that make up pixel `place` of the result."""
    centre = (place + 0.5) / factor - 0.5
    first = math.floor(centre) - 1
    return [(min(max(pixel, 0), length - 1), cubic(abs(centre - pixel))) for pixel in range(first, first + 4)]


def cubic(distance):
    """The cubic convolution kernel."""
    if distance <= 1:
        return (A + 2) * distance ** 3 - (A + 3) * distance ** 2 + 1
    if distance < 2:
        return A * distance ** 3 - 5 * A * distance ** 2 + 8 * A * distance - 4 * A
    return 0.
