"""The miniature text world: reproducible, honest about its ambiguity, and clean."""

import hashlib
import itertools
import math
import random
import re
from collections import Counter

import pytest

from benchmarks.text_world import (
    DRAWS,
    best_accuracy,
    find_cues,
    likelihoods,
    matcher,
    naive_bayes_accuracy,
    posterior,
)
from mergelib.tasks.miniature import TEXT_TASKS, WORLD_VERSION, corpus, generate, grammar, text

TASKS = list(TEXT_TASKS)
tasks = pytest.mark.parametrize("task", TASKS)
TARGETS = {"ag": 0.92, "yelp": 0.60, "amazon": 0.58, "yahoo": 0.73, "dbpedia": 0.98}
PINNED = {
    "ag": "635dee7c5100a5fc968458b7208a85b394e1ef99b426b7cea7429b68b2da7d36",
    "yelp": "778f6411cf277764043a8756d537e2b94b0fc0e788292b2ffad8e3a9ff6c9459",
    "amazon": "6606b140a89809f79e050be5f0bb175d092b7dcc7da701585e0cc8e8e47f5314",
    "yahoo": "e38a3cdda91859c39ca4c6d9c022265931aef8a2faff00022526ddc1b3343f0e",
    "dbpedia": "c61300676152525713a10dca3f35d31b6e797e5f74ae73e22979a16fe3c7f986",
}
PINNED_CORPUS = "91e7bb3674d364969f550f430b5eba5ac21eadeebce1518a14bfa6d3f8e9d5f1"
WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")


def words(string):
    return WORD.findall(string.lower())


@pytest.fixture(scope="module")
def documents():
    return {task: generate(task, 6000, seed=11) for task in TASKS}


@tasks
def test_world_is_frozen(task, documents):
    joined = "\n".join(f"{label}\t{line}" for line, label in documents[task])
    digest = hashlib.sha256(joined.encode()).hexdigest()
    assert (WORLD_VERSION, digest) == (1, PINNED[task]), (
        "the generated world has changed: bump WORLD_VERSION, pin the new digests, and list the "
        "report's claims before and after"
    )


def test_corpus_is_frozen_and_an_equal_mix():
    first = corpus(500, seed=3, exclude=[])
    digest = hashlib.sha256("\n".join(first).encode()).hexdigest()
    assert digest == PINNED_CORPUS, "the mix of tasks has changed: bump WORLD_VERSION"
    assert first != corpus(500, seed=4, exclude=[])
    again = corpus(500, seed=3, exclude=[first[0].upper(), first[7]])
    assert first[0] not in again and first[7] not in again
    assert len({line.lower() for line in first}) == 500
    # Sentences that only one task can produce tell the tasks apart.
    assert sum("Answer - " in line for line in first) == 100


@tasks
def test_balance_duplicates_and_exclusion(task):
    classes = len(TEXT_TASKS[task])
    first = generate(task, 503, seed=1)
    counts = Counter(label for _, label in first).values()
    assert len(counts) == classes and max(counts) - min(counts) <= 1
    lines = {line.lower() for line, _ in first}
    assert len(lines) == 503
    rest = generate(task, 503, seed=1, exclude=[line.upper() for line in lines])
    assert not lines & {line.lower() for line, _ in rest}


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="ag, amazon, dbpedia, yahoo, yelp"):
        generate("imdb", 5, seed=0)
    with pytest.raises(ValueError, match="negative"):
        generate("ag", -1, seed=0)


def phrase_shares(task, label):
    """P(phrase | class) per slot, straight from the grammar's data."""
    shares = {}
    odds = grammar.group_odds(task, label)
    for group, slots in grammar.read()[task]["cues"].items():
        for slot, listing in slots.items():
            members = [phrase.strip() for phrase in listing.split(",")]
            rule = grammar.phrase_odds(len(members))
            for phrase, share in zip(members, rule, strict=True):
                weight = odds.get(group, 0.0) / sum(odds.values())
                shares.setdefault(slot, Counter())[phrase] += weight * share
    return {slot: dict(table) for slot, table in shares.items()}


