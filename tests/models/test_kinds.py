"""Heads that predict several classes or numbers, decoders, pairs of texts: each against
transformers' own logits or a closed form."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers as hf
from near import normal, seeded
from scipy.stats import pearsonr
from sklearn.metrics import f1_score
from test_foreign_folders import SIZE, WORDS, configure, make, tokenizer, with_base
from torch.distributions import Bernoulli, kl_divergence
from torch.testing import assert_close

import mergelib
from mergelib.core.bootstrap import resampled_inputs
from mergelib.core.errors import ConfigError, DataError
from mergelib.core.store import Store
from mergelib.core.types import Head
from mergelib.models import load_merged, predict
from mergelib.models.compare import compare
from mergelib.models.heads import draw_inputs, expert_classifier, features
from mergelib.models.kinds import KINDS, METRICS, kl_of_sigmoids, squared_error
from mergelib.protocols import FTPreset, ft_classifier
from mergelib.tasks.data import labelled, unlabelled
from mergelib.tasks.rows import MULTI, REGRESSION, Pair

TEXTS = [" ".join(WORDS[i : i + 1 + i % 4]) for i in range(len(WORDS) - 1)]
DECODERS = {
    "GPT2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20},
    "Llama": {**SIZE, "num_key_value_heads": 2},
    "Qwen2": {**SIZE, "num_key_value_heads": 2},
}


def own_logits(classifier, inputs):
    """One input at a time, so that nothing is padded."""
    rows = [x if isinstance(x, tuple) else (x,) for x in inputs]
    with torch.no_grad():
        batches = [classifier.processor(*x, return_tensors="pt") for x in rows]
        return torch.cat([classifier.model(**batch).logits for batch in batches])


def head_logits(classifier, inputs, **options):
    """The library's features through the head."""
    return classifier.head.linear.logits(features(classifier, inputs, device="cpu", **options))


# ---- losses and scores --------------------------------------------------------------------------


def test_losses_are_their_closed_forms():
    a, b = normal(2, 5, 3) * 5
    wanted = kl_divergence(Bernoulli(logits=b), Bernoulli(logits=a)).sum(-1)
    assert_close(kl_of_sigmoids(a, b), wanted)
    assert kl_of_sigmoids(a * 100, a * 100).abs().max() < 1e-6
    assert_close(squared_error(a, b), ((a - b) ** 2).sum(-1) / 3)


def test_a_head_of_numbers_becomes_the_least_squares_solution():
    z, teacher, w = normal(40, 4), normal(40, 2, seed=1), normal(2, 4, seed=2)
    start, preset = Head(w, torch.zeros(2)), FTPreset(0.02, 3000)
    for fit_bias in (True, False):
        found = ft_classifier(
            z[None], teacher[None], start, preset, loss=squared_error, fit_bias=fit_bias
        )
        x = torch.cat([z, torch.full((40, 1), float(fit_bias))], 1)
        wanted = torch.linalg.lstsq(x, teacher, driver="gelsd").solution.T
        got = torch.cat([found.weight[0], found.bias[0, :, None]], 1)
        assert_close(got, wanted, atol=1e-4, rtol=1e-3)


def test_scores_of_several_classes_and_of_numbers():
    """Measured and resampled, against scikit-learn and scipy on the drawn rows."""
    g = seeded(2)
    labels, logits = (torch.rand(20, 3, generator=g) > 0.6).float(), torch.randn(20, 3, generator=g)
    a, b = torch.randn(2, 20, 2, generator=g)
    numbers = {
        "pearson": lambda a, b: pearsonr(a, b).statistic.mean(),
        "mse": lambda a, b: float(((a - b) ** 2).mean()),
    }
    f1 = {
        f"{average}_f1": partial(f1_score, average=average, zero_division=0)
        for average in ("micro", "macro")
    }
    predicted = KINDS[MULTI].predict(logits)
    assert torch.equal(predicted, (logits.sigmoid() > 0.5).float())
    drawn = [torch.ones(1, 20), *resampled_inputs(20)]
    rows = [torch.arange(20).repeat_interleave(c.int()) for c in torch.cat(drawn)[:4]]
    for kind, one, other, wanted, unit in (
        (MULTI, predicted, labels, f1, 100),
        (REGRESSION, a, b, numbers, 1),
    ):
        found = KINDS[kind].measured(one, other)
        for name, by_hand in wanted.items():
            slow = [unit * by_hand(other[at], one[at]) for at in rows]
            assert len(found[name]) == 1001
            assert found[name][:4].tolist() == pytest.approx(slow, abs=1e-5), name


# ---- labels -------------------------------------------------------------------------------------

CLASSES = [[1, 0, 1], [0, 1, 0], [0, 0, 0]]  # of "xyz"


