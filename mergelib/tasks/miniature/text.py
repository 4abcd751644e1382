"""Generate the miniature text tasks and compute their exact posteriors.

The world itself is the data in ``text.yaml``, read by ``grammar.py``; see the package
docstring for what it means and for the rule that freezes it.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from mergelib.tasks.local import LABEL_NAMES
from mergelib.tasks.miniature import grammar
from mergelib.tasks.miniature.grammar import WORLD_VERSION

TEXT_TASKS: dict[str, tuple[str, ...]] = dict(LABEL_NAMES)
"""Label names of every task, in a fixed order."""

_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
_SENTENCE_START = re.compile(r"(^|[.?!] | - )([a-z])")
_ARTICLE = re.compile(r"\ba (?=[aeio]|u(?!ni|su|se))")
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class _World:
    """One task's grammar, prepared for drawing and for Bayes' rule."""

    classes: int
    # Every position's templates, split into literal text and slot names by turns.
    positions: tuple[tuple[tuple[str, ...], ...], ...]
    fillers: dict[str, tuple[str, ...]]
    # Per class: (upper cumulative odds, group).
    groups: tuple[tuple[tuple[float, str], ...], ...]
    # Per group and slot: the phrases and their upper cumulative odds.
    phrases: dict[str, dict[str, tuple[str, ...]]]
    bounds: dict[str, dict[str, tuple[float, ...]]]
    # Phrase -> its slot, and phrase -> P(phrase | class, slot) for every class.
    slot_of: dict[str, str]
    likelihood: dict[str, tuple[float, ...]]
    matcher: re.Pattern[str]


def _split(listing: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in listing.split(","))


@cache
def _world(task: str) -> _World:
    if task not in TEXT_TASKS:
        raise ValueError(f"unknown text task {task!r}; known: {', '.join(TEXT_TASKS)}")
    classes, written = len(TEXT_TASKS[task]), grammar.read()[task]
    phrases = {
        group: {slot: _split(listing) for slot, listing in slots.items()}
        for group, slots in written["cues"].items()
    }
    odds = [grammar.group_odds(task, label) for label in range(classes)]
    groups = []
    for row in odds:
        total, table = 0.0, []
        for group, share in row.items():
            total += share
            table.append((total, group))
        # The rounded odds may miss one in the last digit; scale exactly.
        groups.append(tuple((bound / total, group) for bound, group in table))

    slot_of: dict[str, str] = {}
    weights: dict[str, list[float]] = {}
    bounds: dict[str, dict[str, tuple[float, ...]]] = {}
    for group, slots in phrases.items():
        for slot, members in slots.items():
            shares = grammar.phrase_odds(len(members))
            bounds.setdefault(group, {})[slot] = tuple(accumulate(shares))
            for phrase, share in zip(members, shares, strict=True):
                if slot_of.setdefault(phrase, slot) != slot:
                    raise ValueError(f"{task}: cue {phrase!r} stands in two slots")
                row = weights.setdefault(phrase, [0.0] * classes)
                for label in range(classes):
                    row[label] += odds[label].get(group, 0.0) / sum(odds[label].values()) * share
    longest_first = sorted(slot_of, key=lambda phrase: (-len(phrase), phrase))
    return _World(
        classes=classes,
        positions=tuple(
            tuple(tuple(_SLOT.split(template)) for template in position)
            for position in written["sentences"]
        ),
        fillers={slot: _split(listing) for slot, listing in written["fillers"].items()},
        groups=tuple(groups),
        phrases=phrases,
        bounds=bounds,
        slot_of=slot_of,
        likelihood={phrase: tuple(row) for phrase, row in weights.items()},
        matcher=re.compile(
            r"(?<![\w'-])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w'-])"
        ),
    )


def _rng(purpose: str, seed: int) -> random.Random:
    # A string seed is hashed by SHA-512, so it does not depend on the process or platform.
    return random.Random(f"mergelib-world-{WORLD_VERSION}:{purpose}:{seed}")


def _index(rng: random.Random, size: int) -> int:
    # Only random() is promised to stay the same in later Python versions.
    return int(rng.random() * size)


def _shuffle(items: list, rng: random.Random) -> None:
    for last in range(len(items) - 1, 0, -1):
        other = _index(rng, last + 1)
        items[last], items[other] = items[other], items[last]


def _draw_cue(world: _World, slot: str, label: int, rng: random.Random) -> str:
    level = rng.random()
    table = world.groups[label]
    group = table[-1][1]
    for bound, name in table:
        if level < bound:
            group = name
            break
    members = world.phrases[group][slot]
    choice = bisect_right(world.bounds[group][slot], rng.random())
    return members[min(choice, len(members) - 1)]


def _draw_cues(world: _World, slots: list[str], label: int, rng: random.Random) -> list[str]:
    # All cues are redrawn on a repetition: only then is the posterior's correction exact.
    while True:
        cues = [_draw_cue(world, slot, label, rng) for slot in slots]
        if len(set(cues)) == len(cues):
            return cues


def _polish(text: str) -> str:
    text = _ARTICLE.sub("an ", text)
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def _document(world: _World, label: int, rng: random.Random) -> tuple[str, list[str]]:
    """Return one document of a class, and its cue phrases."""
    templates = [position[_index(rng, len(position))] for position in world.positions]
    slots = [slot for template in templates for slot in template[1::2]]
    cue_slots = [slot for slot in slots if slot not in world.fillers]
    cues = _draw_cues(world, cue_slots, label, rng)
    waiting: Iterator[str] = iter(cues)
    used: set[str] = set()
    sentences = []
    for template in templates:
        parts = list(template)
        for position in range(1, len(parts), 2):
            slot = parts[position]
            choices = world.fillers.get(slot)
            if choices is None:
                parts[position] = next(waiting)
                continue
            word = choices[_index(rng, len(choices))]
            while word in used:
                word = choices[_index(rng, len(choices))]
            used.add(word)
            parts[position] = word
        sentences.append("".join(parts))
    return _polish(" ".join(filter(None, sentences))), cues


def _fresh(world: _World, label: int, rng: random.Random, taken: set[str]) -> tuple[str, list[str]]:
    for _ in range(_MAX_ATTEMPTS):
        text, cues = _document(world, label, rng)
        key = text.lower()
        if key not in taken:
            taken.add(key)
            return text, cues
    raise RuntimeError("the miniature world has no unused documents left")


def _labels(classes: int, n: int, rng: random.Random) -> list[int]:
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
        ValueError: The task is unknown, or n is negative.
    """
    world = _world(task)
    rng = _rng(task, seed)
    taken = {text.lower() for text in exclude}
    return [
        (_fresh(world, label, rng, taken)[0], label) for label in _labels(world.classes, n, rng)
    ]