@tasks
def test_posterior_matches_enumeration(task):
    """Bayes' rule from the grammar, with the no-repetition rule counted out by brute force."""
    classes = range(len(TEXT_TASKS[task]))
    tables = [phrase_shares(task, label) for label in classes]
    for line, _ in generate(task, 4, seed=21):
        cues = find_cues(task, line)
        by_slot = {}
        for cue in cues:
            by_slot.setdefault(next(s for s in tables[0] if cue in tables[0][s]), []).append(cue)
        likelihoods = []
        for table in tables:
            likelihood = 1.0
            for slot, found in by_slot.items():
                shares = [share for share in table[slot].values() if share]
                # Sum over ordered choices of the earlier cues, then whatever is left for the last.
                distinct = 0.0
                for chosen in itertools.permutations(shares, len(found) - 1):
                    distinct += math.prod(chosen) * (1 - math.fsum(chosen))
                likelihood *= math.prod(table[slot][cue] for cue in found) / distinct
            likelihoods.append(likelihood)
        expected = [value / sum(likelihoods) for value in likelihoods]
        assert posterior(task, line) == pytest.approx(expected, abs=1e-9)


@tasks
def test_posterior_is_calibrated(task, documents):
    """Class frequencies agree with the posterior, both for its argmax and bin by bin."""
    rows = [(posterior(task, line), label) for line, label in documents[task]]
    gain = [max(row) - (row.index(max(row)) == label) for row, label in rows]
    spread = math.sqrt(sum(max(row) * (1 - max(row)) for row, _ in rows)) / len(rows)
    assert abs(sum(gain) / len(gain)) < 3 * spread
    bins = {}
    for row, label in rows:
        for candidate, share in enumerate(row):
            bins.setdefault(min(int(share * 10), 9), []).append((share, candidate == label))
    for members in bins.values():
        variance = sum(share * (1 - share) for share, _ in members)
        difference = sum(share - hit for share, hit in members)
        assert abs(difference) < 4.5 * math.sqrt(variance) + 1


@tasks
def test_accuracies(task):
    best = best_accuracy(task)
    assert abs(best - TARGETS[task]) <= 0.02
    naive = sum(naive_bayes_accuracy(task, seed) for seed in range(DRAWS)) / DRAWS
    # Standard error of the mean over DRAWS tests of 1000 documents.
    error = math.sqrt(best * (1 - best) / (1000 * DRAWS))
    assert best - 0.04 <= naive <= best + 3 * error


@tasks
def test_cues_are_found_exactly(task):
    """By construction: no template or filler word begins, or lengthens, a cue phrase."""
    plain = set()
    for template in itertools.chain.from_iterable(grammar.read()[task]["sentences"]):
        plain.update(words(re.sub(r"\{\w+\}", " ", template)))
    for listing in grammar.read()[task]["fillers"].values():
        plain.update(words(listing))
    cues = list(likelihoods(task))
    for cue in cues:
        assert words(cue)[0] not in plain, cue
        for longer in cues:
            if longer.startswith(cue + " "):
                assert words(longer[len(cue) :])[0] not in plain, (cue, longer)
    rng = random.Random(0)
    for _ in range(2000):
        line, drawn = text.document(task, rng.randrange(len(TEXT_TASKS[task])), rng)
        assert find_cues(task, line) == drawn


@tasks
def test_rest_of_the_text_is_independent_of_the_class(task, documents):
    classes = len(TEXT_TASKS[task])
    counts = {}
    for line, label in documents[task]:
        rest = matcher(task).sub(" ", line.lower())
        # "a" and "an" follow the sound of the next word, which may be a cue.
        for word in set(words(rest)) - {"a", "an"}:
            counts.setdefault(word, [0] * classes)[label] += 1
    tested = {word: row for word, row in counts.items() if sum(row) >= 5 * classes}
    assert len(tested) > 50
    freedom = classes - 1
    # Wilson-Hilferty: the chi-square quantile at 0.001 / number of words (z is above it).
    z = math.sqrt(2 * math.log(len(tested) / 0.001))
    limit = freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3
    for word, row in tested.items():
        mean = sum(row) / classes
        assert sum((count - mean) ** 2 / mean for count in row) < limit, word


@tasks
def test_form_of_the_documents(task, documents):
    for line, _ in documents[task]:
        assert 12 <= len(words(line)) <= 36, line
        assert re.fullmatch(r"[A-Za-z .,?!'-]+", line), line
        assert line[-1] in ".?!" and "  " not in line and " ," not in line, line
        for sentence in re.split(r"(?<=[.?!]) | - ", line):
            assert sentence[0].isupper(), line
        assert not re.search(r"\b[Aa] (?=[aeio])|\b[Aa]n (?=[^aeiouAEIOU])", line), line
        assert not re.search(r"\b([a-z]+) \1\b", line.lower()), line


def test_vocabulary_size(documents):
    vocabulary = {word for rows in documents.values() for line, _ in rows for word in words(line)}
    assert 1500 <= len(vocabulary) <= 2500
