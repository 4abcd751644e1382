"""LoRA adapters as experts: what peft wrote equals W + scale B A, by hand, and peft's own model."""

from __future__ import annotations

import math
import shutil
import sys
import warnings

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from test_foreign_folders import SIZE, configure, make, put, read, state, tokenizer, with_base
from torch.testing import assert_close

import mergelib
from mergelib.core.errors import ConfigError, StateDictError
from mergelib.models.heads import expert_classifier

TEXTS = ["good film", "bad", "news game film"]
FILE = "adapter_model.safetensors"
KINDS = {"Bert": (["query", "value"], "classifier"), "GPT2": (["c_attn"], "score")}


def adapter(folder, kind="Bert", **options):
    """``base``, and ``x``, an adapter of three classes with its head; returns peft's own model."""
    peft = pytest.importorskip("peft", reason="needs the extra 'lora'")
    torch.manual_seed(0)
    getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**SIZE)).save_pretrained(
        folder / "base"
    )
    tokenizer().save_pretrained(folder / "base")
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=3)
    targets, head = KINDS[kind]
    options |= {
        "target_modules": targets,
        "modules_to_save": [head],
        "fan_in_fan_out": kind == "GPT2",
    }
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=6, **options)
    made = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for name, p in made.named_parameters():
        if "lora_" in name or head in name:
            torch.nn.init.normal_(p)
    made.save_pretrained(folder / "x")
    return made.eval()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_its_base_plus_scale_times_b_a(tmp_path, kind, rslora):
    theirs = adapter(tmp_path, kind, use_rslora=rslora)
    with warnings.catch_warnings():  # nobody can act on a deprecation inside peft
        warnings.simplefilter("error", FutureWarning)
        expert = expert_classifier(tmp_path / "x")
    assert len(expert.head.labels) == 3
    batch = tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**batch).logits
    found = expert.head.linear.logits(read(expert, TEXTS))
    assert_close(found, logits, atol=1e-4, rtol=1e-4)
    base, saved = state(tmp_path / "base"), load_file(tmp_path / "x" / FILE)
    scale, changed = 6 / (math.sqrt(2) if rslora else 2), 0
    for name, weight in expert.encoder.items():
        plain = name.split(".", 1)[1]
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        delta = torch.zeros_like(weight)
        if f"{key}A.weight" in saved:
            delta = scale * saved[f"{key}B.weight"] @ saved[f"{key}A.weight"]
            delta = delta.T if kind == "GPT2" else delta
            changed += 1
        assert_close(weight, base[plain] + delta, atol=1e-5, rtol=1e-5)
    assert changed == (2 if kind == "Bert" else 1)


def test_adapters_are_merged_re_aligned_and_saved_as_plain_models(tmp_path):
    adapter(tmp_path)
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    put(tmp_path / "y", {n: -t for n, t in load_file(tmp_path / "y" / FILE).items()}, FILE)
    merged = with_base(tmp_path, lam=0.5, dtype="float32")
    base = state(tmp_path / "base")
    x, y = (expert_classifier(tmp_path / n).encoder for n in "xy")
    for n, t in merged.encoder.items():
        b = base[n.removeprefix("bert.")]
        assert_close(t, b + 0.5 * (x[n] + y[n] - 2 * b), atol=1e-5, rtol=1e-4)
    assert merged.record["experts"] == {"x": "x", "y": "y"}
    aligned = mergelib.align_classifier(merged, "x", TEXTS, device="cpu")
    merged.with_heads(aligned).save_pretrained(tmp_path / "out", single=True)
    plain = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "tasks" / "x")
    assert not any("lora" in n for n in plain.state_dict())


def test_an_adapter_that_makes_no_model_is_refused(tmp_path, monkeypatch):
    adapter(tmp_path)
    whole = load_file(tmp_path / "x" / FILE)
    put(tmp_path / "x", {n: t for n, t in whole.items() if "classifier" not in n}, FILE)
    with pytest.raises(StateDictError, match=r"without classifier\.bias.*modules_to_save"):
        expert_classifier(tmp_path / "x")
    put(tmp_path / "x", whole, FILE)
    for change, message in (
        ({"target_modules": ["nothing"]}, "adapter that peft cannot merge"),
        ({"base_model_name_or_path": "/nowhere/base"}, "no folder '/nowhere/base'"),
    ):
        configure(tmp_path / "x", "adapter_config.json", **change)
        with pytest.raises(ConfigError, match=message):
            expert_classifier(tmp_path / "x")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'mergelib\[lora\]'.*merge_and_unload"):
        expert_classifier(tmp_path / "x")


def test_an_adapter_beside_a_whole_model_is_ambiguous(tmp_path):
    make(tmp_path)
    (tmp_path / "x" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="a whole model and an adapter"):
        expert_classifier(tmp_path / "x")
