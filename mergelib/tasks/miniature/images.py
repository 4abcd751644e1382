"""The miniature image world: eight drawn tasks that mirror the paper's vision appendix, and
captioned drawings to pre-train on.

Every picture belongs to one of seven *families* and is told by the words of its attributes: a place
and a light, a colour and a body, a colour, a shape and a mark, and so on. A class is one
combination of such words ("blue van", "red triangle sign with two bars"); a caption is another one.
Every word, and for signs every pair of words, occurs in captions; the combinations that are classes
never do. So a model of captions can name a class that it has never seen, if it has learned what the
words mean.

    task      mirrors             family    classes
    sun397    scenes              scenes    24      forest at night
    cars      cars                cars      24      blue van
    resisc45  land use from above land      30      river in desert
    eurosat   satellite fields    fields    10      green striped field
    svhn      house numbers       glyphs    10      house number four
    gtsrb     traffic signs       signs     43      red triangle sign with two bars
    mnist     digits              glyphs    10      handwritten number four
    dtd       textures            textures  20      coarse dotted texture

What varies besides the class: place, scale, turn, hue, lighting, colour cast, noise, blur, clutter
behind and in front. The tasks' pictures are prints on yellowed paper, the captioned ones are not:
as with a real CLIP, the tasks look different from what it was trained on, and part of what an
expert learns serves the other tasks, too.

The world is frozen as ``IMAGE_WORLD_VERSION``. Version 1 was too hard for an expert that is trained
in seconds; no merge of it was scored. In version 2 the tasks' pictures were like the captioned
ones, and no merge was much better than zero-shot. Prints were chosen by what
``benchmarks/CALIBRATION.md`` shows, and by nothing else. A later change to what is drawn bumps the
version (``CAPTIONS_VERSION``, too, if it changes captioned pictures), and the report must list its
claims before and after.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import check_name
from .drawing import DATA, SIZE, Array, Canvas, Draws, X, Y, box, together, turned
from .glyphs import DIGITS, GLYPHS
from .painters import PAINTERS

IMAGE_WORLD_VERSION = 3
CAPTIONS_VERSION = 2  # the world's, when what is captioned was last changed
CHUNK = 1000  # pictures drawn together; part of the world, since random numbers are drawn per chunk
Combination = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """Pictures of one kind, as ``images.yaml`` says. ``painter`` takes the word of attribute
    ``kind``, the random numbers and the other attributes' numbers ``[n]``; ``held_out`` says which
    combinations are held out of the captions as classes."""

    painter: Callable[..., Array]
    attributes: Sequence[Sequence[str]]
    name: str
    kind: int
    share: int
    held_out: dict[str, Any]

    def is_class(self, combination: Combination) -> bool:
        if "first" in self.held_out:
            return all(i < n for i, n in zip(combination, self.held_out["first"], strict=True))
        signed = (s * i for s, i in zip(self.held_out["signs"], combination, strict=True))
        return sum(signed) % self.held_out["of"] < self.held_out["below"]

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        return tuple(itertools.product(*(range(len(a)) for a in self.attributes)))

    @cached_property
    def classes(self) -> tuple[Combination, ...]:
        return tuple(c for c in self.combinations if self.is_class(c))

    @cached_property
    def captions(self) -> tuple[Combination, ...]:
        return tuple(c for c in self.combinations if not self.is_class(c))

    def say(self, combination: Combination) -> str:
        return self.name.format(
            *(words[i] for words, i in zip(self.attributes, combination, strict=True))
        )

    def paint(self, rng: np.random.Generator, chosen: Array) -> Array:
        """Pictures ``[n, 3, 32, 32]`` in 0..1 of combinations ``chosen [n, attributes]``, drawn
        together where they are of one kind."""
        rgb = np.empty((len(chosen), 3, SIZE, SIZE), dtype=np.float32)
        others = np.delete(chosen, self.kind, axis=1)
        for rows, word, draws in together(rng, chosen[:, self.kind], self.attributes[self.kind]):
            rgb[rows] = self.painter(word, draws, *others[rows].T)
        return rgb


_SYMBOLS = [f"{'number' if glyph in DIGITS else 'letter'} {glyph}" for glyph in GLYPHS]
_WORDS = DATA | {"glyphs": _SYMBOLS}
FAMILIES: dict[str, Family] = {
    name: Family(
        PAINTERS[name],
        [list(_WORDS[w] if isinstance(w, str) else w) for w in family["words"]],
        family["name"],
        family["kind"],
        family["share"],
        family["classes"],
    )
    for name, family in DATA["families"].items()
}
_TASKS = DATA["tasks"]


def _task_classes(task: str) -> list[Combination]:
    family, medium = FAMILIES[_TASKS[task]["family"]], _TASKS[task].get("medium")
    return [c for c in family.classes if medium in (None, family.attributes[0][c[0]])]


IMAGE_TASKS: dict[str, tuple[str, ...]] = {
    name: tuple(FAMILIES[task["family"]].say(c) for c in _task_classes(name))
    for name, task in _TASKS.items()
}
"""The class names of every task, in the order of their labels."""

LIGHTING, QUALITY = ("dark", "", "bright"), ("", "grainy", "blurry")
_LEAD = ("photo", "picture", "view")


def prompts(task: str) -> tuple[str, ...]:
    """Templates that put a class name of ``task`` into a caption: "a photo of the {}". Raises
    ``UnknownNameError``."""
    check_name("image task", task, IMAGE_TASKS)
    return tuple(f"a {lead} of the {{}}" for lead in dict.fromkeys((_TASKS[task]["lead"], *_LEAD)))


def _finish(rgb: Array, draws: Draws, lighting: Array, quality: Array) -> Array:
    """What a camera adds: something in front, light from a side, a colour cast, blur, noise. ``[n,
    3, 32, 32]`` uint8."""
    c = Canvas(draws, rgb)
    u, v = draws.frame(0, SIZE, (0, 1))
    c.fill(box(u, v, draws.uniform(1, 3), draws.uniform(2, 4)), "anything", draws.chance(0.25))
    level = np.array([(0.4, 0.6), (0.8, 1.05), (1.15, 1.35)], dtype=np.float32)[lighting][
        :, :, None, None
    ]
    side, _ = turned(X, Y, 16, 16, draws.uniform(0, 1))
    c.shade(draws.uniform(level[:, 0], level[:, 1]) * (1 + draws.uniform(0, 0.022) * side))
    c.rgb *= 1 + 0.24 * (draws.rng.random((len(rgb), 3, 1, 1), dtype=np.float32) - 0.5)
    blurry = (quality == 2)[:, None, None, None]
    padded = np.pad(c.rgb, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    c.rgb = np.where(
        blurry, (rows[:, :, :, :-2] + 2 * rows[:, :, :, 1:-1] + rows[:, :, :, 2:]) / 4, c.rgb
    )
    # The difference of two uniform bytes: noise with a peak at 0, cheap and exact.
    bits = draws.rng.integers(256, size=(2, *rgb.shape), dtype=np.uint8).astype(np.float32)
    amplitude = np.where(
        (quality == 1)[:, None, None], draws.uniform(0.14, 0.26), draws.uniform(0.02, 0.08)
    )[:, None]
    c.rgb += (bits[0] - bits[1]) * (amplitude * np.minimum(level[:, 1:], 1) / 255)
    return np.floor(np.clip(c.rgb, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _drawn(family: Family, chosen: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Pictures of combinations, and their lighting and quality ``[n]``: mostly ordinary."""
    draws = Draws(rng, len(chosen))
    lighting = np.repeat(range(3), (2, 6, 2))[draws.pick(10)]
    quality = np.repeat(range(3), (6, 2, 2))[draws.pick(10)]
    return _finish(family.paint(rng, chosen), draws, lighting, quality), lighting, quality


