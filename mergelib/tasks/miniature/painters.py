"""How each family of pictures is painted: one function per place, body, ground, structure, pattern,
sign or medium.

A painter gets the random numbers of n pictures and the attributes that their name says; everything
else that it draws is nuisance.
"""

from __future__ import annotations

import numpy as np

from .drawing import (
    SIZE,
    Array,
    Canvas,
    Draws,
    X,
    Y,
    box,
    convex,
    disc,
    edge,
    fixed,
    hsv,
    saw,
    segment,
    turned,
    wave,
)
from .glyphs import glyph

# Hue, saturation and value of the colour words, each with the range that is drawn from.
COLOURS: dict[str, tuple[tuple[float, float], ...]] = {
    "red": ((-0.025, 0.02), (0.75, 0.95), (0.62, 0.9)),
    "orange": ((0.055, 0.09), (0.8, 0.95), (0.85, 1.0)),
    "yellow": ((0.135, 0.17), (0.7, 0.95), (0.85, 1.0)),
    "green": ((0.29, 0.4), (0.5, 0.9), (0.42, 0.72)),
    "blue": ((0.57, 0.65), (0.65, 0.95), (0.55, 0.9)),
    "purple": ((0.74, 0.81), (0.5, 0.8), (0.5, 0.75)),
    "white": ((0.0, 1.0), (0.0, 0.06), (0.88, 1.0)),
    "black": ((0.0, 1.0), (0.0, 0.15), (0.08, 0.18)),
    "brown": ((0.05, 0.09), (0.5, 0.7), (0.36, 0.52)),
    "grey": ((0.0, 1.0), (0.0, 0.07), (0.5, 0.66)),
}


def word_colours(draws: Draws, words: tuple[str, ...], which: Array) -> Array:
    """Colours ``[n, 3]`` of the words that ``which [n]`` numbers."""
    ranges = np.array([COLOURS[w] for w in words])[which]
    return hsv(
        *(
            ranges[:, i, 0] + (ranges[:, i, 1] - ranges[:, i, 0]) * draws.rng.random(len(which))
            for i in range(3)
        )
    )


# ---- scenes: a place in a light ------------------------------------------------------------------

LIGHTS = ("at noon", "at sunset", "at night", "in fog", "in rain", "in snow")
_SKY_TOP = np.array(
    [
        (0.3, 0.55, 0.92),
        (0.4, 0.2, 0.45),
        (0.02, 0.03, 0.12),
        (0.72, 0.74, 0.76),
        (0.24, 0.27, 0.33),
        (0.7, 0.75, 0.82),
    ]
)
_SKY_LOW = np.array(
    [
        (0.75, 0.87, 0.98),
        (1.0, 0.55, 0.2),
        (0.1, 0.12, 0.28),
        (0.84, 0.85, 0.86),
        (0.45, 0.48, 0.52),
        (0.88, 0.9, 0.93),
    ]
)
_TINT = np.array(
    [
        (1, 1, 1),
        (0.75, 0.48, 0.42),
        (0.24, 0.27, 0.42),
        (0.9, 0.9, 0.92),
        (0.5, 0.54, 0.6),
        (0.85, 0.88, 0.95),
    ]
)
_VEIL = np.array([0.0, 0.08, 0.0, 0.62, 0.15, 0.1])
_VEIL_COLOUR = np.array(
    [
        (1, 1, 1),
        (1.0, 0.5, 0.25),
        (0, 0, 0),
        (0.8, 0.81, 0.82),
        (0.4, 0.43, 0.48),
        (0.95, 0.96, 0.98),
    ]
)
FOG, RAIN, SNOW, NOON, SUNSET, NIGHT = 3, 4, 5, 0, 1, 2


class Scene(Canvas):
    """A sky in one of six lights; whatever is painted on it later takes the colour of that
    light."""

    def __init__(self, draws: Draws, light: Array):
        super().__init__(fixed(draws.n, 0, 0, 0))
        self.draws, self.light = draws, light
        self.horizon = draws.uniform(9, 22)
        jitter = 1 + 0.4 * (draws.rng.random((draws.n, 3)) - 0.5)
        down = np.clip(Y / self.horizon, 0, 1)
        top, low = (
            (table[light] * jitter).astype(np.float32)[:, :, None, None]
            for table in (_SKY_TOP, _SKY_LOW)
        )
        self.rgb = np.clip(top + down[:, None] * (low - top) + np.zeros_like(X)[:, None], 0, 1)
        cx, cy = draws.uniform(4, 28), draws.uniform(3, 8)
        cy = np.where(self.of(SUNSET) > 0, self.horizon - draws.uniform(1, 4), cy)
        body = np.array(
            [
                (1.0, 0.97, 0.75),
                (1.0, 0.85, 0.4),
                (0.95, 0.95, 0.85),
                (1, 1, 1),
                (1, 1, 1),
                (1, 1, 1),
            ],
            dtype=np.float32,
        )[light]
        seen = (self.of(NOON) + self.of(SUNSET) + self.of(NIGHT)) * draws.chance(0.75)
        self.paint(
            edge(disc(X - cx, Y - cy, draws.uniform(2, 3.4) + 1.2 * self.of(SUNSET)), 1.5) * seen,
            body,
        )
        stars = (draws.rng.random(self.rgb[:, 0].shape, dtype=np.float32) < 0.025) * self.of(NIGHT)
        self.paint(stars.astype(np.float32) * 0.8, fixed(draws.n, 1, 1, 0.9))
        cloud = (
            np.clip(3 * draws.noise(5) - 1.9, 0, 1)
            * (self.of(NOON) + 0.5 * self.of(SUNSET))
            * draws.chance(0.6)
        )
        self.paint(
            cloud,
            np.array([(1, 1, 1), (1.0, 0.6, 0.5), *([(0, 0, 0)] * 4)], dtype=np.float32)[light],
        )

    def of(self, light: int) -> Array:
        return (self.light == light).astype(np.float32)[:, None, None]

    def lit(self, colour: Array, depth: float = 1.0) -> Array:
        """``colour [n, 3]`` as it looks in this light, under a veil of fog that grows with
        depth."""
        veil = np.clip(_VEIL[self.light] * depth, 0, 0.9)[:, None]
        return (colour * _TINT[self.light] * (1 - veil) + _VEIL_COLOUR[self.light] * veil).astype(
            np.float32
        )

    def ground(self, colour: Array) -> None:
        """Everything below the horizon; in snow it is white."""
        white = 0.8 * self.of(SNOW)[:, 0]
        self.paint(edge(self.horizon - Y), self.lit(colour * (1 - white) + 0.97 * white))

    def weather(self) -> Array:
        """The finished pictures: rain falls in streaks, snow in flakes."""
        draws, rain, snow = self.draws, self.of(RAIN), self.of(SNOW)
        lean = draws.uniform(-0.4, 0.4)
        column = X + lean * Y
        streak = edge(saw(column / 4.2 + draws.uniform(0, 1)) * 4.2 - 0.1, 0.7) * (
            saw(Y / 9 + np.floor(column / 4.2) * 0.37 + draws.uniform(0, 1)) < 0.3
        )
        self.paint(0.5 * streak * rain, fixed(draws.n, 0.75, 0.8, 0.88))
        flakes = (draws.rng.random(self.rgb[:, 0].shape, dtype=np.float32) < 0.06).astype(
            np.float32
        )
        self.paint(0.9 * flakes * snow, fixed(draws.n, 1, 1, 1))
        return self.rgb