def corpus(n: int, *, seed: int, exclude: Collection[str] = ()) -> list[str]:
    """Return ``n`` distinct unlabelled documents, an equal mix of all tasks, shuffled.

    Args:
        n: Number of documents; tasks differ by at most one document.
        seed: Seed of the draw; independent of the seeds of :func:`generate`.
        exclude: Texts that must not be produced (compared in lower case).

    Raises:
        ValueError: n is negative.
    """
    rng = _rng("corpus", seed)
    taken = {text.lower() for text in exclude}
    names = list(TEXT_TASKS)
    texts = []
    for choice in _labels(len(names), n, rng):
        world = _world(names[choice])
        texts.append(_fresh(world, _index(rng, world.classes), rng, taken)[0])
    return texts


def find_cues(task: str, text: str) -> list[str]:
    """Return the cue phrases of a document, in order (longest match)."""
    return _world(task).matcher.findall(text.lower())


@cache
def _log_distinct(task: str, slot: str, count: int) -> tuple[float, ...]:
    """Log-probability, per class, that ``count`` cues of one slot are all different."""
    world = _world(task)
    members = [phrase for phrase, where in world.slot_of.items() if where == slot]
    result = []
    for label in range(world.classes):
        # Elementary symmetric polynomials of the phrase probabilities.
        sums = [1.0] + [0.0] * count
        for phrase in members:
            share = world.likelihood[phrase][label]
            for size in range(count, 0, -1):
                sums[size] += share * sums[size - 1]
        result.append(math.log(math.factorial(count) * sums[count]))
    return tuple(result)


def _posterior_of_cues(task: str, cues: Collection[str]) -> list[float]:
    world = _world(task)
    scores = [0.0] * world.classes
    counts: dict[str, int] = {}
    for cue in cues:
        slot = world.slot_of[cue]
        counts[slot] = counts.get(slot, 0) + 1
        for label, share in enumerate(world.likelihood[cue]):
            scores[label] += math.log(share) if share else -math.inf
    for slot, count in counts.items():
        if count > 1:
            for label, correction in enumerate(_log_distinct(task, slot, count)):
                scores[label] -= correction
    best = max(scores)
    if best == -math.inf:
        raise ValueError(f"no class of {task} can produce the cues {list(cues)}")
    weights = [math.exp(score - best) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


def posterior(task: str, text: str) -> list[float]:
    """Return the exact P(class | text) of a document that the task's grammar produced.

    Everything but the cue phrases is drawn without looking at the class, so that Bayes' rule
    needs the cues alone. A text without cues gets the uniform prior.

    Raises:
        ValueError: The task is unknown, or no class can produce the text's cues together.
    """
    return _posterior_of_cues(task, find_cues(task, text))


def best_accuracy(task: str, n: int = 20000, seed: int = 0) -> float:
    """Return the best reachable (Bayes) accuracy: the mean largest posterior of n documents.

    The documents are fresh: their random stream is not that of :func:`generate`.

    Raises:
        ValueError: The task is unknown, or n is not positive.
    """
    world = _world(task)
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")
    rng = _rng(f"best:{task}", seed)
    return (
        sum(
            max(_posterior_of_cues(task, _document(world, label, rng)[1]))
            for label in _labels(world.classes, n, rng)
        )
        / n
    )
