"""The shipped foundations: found by their recipe, whole, and what the recipe makes."""

import shutil

import pytest
import torch
from near import equal, seeded

from mergelib import Study
from mergelib.core.errors import ConfigError, StoreError, UnknownNameError
from mergelib.core.store import Store
from mergelib.foundations import bert, recipe_of, shipped
from mergelib.foundations.command import planned
from mergelib.foundations.further import Further
from mergelib.profiles import load_profile
from mergelib.tasks import load_task

PLAN = {n: p for profile in ("mini", "quick") for n, p in planned(profile).items()}


def test_every_foundation_is_shipped_with_its_recipe():
    assert {n: shipped.sidecar(n)["recipe"] for n in shipped.names()} == {
        n: shipped.recipe_of(p) for n, p in PLAN.items()
    }


def test_another_recipe_is_made_here():
    found = {"encoder.pretraining.steps": None, "tasks.n_test": "mini_bert"}
    for key, name in found.items():
        assert shipped.find(load_profile("mini", {key: 5})) == name


def test_sizes():
    assert sum(p.stat().st_size for p in shipped.FOLDER.iterdir()) < 25e6


@pytest.mark.parametrize(
    "name", ["quick_bert", "quick_masked_lm", "quick_t5_a", "quick_vision_a", "quick_vit"]
)
def test_the_recipe_makes_the_file(name, tmp_path):
    profile = PLAN[name]
    tasks = [load_task(t, profile, Store(tmp_path)) for t in profile.tasks.names]
    made = recipe_of(profile, tasks).make(torch.device("cpu"), tmp_path)
    kept = shipped.read(name)
    for what in ("vocab", "images"):
        assert made.info.get(what) == kept.info.get(what)
    assert made.tensors.keys() == kept.tensors.keys()
    for key, tensor in made.tensors.items():
        # float16 keeps 11 bits; another processor rounds 20 steps of AdamW otherwise.
        torch.testing.assert_close(tensor.float(), kept.tensors[key], rtol=0.02, atol=0.02, msg=key)


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    for end in ("json", "safetensors"):
        shutil.copy(shipped.FOLDER / f"quick_bert.{end}", tmp_path)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    path = tmp_path / "quick_bert.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="sha256"):
        shipped.read("quick_bert")
    with pytest.raises(UnknownNameError, match="mini_bert"):
        shipped.read("mini_bert")


# ---- a base that is pre-trained further ----------------------------------------------------------


def test_the_upper_layers_start_anew_and_the_rest_is_the_base(tmp_path):
    """After steps too small to move anything, what differs from the base is what started anew."""
    changes = {"encoder.pretraining.steps": 2, "encoder.pretraining.lr": 1e-12}
    profile = load_profile("quick", changes, "masked_lm")
    tasks = [load_task("ag", profile, Store(tmp_path))]
    made = Further(profile, tasks).make(torch.device("cpu"), tmp_path).tensors
    base = bert.shipped_bert("quick_bert").state
    assert made.keys() == base.keys()
    moved = {n for n in made if not torch.allclose(made[n], base[n], atol=1e-6)}
    upper = {n for n in base if n.startswith("encoder.layer.1.")}
    assert moved <= upper and {n for n in upper if n.endswith("dense.weight")} <= moved


def test_a_real_vocabulary_keeps_its_special_tokens():
    """As in BERT's vocabulary, where [CLS], [SEP] and [MASK] stand behind a hundred unused ones."""
    words = [f"word{i}" for i in range(200)]
    vocab = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    encoder = bert.bert_encoder([*vocab, *words], layers=1, width=8, heads=2, max_length=32)
    rows = encoder.prepare([" ".join(words[i : i + 20]) for i in range(0, 180, 20)])
    batch = bert.masked_batch(encoder, rows, 0.5, seeded(0))
    chosen = batch["labels"] != -100
    assert chosen.any() and (batch["labels"][chosen] > 103).all()
    assert (batch["input_ids"][chosen] >= 103).all()


@pytest.mark.parametrize(
    "key, value, variant, says",
    [
        ("fresh_layers", 3, "masked_lm", r"fresh_layers is 3; .* 2 layers"),
        ("start", "", "masked_lm", "fresh_layers: give the BERT"),
        ("fresh_layers", 1, "t5_a", "fresh_layers: give the BERT"),
    ],
)
def test_what_cannot_go_on_is_refused(key, value, variant, says):
    with pytest.raises(ConfigError, match=says):
        recipe = Further(load_profile("quick", {f"encoder.pretraining.{key}": value}, variant), ())
        recipe.kept(recipe.base)


def test_a_study_knows_its_other_base(tmp_path):
    study = Study("quick", store=tmp_path, overrides={"tasks.n_test": 20})
    mine, other = study.bases().values()
    assert mine is study and other.variant == "masked_lm" and other.tasks == study.tasks
    assert other.base_state.keys() == study.base_state.keys()
    assert not equal(study.base_state, other.base_state)
    assert list(other.bases().values()) == [other]
    study.encoder.config.model_type = "distilbert"  # masked language modelling goes on from BERTs
    assert list(study.bases().values()) == [study]
