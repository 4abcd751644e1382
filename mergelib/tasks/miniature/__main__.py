"""Print what the miniature world looks like: ``python -m mergelib.tasks.miniature``."""

from __future__ import annotations

import math
import re
from collections import Counter

from mergelib.tasks.miniature import TEXT_TASKS, WORLD_VERSION, best_accuracy, generate

_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")

# A test of 1000 has a standard error of 1.5 points; the mean of some draws is steadier.
DRAWS = 5


def naive_bayes_accuracy(task: str, seed: int = 1) -> float:
    """Return the accuracy of bag-of-words naive Bayes, trained on 4000, tested on 1000."""
    train = generate(task, 4000, seed=2 * seed)
    test = generate(task, 1000, seed=2 * seed + 1, exclude=[text for text, _ in train])
    counts: list[Counter[str]] = [Counter() for _ in TEXT_TASKS[task]]
    for text, label in train:
        counts[label].update(_WORD.findall(text.lower()))
    vocabulary = set().union(*counts)
    totals = [sum(count.values()) + len(vocabulary) for count in counts]

    def predict(text: str) -> int:
        words = [word for word in _WORD.findall(text.lower()) if word in vocabulary]
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
        words = [_WORD.findall(text.lower()) for text in texts]
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
