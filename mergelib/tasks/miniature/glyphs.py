"""Digits and letters as strokes, so that they do not depend on the system's fonts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from .drawing import Array, Draws, corners, segment

# Strokes as corners in a box of width and height 1, y pointing down.
STROKES: dict[str, list[list[list[float]]]] = {
    name: [corners(stroke) for stroke in strokes.split("|")]
    for name, strokes in yaml.safe_load(
        Path(__file__).with_name("glyphs.yaml").read_text("utf-8")
    ).items()
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple(name for name in STROKES if name not in DIGITS)
GLYPHS = DIGITS + LETTERS


def _tables() -> tuple[Array, Array]:
    """Return centred corners ``[G, P, 2]`` and segments ``[G, S, 2]``, which are pairs of corners.

    Short rows repeat their last entry.
    """
    points, pairs = [], []
    for name in GLYPHS:
        ends = [p for stroke in STROKES[name] for p in stroke]
        starts = np.cumsum([0, *(len(s) for s in STROKES[name])])
        joins = [
            (a + i, a + i + 1)
            for a, stroke in zip(starts, STROKES[name], strict=False)
            for i in range(len(stroke) - 1)
        ]
        points.append(ends)
        pairs.append(joins)
    n_points, n_pairs = max(map(len, points)), max(map(len, pairs))
    centred = np.array(
        [p + [p[-1]] * (n_points - len(p)) for p in points], dtype=np.float32
    ) - np.float32(0.5)
    return centred, np.array([s + [s[-1]] * (n_pairs - len(s)) for s in pairs])


CORNERS, SEGMENTS = _tables()


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
    nearest = None
    for s in range(SEGMENTS.shape[1]):
        a, b = SEGMENTS[which, s, 0], SEGMENTS[which, s, 1]
        ends = [values[rows, i][:, None, None] for i in (a, b) for values in (x, y)]
        squared = segment(u, v, *ends)
        nearest = squared if nearest is None else np.minimum(nearest, squared)
    return np.sqrt(nearest)
