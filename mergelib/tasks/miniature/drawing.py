"""A batch of small pictures and the basic shapes that they consist of.

Everything is numpy on ``[n, 32, 32]`` float32 with additions, products, quotients, square roots,
minima and maxima only. Unlike sines and exponentials, these are exact to the last bit on every
machine, so the same seed gives the same pictures everywhere. Shapes are signed distances in pixels,
negative inside; ``edge`` turns a distance into a coverage in 0..1, which also smooths the outline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from ...core.documents import own_yaml

SIZE = 32
_AXIS = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
X, Y = _AXIS[None, None, :], _AXIS[None, :, None]

Array = np.ndarray
Number = Array | float

DATA = own_yaml(__file__, "images.yaml")


def corners(text: str) -> list[list[float]]:
    """The corners ``x,y x,y ...`` of a file."""
    return [[float(v) for v in corner.split(",")] for corner in text.split()]


class Draws:
    """Random numbers for n pictures: one value per picture, as ``[n, 1, 1]``, to broadcast over
    pixels."""

    def __init__(self, rng: np.random.Generator, n: int):
        self.rng, self.n = rng, n

    def uniform(self, low: Number, high: Number) -> Array:
        """``[n, 1, 1]`` between low and high."""
        return (low + (high - low) * self.rng.random((self.n, 1, 1))).astype(np.float32)

    def chance(self, p: float) -> Array:
        """``[n, 1, 1]`` of 0 and 1, 1 with probability p."""
        return (self.rng.random((self.n, 1, 1)) < p).astype(np.float32)

    def sign(self) -> Array:
        """``[n, 1, 1]`` of -1 and 1."""
        return 2 * self.chance(0.5) - 1

    def specks(self, p: float) -> Array:
        """``[n, 32, 32]`` of 0 and 1, each pixel 1 with probability p."""
        return (self.rng.random((self.n, SIZE, SIZE), dtype=np.float32) < p).astype(np.float32)

    def pick(self, count: int) -> Array:
        """``[n]`` whole numbers below ``count``."""
        return self.rng.integers(count, size=self.n)

    def colour(self, name: str) -> Array:
        """``[n, 3]`` colours of a name in ``images.yaml``."""
        colour = DATA["colours"][name]
        if isinstance(colour[0], list):
            return self.hsv(*colour)
        return np.repeat(np.array([colour], dtype=np.float32), self.n, 0)

    def hsv(self, *ranges: tuple[float, float]) -> Array:
        """``[n, 3]`` colours, each of hue, saturation and value drawn from its range."""
        return hsv(*(low + (high - low) * self.rng.random(self.n) for low, high in ranges))

    def worded(self, words: Sequence[str], which: Array) -> Array:
        """``[n, 3]`` colours of the words that ``which [n]`` numbers."""
        ranges = np.array([DATA["colours"][w] for w in words])[which]
        return self.hsv(*ranges.transpose(1, 2, 0))

    def frame(self, low: float, high: float, turn: tuple[float, float]) -> tuple[Array, Array]:
        """Coordinates in a frame whose place and turn are drawn."""
        return turned(X, Y, self.uniform(low, high), self.uniform(low, high), self.uniform(*turn))

    def noise(self, cells: int) -> Array:
        """Smooth noise ``[n, 32, 32]`` in 0..1: a random grid of ``cells`` a side, interpolated."""
        grid = self.rng.random((self.n, cells + 1, cells + 1), dtype=np.float32)
        at = _AXIS * np.float32(cells / SIZE)
        low = np.minimum(at.astype(np.int64), cells - 1)
        part = at - low
        part = part * part * (3 - 2 * part)
        rows = grid[:, low] + part[None, :, None] * (grid[:, low + 1] - grid[:, low])
        return rows[:, :, low] + part[None, None, :] * (rows[:, :, low + 1] - rows[:, :, low])


def together(
    rng: np.random.Generator, which: Array, words: Sequence[str]
) -> Iterator[tuple[Array, str, Draws]]:
    """The rows of each of the words that ``which [n]`` numbers, with random numbers for them."""
    for number, word in enumerate(words):
        rows = np.flatnonzero(which == number)
        if len(rows):
            yield rows, word, Draws(rng, len(rows))


def hsv(hue: Array, saturation: Array, value: Array) -> Array:
    """Red, green, blue ``[n, 3]`` in 0..1 of hue (in turns), saturation and value ``[n]``."""
    k = (np.array([5.0, 3.0, 1.0]) + np.asarray(hue)[:, None] * 6) % 6
    rgb = np.asarray(value)[:, None] * (
        1 - np.asarray(saturation)[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1)
    )
    return rgb.astype(np.float32)


def centred(x: Array) -> Array:
    """Where x lies between two whole numbers, -0.5..0.5."""
    return x - np.floor(x) - np.float32(0.5)


def wave(x: Array) -> Array:
    """A wave of period 1 between -1 and 1, made of parabolas, close to a sine."""
    x = centred(x)
    return -8 * x * (1 - 2 * np.abs(x))


def saw(x: Array) -> Array:
    """Distance to the nearest whole number, 0..0.5."""
    return np.abs(x - np.floor(x + np.float32(0.5)))


def edge(distance: Array, soft: float = 1.0) -> Array:
    """Cover in 0..1 of a signed distance: 1 inside, 0 outside, ``soft`` pixels wide between."""
    return np.clip(np.float32(0.5) - distance / np.float32(soft), 0, 1)


def turned(
    x: Array, y: Array, cx: Number, cy: Number, turn: Number, scale: Number = 1.0
) -> tuple[Array, Array]:
    """Coordinates (u, v) of pixels in a frame at (cx, cy), turned by ``turn`` (in turns of 360
    degrees) and scaled."""
    # Rounded, so that the last bits of a platform's sine function cannot change a picture.
    angle = 2 * np.pi * np.asarray(turn, dtype=np.float64)
    c, s = (np.round(part(angle), 6).astype(np.float32) for part in (np.cos, np.sin))
    dx, dy = x - cx, y - cy
    return (c * dx + s * dy) / scale, (c * dy - s * dx) / scale


def disc(u: Array, v: Array, radius: Number) -> Array:
    return np.sqrt(u * u + v * v) - radius


def band(x: Array, half_width: Number) -> Array:
    """What lies so near to where x is 0; of a shape's distance, its outline."""
    return np.abs(x) - half_width


