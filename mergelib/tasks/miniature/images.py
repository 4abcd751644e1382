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
behind and in front.

The world is frozen as ``IMAGE_WORLD_VERSION``. Its constants were chosen by fine-tuned,
linear-probe and zero-shot accuracy alone, never by anything about model merging. (Version 1 was too
hard for an expert that is trained in seconds; no merge of it was scored.) A later change to what is
drawn bumps the version, and the report must list its claims before and after.
``images.yaml`` holds its words and colours, ``painters.yaml`` how the pictures are painted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UnknownNameError
from . import painters
from .drawing import DATA, SIZE, Array, Canvas, Draws, X, Y, box, turned
from .glyphs import DIGITS, GLYPHS

IMAGE_WORLD_VERSION = 2
CHUNK = 1000  # pictures drawn together; part of the world, since random numbers are drawn per chunk
Combination = tuple[int, ...]  # of a word of each attribute
_WORDS = DATA | {"glyphs": [f"{'number' if g in DIGITS else 'letter'} {g}" for g in GLYPHS]}


class Family:
    """Pictures of one kind, as ``images.yaml`` describes them: their attributes' words, and the
    combinations that are classes or captions."""

    def __init__(self, key: str, spec: Mapping[str, Any]):
        self.key, self.name, self.share = key, spec["name"], spec["share"]
        self.attributes = [tuple(_WORDS[w] if isinstance(w, str) else w) for w in spec["words"]]
        self.chooses = {n: spec[n] for n in ("kind", "ground") if n in spec}
        self.classes: list[Combination] = []
        self.captions: list[Combination] = []
        for combination in itertools.product(*(range(len(a)) for a in self.attributes)):
            is_class = _held_out(combination, **spec["classes"])
            (self.classes if is_class else self.captions).append(combination)

    def say(self, combination: Combination) -> str:
        return self.name.format(*(a[i] for a, i in zip(self.attributes, combination, strict=True)))

    def paint(self, rng: np.random.Generator, chosen: Array) -> Array:
        """Pictures ``[n, 3, 32, 32]`` in 0..1 of combinations ``chosen [n, attributes]``, drawn
        together where the same steps paint them."""
        rgb = np.empty((len(chosen), 3, SIZE, SIZE), dtype=np.float32)
        columns = list(self.chooses.values())
        for picked in np.unique(chosen[:, columns], axis=0):
            rows = np.flatnonzero((chosen[:, columns] == picked).all(1))
            words = {
                n: self.attributes[i][w]
                for (n, i), w in zip(self.chooses.items(), picked, strict=True)
            }
            others = np.delete(chosen[rows], columns, axis=1).T
            numbers = dict(zip(("which", "form"), others, strict=False))
            rgb[rows] = painters.paint(self.key, words, Draws(rng, len(rows)), numbers)
        return rgb


def _held_out(
    combination: Combination,
    first: Sequence[int] = (),
    signs: Sequence[int] = (),
    of: int = 0,
    below: int = 0,
) -> bool:
    """Whether a combination is held out of the captions as a class; see ``images.yaml``."""
    if first:
        return all(i < n for i, n in zip(combination, first, strict=True))
    return sum(s * i for s, i in zip(signs, combination, strict=True)) % of < below


FAMILIES = {name: Family(name, spec) for name, spec in DATA["families"].items()}
_TASKS = DATA["tasks"]


def _task_classes(task: str) -> list[Combination]:
    family, medium = FAMILIES[_TASKS[task]["family"]], _TASKS[task].get("medium")
    return [c for c in family.classes if medium in (None, family.attributes[0][c[0]])]


IMAGE_TASKS: dict[str, tuple[str, ...]] = {
    name: tuple(map(FAMILIES[task["family"]].say, _task_classes(name)))
    for name, task in _TASKS.items()
}
"""The class names of every task, in the order of their labels."""

LIGHTING, QUALITY = ("dark", "", "bright"), ("", "grainy", "blurry")
_LEAD = ("photo", "picture", "view")


def _known(task: str) -> dict[str, str]:
    if task not in _TASKS:
        raise UnknownNameError("image task", task, _TASKS)
    return _TASKS[task]


def prompts(task: str) -> tuple[str, ...]:
    """Templates that put a class name of ``task`` into a caption: "a photo of the {}". Raises
    ``UnknownNameError``."""
    return tuple(f"a {lead} of the {{}}" for lead in dict.fromkeys((_known(task)["lead"], *_LEAD)))


