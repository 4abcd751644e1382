"""The miniature image world: the same pictures everywhere, classes that no caption gives away, and
nothing that pixels alone decide."""

import itertools
import os
import re

import pytest
import torch
from tiny import python
from torch.nn.functional import avg_pool2d, one_hot, pad

from mergelib.core.errors import UnknownNameError
from mergelib.core.store import Store
from mergelib.profiles import IMAGE_TASK_NAMES, load_profile
from mergelib.tasks import load_task
from mergelib.tasks.miniature import images
from mergelib.tasks.miniature.images import (
    CAPTIONS_VERSION,
    FAMILIES,
    IMAGE_TASKS,
    IMAGE_WORLD_VERSION,
    captioned,
    generate,
    prompts,
)

TASKS = list(IMAGE_TASKS)
PINNED = "4edec5ad17f95490a4a4c16db25abc66c941fc3a5494dc2fa8ad09a34349b930"
MIXED = (
    "import hashlib; from mergelib.tasks.miniature.images import *; d = hashlib.sha256()\n"
    "for t in IMAGE_TASKS: d.update(generate(t, 60, 0)[0].numpy().tobytes())\n"
    "d.update(captioned(60, 0)[0].numpy().tobytes()); d.update('|'.join(captioned(60, "
    "0)[1]).encode()); print(d.hexdigest())"
)


FILLER = frozenset("a an the of in at with on".split())


def content_words(text):
    """The words of a class name or caption that say what is drawn."""
    return frozenset(re.findall(r"[a-z]+", text.lower())) - FILLER


@pytest.fixture(scope="module")
def drawn():
    return {t: generate(t, 500, 3) for t in TASKS}


@pytest.fixture(scope="module")
def captions():
    return captioned(6000, 3)[1]


