"""Paints pictures by the steps of ``painters.yaml``, which documents itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, partial
from types import CodeType
from typing import Any

import numpy as np

from ...core.documents import own_yaml
from . import drawing
from .drawing import DATA, Array, Canvas, Draws, X, Y, disc, edge, saw
from .glyphs import glyph

STEPS = own_yaml(__file__, "painters.yaml")
VERBS = ("begin", "fill", "paint", "shade", "lit", "ground")  # methods of a canvas
LIGHTS = tuple(DATA["lights"])
FUNCTIONS = {n: f for n, f in vars(drawing).items() if not n.startswith("_")} | {
    n: getattr(np, n) for n in ("choose", "clip", "float32", "floor", "sqrt", "where")
}
# Of arrays, element by element.
FUNCTIONS |= {"max": np.maximum, "min": np.minimum, "data": DATA, "steps": STEPS}


class Scene(Canvas):
    """A sky in one of six lights; whatever is painted on it later takes the colour of that
    light."""

    def __init__(self, draws: Draws, light: Array):
        super().__init__(draws)
        self.light = light
        self.night = self.in_light("at night")[:, 0]
        self.horizon = horizon = draws.uniform(9, 22)
        jitter = 1 + 0.4 * (draws.rng.random((draws.n, 3)) - 0.5)
        top, low = (
            (self.by_light(key) * jitter).astype(np.float32)[:, :, None, None]
            for key in ("top", "low")
        )
        down = np.clip(Y / horizon, 0, 1)[:, None]
        self.rgb = np.clip(top + down * (low - top) + np.zeros_like(X)[:, None], 0, 1)
        cx, cy = draws.uniform(4, 28), draws.uniform(3, 8)
        noon, sunset, night = map(self.in_light, LIGHTS[:3])
        cy = np.where(sunset > 0, horizon - draws.uniform(1, 4), cy)
        seen = (noon + sunset + night) * draws.chance(0.75)
        sun = disc(X - cx, Y - cy, draws.uniform(2, 3.4) + 1.2 * sunset)
        self.paint(self.by_light("sun").astype(np.float32), edge(sun, 1.5) * seen)
        self.paint("star", 0.8 * draws.specks(0.025) * night)
        cloud = np.clip(3 * draws.noise(5) - 1.9, 0, 1) * (noon + 0.5 * sunset)
        self.paint(self.by_light("cloud").astype(np.float32), cloud * draws.chance(0.6))

    def by_light(self, key: str) -> Array:
        """``[n]`` or ``[n, 3]``: what ``images.yaml`` says of each picture's light."""
        return np.array([light[key] for light in DATA["lights"].values()])[self.light]

    def in_light(self, light: str) -> Array:
        """``[n, 1, 1]``: 1 for the pictures in this light."""
        return (self.light == LIGHTS.index(light)).astype(np.float32)[:, None, None]

    def as_lit(self, colour: str | Array, depth: float = 1.0) -> Array:
        """``[n, 3]`` colours as they look in this light, under a veil of fog that grows with
        depth."""
        veil = np.clip(self.by_light("veil") * depth, 0, 0.9)[:, None]
        tinted = self.colour(colour) * self.by_light("tint") * (1 - veil)
        return (tinted + self.by_light("veil colour") * veil).astype(np.float32)

    def lit(
        self, colour: str | Array, inside: Array, strength: Array | float = 1.0, depth: float = 1.0
    ) -> None:
        """Put a colour inside a shape, as it looks in this light."""
        self.paint(self.as_lit(colour, depth), edge(inside) * strength)

    def snowy(self, colour: str | Array, share: float, white: float = 1.0) -> Array:
        """``[n, 3]``: in snow, a share of the colour is white."""
        share = share * self.in_light("in snow")[:, 0]
        return self.colour(colour) * (1 - share) + white * share

    def ground(self, colour: str) -> None:
        """Everything below the horizon; in snow it is white."""
        self.lit(self.snowy(self.colour(colour), 0.8, 0.97), self.horizon - Y)

    def weather(self) -> None:
        """Rain falls in streaks, snow in flakes."""
        draws = self.draws
        lean = draws.uniform(-0.4, 0.4)
        column = X + lean * Y
        streak = edge(saw(column / 4.2 + draws.uniform(0, 1)) * 4.2 - 0.1, 0.7) * (
            saw(Y / 9 + np.floor(column / 4.2) * 0.37 + draws.uniform(0, 1)) < 0.3
        )
        self.paint("raindrop", 0.5 * streak * self.in_light("in rain"))
        self.paint("snowflake", 0.9 * draws.specks(0.06) * self.in_light("in snow"))


@cache
def _compiled(formula: str) -> CodeType:
    return compile(formula, "painters.yaml", "eval")


def follow(steps: Iterable[Mapping[str, Any]], canvas: Canvas, names: dict[str, Any]) -> None:
    """Carry out steps of ``painters.yaml`` on ``canvas``; ``names`` are what formulas may use."""

    def value(formula: Any) -> Any:  # from our own file, never a user's
        return eval(_compiled(formula), names) if isinstance(formula, str) else formula

    def assign(targets: str, values: Any) -> None:
        several = targets.split(", ")
        names.update(zip(several, values if len(several) > 1 else [values], strict=True))

    for step in steps:
        (verb, first), *options = step.items()
        if verb == "each":
            for item in value(step["in"]):
                assign(first, item)
                follow(step["do"], canvas, names)
        elif verb == "follow":
            follow(value(first), canvas, names)
        elif verb in VERBS:
            given = {name: value(formula) for name, formula in options}
            getattr(canvas, verb)(first if first in DATA["colours"] else value(first), **given)
        else:
            assign(verb, value(first))


def paint(
    family: str, words: Mapping[str, str], draws: Draws, numbers: Mapping[str, Array]
) -> Array:
    """Pictures of a family ``[n, 3, 32, 32]`` in 0..1.

    Args:
        family: Of ``painters.yaml``.
        words: The attributes that choose steps, such as ``kind``.
        draws: The random numbers.
        numbers: The other attributes' numbers ``[n]``, ``which`` and ``form``.
    """
    is_scene = family == "scenes"
    canvas = Scene(draws, numbers["which"]) if is_scene else Canvas(draws)
    names = FUNCTIONS | {n: getattr(draws, n) for n in dir(draws) if not n.startswith("_")}
    names |= {"random": draws.rng.random, "glyph": partial(glyph, draws), **words, **numbers}
    names["words"] = DATA["families"][family]["words"]
    if is_scene:
        names |= {"lit": canvas.as_lit, "snowy": canvas.snowy, "night": canvas.night}
        names["horizon"] = canvas.horizon
    follow(STEPS[family], canvas, names)
    if is_scene:
        canvas.weather()
    return canvas.rgb