def _whitened(scene: Scene, colour: Array, share: float = 0.55) -> Array:
    white = share * scene.of(SNOW)[:, 0]
    return colour * (1 - white) + white


def sea(draws: Draws, light: Array) -> Array:
    s = Scene(draws, light)
    s.paint(edge(s.horizon - Y), s.lit(draws.colour((0.53, 0.6), (0.55, 0.8), (0.5, 0.7))))
    depth = np.clip((Y - s.horizon) / 16, 0, 1)
    crest = np.clip(
        wave(Y / (2.2 + 2 * depth) + 0.4 * wave(X / 9 + draws.uniform(0, 1)) + draws.uniform(0, 1))
        - 0.35,
        0,
        1,
    ) * (s.horizon + 1 < Y)
    s.paint(0.55 * crest * (draws.noise(6) > 0.4), s.lit(fixed(draws.n, 0.85, 0.93, 1.0)))
    cx, water = draws.uniform(6, 26), s.horizon + draws.uniform(2, 7)
    seen, size = draws.chance(0.6), draws.uniform(0.8, 1.3)
    u, v = (X - cx) / size, (Y - water) / size
    s.paint(
        edge(convex(u, v, [(-4, -1), (4, -1), (2.5, 1.2), (-2.5, 1.2)])) * seen,
        s.lit(draws.colour((0.0, 0.1), (0.5, 0.9), (0.3, 0.6))),
    )
    s.paint(
        edge(convex(u, v, [(0, -8), (3.2, -1.5), (0, -1.5)])) * seen,
        s.lit(fixed(draws.n, 0.97, 0.97, 0.92)),
    )
    return s.weather()


def hills(draws: Draws, light: Array) -> Array:
    s = Scene(draws, light)
    for layer in range(3):
        top = (
            s.horizon
            - 1
            + 4.5 * layer
            + draws.uniform(1.5, 3.2) * wave(X / draws.uniform(15, 26) + draws.uniform(0, 1))
        )
        green = draws.colour((0.24, 0.36), (0.45, 0.7), (0.62 - 0.13 * layer, 0.72 - 0.13 * layer))
        s.paint(edge(top - Y), s.lit(_whitened(s, green, 0.6 - 0.15 * layer), 1.2 - 0.4 * layer))
    return s.weather()


def mountains(draws: Draws, light: Array) -> Array:
    s = Scene(draws, light)
    for layer in range(3):
        cx, peak = (
            draws.uniform(2 + 9 * layer, 12 + 9 * layer),
            s.horizon - draws.uniform(7, 12) + 1.5 * layer,
        )
        slope = draws.uniform(0.9, 1.5)
        below = peak + np.abs(X - cx) * slope - Y
        grey = draws.colour((0.55, 0.7), (0.08, 0.25), (0.42, 0.6))
        s.paint(edge(below), s.lit(grey, 1.1 - 0.2 * layer))
        s.paint(
            edge(below) * edge(Y - peak - 3.5 - 1.2 * wave(X / 3.3)),
            s.lit(fixed(draws.n, 0.97, 0.98, 1.0), 0.8),
        )
    s.ground(draws.colour((0.2, 0.35), (0.25, 0.5), (0.35, 0.5)))
    return s.weather()


def forest(draws: Draws, light: Array) -> Array:
    s = Scene(draws, light)
    s.ground(draws.colour((0.22, 0.33), (0.4, 0.6), (0.3, 0.45)))
    for tree in range(8):
        cx, foot = (
            (tree * 5 + 3) % 34 + draws.uniform(-2.5, 2.5),
            s.horizon + 1 + 1.1 * tree + draws.uniform(-1, 1),
        )
        height = draws.uniform(9, 14)
        s.paint(edge(box(X - cx, Y - foot, 0.7, 1.5)), s.lit(fixed(draws.n, 0.3, 0.2, 0.12)))
        crown = np.maximum(
            np.abs(X - cx) - (Y - foot + height) * 0.36 + 0.9 * saw((Y - foot) / 3.5), Y - foot + 1
        )
        s.paint(
            edge(crown),
            s.lit(
                _whitened(s, draws.colour((0.33, 0.42), (0.5, 0.8), (0.25, 0.42)), 0.45),
                1.0 - 0.06 * tree,
            ),
        )
    return s.weather()


