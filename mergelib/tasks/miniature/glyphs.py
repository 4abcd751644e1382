"""Digits and letters as strokes, so that no font of a system decides how they look."""

from __future__ import annotations

import numpy as np

from .drawing import Array, Draws, segment

_EIGHT = (
    (0.5, 0.47),
    (0.2, 0.36),
    (0.16, 0.14),
    (0.5, 0.0),
    (0.84, 0.14),
    (0.8, 0.36),
    (0.5, 0.47),
    (0.1, 0.64),
    (0.1, 0.88),
    (0.5, 1.0),
    (0.9, 0.88),
    (0.9, 0.64),
    (0.5, 0.47),
)
_SIX = (
    (0.82, 0.04),
    (0.42, 0.18),
    (0.14, 0.46),
    (0.06, 0.74),
    (0.22, 0.95),
    (0.55, 1.0),
    (0.86, 0.9),
    (0.94, 0.7),
    (0.78, 0.53),
    (0.42, 0.5),
    (0.1, 0.7),
)

# Strokes as corners in a box of width and height 1, y pointing down.
STROKES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "zero": (
        (
            (0.5, 0.0),
            (0.15, 0.14),
            (0.05, 0.5),
            (0.15, 0.86),
            (0.5, 1.0),
            (0.85, 0.86),
            (0.95, 0.5),
            (0.85, 0.14),
            (0.5, 0.0),
        ),
    ),
    "one": (((0.2, 0.26), (0.56, 0.0), (0.56, 1.0)),),
    "two": (
        (
            (0.06, 0.26),
            (0.2, 0.06),
            (0.5, 0.0),
            (0.82, 0.08),
            (0.92, 0.28),
            (0.76, 0.52),
            (0.06, 1.0),
            (0.96, 1.0),
        ),
    ),
    "three": (
        (
            (0.06, 0.1),
            (0.4, 0.0),
            (0.76, 0.06),
            (0.88, 0.25),
            (0.72, 0.43),
            (0.38, 0.48),
            (0.78, 0.55),
            (0.95, 0.76),
            (0.78, 0.95),
            (0.4, 1.0),
            (0.05, 0.9),
        ),
    ),
    "four": (((0.72, 1.0), (0.72, 0.0), (0.04, 0.68), (0.98, 0.68)),),
    "five": (
        (
            (0.9, 0.0),
            (0.2, 0.0),
            (0.12, 0.45),
            (0.5, 0.38),
            (0.85, 0.48),
            (0.95, 0.72),
            (0.8, 0.94),
            (0.45, 1.0),
            (0.05, 0.9),
        ),
    ),
    "six": (_SIX,),
    "seven": (((0.05, 0.0), (0.95, 0.0), (0.4, 1.0)),),
    "eight": (_EIGHT,),
    "nine": (tuple((1 - x, 1 - y) for x, y in _SIX),),
    "e": (((0.9, 0.0), (0.1, 0.0), (0.1, 1.0), (0.9, 1.0)), ((0.1, 0.5), (0.75, 0.5))),
    "f": (((0.9, 0.0), (0.1, 0.0), (0.1, 1.0)), ((0.1, 0.5), (0.75, 0.5))),
    "h": (((0.1, 0.0), (0.1, 1.0)), ((0.9, 0.0), (0.9, 1.0)), ((0.1, 0.5), (0.9, 0.5))),
    "k": (((0.1, 0.0), (0.1, 1.0)), ((0.9, 0.0), (0.15, 0.55)), ((0.35, 0.42), (0.95, 1.0))),
    "m": (((0.05, 1.0), (0.05, 0.0), (0.5, 0.6), (0.95, 0.0), (0.95, 1.0)),),
    "n": (((0.1, 1.0), (0.1, 0.0), (0.9, 1.0), (0.9, 0.0)),),
    "r": (
        ((0.1, 1.0), (0.1, 0.0), (0.7, 0.02), (0.9, 0.22), (0.7, 0.46), (0.1, 0.5)),
        ((0.45, 0.5), (0.95, 1.0)),
    ),
    "t": (((0.0, 0.0), (1.0, 0.0)), ((0.5, 0.0), (0.5, 1.0))),
    "v": (((0.05, 0.0), (0.5, 1.0), (0.95, 0.0)),),
    "y": (((0.05, 0.0), (0.5, 0.5), (0.95, 0.0)), ((0.5, 0.5), (0.5, 1.0))),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple(name for name in STROKES if name not in DIGITS)
GLYPHS = DIGITS + LETTERS


def _tables() -> tuple[Array, Array]:
    """Corners ``[G, P, 2]``, centred, and segments ``[G, S, 2]`` as pairs of corners; short rows repeat their last entry."""
    points, pairs = [], []
    for name in GLYPHS:
        corners = [p for stroke in STROKES[name] for p in stroke]
        starts = np.cumsum([0, *(len(s) for s in STROKES[name])])
        joins = [
            (a + i, a + i + 1)
            for a, stroke in zip(starts, STROKES[name], strict=False)
            for i in range(len(stroke) - 1)
        ]
        points.append(corners)
        pairs.append(joins)
    n_points, n_pairs = max(map(len, points)), max(map(len, pairs))
    corners = np.array(
        [p + [p[-1]] * (n_points - len(p)) for p in points], dtype=np.float32
    ) - np.float32(0.5)
    return corners, np.array([s + [s[-1]] * (n_pairs - len(s)) for s in pairs])


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
    """Distance ``[n, 32, 32]`` in pixels to the strokes of glyph ``which [n]``, of the given size ``[n, 1, 1]`` in pixels.

    ``jitter`` moves every corner by up to that share of the size, as a hand does; ``slant`` leans the strokes."""
    corners = CORNERS[which] + np.float32(jitter) * (
        2 * draws.rng.random(CORNERS[which].shape, dtype=np.float32) - 1
    )
    y = corners[:, :, 1] * height[:, :, 0]
    x = corners[:, :, 0] * width[:, :, 0] - slant[:, :, 0] * y
    rows = np.arange(len(which))
    nearest = None
    for s in range(SEGMENTS.shape[1]):
        a, b = SEGMENTS[which, s, 0], SEGMENTS[which, s, 1]
        ends = [values[rows, i][:, None, None] for i in (a, b) for values in (x, y)]
        squared = segment(u, v, *ends)
        nearest = squared if nearest is None else np.minimum(nearest, squared)
    return np.sqrt(nearest)
