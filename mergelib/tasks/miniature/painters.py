"""How each family of pictures is painted: one function per place, body, ground, structure, pattern,
sign or medium.

A painter gets the random numbers of n pictures and the attributes in its signature; everything else
that it draws is nuisance variation. Colours and outlines go by names of ``images.yaml``.
"""

from __future__ import annotations

import numpy as np

from .drawing import (
    DATA,
    SIZE,
    Array,
    Canvas,
    Draws,
    X,
    Y,
    band,
    block,
    box,
    centred,
    convex,
    disc,
    edge,
    lines,
    saw,
    tiled,
    together,
    turned,
    wave,
)
from .glyphs import glyph

# ---- scenes: a place in a light ------------------------------------------------------------------

LIGHTS = tuple(DATA["lights"])
WORDS = {name: family["words"] for name, family in DATA["families"].items()}


class Scene(Canvas):
    """A sky in one of six lights; whatever is painted on it later takes the colour of that
    light."""

    def __init__(self, draws: Draws, light: Array):
        self.light = light
        self.horizon = draws.uniform(9, 22)
        jitter = 1 + 0.4 * (draws.rng.random((draws.n, 3)) - 0.5)
        down = np.clip(Y / self.horizon, 0, 1)
        top, low = (
            (self.by_light(key) * jitter).astype(np.float32)[:, :, None, None]
            for key in ("top", "low")
        )
        sky = np.clip(top + down[:, None] * (low - top) + np.zeros_like(X)[:, None], 0, 1)
        super().__init__(draws, sky)
        cx, cy = draws.uniform(4, 28), draws.uniform(3, 8)
        noon, sunset, night = map(self.of, LIGHTS[:3])
        cy = np.where(sunset > 0, self.horizon - draws.uniform(1, 4), cy)
        seen = (noon + sunset + night) * draws.chance(0.75)
        sun = disc(X - cx, Y - cy, draws.uniform(2, 3.4) + 1.2 * sunset)
        self.paint(edge(sun, 1.5) * seen, self.by_light("sun").astype(np.float32))
        self.paint(draws.specks(0.025) * night * 0.8, "star")
        cloud = np.clip(3 * draws.noise(5) - 1.9, 0, 1) * (noon + 0.5 * sunset)
        self.paint(cloud * draws.chance(0.6), self.by_light("cloud").astype(np.float32))

    def by_light(self, key: str) -> Array:
        """``[n]`` or ``[n, 3]``: what ``images.yaml`` says of each picture's light."""
        return np.array([light[key] for light in DATA["lights"].values()])[self.light]

    def of(self, light: str) -> Array:
        return (self.light == LIGHTS.index(light)).astype(np.float32)[:, None, None]

    def lit(self, colour: str | Array, depth: float = 1.0) -> Array:
        """``[n, 3]`` colours as they look in this light, under a veil of fog that grows with
        depth."""
        veil = np.clip(self.by_light("veil") * depth, 0, 0.9)[:, None]
        tinted = self.colour(colour) * self.by_light("tint") * (1 - veil)
        return (tinted + self.by_light("veil colour") * veil).astype(np.float32)

    def fill_lit(
        self,
        distance: Array,
        colour: str | Array,
        strength: Array | float = 1.0,
        depth: float = 1.0,
    ) -> None:
        """Put a colour inside a shape, as it looks in this light."""
        self.paint(edge(distance) * strength, self.lit(colour, depth))

    def snowy(self, colour: str | Array, share: float, white: float = 1.0) -> Array:
        """``[n, 3]``: in snow, a share of the colour is white."""
        snow = share * self.of("in snow")[:, 0]
        return self.colour(colour) * (1 - snow) + white * snow

    def ground(self, colour: str) -> None:
        """Everything below the horizon; in snow it is white."""
        self.fill_lit(self.horizon - Y, self.snowy(colour, 0.8, 0.97))

    def weather(self) -> Array:
        """The finished pictures: rain falls in streaks, snow in flakes."""
        draws = self.draws
        lean = draws.uniform(-0.4, 0.4)
        column = X + lean * Y
        streak = edge(saw(column / 4.2 + draws.uniform(0, 1)) * 4.2 - 0.1, 0.7) * (
            saw(Y / 9 + np.floor(column / 4.2) * 0.37 + draws.uniform(0, 1)) < 0.3
        )
        self.paint(0.5 * streak * self.of("in rain"), "raindrop")
        self.paint(0.9 * draws.specks(0.06) * self.of("in snow"), "snowflake")
        return self.rgb


