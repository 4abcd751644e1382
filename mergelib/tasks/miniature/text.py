"""Generate the miniature text tasks.

The world itself is the data in ``text.yaml``, read by ``grammar.py``; see the package
docstring for what it means and for the rule that freezes it.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from functools import cache
from itertools import accumulate

from ...core.errors import check_name
from ..local import LABEL_NAMES
from . import grammar
from .grammar import WORLD_VERSION, split

TEXT_TASKS: dict[str, tuple[str, ...]] = dict(LABEL_NAMES)
"""Label names of every task, in a fixed order."""

_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(^|[.?!] | - )([a-z])")
_ARTICLE = re.compile(r"\ba (?=[aeio]|u(?!ni|su|se))")
_MAX_ATTEMPTS = 1000
_Choices = tuple[Sequence[str], Sequence[float]]  # and their cumulative odds


@cache
def _templates(task: str) -> list[list[list[str]]]:
    """Every position's templates, split into literal text and slot names by turns."""
    return [[_SLOT.split(t) for t in position] for position in grammar.read()[task]["sentences"]]


@cache
def _fillers(task: str) -> dict[str, list[str]]:
    return {slot: split(listing) for slot, listing in grammar.read()[task]["fillers"].items()}


@cache
def _groups(task: str, label: int) -> _Choices:
    odds = grammar.group_odds(task, label)
    bounds = list(accumulate(odds.values()))
    # The rounded odds may miss one in the last digit; scale exactly.
    return list(odds), [bound / bounds[-1] for bound in bounds]


@cache
def _phrases(task: str, group: str, slot: str) -> _Choices:
    phrases = split(grammar.read()[task]["cues"][group][slot])
    return phrases, list(accumulate(grammar.phrase_odds(len(phrases))))


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


def _draw_cues(task: str, label: int, slots: list[str], rng: random.Random) -> list[str]:
    # All cues are redrawn on a repetition: only then can the posterior be computed exactly.
    groups = _groups(task, label)
    while True:
        cues = [_choose(_phrases(task, _choose(groups, rng), slot), rng) for slot in slots]
        if len(set(cues)) == len(cues):
            return cues


def _polish(text: str) -> str:
    text = _ARTICLE.sub("an ", text)
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def document(task: str, label: int, rng: random.Random) -> tuple[str, list[str]]:
    """Return one document of a class, and its cue phrases."""
    fillers = _fillers(task)
    templates = [position[_index(rng, len(position))] for position in _templates(task)]
    slots = [slot for template in templates for slot in template[1::2]]
    cues = _draw_cues(task, label, [s for s in slots if s not in fillers], rng)
    waiting = iter(cues)
    used: set[str] = set()

    def filled(slot: str) -> str:
        if slot not in fillers:
            return next(waiting)
        choices = fillers[slot]
        while (word := choices[_index(rng, len(choices))]) in used:
            pass
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
    check_name("text task", task, TEXT_TASKS)
    rng, taken = stream(task, seed), {text.lower() for text in exclude}
    labels = balanced(len(TEXT_TASKS[task]), n, rng)
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