def city(draws: Draws, light: Array) -> Array:
    s = Scene(draws, light)
    s.ground(draws.colour((0.0, 1.0), (0.0, 0.1), (0.35, 0.5)))
    night = s.of(NIGHT)[:, 0]
    for tower in range(7):
        cx, half = (tower * 9 + 4) % 33 + draws.uniform(-2, 2), draws.uniform(2, 3.4)
        roof, foot = s.horizon - draws.uniform(4, 12) + 0.6 * tower, s.horizon + 2.5 + 0.8 * tower
        body = np.maximum(np.abs(X - cx) - half, np.maximum(roof - Y, Y - foot))
        s.paint(
            edge(body),
            s.lit(draws.colour((0.02, 0.65), (0.05, 0.3), (0.4, 0.75)), 1.1 - 0.1 * tower),
        )
        pane = (
            edge(body + 1.1)
            * edge(saw((X - cx) / 2.4) * 2.4 - 0.6, 0.8)
            * edge(saw((Y - roof) / 2.8) * 2.8 - 0.7, 0.8)
        )
        on = fixed(draws.n, 1.0, 0.85, 0.4) * night + s.lit(
            draws.colour((0.5, 0.62), (0.2, 0.5), (0.25, 0.85))
        ) * (1 - night)
        s.paint(0.9 * pane, on)
    return s.weather()


def desert(draws: Draws, light: Array) -> Array:
    s = Scene(draws, light)
    for layer in range(3):
        cx = draws.uniform(0, 32)
        top = (
            s.horizon
            + 5 * layer
            + np.minimum((X - cx) * draws.uniform(0.1, 0.25), (cx - X) * draws.uniform(0.25, 0.5))
            + 1
        )
        sand = draws.colour((0.095, 0.125), (0.4, 0.55), (0.8 - 0.07 * layer, 0.92 - 0.07 * layer))
        s.paint(edge(top - Y), s.lit(_whitened(s, sand, 0.5), 1.1 - 0.3 * layer))
        s.paint(0.3 * edge(top - Y) * edge(cx - X, 2), s.lit(0.55 * sand))
    cx, foot, size, seen = (
        draws.uniform(5, 27),
        s.horizon + draws.uniform(6, 11),
        draws.uniform(0.8, 1.25),
        draws.chance(0.7),
    )
    u, v = (X - cx) / size * draws.sign(), (Y - foot) / size
    arms = [
        (0, 0, 0, -11),
        (0, -4.5, 3.5, -4.5),
        (3.5, -4.5, 3.5, -8),
        (0, -3, -3, -3),
        (-3, -3, -3, -6),
    ]
    near = np.minimum.reduce([segment(u, v, *(np.float32(e) for e in arm)) for arm in arms])
    s.paint(edge(np.sqrt(near) - 1.05) * seen, s.lit(fixed(draws.n, 0.2, 0.45, 0.2)))
    return s.weather()


def village(draws: Draws, light: Array) -> Array:
    s = Scene(draws, light)
    s.ground(draws.colour((0.22, 0.33), (0.4, 0.65), (0.45, 0.65)))
    night = s.of(NIGHT)[:, 0]
    for house in range(3):
        cx, foot = (
            (5 + 11 * ((house * 2) % 3)) + draws.uniform(-2, 2),
            s.horizon + 2 + 3.2 * house + draws.uniform(0, 1.5),
        )
        half, tall = draws.uniform(3.2, 4.4), draws.uniform(4.5, 6)
        u, v = X - cx, Y - foot
        s.paint(
            edge(np.maximum(np.abs(u) - half, np.maximum(-v - tall, v))),
            s.lit(draws.colour((0.05, 0.15), (0.05, 0.35), (0.8, 0.95))),
        )
        roof = np.maximum(
            np.abs(u) - (v + tall + 4.2) * (half + 1.2) / 4.2, np.maximum(v + tall, -v - tall - 4.2)
        )
        s.paint(
            edge(roof),
            s.lit(_whitened(s, draws.colour((-0.01, 0.05), (0.6, 0.8), (0.5, 0.75)), 0.6)),
        )
        s.paint(
            edge(np.maximum(np.abs(u) - 0.9, np.maximum(-v - 3, v))),
            s.lit(fixed(draws.n, 0.35, 0.22, 0.15)),
        )
        lamp = fixed(draws.n, 1.0, 0.85, 0.4) * night + s.lit(fixed(draws.n, 0.35, 0.45, 0.6)) * (
            1 - night
        )
        s.paint(edge(box(u - half * 0.6, v + 3, 0.7, 0.8)), lamp)
    return s.weather()


def highway(draws: Draws, light: Array) -> Array:
    s = Scene(draws, light)
    s.ground(draws.colour((0.13, 0.33), (0.25, 0.55), (0.5, 0.68)))
    cx, foot = draws.uniform(10, 22), draws.uniform(8, 24)
    down = np.clip((Y - s.horizon) / (SIZE - s.horizon), 0, 1)
    middle, half = cx + (foot - cx) * down, 0.6 + draws.uniform(9, 13) * down
    road = np.maximum(np.abs(X - middle) - half, s.horizon - Y)
    s.paint(edge(road), s.lit(draws.colour((0.0, 1.0), (0.0, 0.08), (0.3, 0.42))))
    white = s.lit(fixed(draws.n, 0.95, 0.95, 0.9))
    dash = (saw(7 / (down + 0.25) + draws.uniform(0, 1)) < 0.27).astype(np.float32)
    s.paint(
        edge(np.maximum(np.abs(X - middle) - 0.1 - 0.9 * down, s.horizon + 1 - Y)) * dash, white
    )
    s.paint(
        edge(
            np.maximum(
                np.abs(np.abs(X - middle) - half * 0.86) - 0.1 - 0.5 * down, s.horizon + 1 - Y
            )
        ),
        white,
    )
    return s.weather()


PLACES = {
    "sea": sea,
    "hills": hills,
    "mountains": mountains,
    "forest": forest,
    "city": city,
    "desert": desert,
    "village": village,
    "highway": highway,
}

# ---- cars: a body in a colour --------------------------------------------------------------------