def sea(s: Scene, draws: Draws) -> None:
    s.fill_lit(s.horizon - Y, "sea")
    depth = np.clip((Y - s.horizon) / 16, 0, 1)
    swell = 0.4 * wave(X / 9 + draws.uniform(0, 1))
    crest = np.clip(wave(Y / (2.2 + 2 * depth) + swell + draws.uniform(0, 1)) - 0.35, 0, 1)
    crest = crest * (s.horizon + 1 < Y)
    s.paint(0.55 * crest * (draws.noise(6) > 0.4), s.lit("crest"))
    cx, water = draws.uniform(6, 26), s.horizon + draws.uniform(2, 7)
    seen, size = draws.chance(0.6), draws.uniform(0.8, 1.3)
    u, v = (X - cx) / size, (Y - water) / size
    for part in ("hull", "sail"):
        s.fill_lit(convex(u, v, DATA["polygons"][part]), part, seen)


def hills(s: Scene, draws: Draws) -> None:
    for layer in range(3):
        bend = draws.uniform(1.5, 3.2) * wave(X / draws.uniform(15, 26) + draws.uniform(0, 1))
        top = s.horizon - 1 + 4.5 * layer + bend
        green = draws.hsv((0.24, 0.36), (0.45, 0.7), (0.62 - 0.13 * layer, 0.72 - 0.13 * layer))
        s.fill_lit(top - Y, s.snowy(green, 0.6 - 0.15 * layer), depth=1.2 - 0.4 * layer)


def mountains(s: Scene, draws: Draws) -> None:
    for layer in range(3):
        cx = draws.uniform(2 + 9 * layer, 12 + 9 * layer)
        peak = s.horizon - draws.uniform(7, 12) + 1.5 * layer
        slope = draws.uniform(0.9, 1.5)
        below = peak + np.abs(X - cx) * slope - Y
        s.fill_lit(below, "rock", depth=1.1 - 0.2 * layer)
        s.fill_lit(below, "peak", edge(Y - peak - 3.5 - 1.2 * wave(X / 3.3)), depth=0.8)
    s.ground("valley")


def forest(s: Scene, draws: Draws) -> None:
    s.ground("forest floor")
    for tree in range(8):
        cx = (tree * 5 + 3) % 34 + draws.uniform(-2.5, 2.5)
        foot = s.horizon + 1 + 1.1 * tree + draws.uniform(-1, 1)
        height = draws.uniform(9, 14)
        s.fill_lit(box(X - cx, Y - foot, 0.7, 1.5), "trunk")
        fir = np.maximum(
            np.abs(X - cx) - (Y - foot + height) * 0.36 + 0.9 * saw((Y - foot) / 3.5), Y - foot + 1
        )
        s.fill_lit(fir, s.snowy("fir", 0.45), depth=1.0 - 0.06 * tree)


def city(s: Scene, draws: Draws) -> None:
    s.ground("street")
    night = s.of("at night")[:, 0]
    for tower in range(7):
        cx, half = (tower * 9 + 4) % 33 + draws.uniform(-2, 2), draws.uniform(2, 3.4)
        roof, foot = s.horizon - draws.uniform(4, 12) + 0.6 * tower, s.horizon + 2.5 + 0.8 * tower
        body = block(X - cx, half, roof - Y, Y - foot)
        s.fill_lit(body, "tower", depth=1.1 - 0.1 * tower)
        pane = (
            edge(body + 1.1)
            * edge(saw((X - cx) / 2.4) * 2.4 - 0.6, 0.8)
            * edge(saw((Y - roof) / 2.8) * 2.8 - 0.7, 0.8)
        )
        s.paint(0.9 * pane, s.colour("lamplight") * night + s.lit("pane") * (1 - night))


def desert(s: Scene, draws: Draws) -> None:
    for layer in range(3):
        cx = draws.uniform(0, 32)
        left, right = (X - cx) * draws.uniform(0.1, 0.25), (cx - X) * draws.uniform(0.25, 0.5)
        top = s.horizon + 5 * layer + np.minimum(left, right) + 1
        sand = draws.hsv((0.095, 0.125), (0.4, 0.55), (0.8 - 0.07 * layer, 0.92 - 0.07 * layer))
        s.fill_lit(top - Y, s.snowy(sand, 0.5), depth=1.1 - 0.3 * layer)
        s.paint(0.3 * edge(top - Y) * edge(cx - X, 2), s.lit(0.55 * sand))
    cx, foot = draws.uniform(5, 27), s.horizon + draws.uniform(6, 11)
    size, seen = draws.uniform(0.8, 1.25), draws.chance(0.7)
    u, v = (X - cx) / size * draws.sign(), (Y - foot) / size
    s.fill_lit(lines(u, v, "cactus") - 1.05, "cactus", seen)