def test_the_world_is_frozen_and_the_same_with_and_without_vector_instructions():
    """Pictures hold no rounding of a platform: without AVX2 and fused multiply-add the bytes are
    the same."""
    slow = os.environ | {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4"}
    found = [
        python("-W", "ignore", "-c", MIXED, env=env).strip() for env in (dict(os.environ), slow)
    ]
    assert found[0] == found[1]
    assert (IMAGE_WORLD_VERSION, CAPTIONS_VERSION, found[0]) == (3, 2, PINNED), (
        "the drawn world has changed: bump IMAGE_WORLD_VERSION, and CAPTIONS_VERSION if captioned "
        "pictures have changed (the CLIPs are then made anew), pin the new digest, and list the "
        "report's claims before and after"
    )


def test_names_and_numbers_are_what_the_profile_and_the_issue_ask_for():
    assert tuple(TASKS) == IMAGE_TASK_NAMES
    for task, names in IMAGE_TASKS.items():
        assert 10 <= len(names) <= 60 and len(set(map(content_words, names))) == len(names), task


@pytest.mark.parametrize("task", TASKS)
def test_pictures_are_whole_and_labels_balanced(task, drawn):
    images, labels = drawn[task]
    assert (images.dtype, images.shape) == (torch.uint8, (500, 3, 32, 32))
    assert (labels.dtype, labels.shape) == (torch.int64, (500,))
    counts = labels.bincount(minlength=len(IMAGE_TASKS[task]))
    assert counts.max() - counts.min() <= 1 and len(counts) == len(IMAGE_TASKS[task])
    shows_something = images.flatten(1).float().std(1) > 2
    assert shows_something.float().mean() > 0.99 and images.min() < 50 and images.max() > 235
    assert (labels[1:] != labels[:-1]).float().mean() > 0.5, "classes come in random order"


def test_other_seeds_share_no_picture():
    for task in TASKS:
        pictures = torch.cat([generate(task, 300, seed)[0] for seed in (1, 2)])
        assert len({x.numpy().tobytes() for x in pictures}) == 600, task
    assert not torch.equal(captioned(80, 5)[0], captioned(80, 6)[0])


def test_tasks_are_prints_and_captions_are_not(drawn):
    """Nothing printed is darker than a quarter of the paper, in each colour; captioned black is."""
    darkest = torch.stack([x.amin((0, 2, 3)) for x, _ in drawn.values()]).amin(0)
    assert darkest.tolist() == [int(0.25 * 255 * paper + 0.5) for paper in (0.95, 0.85, 0.6)]
    assert captioned(600, 3)[0].amin((0, 2, 3)).max() < 10


def test_no_caption_holds_the_words_of_a_class_together(captions):
    """Of the captions drawn, and of all that can be drawn."""
    possible = {f.say(c) for f in FAMILIES.values() for c in f.captions}
    said = {content_words(c) for c in [*captions, *possible]}
    for name in itertools.chain(*IMAGE_TASKS.values()):
        assert not any(content_words(name) <= words for words in said), name


def test_captions_teach_every_word_and_the_words_of_signs_in_pairs(captions):
    said = [content_words(c) for c in captions]
    words = set().union(*(content_words(n) for names in IMAGE_TASKS.values() for n in names))
    for word in words:
        assert sum(word in c for c in said) >= 20, word
    signs = [c for c in said if "sign" in c]
    pairs = {
        pair
        for name in IMAGE_TASKS["gtsrb"]
        for pair in itertools.combinations(sorted(content_words(name)), 2)
    }
    assert all(any(set(pair) <= c for c in signs) for pair in pairs)


def test_captions_link_the_words_of_a_table():
    """Words that never meet a common partner could be told apart by their partners alone: the graph
    of captions is connected."""
    for name, family in FAMILIES.items():
        seen, frontier = set(), [(0, family.captions[0][0])]
        while frontier:
            node = frontier.pop()
            if node not in seen:
                seen.add(node)
                frontier += [
                    (i, v)
                    for c in family.captions
                    if c[node[0]] == node[1]
                    for i, v in enumerate(c)
                ]
        assert len(seen) == sum(map(len, family.attributes)), name


def test_prompts_speak_the_language_of_captions(captions):
    said = set().union(*(c.split() for c in captions))
    for task, names in IMAGE_TASKS.items():
        for template in prompts(task):
            assert set(template.format(names[0]).split()) <= said, template


def test_unknown_tasks_are_refused():
    for call in (lambda: generate("imagenet", 5, 0), lambda: prompts("imagenet")):
        with pytest.raises(UnknownNameError, match="imagenet"):
            call()


def simple_features(images):
    """Mean colours of an 8 x 8 grid, and how strong the four orientations of edges are in a 4 x 4
    grid."""
    x = images.float() / 255
    grey = pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    steps = [
        grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2],
        grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1],
        grey[:, :, 2:, 2:] - grey[:, :, :-2, :-2],
        grey[:, :, 2:, :-2] - grey[:, :, :-2, 2:],
    ]
    edges = avg_pool2d(torch.cat([s.abs() for s in steps], 1), 8).flatten(1)
    return torch.cat([avg_pool2d(x, 4).flatten(1), edges], 1)


@pytest.mark.parametrize("task", TASKS)
def test_simple_features_see_the_classes_but_do_not_suffice(task):
    """Ridge regression on them: far above chance, so that pictures show their class, but not all
    right. Digits and signs stand near the middle of their pictures, as in the sets they mirror, and
    there, as with real digits, edges in a grid say much."""
    (x, y), (x_test, y_test) = generate(task, 1200, 2), generate(task, 500, 1)
    z, z_test = simple_features(x), simple_features(x_test)
    mean, std = z.mean(0), z.std(0) + 1e-6
    z, z_test = ((v - mean) / std for v in (z, z_test))
    classes = len(IMAGE_TASKS[task])
    w = torch.linalg.solve(
        z.T @ z + 100 * torch.eye(z.shape[1]), z.T @ (one_hot(y, classes).float() - 1 / classes)
    )
    accuracy = float(((z_test @ w).argmax(1) == y_test).float().mean())
    assert 1.8 / classes < accuracy < 0.97


def test_pictures_are_drawn_once(tmp_path, monkeypatch):
    profile, store = load_profile("quick", variant="vision_a"), Store(tmp_path)
    first = load_task("mnist", profile, store)
    monkeypatch.setattr(images, "generate", None)
    again = load_task("mnist", profile, store)
    assert again.train.digest == first.train.digest and again.test.digest == first.test.digest
    assert torch.equal(again.validation.inputs, first.validation.inputs)