def box(u: Array, v: Array, half_width: Number, half_height: Number) -> Array:
    return np.maximum(band(u, half_width), band(v, half_height))


def block(u: Array, half_width: Number, above: Array, below: Array) -> Array:
    """A box whose top and bottom are given as distances."""
    return np.maximum(band(u, half_width), np.maximum(above, below))


def tiled(u: Array, v: Array, pitch: Number) -> tuple[Array, Array]:
    """Coordinates in the nearest of tiles, from its centre."""
    return pitch * centred(u / pitch), pitch * centred(v / pitch)


def convex(u: Array, v: Array, polygon: str) -> Array:
    """A convex polygon of ``images.yaml``: corners in clockwise order as seen with v pointing
    down."""
    ends = corners(polygon)
    distance = None
    for (x0, y0), (x1, y1) in zip(ends, [*ends[1:], ends[0]], strict=True):
        length = float(np.round(np.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2), 6))
        a, b = np.float32((y1 - y0) / length), np.float32((x0 - x1) / length)
        side = a * (u - np.float32(x0)) + b * (v - np.float32(y0))
        distance = side if distance is None else np.maximum(distance, side)
    return distance


def segment(u: Array, v: Array, x0: Number, y0: Number, x1: Number, y1: Number) -> Array:
    """Squared distance to a line segment."""
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy + np.float32(1e-6)), 0, 1)
    du, dv = u - x0 - along * dx, v - y0 - along * dy
    return du * du + dv * dv


def lines(u: Array, v: Array, name: str) -> Array:
    """Distance to the lines of a name in ``images.yaml``."""
    squared = [
        segment(u, v, *map(np.float32, (*start, *end)))
        for line in map(corners, DATA["lines"][name])
        for start, end in pairwise(line)
    ]
    return np.sqrt(np.minimum.reduce(squared))


class Canvas:
    """n pictures ``rgb [n, 3, 32, 32]`` in 0..1, painted in layers on pictures or on a colour."""

    def __init__(self, draws: Draws, ground: str | Array):
        self.draws = draws
        self.rgb = self.colour(ground)
        if self.rgb.ndim == 2:
            self.rgb = self.rgb[:, :, None, None] * np.ones_like(X + Y)[:, None]

    def colour(self, colour: str | Array) -> Array:
        """``[n, 3]`` of a name, or as they are given."""
        return self.draws.colour(colour) if isinstance(colour, str) else colour

    def fill(
        self, distance: Array, colour: str | Array, strength: Number = 1.0, soft: float = 1.0
    ) -> None:
        """Put a colour inside a shape, which is given as a distance."""
        self.paint(edge(distance, soft) * strength, colour)

    def paint(self, cover: Array, colour: str | Array) -> None:
        """Put a colour on, where ``cover [n, 32, 32]`` says."""
        self.rgb += cover[:, None] * (self.colour(colour)[:, :, None, None] - self.rgb)

    def shade(self, factor: Array) -> None:
        """Multiply brightness by ``factor [n, 32, 32]``."""
        self.rgb *= factor[:, None]
