"""Generate the miniature text tasks.

The world itself is the data in ``text.yaml``, read by ``grammar.py``; see the package
docstring for what it means and for the rule that freezes it.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from ...core.errors import UnknownNameError
from ..local import LABEL_NAMES
from . import grammar
from .grammar import WORLD_VERSION

TEXT_TASKS: dict[str, tuple[str, ...]] = dict(LABEL_NAMES)
"""Label names of every task, in a fixed order."""

_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(^|[.?!] | - )([a-z])")
_ARTICLE = re.compile(r"\ba (?=[aeio]|u(?!ni|su|se))")
_MAX_ATTEMPTS = 1000
_Choices = tuple[Sequence[str], Sequence[float]]  # and their cumulative odds


@dataclass(frozen=True)
class _World:
    """One task's grammar, prepared for drawing."""

    # Every position's templates, split into literal text and slot names by turns.
    positions: list[list[list[str]]]
    fillers: dict[str, list[str]]
    groups: list[_Choices]  # of every class
    phrases: dict[str, dict[str, _Choices]]  # of every group and slot


@cache
def _world(task: str) -> _World:
    if task not in TEXT_TASKS:
        raise UnknownNameError("text task", task, TEXT_TASKS)
    written, groups = grammar.read()[task], []
    for label in range(len(TEXT_TASKS[task])):
        odds = grammar.group_odds(task, label)
        bounds = list(accumulate(odds.values()))
        # The rounded odds may miss one in the last digit; scale exactly.
        groups.append((list(odds), [bound / bounds[-1] for bound in bounds]))
    phrases: dict[str, dict[str, _Choices]] = {}
    for group, slots in written["cues"].items():
        lists = {slot: grammar.split(listing) for slot, listing in slots.items()}
        phrases[group] = {
            slot: (members, list(accumulate(grammar.phrase_odds(len(members)))))
            for slot, members in lists.items()
        }
    return _World(
        [[_SLOT.split(template) for template in position] for position in written["sentences"]],
        {slot: grammar.split(listing) for slot, listing in written["fillers"].items()},
        groups,
        phrases,
    )


def stream(purpose: str, seed: int) -> random.Random:
    """Return the random numbers of one purpose, such as a task."""
    # A string seed is hashed by SHA-512, so it does not depend on the process or platform.
    return random.Random(f"mergelib-world-{WORLD_VERSION}:{purpose}:{seed}")


def _index(rng: random.Random, size: int) -> int:
    # Only random() is promised to stay the same in later Python versions.
    return int(rng.random() * size)


def _shuffle(items: list, rng: random.Random) -> None:
    for last in range(len(items) - 1, 0, -1):
        other = _index(rng, last + 1)
        items[last], items[other] = items[other], items[last]


def _choose(choices: _Choices, rng: random.Random) -> str:
    names, bounds = choices
    return names[min(bisect_right(bounds, rng.random()), len(names) - 1)]


def _draw_cues(world: _World, slots: list[str], label: int, rng: random.Random) -> list[str]:
    # All cues are redrawn on a repetition: only then can the posterior be computed exactly.
    while True:
        groups = world.groups[label]
        cues = [_choose(world.phrases[_choose(groups, rng)][slot], rng) for slot in slots]
        if len(set(cues)) == len(cues):
            return cues


def _polish(text: str) -> str:
    text = _ARTICLE.sub("an ", text)
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def document(task: str, label: int, rng: random.Random) -> tuple[str, list[str]]:
    """Return one document of a class, and its cue phrases."""
    world = _world(task)
    templates = [position[_index(rng, len(position))] for position in world.positions]
    slots = [slot for template in templates for slot in template[1::2]]
    cues = _draw_cues(world, [s for s in slots if s not in world.fillers], label, rng)
    waiting = iter(cues)
    used: set[str] = set()

    def filled(slot: str) -> str:
        if slot not in world.fillers:
            return next(waiting)
        choices = world.fillers[slot]
        word = choices[_index(rng, len(choices))]
        while word in used:
            word = choices[_index(rng, len(choices))]
        used.add(word)
        return word

    sentences = [
        "".join(filled(part) if i % 2 else part for i, part in enumerate(template))
        for template in templates
    ]
    return _polish(" ".join(filter(None, sentences))), cues


def _fresh(task: str, label: int, rng: random.Random, taken: set[str]) -> str:
    for _ in range(_MAX_ATTEMPTS):
        text = document(task, label, rng)[0]
        if text.lower() not in taken:
            taken.add(text.lower())
            return text
    raise RuntimeError("the miniature world has no unused documents left")


def balanced(classes: int, n: int, rng: random.Random) -> list[int]:
    """Return the labels of ``n`` documents in shuffled order, as many of each class as n allows."""
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    labels = [position % classes for position in range(n)]
    _shuffle(labels, rng)
    return labels


def generate(
    task: str, n: int, *, seed: int, exclude: Collection[str] = ()
) -> list[tuple[str, int]]:
    """Return ``n`` distinct labelled documents of a task, in shuffled order.

    Args:
        task: A key of ``TEXT_TASKS``.
        n: Number of documents; classes differ by at most one document.
        seed: The same task, n, seed and exclude give the same documents everywhere.
        exclude: Texts that must not be produced (compared in lower case).

    Returns:
        Pairs of text and 0-based label.

    Raises:
        UnknownNameError: There is no such task.
        ValueError: n is negative.
    """
    rng, taken = stream(task, seed), {text.lower() for text in exclude}
    labels = balanced(len(_world(task).groups), n, rng)
    return [(_fresh(task, label, rng, taken), label) for label in labels]


def corpus(n: int, *, seed: int, exclude: Collection[str] = ()) -> list[str]:
    """Return ``n`` distinct unlabelled documents, an equal mix of all tasks, shuffled.

    Args:
        n: Number of documents; tasks differ by at most one document.
        seed: Seed of the draw; independent of the seeds of :func:`generate`.
        exclude: Texts that must not be produced (compared in lower case).

    Raises:
        ValueError: n is negative.
    """
    rng, taken = stream("corpus", seed), {text.lower() for text in exclude}
    tasks = [list(TEXT_TASKS)[i] for i in balanced(len(TEXT_TASKS), n, rng)]
    return [_fresh(t, _index(rng, len(TEXT_TASKS[t])), rng, taken) for t in tasks]