CAR_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
# Per body: painted parts and windows as convex polygons in units of the car's length, and the
# wheels' places and radius.
BODIES: dict[str, tuple[list, list, tuple[float, float, float]]] = {
    "sedan": (
        [
            [(-0.5, 0.02), (0.42, -0.02), (0.5, 0.05), (0.5, 0.16), (-0.5, 0.16)],
            [(-0.32, 0.02), (-0.2, -0.15), (0.08, -0.15), (0.24, 0.02)],
        ],
        [
            [(-0.26, 0.0), (-0.18, -0.11), (-0.07, -0.11), (-0.07, 0.0)],
            [(-0.03, 0.0), (-0.03, -0.11), (0.06, -0.11), (0.17, 0.0)],
        ],
        (-0.3, 0.3, 0.095),
    ),
    "van": (
        [[(-0.46, 0.16), (-0.46, -0.25), (0.22, -0.25), (0.38, -0.04), (0.46, 0.0), (0.46, 0.16)]],
        [[(0.08, -0.04), (0.08, -0.19), (0.2, -0.19), (0.31, -0.04)]],
        (-0.28, 0.28, 0.09),
    ),
    "bus": (
        [[(-0.5, 0.16), (-0.5, -0.26), (0.5, -0.26), (0.5, 0.16)]],
        [
            [(x, -0.04), (x, -0.19), (x + 0.12, -0.19), (x + 0.12, -0.04)]
            for x in (-0.45, -0.27, -0.09, 0.09, 0.31)
        ],
        (-0.32, 0.3, 0.08),
    ),
    "truck": (
        [
            [(-0.5, 0.1), (-0.5, -0.32), (0.18, -0.32), (0.18, 0.1)],
            [(0.22, 0.16), (0.22, -0.16), (0.38, -0.16), (0.5, 0.0), (0.5, 0.16)],
        ],
        [[(0.28, -0.01), (0.28, -0.12), (0.36, -0.12), (0.44, -0.01)]],
        (-0.32, 0.34, 0.09),
    ),
    "pickup": (
        [
            [(-0.5, -0.02), (0.5, -0.0), (0.5, 0.15), (-0.5, 0.15)],
            [(-0.04, 0.0), (-0.04, -0.2), (0.16, -0.2), (0.28, 0.0)],
        ],
        [[(0.0, -0.03), (0.0, -0.15), (0.13, -0.15), (0.21, -0.03)]],
        (-0.3, 0.3, 0.11),
    ),
    "jeep": (
        [
            [(-0.38, 0.13), (-0.38, -0.06), (0.44, -0.06), (0.44, 0.13)],
            [(-0.38, 0.0), (-0.38, -0.27), (0.1, -0.27), (0.16, 0.0)],
        ],
        [
            [(-0.33, -0.08), (-0.33, -0.22), (-0.15, -0.22), (-0.15, -0.08)],
            [(-0.1, -0.08), (-0.1, -0.22), (0.06, -0.22), (0.1, -0.08)],
        ],
        (-0.24, 0.28, 0.13),
    ),
}


def car(body: str, draws: Draws, colour: Array) -> Array:
    parts, windows, (rear, front, radius) = BODIES[body]
    c = Canvas(draws.colour((0.0, 1.0), (0.05, 0.35), (0.55, 0.9)))
    road = draws.uniform(17, 22)
    for _ in range(4):  # what stands behind
        block = np.maximum(
            np.abs(X - draws.uniform(0, 32)) - draws.uniform(2, 5),
            np.maximum(road - draws.uniform(3, 14) - Y, Y - road),
        )
        c.paint(
            edge(block) * draws.chance(0.7) * 0.8,
            draws.colour((0.0, 1.0), (0.05, 0.5), (0.3, 0.85)),
        )
    c.paint(edge(road - Y), draws.colour((0.0, 1.0), (0.0, 0.12), (0.34, 0.55)))
    length = draws.uniform(22, 28)
    cx, cy = 16 + draws.uniform(-0.6, 0.6) * (17.5 - length / 2), draws.uniform(17, 21)
    u, v = turned(X, Y, cx, cy, draws.uniform(-0.015, 0.015), length)
    u = u * draws.sign()
    c.paint(0.5 * edge(disc(u, (v - 0.24) * 5, 0.5) * length, 2), fixed(draws.n, 0.1, 0.1, 0.1))
    paint = word_colours(draws, CAR_COLOURS, colour)
    for i, part in enumerate(parts):
        inside = edge(convex(u, v, part) * length)
        c.paint(inside, paint * (1 - 0.1 * i))
    lower = edge(convex(u, v, parts[0]) * length) * edge((0.1 - v) * length)
    c.paint(0.35 * lower, 0.3 * paint)
    glass = draws.colour((0.5, 0.62), (0.15, 0.4), (0.2, 0.9))
    for window in windows:
        c.paint(edge(convex(u, v, window) * length), glass)
    c.paint(edge(box(u - 0.46, v - 0.07, 0.03, 0.025) * length), fixed(draws.n, 1.0, 0.95, 0.6))
    for wheel in (rear, front):
        c.paint(edge(disc(u - wheel, v - 0.16, radius) * length), fixed(draws.n, 0.06, 0.06, 0.07))
        c.paint(
            edge(disc(u - wheel, v - 0.16, radius * 0.45) * length), fixed(draws.n, 0.7, 0.7, 0.72)
        )
    return c.rgb


# ---- land use: a structure on a ground, seen from above ------------------------------------------

GROUNDS = ("forest", "desert", "meadow", "farmland", "suburb", "snow")