def _finish(rgb: Array, draws: Draws, lighting: Array, quality: Array) -> Array:
    """What a camera adds: something in front, light from a side, a colour cast, blur, noise. ``[n,
    3, 32, 32]`` uint8."""
    c = Canvas(draws)
    c.rgb = rgb
    u, v = draws.frame(0, SIZE, (0, 1))
    front = box(u, v, draws.uniform(1, 3), draws.uniform(2, 4))
    c.fill("anything", front, draws.chance(0.25))
    levels = np.array([(0.4, 0.6), (0.8, 1.05), (1.15, 1.35)], dtype=np.float32)
    low, high = levels[lighting].T[:, :, None, None]
    side, _ = turned(X, Y, 16, 16, draws.uniform(0, 1))
    c.shade(draws.uniform(low, high) * (1 + draws.uniform(0, 0.022) * side))
    c.rgb *= 1 + 0.24 * (draws.rng.random((len(rgb), 3, 1, 1), dtype=np.float32) - 0.5)
    blurred = np.pad(c.rgb, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    for axis in (2, 3):
        before, here, after = (np.take(blurred, range(i, i + SIZE), axis=axis) for i in range(3))
        blurred = (before + 2 * here + after) / 4
    c.rgb = np.where((quality == 2)[:, None, None, None], blurred, c.rgb)
    # The difference of two uniform bytes: noise with a peak at 0, cheap and exact.
    bits = draws.rng.integers(256, size=(2, *rgb.shape), dtype=np.uint8).astype(np.float32)
    grainy, plain = draws.uniform(0.14, 0.26), draws.uniform(0.02, 0.08)
    amplitude = np.where((quality == 1)[:, None, None], grainy, plain) * np.minimum(high, 1)
    c.rgb += (bits[0] - bits[1]) * (amplitude / 255)[:, None]
    return np.floor(np.clip(c.rgb, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _draw(family: Family, chosen: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Pictures of combinations, with their lighting and quality ``[n]``: mostly ordinary."""
    draws = Draws(rng, len(chosen))
    lighting = np.repeat((0, 1, 2), (2, 6, 2))[draws.pick(10)]
    quality = np.repeat((0, 1, 2), (6, 2, 2))[draws.pick(10)]
    return _finish(family.paint(rng, chosen), draws, lighting, quality), lighting, quality


def _chunks(n: int, *key: int) -> Iterator[tuple[slice, np.random.Generator]]:
    for start in range(0, n, CHUNK):
        rng = np.random.default_rng([IMAGE_WORLD_VERSION, *key, start])
        yield slice(start, min(n, start + CHUNK)), rng


def generate(task: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n pictures of a task: uint8 ``[n, 3, 32, 32]`` and labels ``[n]`` int64, as many of each
    class as n allows, in random order.

    Equal arguments give equal bytes on every machine. Raises ``UnknownNameError`` for a task that
    does not exist.
    """
    family, number = FAMILIES[_known(task)["family"]], list(_TASKS).index(task)
    classes = np.array(_task_classes(task))
    order = np.random.default_rng([IMAGE_WORLD_VERSION, number, seed]).permutation(n) % len(classes)
    pictures = np.empty((n, 3, SIZE, SIZE), dtype=np.uint8)
    for rows, rng in _chunks(n, number, seed):
        pictures[rows] = _draw(family, classes[order[rows]], rng)[0]
    return torch.from_numpy(pictures), torch.from_numpy(order.astype(np.int64))


CAPTIONS_NUMBER = 1000


def captioned(n: int, seed: int) -> tuple[Tensor, list[str]]:
    """n pictures of all families, uint8 ``[n, 3, 32, 32]``, with a caption each, such as "a dark
    photo of the red bus".

    No caption holds the words of one class together. Equal arguments give equal results on every
    machine.
    """
    order = np.random.default_rng([IMAGE_WORLD_VERSION, CAPTIONS_NUMBER, seed])
    shares = np.array([f.share for f in FAMILIES.values()])
    which = np.repeat(np.arange(len(shares)), shares)[order.integers(shares.sum(), size=n)]
    lead = order.integers(len(_LEAD), size=n)
    pictures, captions = np.empty((n, 3, SIZE, SIZE), dtype=np.uint8), [""] * n
    for number, family in enumerate(FAMILIES.values()):
        mine = np.flatnonzero(which == number)
        for rows, rng in _chunks(len(mine), CAPTIONS_NUMBER + 1 + number, seed):
            picked = rng.integers(len(family.captions), size=len(mine[rows]))
            chosen = np.array(family.captions)[picked]
            pictures[mine[rows]], *conditions = _draw(family, chosen, rng)
            for row, p, i, q in zip(mine[rows], picked, *conditions, strict=True):
                said = " ".join(w for w in (LIGHTING[i], QUALITY[q], _LEAD[lead[row]]) if w)
                captions[row] = f"a {said} of the {family.say(family.captions[p])}"
    return torch.from_numpy(pictures), captions
