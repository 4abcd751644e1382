"""Every merging method on models of one's own: those that need inputs, labels or gradients, and
those that give an encoder per task."""

from __future__ import annotations

import pytest
import torch
from conftest import TASKS, is_image, pictures, texts
from safetensors.torch import load_file
from tiny import python
from torch.testing import assert_close

import mergelib
from mergelib.core.errors import ConfigError, DataError, UnknownNameError
from mergelib.core.store import Store
from mergelib.merging import METHODS, PER_TASK
from mergelib.models import load_merged
from mergelib.models.compare import compare
from mergelib.models.data import draw_inputs
from mergelib.models.heads import expert_classifier, features
from mergelib.run import cli

pytestmark = pytest.mark.filterwarnings("ignore:.*has no streaming form")
FAST = {
    "fisher_merging": {"n_examples": 4},
    "regmean": {"n_examples": 8, "off_diagonal": 1.0},
    "model_tailor": {"n_examples": 8},
    **{f"adamerging_{p}{e}": {"steps": 2} for p in ("task", "layer") for e in ("", "_pp")},
}


def named(found):
    return {n: f for n, f in found.items() if n != "base"}


def inputs_of(kind, found, n=12, labels=True):
    made = {t: (pictures if is_image(kind) else texts)(t, n, 4) for t in named(found)}
    return made if labels else {t: x for t, (x, _) in made.items()}


def merge(name, found, kind, labels=None, **options):
    labels = "labels" in METHODS[name].needs if labels is None else labels
    return mergelib.merge(
        name,
        base=found["base"],
        experts=named(found),
        inputs=inputs_of(kind, found, labels=labels) if METHODS[name].needs else None,
        **FAST.get(name, {}) | options,
    )


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_merges_models_of_ones_own(family, tmp_path, name):
    """RoBERTa, whose experts have a layer of their own between encoder and head."""
    found = family("roberta")
    merged = merge(name, found, "roberta")
    folder = merged.save_pretrained(tmp_path / "out", single=True)
    again = load_merged(folder)
    assert bool(merged.encoder) == bool(again.encoder) == (METHODS[name].gives != PER_TASK)
    for task in TASKS:
        x = texts(task, 3, 1)[0]
        wanted = features(merged.classifier(task), x, device="cpu")
        for other in (again.classifier(task), expert_classifier(folder / "tasks" / task)):
            assert torch.equal(features(other, x, device="cpu"), wanted)
        own = expert_classifier(found[task])
        assert all(
            torch.equal(merged.heads[task].tensors[n], t) for n, t in own.head.tensors.items()
        )


def by_hand(found, kind, task, layer):
    """The inputs of one layer of an expert, row by row, one input at a time; and its weight."""
    expert = expert_classifier(found[task])
    module, rows = expert.model.get_submodule(layer), []
    module.register_forward_pre_hook(lambda _, args: rows.append(args[0].flatten(0, -2)))
    for x in inputs_of(kind, found, labels=False)[task]:
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
    model = expert_classifier(found[next(iter(named(found)))]).model
    if layer not in dict(model.named_modules()):
        layer = next(n for n, m in reversed([*model.named_modules()]) if n.endswith("output.dense"))
    merged = merge("regmean", found, kind, n_examples=12)
    grams, rights = 0, 0
    for task in named(found):
        rows, weight = by_hand(found, kind, task, layer)
        grams = grams + rows.T @ rows / len(rows)
        rights = rights + rows.T @ rows @ weight.T / len(rows)
    got = merged.classifier(next(iter(merged.heads))).model.get_submodule(layer).weight.double()
    assert_close(grams @ got.T, rights, atol=1e-4, rtol=1e-3)


def test_fishers_weights_come_from_each_experts_own_logits(family):
    """The layers of its own between encoder and head take part in the gradient."""
    found = family("roberta")
    name = "roberta.encoder.layer.1.output.dense.bias"
    merged = merge("fisher_merging", found, "roberta", n_examples=12, floor=1e-6)
    above, below = 0, 0
    for task in TASKS:
        expert = expert_classifier(found[task])
        trained = {k: p for k, p in expert.model.named_parameters() if k in expert.encoder}
        fisher = {k: torch.zeros_like(p) for k, p in trained.items()}
        for x in inputs_of("roberta", found, labels=False)[task]:
            log_p = (
                expert.model(**expert.processor(x, return_tensors="pt")).logits[0].log_softmax(0)
            )
            for y in log_p:
                gradients = torch.autograd.grad(
                    y, list(trained.values()), retain_graph=True, allow_unused=True
                )
                for k, g in zip(trained, gradients, strict=True):
                    fisher[k] += 0 if g is None else g**2 * y.detach().exp()
        norm = sum((f**2).sum() for f in fisher.values()).sqrt()
        weight = fisher[name] / norm + 1e-6
        above, below = above + weight * trained[name].detach(), below + weight
    assert_close(merged.encoder[name], above / below, atol=1e-5, rtol=1e-4)