def ground(kind: str, draws: Draws) -> Canvas:
    if kind == "forest":
        c = Canvas(draws.colour((0.3, 0.4), (0.5, 0.7), (0.22, 0.34)))
        c.shade(0.65 + 0.7 * draws.noise(16))
    elif kind == "desert":
        c = Canvas(draws.colour((0.09, 0.12), (0.35, 0.5), (0.75, 0.88)))
        u, _ = turned(X, Y, 16, 16, draws.uniform(0, 1))
        c.shade(0.92 + 0.08 * wave(u / draws.uniform(4, 6) + 0.8 * draws.noise(3)))
    elif kind == "meadow":
        c = Canvas(draws.colour((0.23, 0.3), (0.45, 0.65), (0.58, 0.72)))
        c.shade(0.85 + 0.3 * draws.noise(6))
    elif kind == "farmland":
        u, v = turned(X, Y, draws.uniform(0, 32), draws.uniform(0, 32), draws.uniform(0, 1))
        width, height = draws.uniform(7, 11), draws.uniform(6, 9)
        cell = (np.floor(u / width) * 7 + np.floor(v / height) * 3 + 70) % 5
        c = Canvas(draws.colour((0.2, 0.33), (0.4, 0.6), (0.5, 0.65)))
        for i, (hue, value) in enumerate(
            (((0.12, 0.16), (0.7, 0.85)), ((0.06, 0.09), (0.42, 0.56)), ((0.28, 0.36), (0.35, 0.5)))
        ):
            c.paint((cell == i).astype(np.float32), draws.colour(hue, (0.45, 0.65), value))
        c.shade(1 - 0.35 * edge(np.minimum(saw(u / width) * width, saw(v / height) * height) - 0.4))
        c.shade(1 - 0.12 * edge(saw(u / 2.2) * 2.2 - 0.5))
    elif kind == "suburb":
        u, v = turned(X, Y, draws.uniform(0, 32), draws.uniform(0, 32), draws.uniform(0, 1))
        pitch = draws.uniform(5, 6.5)
        c = Canvas(draws.colour((0.2, 0.33), (0.15, 0.35), (0.5, 0.62)))
        roof = box(
            pitch * (u / pitch - np.floor(u / pitch) - 0.5),
            pitch * (v / pitch - np.floor(v / pitch) - 0.5),
            1.7,
            1.4,
        )
        tone = (np.floor(u / pitch) * 5 + np.floor(v / pitch) * 3 + 70) % 3
        for i, hue in enumerate(((-0.02, 0.04), (0.04, 0.08), (0.5, 0.65))):
            c.paint(
                edge(roof) * (tone == i),
                draws.colour(hue, (0.1, 0.65) if i < 2 else (0.03, 0.12), (0.5, 0.75)),
            )
    else:
        c = Canvas(draws.colour((0.55, 0.65), (0.02, 0.08), (0.88, 0.97)))
        c.shade(0.86 + 0.2 * draws.noise(5))
    return c


def _way(c: Canvas, draws: Draws, u: Array, v: Array, half: Array) -> None:
    """A road along v: asphalt, and a dashed white line in its middle."""
    c.paint(edge(np.abs(u) - half), draws.colour((0.0, 1.0), (0.0, 0.06), (0.3, 0.44)))
    c.paint(edge(np.abs(u) - 0.4) * (saw(v / 5) < 0.3), fixed(draws.n, 0.95, 0.95, 0.9))


def _water(draws: Draws) -> Array:
    return draws.colour((0.54, 0.61), (0.55, 0.8), (0.4, 0.65))


def structure(kind: str, draws: Draws, c: Canvas) -> None:
    n = draws.n
    cx, cy = draws.uniform(12, 20), draws.uniform(12, 20)
    u, v = turned(X, Y, cx, cy, draws.uniform(-0.1, 0.1))
    if kind == "river":
        bend = draws.uniform(2.5, 4.5) * wave(v / draws.uniform(22, 32) + draws.uniform(0, 1))
        half = draws.uniform(2.2, 3.6)
        c.paint(
            edge(np.abs(u - bend) - half - 0.9), draws.colour((0.09, 0.13), (0.3, 0.5), (0.6, 0.75))
        )
        c.paint(edge(np.abs(u - bend) - half), _water(draws))
    elif kind == "motorway":
        half = draws.uniform(3.6, 4.8)
        c.paint(edge(np.abs(u) - half), draws.colour((0.0, 1.0), (0.0, 0.06), (0.3, 0.44)))
        c.paint(edge(np.abs(u) - 0.7), draws.colour((0.25, 0.33), (0.4, 0.6), (0.4, 0.55)))
        c.paint(
            edge(np.abs(np.abs(u) - half * 0.58) - 0.3) * (saw(v / 4) < 0.28),
            fixed(n, 0.95, 0.95, 0.9),
        )
    elif kind == "crossing":
        half = draws.uniform(2.2, 3)
        _way(c, draws, u, v, half)
        _way(c, draws, v, u, half)
    elif kind == "roundabout":
        radius = draws.uniform(6, 8)
        asphalt = draws.colour((0.0, 1.0), (0.0, 0.06), (0.3, 0.44))
        c.paint(edge(np.minimum(np.abs(u), np.maximum(np.abs(v), -u)) - 1.7), asphalt)
        c.paint(edge(disc(u, v, radius)), asphalt)
        c.paint(
            edge(disc(u, v, radius - 3.4)), draws.colour((0.25, 0.36), (0.5, 0.7), (0.45, 0.62))
        )
        c.paint(edge(np.abs(disc(u, v, radius - 1.6)) - 0.3) * 0.8, fixed(n, 0.95, 0.95, 0.9))
    elif kind == "runway":
        half, long = draws.uniform(2.6, 3.6), draws.uniform(11, 14)
        c.paint(edge(box(u, v, half, long)), draws.colour((0.0, 1.0), (0.0, 0.06), (0.26, 0.38)))
        white = fixed(n, 0.97, 0.97, 0.95)
        c.paint(edge(box(u, v, 0.45, long - 4)) * (saw(v / 4) < 0.3), white)
        c.paint(
            edge(np.maximum(np.abs(u) - half + 0.5, np.abs(np.abs(v) - long + 2) - 1.1))
            * (saw(u / 1.9) < 0.3),
            white,
        )
    elif kind == "lake":
        radius = draws.uniform(7, 10)
        shore = disc(u, v * draws.uniform(0.9, 1.3), radius) + 5 * (draws.noise(5) - 0.5)
        c.paint(edge(shore - 0.9), draws.colour((0.09, 0.13), (0.3, 0.5), (0.6, 0.75)))
        c.paint(edge(shore), _water(draws))
        c.shade(1 - 0.25 * edge(shore + 3, 3))
    elif kind == "tanks":
        pitch = draws.uniform(7, 8.5)
        white = draws.colour((0.0, 1.0), (0.0, 0.06), (0.85, 0.98))
        for i in (-1, 1):
            for j in (-1, 0, 1):
                a, b = u - 0.5 * pitch * i, v - pitch * j
                c.paint(0.65 * edge(disc(a - 0.9, b - 0.9, 2.9)), fixed(n, 0.05, 0.05, 0.08))
                c.paint(edge(disc(a, b, 2.8)), white)
                c.paint(0.5 * edge(disc(a + 0.4, b + 0.4, 1.0)), fixed(n, 0.5, 0.52, 0.55))
    elif kind == "stadium":
        half, long = draws.uniform(5, 6.2), draws.uniform(4, 5.5)
        oval = disc(u, np.maximum(np.abs(v) - long, 0), half)
        c.paint(edge(oval - 2.2), draws.colour((0.0, 1.0), (0.0, 0.06), (0.6, 0.75)))
        c.paint(edge(oval), draws.colour((-0.01, 0.03), (0.55, 0.75), (0.6, 0.75)))
        c.paint(edge(oval + 2), draws.colour((0.3, 0.37), (0.6, 0.8), (0.45, 0.6)))
        c.paint(
            edge(np.minimum(np.abs(v), np.abs(disc(u, v, 1.6))) - 0.3) * edge(oval + 2),
            fixed(n, 0.9, 0.95, 0.9),
        )
    elif kind == "railway":
        c.paint(edge(np.abs(u) - 3.0), draws.colour((0.06, 0.1), (0.15, 0.3), (0.5, 0.62)))
        c.paint(
            edge(np.maximum(np.abs(u) - 2.6, saw(v / 2.6) * 2.6 - 0.55)), fixed(n, 0.25, 0.16, 0.1)
        )
        c.paint(edge(np.abs(np.abs(u) - 1.5) - 0.35), fixed(n, 0.78, 0.8, 0.84))
    else:
        radius = draws.uniform(9, 12)
        pit = disc(u, v, radius) + 4 * (draws.noise(4) - 0.5)
        for step in range(4):
            c.paint(
                edge(pit + 2.6 * step),
                draws.colour((0.06, 0.1), (0.15, 0.35), (0.78 - 0.15 * step, 0.86 - 0.15 * step)),
            )