@pytest.mark.parametrize(
    "labels",
    [
        [["x", "z"], ["y"], []],
        [[0, 2], [1], []],
        CLASSES,
        torch.tensor(CLASSES).float(),
        [{"z", "x"}, "y", []],
    ],
)
def test_several_classes_are_read_in_every_form(labels):
    found = labelled((["a", "b", "c"], labels), "xyz", "t", is_image=False, problem=MULTI)
    assert found.labels.tolist() == CLASSES


def test_files_with_several_classes_with_numbers_and_with_pairs(tmp_path):
    (tmp_path / "m.csv").write_text("text,label\na,x|z\nb,y\nc,\n")
    found = labelled(tmp_path / "m.csv", "xyz", "t", is_image=False, problem=MULTI)
    assert found.labels.tolist() == CLASSES
    with pytest.raises(DataError, match="line 4"):
        labelled(tmp_path / "m.csv", ["x|z", "y"], "t", is_image=False)
    (tmp_path / "m.jsonl").write_text(
        '{"premise": "a", "hypothesis": "b", "label": 0.5}\n'
        '{"premise": "c", "hypothesis": "d", "label": 2}\n'
    )
    found = labelled(tmp_path / "m.jsonl", ["LABEL_0"], "t", is_image=False, problem=REGRESSION)
    assert found.labels.tolist() == [[0.5], [2.0]] and found.inputs == (("a", "b"), ("c", "d"))
    (tmp_path / "p.csv").write_text("sentence1,sentence2,label\na,b,0\nc,d,1\n")
    found = labelled(tmp_path / "p.csv", ["no", "yes"], "t", is_image=False)
    assert found.inputs == (("a", "b"), ("c", "d")) and found.labels.tolist() == [0, 1]
    assert unlabelled(tmp_path / "p.csv", False) == [Pair("a", "b"), Pair("c", "d")]


