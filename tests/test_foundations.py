"""The shipped foundations: found by their recipe, whole, and what the recipe makes."""

import shutil

import pytest
import torch

from mergelib.core.errors import StoreError, UnknownNameError
from mergelib.core.store import Store
from mergelib.foundations import RECIPES, shipped
from mergelib.foundations.command import planned
from mergelib.profiles import load_profile
from mergelib.tasks import load_task

PLAN = {n: p for profile in ("mini", "quick") for n, p in planned(profile).items()}


def test_every_foundation_is_shipped_with_its_recipe():
    assert {n: shipped.sidecar(n)["recipe"] for n in shipped.names()} == {
        n: shipped.recipe_of(p) for n, p in PLAN.items()
    }


def test_another_recipe_is_made_here():
    assert shipped.find(load_profile("mini")) == "mini_bert"
    assert shipped.find(load_profile("mini", {"encoder.pretraining.steps": 5})) is None
    assert shipped.find(load_profile("mini", {"tasks.n_test": 5})) == "mini_bert"


def test_sizes():
    sizes = [p.stat().st_size for p in shipped.FOLDER.iterdir()]
    assert sum(sizes) < 25e6


@pytest.mark.parametrize("name", ["quick_bert", "quick_t5_a", "quick_vision_a", "quick_vit"])
def test_the_recipe_makes_the_file(name, tmp_path):
    profile = PLAN[name]
    tasks = [load_task(t, profile, Store(tmp_path)) for t in profile.tasks.names]
    recipe = RECIPES[profile.encoder.kind]
    made = recipe.make(profile, tasks, torch.device("cpu"), tmp_path)
    kept = shipped.read(name)
    assert made.info["vocab" if "vocab" in kept.info else "images"] == (
        kept.info.get("vocab") or kept.info["images"]
    )
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