STRUCTURES = (
    "river",
    "motorway",
    "crossing",
    "roundabout",
    "runway",
    "lake",
    "tanks",
    "stadium",
    "railway",
    "quarry",
)


def land(kind: str, draws: Draws, which: Array) -> Array:
    """``which [n]`` numbers the ground; each ground is drawn for all, since there are few pictures
    of one structure."""
    rgb = np.empty((draws.n, 3, SIZE, SIZE), dtype=np.float32)
    for g, name in enumerate(GROUNDS):
        rows = np.flatnonzero(which == g)
        if len(rows):
            mine = Draws(draws.rng, len(rows))
            c = ground(name, mine)
            structure(kind, mine, c)
            rgb[rows] = c.rgb
    return rgb


# ---- fields: a pattern in a colour, seen from a satellite ----------------------------------------

FIELD_COLOURS = ("green", "yellow", "brown", "grey")
FIELD_PATTERNS = ("striped", "checked", "spotted", "round", "terraced")


def field(pattern: str, draws: Draws, which: Array) -> Array:
    colour = word_colours(draws, FIELD_COLOURS, which)
    second = np.clip(
        colour * (0.62 + 0.16 * draws.rng.random((draws.n, 1))).astype(np.float32), 0, 1
    )
    other = draws.colour((0.05, 0.35), (0.15, 0.5), (0.3, 0.75))
    u, v = turned(X, Y, draws.uniform(8, 24), draws.uniform(8, 24), draws.uniform(-0.05, 0.05))
    c = Canvas(colour)
    if pattern == "striped":
        c.paint(edge((saw(u / draws.uniform(4, 6.5)) - 0.25) * 5), second)
    elif pattern == "checked":
        pitch = draws.uniform(4, 6)
        c.paint(((np.floor(u / pitch) + np.floor(v / pitch)) % 2 == 0).astype(np.float32), second)
    elif pattern == "spotted":
        pitch = draws.uniform(5, 7)
        c.paint(
            edge(
                disc(
                    pitch * (u / pitch - np.floor(u / pitch) - 0.5),
                    pitch * (v / pitch - np.floor(v / pitch) - 0.5),
                    draws.uniform(1.5, 2.1),
                )
            ),
            second * 0.75,
        )
    elif pattern == "round":
        c = Canvas(other)
        pitch = draws.uniform(13, 17)
        d = disc(
            pitch * (u / pitch - np.floor(u / pitch) - 0.5),
            pitch * (v / pitch - np.floor(v / pitch) - 0.5),
            pitch * 0.46,
        )
        c.paint(edge(d), colour)
        c.paint(0.7 * edge(np.abs(d + 2.6) - 0.5), second)
    else:
        bent = (
            u
            + draws.uniform(2, 4) * wave(v / draws.uniform(18, 28) + draws.uniform(0, 1))
            + 5 * (draws.noise(3) - 0.5)
        )
        step = bent / draws.uniform(4, 5.5)
        c.shade(1.12 - 0.5 * (step - np.floor(step)))
        c.paint(0.85 * edge(saw(step) * 5 - 0.5), second * 0.6)
    ways = draws.uniform(10, 16)  # tracks and a neighbour's field at the rim
    c.paint(edge(ways - np.abs(u), 1.0) * draws.chance(0.5), other)
    c.paint(
        0.8 * edge(np.abs(v - draws.uniform(-9, 9)) - 0.6) * draws.chance(0.4),
        draws.colour((0.08, 0.12), (0.2, 0.4), (0.6, 0.8)),
    )
    c.shade(0.85 + 0.3 * draws.noise(7))
    return c.rgb


# ---- traffic signs: a colour, a shape, a mark ----------------------------------------------------

SIGN_COLOURS = ("red", "blue", "yellow", "green")
SIGN_SHAPES = ("triangle", "round", "square", "diamond")
SIGN_MARKS = (
    "one bar",
    "two bars",
    "left arrow",
    "right arrow",
    "a cross",
    "a dot",
    "a ring",
    "a zigzag",
)


