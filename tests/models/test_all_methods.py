"""Every merging method on models of one's own: those that need inputs, labels or gradients, and
those that give an encoder per task."""

from __future__ import annotations

import pytest
import torch
from conftest import TASKS, data, experts, merge, texts
from near import equal
from safetensors.torch import load_file
from tiny import python
from torch.testing import assert_close

import mergelib
from mergelib.core.errors import ConfigError, DataError, UnknownNameError
from mergelib.core.store import Store
from mergelib.merging import METHODS, PER_TASK
from mergelib.models import load_merged
from mergelib.models.compare import compare
from mergelib.models.heads import draw_inputs, expert_classifier, features
from mergelib.run import cli

pytestmark = pytest.mark.filterwarnings("ignore:.*has no streaming form")
FAST = {
    "fisher_merging": {"n_examples": 4},
    "regmean": {"n_examples": 8, "off_diagonal": 1.0},
    "model_tailor": {"n_examples": 8},
    **{f"adamerging_{p}{e}": {"steps": 2} for p in ("task", "layer") for e in ("", "_pp")},
}


def inputs_of(kind, found):
    return {t: data(kind, t, 12, 4)[0] for t in experts(found)}


def merged_by(name, found, kind, **options):
    rows = {t: data(kind, t, 12, 4) for t in experts(found)}
    given = rows if "labels" in METHODS[name].needs else inputs_of(kind, found)
    if METHODS[name].needs:
        options = {"inputs": given} | options
    options = FAST.get(name, {}) | options
    return merge(found, name, **options)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_merges_models_of_ones_own(family, tmp_path, name):
    """RoBERTa, whose experts have a layer of their own between encoder and head."""
    found = family("roberta")
    merged = merged_by(name, found, "roberta")
    folder = merged.save_pretrained(tmp_path / "out", single=True)
    again = load_merged(folder)
    assert bool(merged.encoder) == bool(again.encoder) == (METHODS[name].gives != PER_TASK)
    for task in TASKS:
        x = texts(task, 3, 1)[0]
        wanted = features(merged.classifier(task), x, device="cpu")
        for other in (again.classifier(task), expert_classifier(folder / "tasks" / task)):
            assert torch.equal(features(other, x, device="cpu"), wanted)
        kept, own = merged.heads[task].tensors, expert_classifier(found[task]).head.tensors
        assert equal({n: kept[n] for n in own}, own)


def by_hand(found, kind, task, layer):
    """The inputs of one layer of an expert, row by row, one input at a time; and its weight."""
    expert = expert_classifier(found[task])
    module, rows = expert.model.get_submodule(layer), []
    module.register_forward_pre_hook(lambda _, args: rows.append(args[0].flatten(0, -2)))
    for x in inputs_of(kind, found)[task]:
        with torch.no_grad():
            expert.model(**expert.processor(x, return_tensors="pt"))
    return torch.cat(rows).double(), module.weight.detach().double()


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("roberta", "roberta.encoder.layer.1.output.dense"),
        ("vit", "vit.layers.1.mlp.fc2"),
    ],
)
def test_regmean_solves_its_least_squares_on_each_experts_inputs(family, kind, layer):
    found = family(kind)
    merged = merged_by("regmean", found, kind, n_examples=12)
    grams, rights = 0, 0
    for task in merged.heads:
        rows, weight = by_hand(found, kind, task, layer)
        grams = grams + rows.T @ rows / len(rows)
        rights = rights + rows.T @ rows @ weight.T / len(rows)
    got = merged.classifier(task).model.get_submodule(layer).weight.double()
    assert_close(grams @ got.T, rights, atol=1e-4, rtol=1e-3)


def test_fishers_weights_come_from_each_experts_own_logits(family):
    """The layers of its own between encoder and head take part in the gradient."""
    found = family("roberta")
    name = "roberta.encoder.layer.1.output.dense.bias"
    merged = merged_by("fisher_merging", found, "roberta", n_examples=12, floor=1e-6)
    above, below = 0, 0
    for task in TASKS:
        expert = expert_classifier(found[task])
        trained = {k: p for k, p in expert.model.named_parameters() if k in expert.encoder}
        fisher = {k: torch.zeros_like(p) for k, p in trained.items()}
        for x in inputs_of("roberta", found)[task]:
            logits = expert.model(**expert.processor(x, return_tensors="pt")).logits
            for log_p in logits[0].log_softmax(0):
                gradients = torch.autograd.grad(
                    log_p, list(trained.values()), retain_graph=True, allow_unused=True
                )
                for k, g in zip(trained, gradients, strict=True):
                    fisher[k] += 0 if g is None else g**2 * log_p.detach().exp()
        norm = sum((f**2).sum() for f in fisher.values()).sqrt()
        weight = fisher[name] / norm + 1e-6
        above, below = above + weight * trained[name].detach(), below + weight
    assert_close(merged.encoder[name], above / below, atol=1e-5, rtol=1e-4)


