"""What the miniature text world looks like: ``python -m benchmarks.text_world``.

Its exact posteriors, with them the best accuracy that any classifier can reach, and that of naive
Bayes: the only numbers by which its words and odds were tuned.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from functools import cache

from mergelib.tasks.miniature import TEXT_TASKS, WORLD_VERSION, generate, grammar
from mergelib.tasks.miniature.text import balanced, document, stream

WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")

# A test of 1000 has a standard error of 1.5 points; the mean of some draws is steadier.
DRAWS = 5


@cache
def likelihoods(task: str) -> dict[str, tuple[str, list[float]]]:
    """Phrase -> its slot, and P(phrase | class, slot) for every class.

    Raises ``ValueError`` for a phrase that stands in two slots.
    """
    found: dict[str, tuple[str, list[float]]] = {}
    odds = [grammar.group_odds(task, label) for label in range(len(TEXT_TASKS[task]))]
    for group, slots in grammar.read()[task]["cues"].items():
        for slot, listing in slots.items():
            members = grammar.split(listing)
            shares = grammar.phrase_odds(len(members))
            for phrase, share in zip(members, shares, strict=True):
                where, row = found.setdefault(phrase, (slot, [0.0] * len(odds)))
                if where != slot:
                    raise ValueError(f"{task}: cue {phrase!r} stands in two slots")
                for label, groups in enumerate(odds):
                    row[label] += groups.get(group, 0.0) / sum(groups.values()) * share
    return found


@cache
def matcher(task: str) -> re.Pattern[str]:
    """What finds the cue phrases of a document, the longest first."""
    longest_first = sorted(likelihoods(task), key=lambda phrase: (-len(phrase), phrase))
    any_phrase = "|".join(map(re.escape, longest_first))
    return re.compile(rf"(?<![\w'-])(?:{any_phrase})(?![\w'-])")


def find_cues(task: str, text: str) -> list[str]:
    """Return the cue phrases of a document, in order."""
    return matcher(task).findall(text.lower())


@cache
def _log_distinct(task: str, slot: str, count: int) -> tuple[float, ...]:
    """Log-probability, per class, that ``count`` cues of one slot are all different."""
    members = [row for where, row in likelihoods(task).values() if where == slot]
    result = []
    for shares in zip(*members, strict=True):
        # Elementary symmetric polynomials of the phrase probabilities.
        sums = [1.0] + [0.0] * count
        for share in shares:
            for size in range(count, 0, -1):
                sums[size] += share * sums[size - 1]
        result.append(math.log(math.factorial(count) * sums[count]))
    return tuple(result)


def posterior_of_cues(task: str, cues: Collection[str]) -> list[float]:
    """P(class | cue phrases). Raises ``ValueError`` if no class can produce them together."""
    scores = [0.0] * len(TEXT_TASKS[task])
    slots = Counter(likelihoods(task)[cue][0] for cue in cues)
    for cue in cues:
        for label, share in enumerate(likelihoods(task)[cue][1]):
            scores[label] += math.log(share) if share else -math.inf
    for slot, count in slots.items():
        if count > 1:
            for label, correction in enumerate(_log_distinct(task, slot, count)):
                scores[label] -= correction
    best = max(scores)
    if best == -math.inf:
        raise ValueError(f"no class of {task} can produce the cues {list(cues)}")
    weights = [math.exp(score - best) for score in scores]
    return [weight / sum(weights) for weight in weights]


def posterior(task: str, text: str) -> list[float]:
    """Return the exact P(class | text) of a document that the task's grammar produced.

    Everything but the cue phrases is drawn without looking at the class, so that Bayes' rule
    needs the cues alone. A text without cues gets the uniform prior.
    """
    return posterior_of_cues(task, find_cues(task, text))


def best_accuracy(task: str, n: int = 20000, seed: int = 0) -> float:
    """Return the best reachable (Bayes) accuracy: the mean largest posterior of n documents.

    The documents are fresh: their random stream is not that of ``generate``.
    """
    rng = stream(f"best:{task}", seed)
    labels = balanced(len(TEXT_TASKS[task]), n, rng)
    return sum(max(posterior_of_cues(task, document(task, y, rng)[1])) for y in labels) / n


def naive_bayes_accuracy(task: str, seed: int = 1) -> float:
    """Return the accuracy of bag-of-words naive Bayes, trained on 4000, tested on 1000."""
    train = generate(task, 4000, seed=2 * seed)
    test = generate(task, 1000, seed=2 * seed + 1, exclude=[text for text, _ in train])
    counts: list[Counter[str]] = [Counter() for _ in TEXT_TASKS[task]]
    for text, label in train:
        counts[label].update(WORD.findall(text.lower()))
    vocabulary = set().union(*counts)
    totals = [sum(count.values()) + len(vocabulary) for count in counts]

    def predict(text: str) -> int:
        words = [word for word in WORD.findall(text.lower()) if word in vocabulary]
        scores = [
            sum(math.log((count[word] + 1) / total) for word in words)
            for count, total in zip(counts, totals, strict=True)
        ]
        return scores.index(max(scores))

    return sum(predict(text) == label for text, label in test) / len(test)


def main() -> None:
    """Print the table of the tasks and two sample documents of each."""
    print(f"miniature text world, version {WORLD_VERSION}")
    print(f"{'task':8} {'classes':>7} {'best':>7} {'naive Bayes':>11} {'words':>6} {'vocab':>6}")
    vocabulary: set[str] = set()
    for task, labels in TEXT_TASKS.items():
        texts = [text for text, _ in generate(task, 4000, seed=1)]
        words = [WORD.findall(text.lower()) for text in texts]
        known = set().union(*words)
        vocabulary |= known
        mean = sum(map(len, words)) / len(words)
        best = best_accuracy(task)
        bayes = sum(naive_bayes_accuracy(task, seed) for seed in range(DRAWS)) / DRAWS
        print(f"{task:8} {len(labels):7} {best:7.3f} {bayes:11.3f} {mean:6.1f} {len(known):6}")
    print(f"{len(vocabulary)} distinct words in all")
    for task, labels in TEXT_TASKS.items():
        print(f"\n{task}")
        for text, label in generate(task, 2, seed=0):
            print(f"  [{labels[label]}] {text}")


if __name__ == "__main__":
    main()
