"""The profile `paper` from end to end, its repositories on a loopback hub: fetched by the real
clients, then once more without network.

Registry, class names and profile are the published ones; the repositories are tiny, in the layout
that the registry expects.
"""

import io
import json
import re
from contextlib import closing, nullcontext
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from loopback_hub import OLD, Client, folder_files, serving
from PIL import Image
from safetensors.torch import load_file
from test_released import SHAPE
from test_vision import write_hub_clip

from benchmarks import released as bench
from mergelib.core.errors import ConfigError, DataError
from mergelib.core.hub import registry
from mergelib.core.hub.whole import WholeFiles
from mergelib.foundations import RECIPES
from mergelib.foundations.clip import PROMPTS
from mergelib.profiles import IMAGE_TASK_NAMES, TASK_NAMES, load_profile
from mergelib.run import runner
from mergelib.tasks.hub_images import check_names, class_names
from mergelib.tasks.parquet import read_parquet

SIZES = {"rows": 24, "k": 2, "max_length": 40}
ROAD = "tests.paper_road.scores"
PUBLISHED = "kongfs/FT-Classifier-for-Model-Merging"
SETS = {"eurosat": "tanganke/eurosat", "dtd": "tanganke/dtd"}
VISION = {
    "tasks.names": list(SETS),
    "tasks.n_train": 400,
    "tasks.n_validation": 40,
    "tasks.n_test": 100,
    "tasks.pool_per_class": 6,
    "encoder.image_size": 16,
    "encoder.batch_size": 64,
    "fine_tuning.steps": 6,
    "fine_tuning.lr": 1.0e-2,
    "fine_tuning.batch_size": 32,
    "fine_tuning.save_every": 2,
    "protocols.ks": [1],
    "protocols.seeds": [0],
    "merging.lams": [0.3],
    "threads": 1,
}


