"""Merges of several foundations: a planted second foundation, keys, equal inputs for every repair,
the claims' numbers, no leaks."""

import itertools
import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from near import equal, seeded
from tiny import TINY, relabelled, with_test
from torch.testing import assert_close
from transformers import RobertaConfig, RobertaModel

from benchmarks.permutation_matching import random_permutations
from mergelib import figures, nonlocality
from mergelib.claims import NOT_REPRODUCED, REPRODUCED, UNDECIDED, interval, load_claims
from mergelib.core.errors import ConfigError, MergelibError, UnknownNameError
from mergelib.core.store import Store
from mergelib.core.types import Expert, Split, percent, state_digest
from mergelib.foundations import Foundation, bert
from mergelib.nonlocality import Nonlocality, Resampled, settings
from mergelib.nonlocality.architectures import spec_for
from mergelib.nonlocality.settings import (
    FT,
    LOCAL,
    NON_LOCAL,
    PERMUTED,
    RAW,
    REPAIR,
    REPAIRS,
    SEMI_LOCAL,
    TACT,
    TACT_FT,
)
from mergelib.profiles import load_profile

pytestmark = pytest.mark.filterwarnings("ignore:.*edge of the grid")
CPU = torch.device("cpu")
PRETRAINING = TINY["encoder.pretraining"]
OVERRIDES = TINY | {
    "non_local.semi_local_steps": 8,
    "non_local.n_test": 50,
    "non_local.n_validation": 30,
}
METHODS = ["task_arithmetic", "ties", "tall_masks"]
IMAGE_OVERRIDES = {
    "tasks.names": ["eurosat", "dtd"],
    "tasks.n_train": 160,
    "resamples": 200,
    "threads": 1,
    "fine_tuning.steps": 12,
    "encoder.pretraining.steps": 4,
    "non_local.semi_local_steps": 8,
    "non_local.methods": METHODS,
}