def test_each_task_has_its_own_encoder_where_the_method_says_so(family, tmp_path):
    found = family("bert")
    merged = merge(found, "tall_masks", lam=0.4)
    name = "bert.encoder.layer.0.output.dense.weight"
    base = load_file(found["base"] / "model.safetensors")[name.removeprefix("bert.")]
    taus = [load_file(found[t] / "model.safetensors")[name] - base for t in TASKS]
    for task, tau in zip(TASKS, taus, strict=True):
        mask = tau.abs() > 0.4 * (sum(taus) - tau).abs()
        assert_close(merged.heads[task].tensors[name], base + mask * sum(taus))
    aligned = mergelib.align_classifier(merged, "ag", texts("ag", 20, 4)[0], device="cpu")
    both = merged.with_heads(aligned)
    assert torch.equal(both.heads["ag"].tensors[name], merged.heads["ag"].tensors[name])
    folder = both.save_pretrained(tmp_path / "out")
    assert not (folder / "model.safetensors").exists()
    assert "An encoder per task" in (folder / "README.md").read_text()
    # the folder's own loader, without mergelib
    python(folder / "load_merged.py", "ag", tmp_path / "ag", env={"PATH": ""})
    x = texts("ag", 4, 1)[0]
    z = [features(c, x, device="cpu") for c in (aligned, expert_classifier(tmp_path / "ag"))]
    assert_close(*z)
    with pytest.raises(UnknownNameError, match="task"):
        mergelib.align_classifier(merged, expert_classifier(found["ag"]), x, task="other")


def test_what_a_method_needs_is_said_before_any_work(family):
    found = family("bert")
    given = inputs_of("bert", found)
    for method, inputs, error, said in [
        ("regmean", None, ConfigError, r"RegMean needs inputs; 'ag' has none.*--inputs ag=FILE"),
        ("regmean", {**given, "agg": ["a"]}, UnknownNameError, "task of inputs 'agg'"),
        ("lm_cocktail", given, DataError, "Give"),  # without labels
    ]:
        with pytest.raises(error, match=said):
            merge(found, method, inputs=inputs)


def test_a_comparison_takes_every_method_that_needs_no_labels(family, tmp_path):
    found = family("bert")
    inputs = {t: texts(t, 60, 5)[0] for t in TASKS}
    options, store = FAST | {"wudi": {"steps": 2}}, Store(tmp_path)
    grid = {"methods": "all", "options": options, "lams": [0.3], "k": 2}
    compared = compare(experts(found), found["base"], inputs, **grid, device="cpu", store=store)
    assert {*compared.failed} == {n for n, m in METHODS.items() if "labels" in m.needs}
    said = "needs inputs and labels; a comparison has k unlabelled"
    assert said in compared.failed["lm_cocktail"]
    drawn = {t: draw_inputs(inputs[t], TASKS[t], 2, 0, t) for t in TASKS}
    merged = merge(found, "regmean", inputs=drawn, device="cpu", **FAST["regmean"])
    rows = compared.rows.query("method == 'regmean' and protocol == 'current'").set_index("task")
    for task in TASKS:
        scored = [x for x in inputs[task] if x not in drawn[task]]
        ours, theirs = (
            c.head.linear.logits(features(c, scored, device="cpu")).argmax(-1)
            for c in (merged.classifier(task), expert_classifier(found[task]))
        )
        assert rows.agreement[task] == pytest.approx(100 * (ours == theirs).double().mean().item())


def test_the_command_line_lists_methods_and_protocols_and_takes_inputs(family, tmp_path, capsys):
    assert cli.main(["methods"]) == cli.main(["protocols"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{said}" for name in METHODS)
    assert "needs weights and inputs, gives one encoder\n    options: off_diagonal=0.9" in said
    assert "arXiv 2306.01708" in said and "learns from k labelled inputs per class" in said
    assert "``" not in said
    found = family("bert")
    files = []
    for task, x in inputs_of("bert", found).items():
        (tmp_path / f"{task}.txt").write_text("\n".join(x))
        files.append(f"{task}={tmp_path / task}.txt")
    command = ["merge", "--method", "regmean", "--base", str(found["base"]), "--device", "cpu"]
    command += ["--experts", *(f"{t}={f}" for t, f in experts(found).items())]
    command += ["--inputs", *files, "--options", "n_examples=8", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0 and "one encoder (" in capsys.readouterr().out