@pytest.mark.parametrize(
    ("labels", "names", "problem", "said"),
    [
        ([[0, 1], [1, 0]], "xy", MULTI, r"only the second; write the classes' names"),
        ([["x"], ["w"]], "xyz", MULTI, r"row 1: Label 'w' is none of"),
        ([["x"], [None]], "xyz", MULTI, r"row 1: label \[None\] \(list\); a label is a list"),
        ([1.0, float("nan")], "x", REGRESSION, r"row 1: label nan \(float\).*finite number"),
        ([1.0, [1.0, 2.0]], "x", REGRESSION, r"row 1: 2 numbers; 't' predicts 1"),
        ([0, 0.5], "xy", "single_label_classification", r"row 1: label 0.5 \(float\)"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(labels, names, problem, said):
    with pytest.raises(DataError, match=said):
        labelled((["a", "b"], labels), names, "t", is_image=False, problem=problem)


# ---- from merge to scores -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of one base: ``x`` predicts three classes at once, ``y`` a number."""
    found = make(tmp_path_factory.mktemp("kinds"), num_labels=3, problem_type=MULTI)
    torch.manual_seed(7)
    hf.BertForSequenceClassification(hf.BertConfig(**SIZE, num_labels=1)).save_pretrained(
        found / "y"
    )
    return found


@pytest.mark.parametrize(
    ("task", "kind", "metrics", "outputs"),
    [
        ("x", MULTI, ["micro_f1", "macro_f1"], torch.sigmoid),
        ("y", REGRESSION, ["pearson", "mse"], lambda logits: logits),
    ],
)
def test_such_heads_are_re_aligned_scored_saved_and_asked(
    folders, tmp_path, task, kind, metrics, outputs
):
    rows = TEXTS, [[i % 2, 0, 1] if task == "x" else float(i) for i in range(len(TEXTS))]
    merged = with_base(folders, lam=0.5, dtype="float32")
    aligned = mergelib.align_classifier(merged, task, TEXTS, device="cpu")
    teacher = head_logits(expert_classifier(folders / task), TEXTS)
    near, far = (
        KINDS[kind].loss(head_logits(model, TEXTS), teacher).mean()
        for model in (aligned, merged.classifier(task))
    )
    assert near < far / 2
    with pytest.raises(ConfigError, match="orthogonal_classifier is for"):
        mergelib.align_classifier(merged, task, TEXTS, protocol="orthogonal_classifier")
    with pytest.raises(ConfigError, match="KNN Eval is for"):
        mergelib.evaluate(aligned, rows, ["current", "knn"])
    scores = mergelib.evaluate(aligned, rows, device="cpu")
    assert list(scores.columns[-2:]) == metrics and scores.n.item() == len(TEXTS)
    assert scores.low.item() <= scores[metrics[0]].item() <= scores.high.item()
    out = merged.with_heads(aligned).save_pretrained(tmp_path / "out", single=True, scores=scores)
    assert " | ".join(METRICS[name] for name in metrics) in (out / "README.md").read_text()
    plain = hf.AutoModelForSequenceClassification.from_pretrained(out / "tasks" / task).eval()
    with torch.no_grad():
        logits = plain(**tokenizer()(TEXTS[0], return_tensors="pt")).logits
    for model in (aligned, load_merged(out).classifier(task)):
        assert_close(own_logits(model, TEXTS[:1]), logits)
    said, (expected, order) = (
        predict(out, TEXTS[:1], [task]),
        outputs(logits[0]).sort(descending=True),
    )
    assert said.score.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert said.label.tolist() == [f"LABEL_{c}" for c in order.tolist()]


def test_a_comparison_counts_the_answers_of_a_multi_label_head(folders, tmp_path):
    labels = [[i % 2, 0, 1] for i in range(len(TEXTS))]
    more = [f"{x} {x}" for x in TEXTS]
    models = {"experts": {"x": folders / "x"}, "base": folders / "base"}
    rows, grid = {"x": (more, labels)}, {"methods": "task_arithmetic", "lams": [0.5], "k": 2}
    found = compare(**models, inputs={"x": TEXTS}, validation=rows, **grid, store=Store(tmp_path))
    merged = mergelib.merge("task_arithmetic", **models, lam=0.5)
    fit = draw_inputs(TEXTS, 3, 2, 0, "x")
    aligned = mergelib.align_classifier(merged, "x", fit)
    for protocol, classifier in (("current", merged.classifier("x")), ("ft_classifier", aligned)):
        said = head_logits(classifier, more) > 0
        row = found.rows.query(f"method == 'task_arithmetic' and protocol == '{protocol}'")
        assert row.accuracy.item() == pytest.approx(
            100 * (said == torch.tensor(labels)).double().mean().item()
        )
    with pytest.raises(ConfigError, match="'y' predicts numbers"):
        compare({"y": folders / "y"}, folders / "base", {"y": TEXTS})


# ---- decoders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", DECODERS)
def test_the_feature_of_a_decoder_is_that_of_the_last_real_token(tmp_path, kind, side):
    sizes = {k: v for k, v in SIZE.items() if kind != "GPT2" or k in ("vocab_size", "pad_token_id")}
    config = getattr(hf, f"{kind}Config")(**{**sizes, **DECODERS[kind]}, num_labels=3)
    torch.manual_seed(0)
    for name, end in (("base", "Model"), ("x", "ForSequenceClassification")):
        getattr(hf, kind + end)(config).save_pretrained(tmp_path / name)
        # Only config.json says which token pads.
        tokenizer(padding_side=side, pad_token=None).save_pretrained(tmp_path / name)
    x = expert_classifier(tmp_path / "x")
    x.processor.model_input_names = ["input_ids", "attention_mask"]
    if side == "right":  # padding on the left shifts positions, in transformers, too
        found = head_logits(x, TEXTS, batch_size=4)
        assert_close(found, own_logits(x, TEXTS), atol=1e-5, rtol=1e-4)
    batch = x.processor(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = x.model(**batch).logits
    assert_close(head_logits(x, TEXTS), logits, atol=1e-5, rtol=1e-4)


# ---- pairs --------------------------------------------------------------------------------------


def test_pairs_of_texts_are_read_as_the_tokenizer_reads_them(folders, tmp_path):
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    table = {"question1": [a for a, _ in pairs], "question2": [b for _, b in pairs]}
    classifier = expert_classifier(folders / "x")
    found = head_logits(classifier, table, batch_size=4)
    assert_close(found, own_logits(classifier, pairs), atol=1e-5, rtol=1e-4)
    merged = mergelib.merge("weight_averaging", experts={"x": folders / "x"})
    aligned = mergelib.align_classifier(merged, "x", table, device="cpu")
    assert aligned.head.alignment["n"] == len(pairs)
    rows = [(pair, [0, 2]) for pair in pairs]
    assert mergelib.evaluate(aligned, rows, device="cpu").n.item() == len(pairs)
    with pytest.raises(DataError, match="Give a list of texts"):  # rows with labels, perhaps
        features(classifier, pairs)
    with pytest.raises(DataError, match="single texts among pairs"):
        mergelib.evaluate(aligned, [*rows, ("good", [0])])
    with pytest.raises(DataError, match="models of your own"):
        single = [(pair, i % 2) for i, pair in enumerate(pairs)]
        mergelib.task("pairs", single, single, n_validation=1)


def test_a_padding_token_that_only_the_tokenizer_tells(tmp_path):
    x = make(tmp_path, "GPT2") / "x"
    configure(x, pad_token_id=None)
    classifier, texts = expert_classifier(x), ["good film", "bad", "news game film"]
    assert classifier.head.config.pad_token_id == tokenizer().pad_token_id
    given, wanted = head_logits(classifier, texts), own_logits(classifier, texts)
    assert_close(given, wanted, atol=1e-5, rtol=1e-4)