def _mark(kind: str, u: Array, v: Array) -> Array:
    """A mark in a frame where the sign has radius 1."""

    def line(*ends: float) -> Array:
        return np.sqrt(segment(u, v, *(np.float32(e) for e in ends)))

    if kind == "one bar":
        return box(u, v, 0.5, 0.15)
    if kind == "two bars":
        return np.maximum(np.abs(np.abs(u) - 0.27) - 0.13, np.abs(v) - 0.46)
    if kind in ("left arrow", "right arrow"):
        way = -1 if kind.startswith("left") else 1
        return np.minimum(
            box(u + way * 0.12, v, 0.42, 0.11),
            convex(u * way, v, [(0.08, -0.42), (0.6, 0), (0.08, 0.42)]),
        )
    if kind == "a cross":
        return np.minimum(line(-0.4, -0.4, 0.4, 0.4), line(-0.4, 0.4, 0.4, -0.4)) - 0.13
    if kind == "a dot":
        return disc(u, v, 0.34)
    if kind == "a ring":
        return np.abs(disc(u, v, 0.36)) - 0.12
    return (
        np.minimum.reduce(
            [
                line(-0.5, 0.2, -0.18, -0.25),
                line(-0.18, -0.25, 0.18, 0.25),
                line(0.18, 0.25, 0.5, -0.2),
            ]
        )
        - 0.11
    )


def sign(mark: str, draws: Draws, colour: Array, shape: Array) -> Array:
    c = Canvas(draws.colour((0.25, 0.65), (0.1, 0.5), (0.35, 0.85)))
    c.paint(
        np.clip(2.5 * draws.noise(5) - 1, 0, 1), draws.colour((0.05, 0.4), (0.1, 0.5), (0.2, 0.6))
    )
    for _ in range(2):
        c.paint(
            0.8
            * edge(
                box(
                    X - draws.uniform(0, 32),
                    Y - draws.uniform(0, 32),
                    draws.uniform(1, 5),
                    draws.uniform(2, 9),
                )
            )
            * draws.chance(0.6),
            draws.colour((0.0, 1.0), (0.1, 0.7), (0.2, 0.9)),
        )
    radius = draws.uniform(12, 14.5)
    cx, cy = (
        16 + draws.uniform(-0.7, 0.7) * (15.5 - radius),
        16 + draws.uniform(-0.7, 0.7) * (15.5 - radius),
    )
    c.paint(
        edge(np.maximum(np.abs(X - cx) - 0.8, cy - Y)),
        draws.colour((0.0, 1.0), (0.0, 0.1), (0.4, 0.65)),
    )
    u, v = turned(X, Y, cx, cy, draws.uniform(-0.03, 0.03), radius)
    u = u * draws.uniform(1, 1.2)
    outlines = [
        convex(u, v - 0.12, [(0.0, -1.05), (0.98, 0.66), (-0.98, 0.66)]),
        disc(u, v, 0.95),
        box(u, v, 0.85, 0.85),
        0.7071 * (np.abs(u) + np.abs(v)) - 0.72,
    ]
    outline = np.choose(shape[:, None, None], outlines)
    main = word_colours(draws, SIGN_COLOURS, colour)
    white = draws.colour((0.0, 1.0), (0.0, 0.05), (0.9, 1.0))
    dark = draws.colour((0.0, 1.0), (0.0, 0.2), (0.05, 0.15))
    is_red, is_yellow = (colour == 0)[:, None], (colour == 2)[:, None]
    c.paint(edge((outline - 0.06) * radius), np.where(is_yellow, dark, white))
    c.paint(edge((outline + 0.02) * radius), main)
    c.paint(edge((outline + 0.2) * radius), np.where(is_red, white, main))
    # Triangles have their room below the middle.
    small = np.where(
        (shape == 0)[:, None, None],
        np.float32(1.2),
        np.where((shape == 3)[:, None, None], np.float32(1.0), np.float32(0.8)),
    )
    low = np.where((shape == 0)[:, None, None], np.float32(0.22), np.float32(0.0))
    c.paint(
        edge(_mark(mark, u * small, (v - low) * small) / small * radius),
        np.where(is_red | is_yellow, dark, white),
    )
    return c.rgb


# ---- glyphs: a digit or letter in a medium -------------------------------------------------------

MEDIA = ("house", "handwritten", "chalk", "neon", "stamped", "carved")