def village(s: Scene, draws: Draws) -> None:
    s.ground("village green")
    night = s.of("at night")[:, 0]
    for house in range(3):
        cx = (5 + 11 * ((house * 2) % 3)) + draws.uniform(-2, 2)
        foot = s.horizon + 2 + 3.2 * house + draws.uniform(0, 1.5)
        half, tall = draws.uniform(3.2, 4.4), draws.uniform(4.5, 6)
        u, v = X - cx, Y - foot
        s.fill_lit(block(u, half, -v - tall, v), "plaster")
        gable = (v + tall + 4.2) * (half + 1.2) / 4.2
        roof = block(u, gable, v + tall, -v - tall - 4.2)
        s.fill_lit(roof, s.snowy("tiles", 0.6))
        s.fill_lit(block(u, 0.9, -v - 3, v), "door")
        lamp = s.colour("lamplight") * night + s.lit("dark window") * (1 - night)
        s.fill(box(u - half * 0.6, v + 3, 0.7, 0.8), lamp)


def highway(s: Scene, draws: Draws) -> None:
    s.ground("verge")
    cx, foot = draws.uniform(10, 22), draws.uniform(8, 24)
    down = np.clip((Y - s.horizon) / (SIZE - s.horizon), 0, 1)
    middle, half = cx + (foot - cx) * down, 0.6 + draws.uniform(9, 13) * down
    across = np.abs(X - middle)
    s.fill_lit(np.maximum(across - half, s.horizon - Y), "carriageway")
    dash = saw(7 / (down + 0.25) + draws.uniform(0, 1)) < 0.27
    s.fill_lit(np.maximum(across - 0.1 - 0.9 * down, s.horizon + 1 - Y), "road marking", dash)
    kerb = band(across - half * 0.86, 0.1) - 0.5 * down
    s.fill_lit(np.maximum(kerb, s.horizon + 1 - Y), "road marking")


PLACES = {
    paint.__name__: paint
    for paint in (sea, hills, mountains, forest, city, desert, village, highway)
}


def scenes(place: str, draws: Draws, light: Array) -> Array:
    s = Scene(draws, light)
    PLACES[place](s, draws)
    return s.weather()


# ---- cars: a body in a colour --------------------------------------------------------------------


def cars(body: str, draws: Draws, colour: Array) -> Array:
    shape = DATA["bodies"][body]
    rear, front, radius = shape["wheels"]
    c = Canvas(draws, "backdrop")
    road = draws.uniform(17, 22)
    for _ in range(4):  # what stands behind
        u, half = X - draws.uniform(0, 32), draws.uniform(2, 5)
        c.fill(
            block(u, half, road - draws.uniform(3, 14) - Y, Y - road),
            "block",
            draws.chance(0.7) * 0.8,
        )
    c.fill(road - Y, "pavement")
    length = draws.uniform(22, 28)
    cx, cy = 16 + draws.uniform(-0.6, 0.6) * (17.5 - length / 2), draws.uniform(17, 21)
    u, v = turned(X, Y, cx, cy, draws.uniform(-0.015, 0.015), length)
    u = u * draws.sign()
    c.fill(disc(u, (v - 0.24) * 5, 0.5) * length, "car's shadow", 0.5, soft=2)
    paint = draws.worded(WORDS["cars"][0], colour)
    parts = [convex(u, v, part) * length for part in shape["parts"]]
    for i, part in enumerate(parts):
        c.fill(part, paint * (1 - 0.1 * i))
    c.paint(0.35 * (edge(parts[0]) * edge((0.1 - v) * length)), 0.3 * paint)
    glass = draws.colour("glass")
    for window in shape["windows"]:
        c.fill(convex(u, v, window) * length, glass)
    c.fill(box(u - 0.46, v - 0.07, 0.03, 0.025) * length, "headlight")
    for wheel in (rear, front):
        c.fill(disc(u - wheel, v - 0.16, radius) * length, "tyre")
        c.fill(disc(u - wheel, v - 0.16, radius * 0.45) * length, "hub")
    return c.rgb


