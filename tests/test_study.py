"""The study: no label or test input leaks, lambda comes from validation, keys hold what matters,
one source of numbers."""

import itertools
import operator
import random
import shutil
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
from near import ROUNDING, apart
from tiny import relabelled, with_test

from mergelib import Study, method
from mergelib.core.errors import ConfigError, OfflineError, StateDictError, UnknownNameError
from mergelib.core.names import BASE, FINE_TUNED
from mergelib.core.types import Split, head_digest, state_digest
from mergelib.encoders import TextEncoder
from mergelib.encoders.features import extract
from mergelib.foundations import Foundation
from mergelib.foundations.bert import tokenizer_from_vocab
from mergelib.merging import METHODS
from mergelib.protocols import fit_heads
from mergelib.study import experts, merges, versions
from mergelib.study.aligned import aligned
from mergelib.training.experts import EncoderWithHeads, linear_probe

pytestmark = pytest.mark.filterwarnings("ignore:.*edge of the grid")
ENCODERS = ["f_b", "weight_averaging", "task_arithmetic", "ties"]
PROTOCOLS = ["current", "knn", "ft_classifier"]


def garbage(split):
    rng = random.Random(0)
    texts = ("".join(rng.choices("qxz jkv 0123", k=rng.randint(1, 200))) for _ in split.inputs)
    return Split(tuple(f"{text}." for text in texts), split.labels)


def everything_fitted(study):
    """All that a study chooses or fits: lambdas, draws, anchors, aligned heads."""
    found = {}
    for m in study.methods:
        found[f"lam {m}"] = study.lam(m)
        found[f"state {m}"] = state_digest(study.merged_state(m))
        for t in study.tasks:
            seen = study.evidence(m, t)
            found[f"draws {t}"] = seen.draws
            found[f"anchors {m} {t}"] = seen.student_fit[seen.draws]
            for k, head in zip(seen.ks, fit_heads(seen), strict=True):
                found[f"head {m} {t} {k}"] = head_digest(head)
    return found


def assert_same(a, b):
    for name in (a | b).keys():
        same = torch.equal if isinstance(a[name], torch.Tensor) else operator.eq
        assert same(a[name], b[name]), name


@pytest.fixture(scope="session")
def fitted(study):
    return everything_fitted(study)


# ---- leaks (methods.md H1, H2, H9) ---------------------------------------------------------------


@pytest.mark.parametrize("start", ["copied store", "empty store"])
def test_label_canary(study, make_study, fitted, tmp_path, start):
    """Permuted test labels change accuracies and nothing else, on a finished store and when all is
    computed anew."""

    def stored():
        return sorted(p.relative_to(tmp_path) for p in (tmp_path / "store").glob("*/*"))

    tasks, store = with_test(study.tasks, relabelled), tmp_path / "store"
    if start == "copied store":
        shutil.copytree(study.store.root, store)
    before, other = stored(), make_study(store, tasks)
    assert_same(everything_fitted(other), fitted)
    for e, t, p in itertools.product(ENCODERS, tasks, PROTOCOLS):
        predicted, k = other.predictions(e, t, p), None if p == "current" else 5
        assert torch.equal(predicted, study.predictions(e, t, p))
        right = other.correct(e, t, p, k=k)
        assert torch.equal(right, predicted[-1] == tasks[t].test.labels)
        assert (right != study.correct(e, t, p, k=k)).any()
    if start == "copied store":
        assert stored() == before, "a label of a scored input is part of some key"


def test_input_canary(study, make_study, fitted):
    """Garbage test inputs: what is fitted on train or validation stays bitwise the same. (The base
    model is handed over, because the pre-training corpus leaves out test documents by
    construction.)"""
    tasks = with_test(study.tasks, garbage)
    other = make_study(None, tasks)
    other.__dict__["_foundation"] = study._foundation
    assert_same(everything_fitted(other), fitted)
    assert not torch.equal(other.features("ties", "ag"), study.features("ties", "ag"))