def test_each_task_has_its_own_encoder_where_the_method_says_so(family, tmp_path):
    found = family("bert")
    merged = merge("tall_masks", found, "bert", lam=0.4)
    base, *experts = (load_file(found[n] / "model.safetensors") for n in ("base", *TASKS))
    name = "bert.encoder.layer.0.output.dense.weight"
    taus = [e[name] - base[name.removeprefix("bert.")] for e in experts]
    for task, tau in zip(TASKS, taus, strict=True):
        mask = tau.abs() > 0.4 * (sum(taus) - tau).abs()
        wanted = base[name.removeprefix("bert.")] + mask * sum(taus)
        assert_close(
            merged.classifier(task).encoder.get(name, merged.heads[task].tensors[name]), wanted
        )
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


def test_what_a_method_needs_is_said_before_any_work(family, monkeypatch):
    found = family("bert")
    experts = named(found)
    with pytest.raises(ConfigError, match=r"RegMean needs inputs; 'ag' has none.*--inputs ag=FILE"):
        mergelib.merge("regmean", base=found["base"], experts=experts)
    given = inputs_of("bert", found, labels=False)
    with pytest.raises(UnknownNameError, match="task of inputs 'agg'"):
        mergelib.merge(
            "regmean", base=found["base"], experts=experts, inputs={**given, "agg": ["a"]}
        )
    with pytest.raises(DataError):  # without labels
        mergelib.merge("lm_cocktail", base=found["base"], experts=experts, inputs=given)


def test_a_comparison_takes_every_method_that_needs_no_labels(family, tmp_path):
    found = family("bert")
    inputs = {t: texts(t, 60, 5)[0] for t in TASKS}
    compared = compare(
        named(found),
        found["base"],
        inputs,
        methods="all",
        options=FAST | {"wudi": {"steps": 2}},
        lams=[0.3],
        k=2,
        device="cpu",
        store=Store(tmp_path),
    )
    assert {*compared.failed} == {n for n, m in METHODS.items() if "labels" in m.needs}
    assert (
        "needs inputs and labels; a comparison has k unlabelled" in compared.failed["lm_cocktail"]
    )
    drawn = {t: draw_inputs(inputs[t], TASKS[t], 2, 0, t) for t in TASKS}
    merged = mergelib.merge(
        "regmean",
        base=found["base"],
        experts=named(found),
        inputs=drawn,
        device="cpu",
        **FAST["regmean"],
    )
    rows = compared.rows.query("method == 'regmean' and protocol == 'current'").set_index("task")
    for task in TASKS:
        scored = [x for x in inputs[task] if x not in drawn[task]]
        z = [
            c.head.linear.logits(features(c, scored, device="cpu")).argmax(-1)
            for c in (merged.classifier(task), expert_classifier(found[task]))
        ]
        assert rows.agreement[task] == pytest.approx(100 * (z[0] == z[1]).double().mean().item())


def test_the_command_line_lists_methods_and_protocols_and_takes_inputs(family, tmp_path, capsys):
    assert cli.main(["methods"]) == cli.main(["protocols"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{said}" for name in METHODS)
    assert "needs weights and inputs, gives one encoder\n    options: off_diagonal=0.9" in said
    assert "arXiv 2306.01708" in said and "learns from k labelled inputs per class" in said
    assert "``" not in said
    found = family("bert")
    files = []
    for task, (x, _) in inputs_of("bert", found).items():
        (tmp_path / f"{task}.txt").write_text("\n".join(x))
        files.append(f"{task}={tmp_path / task}.txt")
    code = cli.main(
        [
            *("merge", "--method", "regmean", "--base", str(found["base"])),
            *("--experts", *(f"{t}={f}" for t, f in named(found).items())),
            *("--inputs", *files, "--options", "n_examples=8"),
            *("--out", str(tmp_path / "out"), "--device", "cpu"),
        ]
    )
    assert code == 0 and "one encoder (" in capsys.readouterr().out