# ---- land use: a structure on a ground, seen from above ------------------------------------------


def ground(kind: str, draws: Draws) -> Canvas:
    if kind in DATA["grounds"]:
        colour, darkest, span, cells = DATA["grounds"][kind]
        c = Canvas(draws, colour)
        c.shade(darkest + span * draws.noise(cells))
    elif kind == "desert":
        c = Canvas(draws, "dunes")
        u, _ = turned(X, Y, 16, 16, draws.uniform(0, 1))
        c.shade(0.92 + 0.08 * wave(u / draws.uniform(4, 6) + 0.8 * draws.noise(3)))
    elif kind == "farmland":
        u, v = draws.frame(0, 32, (0, 1))
        width, height = draws.uniform(7, 11), draws.uniform(6, 9)
        cell = (np.floor(u / width) * 7 + np.floor(v / height) * 3 + 70) % 5
        c = Canvas(draws, "crop")
        for i, crop in enumerate(("wheat", "ploughed", "clover")):
            c.paint(cell == i, crop)
        c.shade(1 - 0.35 * edge(np.minimum(saw(u / width) * width, saw(v / height) * height) - 0.4))
        c.shade(1 - 0.12 * edge(saw(u / 2.2) * 2.2 - 0.5))
    else:  # a suburb
        u, v = draws.frame(0, 32, (0, 1))
        pitch = draws.uniform(5, 6.5)
        c = Canvas(draws, "gardens")
        roof = box(*tiled(u, v, pitch), 1.7, 1.4)
        tone = (np.floor(u / pitch) * 5 + np.floor(v / pitch) * 3 + 70) % 3
        for i, colour in enumerate(("red roof", "brown roof", "slate roof")):
            c.fill(roof, colour, tone == i)
    return c


def _way(c: Canvas, u: Array, v: Array, half: Array) -> None:
    """A road along v: asphalt, and a dashed white line in its middle."""
    c.fill(band(u, half), "asphalt")
    c.fill(band(u, 0.4), "road marking", saw(v / 5) < 0.3)


def structure(kind: str, draws: Draws, c: Canvas) -> None:
    u, v = draws.frame(12, 20, (-0.1, 0.1))
    if kind == "river":
        bend = draws.uniform(2.5, 4.5) * wave(v / draws.uniform(22, 32) + draws.uniform(0, 1))
        half = draws.uniform(2.2, 3.6)
        c.fill(band(u - bend, half) - 0.9, "bank")
        c.fill(band(u - bend, half), "water")
    elif kind == "motorway":
        half = draws.uniform(3.6, 4.8)
        c.fill(band(u, half), "asphalt")
        c.fill(band(u, 0.7), "median strip")
        c.fill(band(band(u, half * 0.58), 0.3), "road marking", saw(v / 4) < 0.28)
    elif kind == "crossing":
        half = draws.uniform(2.2, 3)
        _way(c, u, v, half)
        _way(c, v, u, half)
    elif kind == "roundabout":
        radius = draws.uniform(6, 8)
        asphalt = draws.colour("asphalt")
        c.fill(np.minimum(np.abs(u), np.maximum(np.abs(v), -u)) - 1.7, asphalt)
        c.fill(disc(u, v, radius), asphalt)
        c.fill(disc(u, v, radius - 3.4), "island")
        c.fill(band(disc(u, v, radius - 1.6), 0.3), "road marking", 0.8)
    elif kind == "runway":
        half, long = draws.uniform(2.6, 3.6), draws.uniform(11, 14)
        c.fill(box(u, v, half, long), "runway")
        c.fill(box(u, v, 0.45, long - 4), "runway marking", saw(v / 4) < 0.3)
        piano = np.maximum(band(u, half) + 0.5, band(band(v, long) + 2, 1.1))
        c.fill(piano, "runway marking", saw(u / 1.9) < 0.3)
    elif kind == "lake":
        radius = draws.uniform(7, 10)
        shore = disc(u, v * draws.uniform(0.9, 1.3), radius) + 5 * (draws.noise(5) - 0.5)
        c.fill(shore - 0.9, "bank")
        c.fill(shore, "water")
        c.shade(1 - 0.25 * edge(shore + 3, 3))
    elif kind == "tanks":
        pitch = draws.uniform(7, 8.5)
        white = draws.colour("tank")
        for i in (-1, 1):
            for j in (-1, 0, 1):
                a, b = u - 0.5 * pitch * i, v - pitch * j
                c.fill(disc(a - 0.9, b - 0.9, 2.9), "tank's shadow", 0.65)
                c.fill(disc(a, b, 2.8), white)
                c.fill(disc(a + 0.4, b + 0.4, 1.0), "tank's lid", 0.5)
    elif kind == "stadium":
        half, long = draws.uniform(5, 6.2), draws.uniform(4, 5.5)
        oval = disc(u, np.maximum(band(v, long), 0), half)
        c.fill(oval - 2.2, "stand")
        c.fill(oval, "running track")
        c.fill(oval + 2, "pitch")
        marks = np.minimum(np.abs(v), np.abs(disc(u, v, 1.6))) - 0.3
        c.fill(marks, "pitch marking", edge(oval + 2))
    elif kind == "railway":
        c.fill(band(u, 3.0), "ballast")
        c.fill(np.maximum(band(u, 2.6), saw(v / 2.6) * 2.6 - 0.55), "sleeper")
        c.fill(band(band(u, 1.5), 0.35), "rail")
    else:
        radius = draws.uniform(9, 12)
        pit = disc(u, v, radius) + 4 * (draws.noise(4) - 0.5)
        for step in range(4):
            value = (0.78 - 0.15 * step, 0.86 - 0.15 * step)
            c.fill(pit + 2.6 * step, draws.hsv((0.06, 0.1), (0.15, 0.35), value))