def table(names, labels, *, seed=0):
    """Rows of a split as datasets writes them: pictures of one grey each, whose class is their
    grey, and the names."""
    rng, pictures = np.random.default_rng(seed), []
    for label in labels:
        grey = np.full((20, 24, 3), 255 * label // len(names), np.uint8)
        noise = rng.integers(0, 8, grey.shape, dtype=np.uint8)
        Image.fromarray(grey ^ noise).save(buffer := io.BytesIO(), "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    made = pa.table({"image": pictures, "label": pa.array(labels, pa.int64())})
    label = {"names": list(names), "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    made = made.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(made, buffer := io.BytesIO())
    return buffer.getvalue()


def image_set(name):
    """A set's repository: the training split in two files, the test split, and a corrupted copy of
    it that nobody wants."""
    n = len(class_names(name))
    stored = [c.title().replace(" ", "_") for c in class_names(name)]
    labels = [i % n for i in range(8 * n)]
    return {
        "README.md": b"# A card\n",
        "data/train-00000-of-00002.parquet": table(stored, labels[: 4 * n]),
        "data/train-00001-of-00002.parquet": table(stored, labels[4 * n :], seed=1),
        "data/test-00000-of-00001.parquet": table(stored, labels[: 2 * n], seed=2),
        "data/contrast-00000-of-00001.parquet": b"not asked for",
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = tmp_path_factory.mktemp("published")
    bench.write_stand_in(made, shape=SHAPE, **SIZES)
    write_hub_clip(made / "clip")
    # As copies of the repository have it: no safetensors, and heads of other frameworks.
    torch.save(load_file(made / "clip" / "model.safetensors"), made / "clip" / "pytorch_model.bin")
    (made / "clip" / "model.safetensors").unlink()
    (made / "clip" / "tf_model.h5").write_bytes(b"not asked for")
    with serving() as server:
        server.models["bert-base-uncased"] = {OLD: folder_files(made / "base")}
        server.models["openai/clip-vit-base-patch32"] = {OLD: folder_files(made / "clip")}
        server.models[PUBLISHED] = {
            OLD: {f"checkpoints/{t}.pth": made / "checkpoints" / f"{t}.pth" for t in TASK_NAMES}
        }
        server.repositories[PUBLISHED] = {
            OLD: {
                f"data/{t}/{s}.csv": made / t / f"{s}.csv"
                for t in TASK_NAMES
                for s in ("train", "test")
            }
        }
        server.repositories.update({id: {OLD: image_set(name)} for name, id in SETS.items()})
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def online(server, folder):
    with closing(Client(folder, server.url)) as client:
        yield client


@pytest.fixture(scope="module")
def offline(server, folder):
    """The same caches and lock file on a node without network; its store is empty."""
    without = {"HF_HUB_OFFLINE": "1", "MERGELIB_STORE": str(folder / "offline")}
    with closing(Client(folder, server.url, **without)) as client:
        yield client


def test_text_online_then_offline(server, online, offline, folder):
    overrides, lock = bench.stand_in_overrides(folder, **SIZES), folder / "lock.json"
    overrides = {k: v for k, v in overrides.items() if k not in ("encoder.base", "released_dir")}
    asked = "", overrides, ["f_t", "task_arithmetic"], ["current", "knn", "ft_classifier"]
    early = offline(ROAD, *asked, lock=lock)
    assert early["error"] == "OfflineError" and "data fetch" in early["message"]
    fetched = online.run("data fetch --only text", lock)
    assert fetched["value"] == 0 and "Everything is cached" in fetched["out"], fetched
    said = r"released_checkpoints: 5 files, \S+ MB, of which \S+ MB to be downloaded"
    assert re.search(said, fetched["out"])
    assert not any("clip" in path or "tanganke" in path for path in server.asked), "another group"
    assert online.run("data check --only text", lock)["value"] == 0
    first = online(ROAD, *asked, lock=lock)
    assert "value" in first, first
    own = [r for r in first["value"] if (r["method"], r["protocol"]) == ("f_t", "current")]
    assert {r["task"] for r in own} == set(TASK_NAMES)
    # The classifiers were solved for; chance is 16.
    assert sum(r["accuracy"] for r in own) / 5 > 25
    server.asked.clear()
    second = offline(ROAD, *asked, lock=lock)
    assert second.get("value") == first["value"] and not server.asked


def test_images_online_then_offline(server, online, offline, folder):
    encoders, protocols = ["f_b", "f_t", "task_arithmetic"], ["current", "ft_classifier"]
    asked, lock = ("vision_a", VISION, encoders, protocols), folder / "lock.json"
    server.asked.clear()
    first = online(ROAD, *asked, lock=lock)  # nothing was fetched ahead
    assert "value" in first, first
    assert {row["task"] for row in first["value"]} == set(SETS)
    assert all(0 <= row["accuracy"] <= 100 for row in first["value"])
    paths = " ".join(server.asked)
    assert not any(part in paths for part in ("contrast", "tf_model", "sun397"))
    assert "pytorch_model.bin" in paths
    assert json.loads(lock.read_text())["eurosat"]["revision"] == OLD
    server.asked.clear()
    second = offline(ROAD, *asked, lock=lock)
    assert second.get("value") == first["value"] and not server.asked
    listed = offline.run("data list --only vision", lock)["out"]
    for line in ("\neurosat: cached\n", "\nsvhn: not cached\n", "cropped_digits/train-*.parquet"):
        assert line in listed
    assert online.run("data check eurosat dtd clip-vit-base-patch32", lock)["value"] == 0


# --- without a client -----------------------------------------------------------------------------


def test_the_registry_has_the_eight_sets_their_classes_and_prompts():
    """With the paper's numbers of classes."""
    assert load_profile("paper", variant="vision_a").tasks.names == IMAGE_TASK_NAMES
    numbers = [len(class_names(name)) for name in IMAGE_TASK_NAMES]
    assert numbers == [397, 196, 45, 10, 10, 43, 10, 47]
    for name in IMAGE_TASK_NAMES:
        names, known = class_names(name), registry()[name]
        assert len({c.strip().lower() for c in names}) == len(names) and name in PROMPTS
        assert len(known.files) == 2 and known.kind == "dataset"


def test_a_run_fetches_what_its_notebooks_read(tmp_path):
    def read(only, **given):
        items, here = runner.select([only]), str(tmp_path)
        given = {k: here if v is None else v for k, v in given.items()}
        found = runner.hub_repositories("paper", items, {i.id: given for i in items})
        return {s.name for s in found}

    released, bert = {"released_checkpoints", "released_data"}, "bert-base-uncased"
    clips = {"clip-vit-base-patch32", "clip-vit-base-patch16"}
    assert read("tab02") == read("ladder") == {*released, bert}
    assert read("vision") == {*IMAGE_TASK_NAMES, *clips}
    assert read("t5") == {"released_data", "t5-base", "t5-large"} and read("report") == set()
    assert read("tab02", overrides={"released_dir": str(tmp_path)}) == {bert}
    assert read("tab02", text_dir=None, base=None) == {"released_checkpoints"}
    assert read("fig09", image_dir=None) == clips
    own = {"tasks.names": ["dtd"], "encoder.base": "org/other"}
    assert read("fig09", overrides=own) == {"dtd", "org/other"}


def test_overrides_are_checked_against_the_variants_that_a_notebook_is_about():
    (item,) = runner.select(["fig09"])
    runner.check_before("paper", [item], {item.id: {"overrides": {"tasks.names": ["dtd"]}}})
    with pytest.raises(ConfigError, match="Unknown task 'ag'"):
        runner.check_before("paper", [item], {item.id: {"overrides": {"tasks.names": ["ag"]}}})


@pytest.fixture
def lists(monkeypatch, tmp_path):
    """``lists(repository, paths)``: what is chosen of a repository that has these."""

    def choose(repository, paths):
        def snapshot(id, *, allow_patterns, **_):
            for path in paths:
                if any(fnmatch(path, pattern) for pattern in allow_patterns):
                    (tmp_path / path).parent.mkdir(exist_ok=True)
                    (tmp_path / path).touch()
            return tmp_path

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        return list(WholeFiles(repository, "a" * 40)._files())

    return choose


@pytest.mark.parametrize("lacking", ["data/test-*.parquet", "data/train-*.parquet"])
def test_an_image_set_without_all_its_files_is_refused(lists, lacking):
    names = {"data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"}
    names = {n.removeprefix("data/") if fnmatch(n, lacking) else n for n in names}
    with pytest.raises(DataError, match=f"tanganke/dtd .* no file {re.escape(lacking)}"):
        lists(registry()["dtd"], names)


def test_pickled_weights_are_taken_of_clips_without_others(lists):
    clip, bert = (registry()[n] for n in ("clip-vit-base-patch32", "bert-base-uncased"))
    pickled = ["config.json", "pytorch_model.bin"]
    with pytest.raises(DataError, match=r"no file \*\.safetensors"):
        lists(bert, pickled)
    assert lists(clip, pickled) == pickled
    whole = ["config.json", "model.safetensors"]
    assert lists(clip, [*whole, pickled[1]]) == whole == lists(bert, [*whole, pickled[1]])


SPELT = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential "
    "River SeaLake"
)


@pytest.mark.parametrize(
    "stored, highest, says",
    [
        (("Annual Crop Land", "river", *"abcdefgh"), 9, "1 is 'river' .* and 8 in images.yaml"),
        (("a", "b"), 1, "has 2 classes, images.yaml 10"),
        (None, 10, "has 11 classes"),
        (tuple(SPELT.split()), 9, ""),
        ((), 9, ""),
    ],
)
def test_classes_in_another_order_are_refused_but_no_other_spelling(stored, highest, says):
    with pytest.raises(DataError, match=says) if says else nullcontext():
        check_names("eurosat", class_names("eurosat"), stored, highest, Path("train.parquet"))


def test_a_split_in_several_files_is_one_split(tmp_path):
    """The rows that a limit keeps do not depend on where the files are cut."""
    whole, cuts = tmp_path / "whole", [tmp_path / f"part{i}" for i in range(3)]
    whole.write_bytes(table("abcde", [i % 5 for i in range(30)]))
    pictures = pq.read_table(whole)
    for path, (start, stop) in zip(cuts, ((0, 4), (4, 19), (19, 30)), strict=True):
        pq.write_table(pictures.slice(start, stop - start), path)
    for limit in (None, 7):
        (one, names), (parts, same) = (
            read_parquet(p, 8, limit=limit, seed=3) for p in (whole, cuts)
        )
        assert torch.equal(one.inputs, parts.inputs) and torch.equal(one.labels, parts.labels)
        assert names == same == tuple("abcde")
    pq.write_table(pictures.slice(0, 4).replace_schema_metadata(None), cuts[1])
    with pytest.raises(DataError, match=r"part1.*same ClassLabel"):
        read_parquet(cuts, 8)


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path):
    profile = load_profile("paper", {"encoder.base": str(tmp_path / "no")}, "vision_a")
    with pytest.raises(ConfigError, match="no folder"):
        RECIPES["clip"](profile, []).load()