def make(store, overrides=OVERRIDES, **options):
    return Nonlocality("quick", overrides=overrides, device="cpu", store=Store(store), **options)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make(tmp_path_factory.mktemp("foundations"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make(tmp_path_factory.mktemp("images"), IMAGE_OVERRIDES, variant="vit")


@pytest.fixture(scope="module")
def scores(cells):
    return cells.scores()


# ---- settings ------------------------------------------------------------------------------------


def test_the_local_setting_is_the_ordinary_study_on_fewer_inputs(cells):
    local, first = cells.study(LOCAL), cells.first
    assert cells.study(LOCAL, permuted=False) is local and cells.second(LOCAL) is first
    assert local.weights_digest("f_b", "ag") == first.weights_digest("f_b", "ag")
    for task in cells.tasks:
        assert local.weights_digest("f_t", task) == first.weights_digest("f_t", task)
        assert len(local.task(task).test) == 50 and torch.equal(
            local.features("f_t", task), first.features("f_t", task)[:50]
        )
        n = 5 * first.task(task).n_classes
        assert local.pool(task).inputs == first.pool(task).inputs[:n] and len(cells.rows(task)) == n


@pytest.mark.parametrize("setting", [SEMI_LOCAL, NON_LOCAL])
def test_two_foundations_meet_in_the_middle(cells, setting):
    a, b, spec = cells.first, cells.second(setting), spec_for(cells.first.encoder.config)
    assert a.encoder.digest == b.encoder.digest
    assert a.weights_digest("f_b", "") != b.weights_digest("f_b", "")
    assert cells.from_b == ("yelp",)
    for permuted in (False, True):
        study = cells.study(setting, permuted=permuted)
        moved = spec.apply(cells.permutation(setting), b.base_state) if permuted else b.base_state
        for name, t in study.base_state.items():
            assert_close(t, (a.base_state[name] + moved[name]) / 2)
        assert study.weights_digest("f_t", "ag") == a.weights_digest("f_t", "ag")
        logits = study.head("f_t", "yelp").logits(study.features("f_t", "yelp"))
        own = b.expert("yelp").head.logits(b.features("f_t", "yelp")[:50])
        assert_close(logits, own, rtol=1e-4, atol=1e-4)


def test_a_second_foundation_that_is_the_first_in_another_order_is_local_again(cells, tmp_path):
    """Planted: permuting undoes it, so every merge is the local one; raw, the same experts make
    another merge."""
    first, mine = cells.first, make(tmp_path)
    mine.first, spec = first, spec_for(first.encoder.config)
    planted = random_permutations(spec, seeded(3))
    experts = [
        Expert(e.task, spec.apply(planted, e.state), spec.permute_head(e.head, planted), e.info)
        for e in first.experts()
    ]
    foundation = Foundation(first.encoder, spec.apply(planted, first.base_state))
    other = first.given(foundation, experts, tasks=first.tasks, profile=first.profile)
    mine.__dict__["_others"] = {NON_LOCAL: other}
    local, far = mine.study(LOCAL), mine.study(NON_LOCAL)
    raw = mine.study(NON_LOCAL, permuted=False)
    for task in mine.tasks:
        for name, t in far.weights("ties", task).items():
            assert_close(t, local.weights("ties", task)[name], rtol=0, atol=1e-6)
        assert torch.equal(far.head("ties", task).weight, local.head("ties", task).weight)
        features = [s.features("ties", task) for s in (raw, local)]
        assert not torch.allclose(*features, atol=1e-3)
    found = mine.permutation(NON_LOCAL).values()
    assert any(not torch.equal(p, torch.arange(len(p))) for p in found)


def test_foundations_are_known_by_what_made_them(cells):
    three = cells.first, cells.second(SEMI_LOCAL), cells.second(NON_LOCAL)
    profiles = [s.profile for s in three]
    trains = [p.train_config(p.encoder.pretraining, CPU) for p in profiles]
    assert [(t.steps, t.seed) for t in trains] == [(4, 0), (8, 0), (4, 1)]
    one, *others = (p.model_dump(exclude={"encoder": {"pretraining"}}) for p in profiles)
    assert [one, one] == others, "only the foundations differ"
    assert "non_local" not in one and "seed" not in profiles[0].encoder.pretraining.model_dump()
    assert PRETRAINING.keys() == {"documents", "steps", "batch_size", "lr"}, (
        "the caller's overrides were written into"
    )


def test_what_has_no_second_foundation_is_refused(cells, tmp_path):
    with pytest.raises(ConfigError, match="no section non_local"):
        Nonlocality("paper", store=Store(tmp_path))
    with pytest.raises(ConfigError, match=r"leave encoder\.base out"):
        make(tmp_path, IMAGE_OVERRIDES | {"encoder.base": str(tmp_path)}, variant="vit")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    save(RobertaModel(RobertaConfig(**small)), tmp_path)
    with pytest.raises(ConfigError, match=r"goes on from a BERT; .* is of type 'roberta'"):
        real(tmp_path)
    with pytest.raises(UnknownNameError, match="Nearest: 'non-local'"):
        cells.study("non_local")
    with pytest.raises(UnknownNameError, match="Nearest: 'tact'"):
        cells.correct(LOCAL, "ties", "tackt", "ag")
    with pytest.raises(ConfigError, match="one each"):
        cells.first.given(
            Foundation(cells.first.encoder, cells.first.base_state),
            [cells.first.expert("yelp")],
            tasks=cells.tasks,
            profile=cells.profile,
        )
    for taken in ("f_t", "ties"):
        with pytest.raises(ConfigError, match="already"):
            cells.study(LOCAL).adopt(taken, "ag", "x", lambda: None)
    with pytest.raises(MergelibError, match="pool_per_class"):
        load_profile("quick", {"non_local.ks": [1, 200]})


def save(module, folder):
    """A base model of one's own, as transformers saves it, and two tasks."""
    module.save_pretrained(folder)
    bert.shipped_bert("quick_bert").encoder.tokenizer.save_pretrained(folder)
    for (task, classes), split in itertools.product(
        {"ag": 4, "yelp": 5}.items(), ("train", "test")
    ):
        rows = [f'"{1 + i % classes}","{split} word {i % classes} of {i}"' for i in range(80)]
        (folder / task).mkdir(exist_ok=True)
        (folder / task / f"{split}.csv").write_text("\n".join(rows))


def real(folder):
    changes = {
        "tasks.names": ["ag", "yelp"],
        "tasks.n_train": 48,
        "tasks.n_validation": 12,
        "threads": 1,
        "resamples": 200,
        "fine_tuning.steps": 2,
        "encoder.max_length": 20,
        "non_local.semi_local_steps": 2,
        "non_local.methods": METHODS,
    }
    places = {"text_dir": str(folder), "base": str(folder), "store": Store(folder / "store")}
    return Nonlocality("real", overrides=changes, device="cpu", **places)


def test_a_base_from_elsewhere_goes_on_to_the_second_foundations(tmp_path):
    """Its lower layers stay near in the semi-local one; in the other only the embeddings do."""
    first = bert.shipped_bert("quick_bert")
    save(first.encoder.module(first.state).transformer, tmp_path)
    cells = real(tmp_path)
    a = cells.first.base_state
    for setting, kept in ((SEMI_LOCAL, ("embeddings", "layer.0")), (NON_LOCAL, ("embeddings",))):
        b = cells.second(setting).base_state
        for name in (n for n in a if n.endswith("weight") and "Norm" not in n):
            near = torch.allclose(a[name], b[name], atol=2e-3)
            assert near == any(part in name for part in kept), (setting, name)
    table = nonlocality.matching_table(cells).set_index("setting")
    assert table.at[NON_LOCAL, "blocks before"] < 0.1 < table.at[SEMI_LOCAL, "blocks before"]
    assert (table["cosine after"] >= table["cosine before"]).all()
    found = nonlocality.verdicts({"text": cells}, ["N-local", "N-fails"])
    assert [v.part for v in found] == ["text TA", "text TA", "text Ties", "text TALL"]
    assert {v.verdict for v in found} <= {REPRODUCED, NOT_REPRODUCED, UNDECIDED}


# ---- repairs -------------------------------------------------------------------------------------


def assert_has_the_experts_statistics(cells, setting, method, task):
    name = cells.corrected(setting, method, task, TACT)
    found, expert, raw = (cells.statistics(setting, e, task) for e in (name, "f_t", method))
    # Folded, the others' correction lies behind them.
    for site in (s.name for s in cells.sites if s.side == "output"):
        assert_close(found.mean[site], expert.mean[site], rtol=0, atol=1e-3)
        assert_close(found.std[site], expert.std[site], rtol=0, atol=1e-3)
    assert max((raw.std[s] - expert.std[s]).abs().max() for s in raw.std) > 5e-3


def test_a_corrected_merge_has_the_experts_statistics(cells):
    for setting, method in ((LOCAL, "weight_averaging"), (NON_LOCAL, "tall_masks")):
        for task in cells.tasks:
            assert_has_the_experts_statistics(cells, setting, method, task)


def test_what_a_correction_belongs_to(cells):
    """REPAIR's to the encoder, TACT's to a task; the ablation's to the last site alone."""
    for kind, n_different in ((REPAIR, 1), (TACT, 2)):
        found = [cells.correction(NON_LOCAL, "task_arithmetic", t, kind) for t in cells.tasks]
        assert len({state_digest(c.tensors()) for c in found}) == n_different
    last = cells.correction(NON_LOCAL, "task_arithmetic", "ag", settings.TACT_LAST)
    assert [*last.scale] == [cells.sites[-1].name]


def test_every_repair_sees_the_same_inputs(cells, scores):
    """With k as large as the pool, the draws of the samples are the pool, and their scores those of
    the table; rows are FT-Classifier's."""
    k = cells.settings.pool_per_class
    frame = cells.samples("task_arithmetic")
    table = nonlocality.averages(scores).set_index(["setting", "method", "repair"]).accuracy
    for repaired in (TACT, FT, TACT_FT):
        rows = frame[(frame.repair == repaired) & (frame.k == k)]
        assert set(rows.seed) == set(cells.settings.seeds)
        assert rows.accuracy.tolist() == pytest.approx(
            [table[NON_LOCAL, "task_arithmetic", repaired]] * len(rows), abs=2.1
        )
    study = cells.study(NON_LOCAL)
    for s, seed in enumerate(cells.settings.seeds):
        evidence = study.evidence("task_arithmetic", "ag", "ft_classifier", draw="uniform")
        assert sorted(evidence.rows(2)[s].tolist()) == sorted(cells.rows("ag", 2, seed).tolist())
        assert set(cells.rows("ag", 1, seed).tolist()) < set(cells.rows("ag", 2, seed).tolist())


def test_no_label_and_no_test_input_reaches_a_repair(cells):
    first, local = cells.first, cells.study(LOCAL)
    mine = make(first.store.root)
    for study in (mine.first, *mine._others.values()):
        study.tasks = with_test(first.tasks, relabelled)
    far, other = mine.study(NON_LOCAL), cells.study(NON_LOCAL)
    assert far.lams("tall_masks") == other.lams("tall_masks")
    for task, kind in itertools.product(first.tasks, (TACT, REPAIR)):
        a, b = (c.correction(NON_LOCAL, "tall_masks", task, kind).tensors() for c in (mine, cells))
        assert equal(a, b)
    study = local.given(
        Foundation(first.encoder, first.base_state),
        first.experts(),
        tasks=with_test(cells.tasks, lambda s: Split(("zz",) * len(s), s.labels)),
        profile=cells.profile,
    )
    assert study.weights_digest("ties", "ag") == local.weights_digest("ties", "ag")
    assert study.pool("ag").inputs == local.pool("ag").inputs


def test_results_come_from_the_store_the_second_time(cells, scores, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("computed again")

    for name in ("match_statistics", "weight_matching"):
        monkeypatch.setattr(settings, name, forbidden)
    monkeypatch.setattr("mergelib.study.features.extract_prepared", forbidden)
    assert make(cells.first.store.root).scores().equals(scores)


def test_images_take_the_same_road(images):
    """Two ViTs: the permuted experts compute what they computed, and a correction that only half
    folds gives the expert's statistics."""
    (task,), far = images.from_b, images.study(NON_LOCAL)
    b = images.second(NON_LOCAL)
    own = b.expert(task).head.logits(b.features("f_t", task))
    assert_close(far.head("f_t", task).logits(far.features("f_t", task)), own, rtol=1e-3, atol=1e-3)
    assert far.weights_digest("f_t", task) != b.weights_digest("f_t", task), "nothing was permuted"
    name = images.corrected(NON_LOCAL, "task_arithmetic", task, TACT)
    assert len(far.module(name, task).corrections) == sum(s.fold is None for s in images.sites) > 0
    assert_has_the_experts_statistics(images, NON_LOCAL, "task_arithmetic", task)


# ---- what is said --------------------------------------------------------------------------------


def test_scores_are_those_of_the_settings_studies(cells, scores):
    assert len(scores) == 3 * len(cells.methods) * len(REPAIRS) * len(cells.tasks)
    at = scores.set_index(["setting", "method", "task", "repair"]).sort_index()
    row, far = at.loc[NON_LOCAL, "ties", "yelp"], cells.study(NON_LOCAL)
    for repaired, study, how in (
        (RAW, cells.study(NON_LOCAL, permuted=False), "current"),
        (PERMUTED, far, "current"),
        (FT, far, "ft_classifier"),
    ):
        right = study.correct("ties", "yelp", how, draw="all")
        assert row.accuracy[repaired] == percent(right[0])
    local = scores[scores.setting == LOCAL].pivot(
        index=["method", "task"], columns="repair", values="accuracy"
    )
    assert local[RAW].equals(local[PERMUTED].rename(RAW))


def test_the_claims_numbers_are_the_tables(cells, scores):
    resampled, means = Resampled(cells), nonlocality.averages(scores)
    for setting, method in ((LOCAL, "task_arithmetic"), (NON_LOCAL, "tall_masks")):
        at = means[(means.setting == setting) & (means.method == method)].set_index("repair")
        assert float(resampled.normalised(setting, method, RAW)[0]) == pytest.approx(
            at.normalised[RAW]
        )
        assert float(resampled.accuracy(setting, method, TACT)[0]) == pytest.approx(
            at.accuracy[TACT] / 100
        )
        missing = at.expert[TACT] - at.accuracy[PERMUTED]
        closed = float(resampled.gap_closed(setting, method, PERMUTED, TACT)[0])
        assert (
            closed * missing == pytest.approx(at.accuracy[TACT] - at.accuracy[PERMUTED])
            if missing
            else not math.isfinite(closed)
        )
        found = resampled.variance(setting, method)
        stage = setting if setting == LOCAL else f"{setting}, {PERMUTED}"
        table = cells.variances(method, [stage])
        assert float(found[0]) == pytest.approx(table.ratio.mean(), rel=1e-4)
        assert len(found) == 1 + cells.profile.resamples and found.std() > 0


def test_verdicts_cover_the_claims_and_their_parts(cells, images, scores):
    ids = [c for c in load_claims() if c.startswith("N-")]
    found = nonlocality.verdicts({"text": cells, "images": images}, ids)
    parts = {c: [v.part for v in found if v.claim == c] for c in ids}
    for claim, names in parts.items():
        methods = ["TA"] if claim == "N-local" else ["TA", "Ties", "TALL"]
        assert names == [f"{of} {m}" for of in ("text", "images") for m in methods]
    here = next(v for v in found if v.claim == "N-tact" and v.part == "text Ties")
    values = Resampled(cells).gap_closed(NON_LOCAL, "ties", PERMUTED, TACT)
    expected = (float(values[0]), *interval(values.float()))
    assert (here.here, here.low, here.high) == pytest.approx(expected, nan_ok=True)


def test_the_needed_number_of_inputs_is_the_smallest_near_the_best():
    frame = pd.DataFrame(
        [
            {"repair": r, "inputs": n, "accuracy": a + s}
            for s in (-1, 1)
            for r, row in {TACT: (10, 40, 49.5, 50), FT: (30, 29.5, 10, 5)}.items()
            for n, a in zip((4, 8, 16, 32), row, strict=True)
        ]
    )
    assert nonlocality.samples_needed(frame).to_dict() == {"TACT": 16, "FT-Classifier": 4}


def test_tables_figures_and_texts_are_made_of_the_numbers(cells, scores):
    means, samples = nonlocality.averages(scores), cells.samples("ties")
    variance, labels = cells.variances("ties"), nonlocality.REPAIR_LABELS
    assert nonlocality.wide(means).shape == (15, len(REPAIRS) + 1)
    assert nonlocality.samples_table(samples).shape == (3, len(cells.settings.ks))
    both = {"text": means, "images": means}
    told = [nonlocality.alt_variance(variance), nonlocality.alt_samples(samples)]
    for text in (*told, alt := nonlocality.alt(means), nonlocality.answer({"text": means})):
        assert "nan" not in text and text.endswith(".")
    assert nonlocality.answer(both).count("**Images, ") == 3
    beside = nonlocality.with_published(both)
    assert beside.network.tolist()[-4:] == ["here, text"] * 2 + ["here, images"] * 2
    value = means.set_index(["setting", "method", "repair"]).accuracy[NON_LOCAL, "ties", TACT_FT]
    assert f"both {value:.1f}" in alt
    for fig in (
        figures.plot_non_locality(means, labels),
        figures.plot_variance(variance),
        figures.plot_samples(samples, labels, start=10, experts=90),
    ):
        assert fig.axes[0].lines
        plt.close(fig)
    stored = nonlocality.numbers_stored(cells).set_index("repair").numbers
    assert stored["TACT"] == 2 * (32 + 2 * (32 + 32 + 128 + 32)) * 2 == 2 * stored["REPAIR"]