def land(kind: str, draws: Draws, which: Array) -> Array:
    """``which [n]`` numbers the ground; each ground is drawn for all, since there are few pictures
    of one structure."""
    rgb = np.empty((draws.n, 3, SIZE, SIZE), dtype=np.float32)
    for rows, name, mine in together(draws.rng, which, WORDS["land"][1]):
        c = ground(name, mine)
        structure(kind, mine, c)
        rgb[rows] = c.rgb
    return rgb


# ---- fields: a pattern in a colour, seen from a satellite ----------------------------------------


def fields(pattern: str, draws: Draws, which: Array) -> Array:
    colour = draws.worded(WORDS["fields"][0], which)
    darker = (0.62 + 0.16 * draws.rng.random((draws.n, 1))).astype(np.float32)
    second = np.clip(colour * darker, 0, 1)
    other = draws.colour("neighbour")
    u, v = draws.frame(8, 24, (-0.05, 0.05))
    c = Canvas(draws, colour)
    if pattern == "striped":
        c.fill((saw(u / draws.uniform(4, 6.5)) - 0.25) * 5, second)
    elif pattern == "checked":
        pitch = draws.uniform(4, 6)
        c.paint((np.floor(u / pitch) + np.floor(v / pitch)) % 2 == 0, second)
    elif pattern == "spotted":
        pitch = draws.uniform(5, 7)
        c.fill(disc(*tiled(u, v, pitch), draws.uniform(1.5, 2.1)), second * 0.75)
    elif pattern == "round":
        c = Canvas(draws, other)
        pitch = draws.uniform(13, 17)
        d = disc(*tiled(u, v, pitch), pitch * 0.46)
        c.fill(d, colour)
        c.fill(band(d + 2.6, 0.5), second, 0.7)
    else:
        bend = draws.uniform(2, 4) * wave(v / draws.uniform(18, 28) + draws.uniform(0, 1))
        step = (u + bend + 5 * (draws.noise(3) - 0.5)) / draws.uniform(4, 5.5)
        c.shade(1.12 - 0.5 * (step - np.floor(step)))
        c.fill(saw(step) * 5 - 0.5, second * 0.6, 0.85)
    # tracks and a neighbour's field at the rim
    c.fill(draws.uniform(10, 16) - np.abs(u), other, draws.chance(0.5))
    c.fill(band(v - draws.uniform(-9, 9), 0.6), "track", 0.8 * draws.chance(0.4))
    c.shade(0.85 + 0.3 * draws.noise(7))
    return c.rgb


# ---- traffic signs: a colour, a shape, a mark ----------------------------------------------------