def written(medium: str, draws: Draws, which: Array) -> Array:
    n = draws.n
    height = draws.uniform(17, 23)
    cx, cy = 16 + draws.uniform(-2, 2), 16 + draws.uniform(-2, 2)
    width = height * draws.uniform(0.5, 0.7)
    slant = draws.uniform(-0.15, 0.3)
    turn = draws.uniform(-0.03, 0.03)
    jitter = {
        "house": 0.02,
        "handwritten": 0.11,
        "chalk": 0.05,
        "neon": 0.03,
        "stamped": 0.03,
        "carved": 0.04,
    }[medium]
    u, v = turned(X, Y, cx, cy, turn)
    strokes = glyph(draws, which, u, v, width=width, height=height, jitter=jitter, slant=slant)
    if medium == "house":
        wall = draws.colour((0.0, 1.0), (0.05, 0.6), (0.3, 0.9))
        c = Canvas(wall)
        row = np.floor(Y / 4)
        c.shade(
            1
            - 0.3
            * edge(np.minimum(saw(Y / 4) * 4, saw(X / 8 + 0.5 * (row % 2)) * 8) - 0.3)
            * draws.chance(0.5)
        )
        plate = draws.colour((0.0, 1.0), (0.0, 0.9), (0.1, 1.0))
        c.paint(edge(box(u, v, 16, height * draws.uniform(0.62, 0.75))) * draws.chance(0.75), plate)
        # The ink stands out from the plate by brightness.
        grey = 0.3 * plate[:, 0] + 0.59 * plate[:, 1] + 0.11 * plate[:, 2]
        light = draws.colour((0.0, 1.0), (0.0, 0.35), (0.85, 1.0))
        ink = np.where((grey < 0.55)[:, None], light, light * 0.2)
        half = draws.uniform(1.0, 1.9)
        gap = width + draws.uniform(4, 6)
        for side in (-1, 1):  # the numbers beside it, cut by the rim
            neighbour = glyph(
                draws,
                draws.pick(10),
                u - side * gap,
                v,
                width=width,
                height=height,
                jitter=jitter,
                slant=slant,
            )
            c.paint(edge(neighbour - half) * draws.chance(0.6), ink)
        c.paint(edge(strokes - half, 1.3), ink)
    elif medium == "handwritten":
        c = Canvas(fixed(n, 0.02, 0.02, 0.02))
        c.paint(
            edge(strokes - draws.uniform(0.8, 1.9), 1.6),
            draws.colour((0.0, 1.0), (0.0, 0.03), (0.85, 1.0)),
        )
    elif medium == "chalk":
        c = Canvas(draws.colour((0.38, 0.48), (0.35, 0.55), (0.2, 0.32)))
        c.paint(0.25 * np.clip(3 * draws.noise(4) - 1.5, 0, 1), fixed(n, 0.8, 0.8, 0.8))
        rough = (draws.rng.random(strokes.shape, dtype=np.float32) < 0.8).astype(np.float32)
        c.paint(
            edge(strokes - draws.uniform(1.0, 1.7)) * (0.35 + 0.65 * rough),
            draws.colour((0.0, 1.0), (0.0, 0.3), (0.85, 1.0)),
        )
    elif medium == "neon":
        c = Canvas(draws.colour((0.6, 0.8), (0.3, 0.7), (0.04, 0.16)))
        glow = draws.colour((0.0, 1.0), (0.75, 0.95), (0.95, 1.0))
        c.paint(0.7 / (1 + 0.16 * strokes * strokes), glow)
        c.paint(edge(strokes - 0.7, 1.5), 0.35 * glow + 0.65)
    elif medium == "stamped":
        c = Canvas(draws.colour((0.08, 0.14), (0.08, 0.25), (0.82, 0.95)))
        ink = draws.colour((0.55, 1.02), (0.6, 0.85), (0.4, 0.65))
        worn = np.clip(2.4 * draws.noise(9) - 0.1, 0.25, 1)
        c.paint(edge(np.abs(disc(u, v, height * 0.68)) - 0.8) * worn, ink)
        c.paint(edge(strokes * 1.3 - draws.uniform(1.2, 1.7)) * worn, ink)
    else:
        c = Canvas(draws.colour((0.05, 0.1), (0.15, 0.55), (0.45, 0.7)))
        c.shade(0.8 + 0.25 * draws.noise(8))
        half = draws.uniform(1.0, 1.6)
        c.paint(0.75 * edge(strokes - half), fixed(n, 0.1, 0.07, 0.05))
        c.paint(
            0.45 * edge(np.abs(strokes - half - 0.7) - 0.5) * (u + v > 0), fixed(n, 1, 0.95, 0.85)
        )
    return c.rgb


# ---- textures: a pattern, and what befell it -----------------------------------------------------

TEXTURE_PATTERNS = (
    "striped",
    "dotted",
    "checked",
    "zigzagged",
    "gridded",
    "scaly",
    "ringed",
    "bricked",
)
TEXTURE_STATES = ("fine", "coarse", "wavy", "cracked", "stained")
FINE, COARSE, WAVY, CRACKED, STAINED = range(5)


def texture(pattern: str, draws: Draws, state: Array) -> Array:
    def of(which: int) -> Array:
        return (state == which).astype(np.float32)[:, None, None]

    first = draws.colour((0.0, 1.0), (0.1, 0.7), (0.6, 1.0))
    second = draws.colour((0.0, 1.0), (0.1, 0.8), (0.08, 0.42))
    period = np.where(
        of(FINE) > 0,
        draws.uniform(3.2, 4.2),
        np.where(of(COARSE) > 0, draws.uniform(10.5, 14), draws.uniform(6, 7.5)),
    )
    x = X + 2.1 * of(WAVY) * wave(Y / 13 + draws.uniform(0, 1))
    y = Y + 2.1 * of(WAVY) * wave(X / 13 + draws.uniform(0, 1))
    u, v = turned(
        x, y, draws.uniform(6, 26), draws.uniform(6, 26), draws.uniform(-0.03, 0.03), period
    )
    fu, fv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    if pattern == "striped":
        d = saw(u) - 0.25
    elif pattern == "dotted":
        d = disc(fu, fv, 0.3)
    elif pattern == "checked":
        s = (saw(u / 2) - 0.25) * (saw(v / 2) - 0.25)
        d = (
            np.where(s > 0, 1.0, -1.0).astype(np.float32)
            * np.minimum(np.abs(saw(u / 2) - 0.25), np.abs(saw(v / 2) - 0.25))
            * 2
        )
    elif pattern == "zigzagged":
        d = saw(u + 0.9 * saw(v / 1.6)) - 0.25
    elif pattern == "gridded":
        d = np.minimum(saw(u), saw(v)) - 0.13
    elif pattern == "scaly":
        row = np.floor(v)
        shift = u + 0.5 * (row % 2)
        d = np.abs(disc(shift - np.floor(shift) - 0.5, (v - row) * 0.9, 0.55)) - 0.11
    elif pattern == "ringed":
        d = saw(np.sqrt(u * u + v * v)) - 0.22
    else:
        row = np.floor(v * 1.4)
        d = np.minimum(saw(u * 0.7 + 0.5 * (row % 2)) / 0.7, saw(v * 1.4) / 1.4) - 0.09
    c = Canvas(first)
    c.paint(edge(d * period), second)
    c.shade(0.9 + 0.2 * draws.noise(6))
    lines = np.ones((draws.n, SIZE, SIZE), dtype=np.float32)
    for _ in range(3):
        a, b = turned(X, Y, draws.uniform(6, 26), draws.uniform(6, 26), draws.uniform(0, 1))
        jag = 2.2 * saw(b / 7.3 + draws.uniform(0, 1)) * 2 + 1.5 * saw(b / 3.1)
        lines = np.minimum(lines, np.abs(a + jag) - 0.55)
    c.paint(edge(lines) * of(CRACKED), fixed(draws.n, 0.03, 0.02, 0.02))
    blots = np.clip(6 * draws.noise(5) - 3.4, 0, 1) * of(STAINED)
    c.paint(0.75 * blots, draws.colour((0.05, 0.1), (0.5, 0.8), (0.15, 0.35)))
    return c.rgb
