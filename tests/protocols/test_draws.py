"""Draws: nested in k, balanced, fixed by the seed alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from near import seeded

from mergelib.core.errors import DataError, UnknownNameError
from mergelib.protocols import stratified_order, uniform_order


@given(seed=st.integers(0, 50), classes=st.integers(1, 6), k=st.integers(1, 5))
def test_stratified_draws_are_balanced_and_nested(seed, classes, k):
    labels = torch.arange(classes).repeat_interleave(8)[
        torch.randperm(8 * classes, generator=seeded(seed))
    ]
    rows = stratified_order(labels, classes, k, seed)
    assert torch.equal(labels[rows], torch.arange(classes)[:, None].expand(classes, k))
    assert len(set(rows.flatten().tolist())) == classes * k
    assert torch.equal(stratified_order(labels, classes, 8, seed)[:, :k], rows)


def test_a_new_class_leaves_the_other_draws_alone():
    labels = torch.arange(3).repeat(10)
    more = torch.cat([labels, torch.full((10,), 3)])
    assert torch.equal(stratified_order(more, 4, 5, 1)[:3], stratified_order(labels, 3, 5, 1))


def test_seeds_differ_and_repeat():
    labels = torch.arange(4).repeat(50)
    draws = [stratified_order(labels, 4, 5, s) for s in (0, 1, 0)]
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    classes = {tuple((row // 4).tolist()) for row in draws[0]}
    assert len(classes) == 4, "classes of one seed must not share a permutation"
    assert torch.equal(uniform_order(50, 9, 3), uniform_order(50, 20, 3)[:9])
    assert not torch.equal(uniform_order(50, 9, 3), uniform_order(50, 9, 4))


def test_every_row_is_drawn_about_equally_often():
    """2,000 draws of 2 out of 5: 800 expected per row, with a standard deviation of about 22."""
    labels = torch.zeros(5, dtype=torch.long)
    stratified = torch.cat(
        [stratified_order(labels, 1, 2, s).flatten() for s in range(2000)]
    ).bincount()
    uniform = torch.cat([uniform_order(5, 2, s) for s in range(2000)]).bincount()
    assert stratified.sub(800).abs().max() < 110 and uniform.sub(800).abs().max() < 110


def test_more_than_there_is_cannot_be_drawn():
    labels = torch.tensor([0, 0, 0, 1, 1])
    with pytest.raises(DataError, match="class 1, which has 2 samples"):
        stratified_order(labels, 2, 3, 0)
    with pytest.raises(DataError, match="class 2, which has 0 samples"):
        stratified_order(labels, 3, 1, 0)
    with pytest.raises(DataError, match="only 5 to draw from"):
        uniform_order(5, 6, 0)


def test_one_draw_for_every_method_and_protocol(study):
    """``Study.draws`` knows neither method nor protocol; the evidence of each holds the same
    rows."""
    task = "ag"
    drawn = study.draws(task, "stratified")
    labels = study.pool(task).labels
    assert (labels[drawn] == torch.arange(4)[None, :, None]).all()
    for method in study.methods:
        for protocol in ("knn", "ft_classifier"):
            assert torch.equal(study.evidence(method, task, protocol).draws, drawn)


def test_a_uniform_draw_is_nested_and_blind_to_labels(study, make_study):
    import dataclasses

    seen = study.evidence("ties", "ag", draw="uniform")
    for smaller, larger in ((1, 2), (2, 5)):
        for a, b in zip(seen.rows(smaller).tolist(), seen.rows(larger).tolist(), strict=True):
            assert len(set(a)) == 4 * smaller and set(a) < set(b)
    task = study.task("ag")
    shuffled = dataclasses.replace(
        task, train=dataclasses.replace(task.train, labels=task.train.labels.roll(1))
    )
    other = make_study(tasks={"ag": shuffled})
    assert torch.equal(other.draws("ag", "uniform"), study.draws("ag", "uniform"))
    assert not torch.equal(other.draws("ag", "stratified"), study.draws("ag", "stratified"))


def test_the_fit_rows_of_a_few_shot_draw_come_from_train(study):
    train, test = set(study.task("ag").train.inputs), set(study.task("ag").test.inputs)
    assert set(study.pool("ag").inputs) <= train and not train & test
    with pytest.raises(UnknownNameError, match="Nearest: 'uniform'"):
        study.draws("ag", "uniforn")