def _mark(kind: str, u: Array, v: Array) -> Array:
    """A mark in a frame where the sign has radius 1."""
    if kind == "one bar":
        return box(u, v, 0.5, 0.15)
    if kind == "two bars":
        return np.maximum(band(band(u, 0.27), 0.13), band(v, 0.46))
    if kind in ("left arrow", "right arrow"):
        u = -u if kind == "left arrow" else u
        head = convex(u, v, DATA["polygons"]["arrowhead"])
        return np.minimum(box(u + 0.12, v, 0.42, 0.11), head)
    if kind == "a cross":
        return lines(u, v, "cross") - 0.13
    if kind == "a dot":
        return disc(u, v, 0.34)
    if kind == "a ring":
        return band(disc(u, v, 0.36), 0.12)
    return lines(u, v, "zigzag") - 0.11


def signs(mark: str, draws: Draws, colour: Array, shape: Array) -> Array:
    c = Canvas(draws, "sky")
    c.paint(np.clip(2.5 * draws.noise(5) - 1, 0, 1), "leaves")
    for _ in range(2):
        u, v = X - draws.uniform(0, 32), Y - draws.uniform(0, 32)
        poster = box(u, v, draws.uniform(1, 5), draws.uniform(2, 9))
        c.fill(poster, "poster", 0.8 * draws.chance(0.6))
    radius = draws.uniform(12, 14.5)
    cx, cy = (16 + draws.uniform(-0.7, 0.7) * (15.5 - radius) for _ in "xy")
    c.fill(np.maximum(band(X - cx, 0.8), cy - Y), "post")
    u, v = turned(X, Y, cx, cy, draws.uniform(-0.03, 0.03), radius)
    u = u * draws.uniform(1, 1.2)
    outlines = [
        convex(u, v - 0.12, DATA["polygons"]["triangle"]),
        disc(u, v, 0.95),
        box(u, v, 0.85, 0.85),
        0.7071 * (np.abs(u) + np.abs(v)) - 0.72,
    ]
    outline = np.choose(shape[:, None, None], outlines)
    main = draws.worded(WORDS["signs"][0], colour)
    white, dark = draws.colour("sign's white"), draws.colour("sign's black")
    is_red, is_yellow = (colour == 0)[:, None], (colour == 2)[:, None]
    c.fill((outline - 0.06) * radius, np.where(is_yellow, dark, white))
    c.fill((outline + 0.02) * radius, main)
    c.fill((outline + 0.2) * radius, np.where(is_red, white, main))
    # Triangles have their room below the middle.
    small = np.array([1.2, 0.8, 0.8, 1.0], dtype=np.float32)[shape][:, None, None]
    low = np.array([0.22, 0.0, 0.0, 0.0], dtype=np.float32)[shape][:, None, None]
    c.fill(
        _mark(mark, u * small, (v - low) * small) / small * radius,
        np.where(is_red | is_yellow, dark, white),
    )
    return c.rgb


# ---- glyphs: a digit or letter in a medium -------------------------------------------------------


def glyphs(medium: str, draws: Draws, which: Array) -> Array:
    height = draws.uniform(17, 23)
    cx, cy = 16 + draws.uniform(-2, 2), 16 + draws.uniform(-2, 2)
    width = height * draws.uniform(0.5, 0.7)
    slant = draws.uniform(-0.15, 0.3)
    u, v = turned(X, Y, cx, cy, draws.uniform(-0.03, 0.03))
    form = {"width": width, "height": height, "jitter": DATA["media"][medium], "slant": slant}
    strokes = glyph(draws, which, u, v, **form)
    if medium == "house":
        c = Canvas(draws, "house wall")
        row = np.floor(Y / 4)
        joint = np.minimum(saw(Y / 4) * 4, saw(X / 8 + 0.5 * (row % 2)) * 8) - 0.3
        c.shade(1 - 0.3 * edge(joint) * draws.chance(0.5))
        plate = draws.colour("plate")
        c.fill(box(u, v, 16, height * draws.uniform(0.62, 0.75)), plate, draws.chance(0.75))
        # The ink stands out from the plate by brightness.
        grey = 0.3 * plate[:, 0] + 0.59 * plate[:, 1] + 0.11 * plate[:, 2]
        bright = draws.colour("bright ink")
        ink = np.where((grey < 0.55)[:, None], bright, bright * 0.2)
        half = draws.uniform(1.0, 1.9)
        gap = width + draws.uniform(4, 6)
        for side in (-1, 1):  # the numbers beside it, cut by the rim
            neighbour = glyph(draws, draws.pick(10), u - side * gap, v, **form)
            c.fill(neighbour - half, ink, draws.chance(0.6))
        c.fill(strokes - half, ink, soft=1.3)
    elif medium == "handwritten":
        c = Canvas(draws, "scanned paper")
        c.fill(strokes - draws.uniform(0.8, 1.9), "pen", soft=1.6)
    elif medium == "chalk":
        c = Canvas(draws, "blackboard")
        c.paint(0.25 * np.clip(3 * draws.noise(4) - 1.5, 0, 1), "chalk dust")
        rough = draws.specks(0.8)
        c.fill(strokes - draws.uniform(1.0, 1.7), "chalk", 0.35 + 0.65 * rough)
    elif medium == "neon":
        c = Canvas(draws, "night wall")
        glow = draws.colour("neon")
        c.paint(0.7 / (1 + 0.16 * strokes * strokes), glow)
        c.fill(strokes - 0.7, 0.35 * glow + 0.65, soft=1.5)
    elif medium == "stamped":
        c = Canvas(draws, "paper")
        ink = draws.colour("stamp")
        worn = np.clip(2.4 * draws.noise(9) - 0.1, 0.25, 1)
        c.fill(band(disc(u, v, height * 0.68), 0.8), ink, worn)
        c.fill(strokes * 1.3 - draws.uniform(1.2, 1.7), ink, worn)
    else:
        c = Canvas(draws, "wood")
        c.shade(0.8 + 0.25 * draws.noise(8))
        half = draws.uniform(1.0, 1.6)
        c.fill(strokes - half, "notch", 0.75)
        c.fill(band(strokes - half - 0.7, 0.5), "lit edge", 0.45 * (u + v > 0))
    return c.rgb