def test_lambda_comes_from_validation(study, monkeypatch):
    """The largest mean of the curve, which is the accuracy of Current Eval on validation rows;
    frozen for all protocols."""
    for m in ("task_arithmetic", "ties"):
        curve, chosen = study.lam_curve(m), study.lam(m)
        mean = curve.groupby("lam").accuracy.mean()
        assert list(mean.index) == list(study.profile.merging.lams)
        assert chosen == mean[mean == mean.max()].index.min()
        again = METHODS[m](study.base_state, [e.state for e in study.experts()], lam=chosen)
        assert state_digest(study.merged_state(m)) == state_digest(again)
        at = curve[curve.lam == chosen].set_index("task").accuracy
        for t, task in study.tasks.items():
            predicted = study.expert(t).head.logits(study.features(m, t, "validation")).argmax(-1)
            right = (predicted == task.validation.labels).float().mean()
            assert float(right) == pytest.approx(at[t], abs=1e-6)
    assert study.lam("weight_averaging") is None and study.lam_curve("weight_averaging").empty
    tied = {"lam": [0.1, 0.2, 0.3] * 2, "task": list("aaabbb")}
    tied |= {"method": "ties", "accuracy": [0.5, 0.9, 0.7, 0.5, 0.5, 0.7]}
    monkeypatch.setattr(Study, "lam_curve", lambda *_: pd.DataFrame(tied))
    assert study.lam("ties") == 0.2, "the smallest of equally good ones"


def test_an_expert_that_another_process_trains_comes_last(study, make_study, monkeypatch):
    mine = make_study(study.store.root)
    first, *others = mine.tasks
    busy = mine.train(first)
    monkeypatch.setattr(mine.store, "being_made", lambda *key: mine.store.folder(*key) == busy)
    assert [e.task for e in mine.experts()] == [first, *others]
    assert [*mine._experts] == [*others, first]


@pytest.mark.parametrize(
    "accuracies, warns",
    [([0.9, 0.5, 0.1], True), ([0.1, 0.5, 0.9], True), ([0.1, 0.9, 0.5], False)],
)
def test_an_optimum_on_the_edge_warns(study, make_study, monkeypatch, accuracies, warns):
    curve = pd.DataFrame({"lam": [0.1, 0.2, 0.3], "task": "a", "accuracy": accuracies})
    monkeypatch.setattr(Study, "lam_curve", lambda *_: curve)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_study(study.store.root).lam("ties")
    asked = [w.filename for w in caught if "edge of the grid" in str(w.message)]
    assert asked == [__file__] * warns, "it names the line that asked"


