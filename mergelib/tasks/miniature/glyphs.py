"""Digits and letters as strokes, so that they do not depend on the system's fonts."""

from __future__ import annotations

from itertools import count, pairwise

import numpy as np

from ...core.documents import own_yaml
from .drawing import Array, Draws, corners, segment

# Strokes as corners in a box of width and height 1, y pointing down.
STROKES: dict[str, list[list[list[float]]]] = {
    name: [corners(stroke) for stroke in strokes.split("|")]
    for name, strokes in own_yaml(__file__, "glyphs.yaml").items()
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GLYPHS = DIGITS + tuple(name for name in STROKES if name not in DIGITS)


def _padded(rows: list[list]) -> Array:
    """Rows as an array; short ones repeat their last entry."""
    longest = max(map(len, rows))
    return np.array([row + [row[-1]] * (longest - len(row)) for row in rows])


def _segments(strokes: list[list[list[float]]]) -> list[tuple[int, int]]:
    """Pairs of neighbouring corners, counted over all strokes of a glyph."""
    number = count()
    numbered = [[next(number) for _ in stroke] for stroke in strokes]
    return [pair for stroke in numbered for pair in pairwise(stroke)]


# Centred corners [G, P, 2], and segments [G, S, 2], which are pairs of corners.
CORNERS = _padded([[c for stroke in STROKES[g] for c in stroke] for g in GLYPHS])
CORNERS = CORNERS.astype(np.float32) - np.float32(0.5)
SEGMENTS = _padded([_segments(STROKES[g]) for g in GLYPHS])


def glyph(
    draws: Draws,
    which: Array,
    u: Array,
    v: Array,
    *,
    width: Array,
    height: Array,
    jitter: float,
    slant: Array,
) -> Array:
    """Return the distance ``[n, 32, 32]`` in pixels to the strokes of glyph ``which [n]``.

    Args:
        draws: The random numbers.
        which: Numbers of glyphs ``[n]``.
        u, v: Places in the picture, in pixels.
        width, height: Sizes ``[n, 1, 1]`` in pixels.
        jitter: Every corner moves by up to that share of the size, as a hand does.
        slant: How far the strokes lean.
    """
    moved = CORNERS[which] + np.float32(jitter) * (
        2 * draws.rng.random(CORNERS[which].shape, dtype=np.float32) - 1
    )
    y = moved[:, :, 1] * height[:, :, 0]
    x = moved[:, :, 0] * width[:, :, 0] - slant[:, :, 0] * y
    rows = np.arange(len(which))
    nearest = np.float32(np.inf)
    for a, b in SEGMENTS[which].transpose(1, 2, 0):
        ends = [values[rows, i][:, None, None] for i in (a, b) for values in (x, y)]
        nearest = np.minimum(nearest, segment(u, v, *ends))
    return np.sqrt(nearest)