# ---- textures: a pattern, and what befell it -----------------------------------------------------


def textures(pattern: str, draws: Draws, state: Array) -> Array:
    fine, coarse, wavy, cracked, stained = (
        (state == i).astype(np.float32)[:, None, None] for i in range(5)
    )
    light, dark = draws.colour("light"), draws.colour("dark")
    period = np.where(
        fine > 0,
        draws.uniform(3.2, 4.2),
        np.where(coarse > 0, draws.uniform(10.5, 14), draws.uniform(6, 7.5)),
    )
    x = X + 2.1 * wavy * wave(Y / 13 + draws.uniform(0, 1))
    y = Y + 2.1 * wavy * wave(X / 13 + draws.uniform(0, 1))
    cx, cy = draws.uniform(6, 26), draws.uniform(6, 26)
    u, v = turned(x, y, cx, cy, draws.uniform(-0.03, 0.03), period)
    if pattern == "striped":
        d = saw(u) - 0.25
    elif pattern == "dotted":
        d = disc(centred(u), centred(v), 0.3)
    elif pattern == "checked":
        a, b = saw(u / 2) - 0.25, saw(v / 2) - 0.25
        d = np.where(a * b > 0, np.float32(1), -1) * np.minimum(np.abs(a), np.abs(b)) * 2
    elif pattern == "zigzagged":
        d = saw(u + 0.9 * saw(v / 1.6)) - 0.25
    elif pattern == "gridded":
        d = np.minimum(saw(u), saw(v)) - 0.13
    elif pattern == "scaly":
        row = np.floor(v)
        d = band(disc(centred(u + 0.5 * (row % 2)), (v - row) * 0.9, 0.55), 0.11)
    elif pattern == "ringed":
        d = saw(np.sqrt(u * u + v * v)) - 0.22
    else:
        row = np.floor(v * 1.4)
        d = np.minimum(saw(u * 0.7 + 0.5 * (row % 2)) / 0.7, saw(v * 1.4) / 1.4) - 0.09
    c = Canvas(draws, light)
    c.fill(d * period, dark)
    c.shade(0.9 + 0.2 * draws.noise(6))
    cracks = np.ones((draws.n, SIZE, SIZE), dtype=np.float32)
    for _ in range(3):
        a, b = draws.frame(6, 26, (0, 1))
        jag = 2.2 * saw(b / 7.3 + draws.uniform(0, 1)) * 2 + 1.5 * saw(b / 3.1)
        cracks = np.minimum(cracks, band(a + jag, 0.55))
    c.fill(cracks, "crack", cracked)
    c.paint(0.75 * (np.clip(6 * draws.noise(5) - 3.4, 0, 1) * stained), "stain")
    return c.rgb


PAINTERS = {
    paint.__name__: paint for paint in (scenes, cars, land, fields, glyphs, signs, textures)
}
