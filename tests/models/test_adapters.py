"""LoRA adapters as experts: what peft wrote equals W + scale B A, by hand, and peft's own model."""

from __future__ import annotations

import json
import math
import shutil
import sys
import warnings

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from test_foreign_folders import SIZE, tokenizer, with_base
from torch.testing import assert_close

import mergelib
from mergelib.core.errors import ConfigError, StateDictError
from mergelib.models.heads import expert_classifier, features

TEXTS = ["good film", "bad", "news game film"]
KINDS = {
    "Bert": (SIZE, ["query", "value"], "classifier"),
    "GPT2": (
        {"vocab_size": 14, "n_embd": 8, "n_layer": 1, "n_head": 2},
        ["c_attn"],
        "score",
    ),
}


def base_of(folder, kind):
    torch.manual_seed(0)
    config = getattr(hf, f"{kind}Config")(**KINDS[kind][0])
    getattr(hf, f"{kind}Model")(config).save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")


def adapter(folder, kind, **options):
    """``folder/x``, an adapter of three classes with its head; returns peft's own model."""
    peft = pytest.importorskip("peft", reason="needs the extra 'lora'")
    _, targets, head = KINDS[kind]
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=3)
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=2,
        lora_alpha=6,
        target_modules=targets,
        modules_to_save=[head],
        fan_in_fan_out=kind == "GPT2",
        **options,
    )
    model.config.pad_token_id = 0  # in no file of an adapter's; known from the tokenizer
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
    base_of(tmp_path, kind)
    theirs = adapter(tmp_path, kind, use_rslora=rslora)
    with warnings.catch_warnings():  # nobody can act on a deprecation inside peft
        warnings.simplefilter("error", FutureWarning)
        expert = expert_classifier(tmp_path / "x")
    assert len(expert.head.labels) == 3
    batch = tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**batch).logits
    z = features(expert, TEXTS, device="cpu")
    assert_close(expert.head.linear.logits(z), logits, atol=1e-4, rtol=1e-4)
    base = load_file(tmp_path / "base" / "model.safetensors")
    saved = load_file(tmp_path / "x" / "adapter_model.safetensors")
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
    base_of(tmp_path, "Bert")
    adapter(tmp_path, "Bert")
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    weights = load_file(tmp_path / "y" / "adapter_model.safetensors")
    save_file({n: -t for n, t in weights.items()}, tmp_path / "y" / "adapter_model.safetensors")
    merged = with_base(tmp_path, lam=0.5, dtype="float32")
    base = load_file(tmp_path / "base" / "model.safetensors")
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
    base_of(tmp_path, "Bert")
    adapter(tmp_path, "Bert")
    file = tmp_path / "x" / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({n: t for n, t in whole.items() if "classifier" not in n}, file)
    with pytest.raises(StateDictError, match=r"without classifier\.bias.*modules_to_save"):
        expert_classifier(tmp_path / "x")
    save_file(whole, file)
    said = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    for change, message in (
        ({"base_model_name_or_path": "/nowhere/base"}, "no folder '/nowhere/base'"),
        ({"target_modules": ["nothing"]}, "adapter that peft cannot merge"),
    ):
        (tmp_path / "x" / "adapter_config.json").write_text(json.dumps(said | change))
        with pytest.raises(ConfigError, match=message):
            expert_classifier(tmp_path / "x")
    (tmp_path / "x" / "adapter_config.json").write_text(json.dumps(said))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'mergelib\[lora\]'.*merge_and_unload"):
        expert_classifier(tmp_path / "x")


def test_an_adapter_beside_a_whole_model_is_ambiguous(tmp_path):
    base_of(tmp_path, "Bert")
    shutil.copytree(tmp_path / "base", tmp_path / "x")
    (tmp_path / "x" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="a whole model and an adapter"):
        expert_classifier(tmp_path / "x")