def test_a_lambda_given_in_the_options_is_used(study, make_study):
    fixed = make_study(
        study.store.root, overrides={"merging.options": {"task_arithmetic": {"lam": 0.5}}}
    )
    assert fixed.lam("task_arithmetic") == 0.5 and fixed.lam_curve("task_arithmetic").empty
    name = next(iter(study.base_state))
    mean = torch.stack([e.state[name] for e in study.experts()]).mean(0)
    torch.testing.assert_close(
        fixed.merged_state("task_arithmetic")[name], mean, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(
        fixed.predictions("task_arithmetic", "ag", "current"),
        study.predictions("weight_averaging", "ag", "current"),
    )


# ---- features and heads (methods.md H4, H5) ------------------------------------------------------


@pytest.fixture(scope="session")
def module(study):
    return study.encoder.module(study.expert("ag").state)


def test_features_do_not_depend_on_company(study, module):
    """Longer padding, other texts in the batch, another bucket; order is kept; two passes agree."""
    texts = [*study.task("ag").test.inputs[:20], "Short.", " ".join(["word"] * 200), "Short."]

    def features(some, size):
        return extract(study.encoder, module, some, batch_size=size)

    z = features(texts, 4)
    assert z.dtype == torch.float32 and torch.equal(features(texts, 4), z)
    assert features([], 4).shape == (0, study.encoder.width)
    for others in (features(texts, 1), features(texts, 64), features(texts[::-1], 5).flip(0)):
        assert apart(others, z) < ROUNDING
    batch = study.encoder.collate(study.encoder.prepare(["A cat.", "Go on.", "See it?"]))
    more = study.encoder.max_length - batch["input_ids"].shape[1]
    assert more > 5
    wider = {n: torch.nn.functional.pad(v, (0, more)) for n, v in batch.items()}
    wider["input_ids"][:, -more:] = 7  # whatever stands behind the mask
    with torch.no_grad():
        assert apart(module(**wider), module(**batch)) < ROUNDING


def test_features_through_the_head_are_the_complete_models_logits(study):
    """Bias included, dropout off."""
    for name, task in study.tasks.items():
        expert, encoder = study.expert(name), study.encoder
        model = EncoderWithHeads(encoder.module(expert.state), encoder.width, [task.n_classes])
        model.heads[0].load_state_dict({"weight": expert.head.weight, "bias": expert.head.bias})
        batch = encoder.collate(encoder.prepare(task.test.inputs[:9]))
        with torch.no_grad():
            logits = model.heads[0](model.eval().encoder(**batch))
        assert apart(expert.head.logits(study.features(FINE_TUNED, name)[:9]), logits) < ROUNDING
        assert expert.head.bias.abs().max() > 0


def test_heads_and_merging_do_not_know_each_other(study, make_study):
    """Merging leaves every head bitwise as it was; another head leaves f_m as it was."""
    other = make_study(study.store.root)
    heads = {t: other.expert(t).head for t in other.tasks}
    before = {t: head_digest(head) for t, head in heads.items()}
    merged = {m: state_digest(merges.merge(other, m).tensors) for m in other.methods}
    for t, head in heads.items():
        assert head_digest(head) == before[t]
        head.weight.mul_(-3)
    again = state_digest(merges.merge(other, "weight_averaging").tensors)
    assert again == merged["weight_averaging"]
    experts = [e.state for e in other.experts()]
    assert not any("head" in key for s in experts for key in s)
    again = METHODS["ties"](other.base_state, experts, lam=study.lam("ties"))
    assert state_digest(again) == merged["ties"]


def test_the_encoder_refuses_weights_of_another(study):
    with pytest.raises(StateDictError, match="missing"):
        study.encoder.module({f"bert.{k}": v for k, v in study.base_state.items()})


# ---- one source of numbers (methods.md H11, H12) -------------------------------------------------


def test_scores_are_the_accuracies_of_the_predictions(study):
    scores = study.scores(ENCODERS, PROTOCOLS)
    assert len(scores) == len(ENCODERS) * len(study.tasks) * (1 + 2 * 3 * 3)
    settings = study.profile.protocols
    for row in scores.itertuples():
        k, s = 0, 0
        if row.protocol != "current":
            k, s = settings.ks.index(row.k), settings.seeds.index(row.seed)
        predicted = study.predictions(row.method, row.task, row.protocol)[k, s]
        labels = study.task(row.task).test.labels
        n_right = sum(int(a == b) for a, b in zip(predicted, labels, strict=True))
        assert row.accuracy == pytest.approx(100 * n_right / row.n)


# ---- keys of the store (methods.md H14) ----------------------------------------------------------


def key_of(study, step, call):
    """The last artifact of a step that a call asks the store for."""
    study.store.asked.clear()
    call(study)
    return [name for name in study.store.asked if name.startswith(f"{step}/")][-1]


def features_key(study):
    return key_of(study, "features", lambda s: s.features(BASE, "ag"))


@pytest.fixture
def twin(study, make_study):
    """``twin(test, base)``: a second study on the same store, with other test splits or another
    (encoder, weights)."""

    def make(test=lambda split: split, base=None):
        other = make_study(study.store.root, with_test(study.tasks, test))
        other.__dict__["_foundation"] = Foundation(*base) if base else study._foundation
        return other

    return make


def other_labels(split):
    return Split(split.inputs, split.labels.flip(0))


def test_what_changes_the_key_of_features(study, twin):
    encoder, state, same = study.encoder, study.base_state, features_key(study)
    assert features_key(twin()) == features_key(twin(other_labels)) == same
    nudged = {n: t.clone() for n, t in state.items()}
    numbers = next(iter(nudged.values())).view(-1)
    numbers[0] = torch.nextafter(numbers[0], torch.tensor(9.0))
    known = encoder.tokenizer.get_vocab()
    words = sorted(known, key=known.get)
    words[10], words[11] = words[11], words[10]
    changed = [
        twin(base=(encoder, nudged)),
        twin(base=(replace(encoder, tokenizer=tokenizer_from_vocab(words)), state)),
        twin(base=(replace(encoder, max_length=12), state)),
        twin(lambda s: Split((*s.inputs[:-1], "Other."), s.labels)),
        twin(lambda s: Split(s.inputs[::-1], s.labels)),
    ]
    assert len({same, *map(features_key, changed)}) == 1 + len(changed)


def test_what_changes_the_key_of_predictions(study, make_study, twin):
    def look(s, protocol="ft_classifier", **draw):
        return key_of(s, "predict", lambda s: s.predictions("ties", "ag", protocol, **draw))

    same = look(study)
    assert look(twin(other_labels)) == same
    changed = [
        make_study(study.store.root, overrides=o)
        for o in (
            {"protocols.ks": [1, 2]},
            {"protocols.seeds": [0, 1, 7]},
            {"protocols.ft_preset": "released"},
            {"tasks.pool_per_class": 11},
            {"merging.options": {"ties": {"keep": 0.5}}},
        )
    ]
    keys = {*map(look, changed), look(study, "knn"), look(study, draw="uniform")}
    assert len(keys) == 7 and same not in keys


def test_a_step_version_is_part_of_every_key(study, make_study, monkeypatch):
    for step, call in (
        ("merge", lambda s: merges._merge(s, "ties")),
        ("features", lambda s: s.features(BASE, "ag")),
        ("predict", lambda s: s.predictions(BASE, "ag", "current")),
        ("lam", lambda s: s.lam_curve("ties")),
        ("fine_tune", lambda s: experts.trained(s, "ag")),
    ):
        before = key_of(study, step, call)
        with monkeypatch.context() as patch:
            patch.setitem(versions.STEP_VERSIONS, step, 999)
            fresh = make_study(study.store.root)
            assert key_of(fresh, step, call) != before, step


def test_pieces_of_a_batch_are_part_of_an_experts_key(study, make_study):
    def key(pieces):
        other = make_study(study.store.root, overrides={"fine_tuning.pieces": pieces})
        return key_of(other, "fine_tune", lambda s: experts.trained(s, "ag"))

    assert key(1) == key_of(study, "fine_tune", lambda s: experts.trained(s, "ag")) != key(2)


# ---- a method of one's own -----------------------------------------------------------------------


def half_way(base, experts):
    return {n: (base[n] + experts[0][n]) / 2 for n in base}


def half_way_changed(base, experts):
    return {n: (3 * base[n] - experts[0][n]) / 2 for n in base}


@pytest.fixture
def own_method():
    register = method("half_way", label="Half way", short="Half")
    register(half_way)
    yield register
    del METHODS["half_way"]


def test_a_study_sees_a_method_that_was_changed_under_it(study, make_study, own_method):
    """A notebook's reader edits the cell of a method and runs the next one again: the old scores
    must not come back."""
    mine = make_study(study.store.root, overrides={"merging.methods": ["half_way"]})
    before = mine.features("half_way", "ag")
    own_method(half_way_changed)
    assert not torch.equal(mine.features("half_way", "ag"), before)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, nearest",
    [
        ({"merging.methods": ["tie"]}, "ties"),
        ({"merging.options": {"tiess": {"keep": 0.5}}}, "ties"),
        ({"merging.options": {"ties": {"kep": 0.5}}}, "keep"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(overrides, nearest):
    """Silently ignored, a misspelt method would let a reader believe in an option that was never
    used."""
    with pytest.raises(UnknownNameError, match=f"Nearest: '{nearest}'"):
        Study("quick", overrides=overrides)


def test_unknown_names_are_refused_with_the_nearest(study):
    for call, nearest in (
        (lambda: study.task("yelb"), "yelp"),
        (lambda: study.split("ag", "tests"), "test"),
        (lambda: study.predictions("tie", "ag", "current"), "ties"),
        (lambda: study.predictions("ties", "ag", "curent"), "current"),
        (lambda: study.correct("ties", "ag", "knn", k=4), None),
    ):
        with pytest.raises(UnknownNameError, match=f"Nearest: '{nearest}'" if nearest else "k"):
            call()


def test_knn_needs_a_stratified_draw(study):
    with pytest.raises(ConfigError, match="stratified"):
        study.predictions("ties", "ag", "knn", draw="uniform")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="try 'auto' or 'cpu'"):
        Study("quick", device="warp")


def test_a_base_model_that_is_not_there(make_study, tmp_path):
    with pytest.raises(ConfigError, match="not a folder with a model"):
        make_study(base=str(tmp_path)).encoder  # noqa: B018
    with pytest.raises(OfflineError, match="local"):
        make_study(base="nobody/has-this-model").encoder  # noqa: B018


def test_a_local_folder_serves_as_base(study, make_study, tmp_path):
    """Saved by transformers and read back, f_b gives the same features."""
    module = study.encoder.module(study.base_state)
    module.transformer.save_pretrained(tmp_path)
    study.encoder.tokenizer.save_pretrained(tmp_path)
    other = make_study(base=str(tmp_path), tasks=study.tasks)
    assert isinstance(other.encoder, TextEncoder)
    assert apart(other.features(BASE, "ag"), study.features(BASE, "ag")) < ROUNDING


def test_multi_task_has_heads_of_its_own(make_study):
    mine = make_study(overrides={"fine_tuning.steps": 2})
    scores = mine.scores(["multi_task"], ["current"])
    assert list(scores.task) == list(mine.tasks)
    assert not torch.equal(mine.head("multi_task", "ag").weight, mine.head("ties", "ag").weight)


@pytest.mark.parametrize("precision", ["bf16", "bf16_weights"])
def test_features_in_bfloat16_are_near_and_have_a_key_of_their_own(study, make_study, precision):
    """Precisions in one store: none is taken for another, nor are the lambdas chosen from them.

    A dozen roundings one after the other add up to a few eps.
    """
    half = make_study(study.store.root, overrides={"encoder.precision": precision})
    exact, near = study.features(FINE_TUNED, "ag"), half.features(FINE_TUNED, "ag")
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    off = (near - exact).norm(dim=1) / exact.norm(dim=1)
    assert off.max() < 5 * torch.finfo(torch.bfloat16).eps
    for step, ask in (
        ("features", lambda s: s.features(BASE, "ag")),
        ("lam", lambda s: s.lam_curve("ties")),
        ("predict", lambda s: s.predictions("ties", "ag", "current")),
        ("align", lambda s: aligned(s, ["ties"], "scaling", fit="closed_form")),
    ):
        assert key_of(study, step, ask) != key_of(half, step, ask)


def test_features_of_another_precision_are_refused(study):
    with pytest.raises(ConfigError, match="float16"):
        extract(study.encoder, study.encoder.module(), ["a"], precision="float16")


def test_a_store_may_be_named_and_overrides_are_a_dict(study, tmp_path):
    named = type(study)("quick", store=str(tmp_path), tasks=study.tasks)
    assert named.store.root == tmp_path
    with pytest.raises(ConfigError, match="give a dict"):
        type(study)("quick", overrides=["tasks.n_test=200"])


def test_fitted_heads_are_f_bs_and_kept(make_study, study):
    """Linear probes of f_b, which fine-tuning of the encoder leaves as they are."""
    fitted = make_study(study.store.root, overrides={"fine_tuning.head": "fitted"})
    for name, task in fitted.tasks.items():
        z = extract(fitted.encoder, fitted.encoder.module(fitted.base_state), task.train.inputs)
        wanted, expert = linear_probe(z, task.train.labels), fitted.expert(name)
        assert apart(expert.head.weight, wanted.weight) < 1e-3
        assert state_digest(expert.state) != state_digest(study.expert(name).state)
        right = wanted.logits(z).argmax(-1) == task.train.labels
        assert right.float().mean() > 2 / task.n_classes