def _chunks(rows: Array, *key: int) -> Iterator[tuple[Array, np.random.Generator]]:
    """The rows that are drawn together, with their random numbers."""
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK], np.random.default_rng([*key, start])


INK, PAPER = np.float32(0.75), np.array([0.95, 0.85, 0.6], dtype=np.float32)[:, None, None]


def _printed(pictures: Array) -> Array:
    """Pictures ``[n, 3, 32, 32]`` uint8, faded, on yellowed paper."""
    shine = (1 - INK) * 255 * PAPER
    return np.floor(INK * pictures.astype(np.float32) + shine + np.float32(0.5)).astype(np.uint8)


def generate(task: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n pictures of a task: uint8 ``[n, 3, 32, 32]`` and labels ``[n]`` int64, as many of each
    class as n allows, in random order.

    Equal arguments give equal bytes on every machine. Raises ``UnknownNameError`` for a task that
    does not exist.
    """
    check_name("image task", task, IMAGE_TASKS)
    family, classes = FAMILIES[_TASKS[task]["family"]], np.array(_task_classes(task))
    key = IMAGE_WORLD_VERSION, list(IMAGE_TASKS).index(task), seed
    order = np.random.default_rng(key).permutation(n) % len(classes)
    pictures = np.empty((n, 3, SIZE, SIZE), dtype=np.uint8)
    for rows, rng in _chunks(np.arange(n), *key):
        pictures[rows] = _printed(_drawn(family, classes[order[rows]], rng)[0])
    return torch.from_numpy(pictures), torch.from_numpy(order.astype(np.int64))


CAPTIONS_NUMBER = 1000


def captioned(n: int, seed: int) -> tuple[Tensor, list[str]]:
    """n pictures of all families, uint8 ``[n, 3, 32, 32]``, with a caption each, such as "a dark
    photo of the red bus".

    No caption holds the words of one class together. Equal arguments give equal results on every
    machine.
    """
    order = np.random.default_rng([CAPTIONS_VERSION, CAPTIONS_NUMBER, seed])
    shares = np.array([family.share for family in FAMILIES.values()])
    which = np.repeat(np.arange(len(shares)), shares)[order.integers(shares.sum(), size=n)]
    lead = order.integers(len(_LEAD), size=n)
    pictures, captions = np.empty((n, 3, SIZE, SIZE), dtype=np.uint8), [""] * n
    for number, family in enumerate(FAMILIES.values()):
        key = CAPTIONS_VERSION, CAPTIONS_NUMBER + 1 + number, seed
        for rows, rng in _chunks(np.flatnonzero(which == number), *key):
            chosen = np.array(family.captions)
            chosen = chosen[rng.integers(len(chosen), size=len(rows))]
            pictures[rows], lighting, quality = _drawn(family, chosen, rng)
            for row, combination, i, q in zip(rows, chosen, lighting, quality, strict=True):
                said = " ".join(w for w in (LIGHTING[i], QUALITY[q], _LEAD[lead[row]]) if w)
                captions[row] = f"a {said} of the {family.say(combination)}"
    return torch.from_numpy(pictures), captions
