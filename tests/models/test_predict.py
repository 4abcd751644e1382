"""Predictions, what they are written to, and what is pushed to a hub."""

from __future__ import annotations

import json
import re
from functools import partial
from unittest.mock import Mock

import pandas as pd
import pytest
from conftest import COLOURS, CUT, TASKS, pictures, texts
from huggingface_hub import ModelCard
from loopback_hub import Client, serving
from transformers import pipeline

import mergelib
from mergelib.models import heads, load_merged, predict
from mergelib.run import cli


@pytest.fixture
def saved(aligned):
    """A merge with re-aligned heads, and its folder."""
    return aligned("bert")


def test_plain_pipelines_say_the_same_and_cut_where_the_alignment_did(saved):
    merged, folder = saved
    inputs = texts("ag", 12, 6)[0]
    assert min(len(merged.processor(x, truncation=True)["input_ids"]) for x in inputs) == CUT
    for model in (merged, folder):
        found = predict(model, inputs, top=2)
        assert found.task.unique().tolist() == list(TASKS) and len(found) == 2 * 2 * 12
        for task, rows in found.groupby("task"):
            plain = pipeline("text-classification", str(folder / "tasks" / task))
            said = [s for one in plain(inputs, truncation=True, top_k=2) for s in one]
            assert rows.label.tolist() == [s["label"] for s in said]
            assert rows.score.tolist() == pytest.approx([s["score"] for s in said], abs=1e-5)
            assert rows.input.tolist() == [x for x in inputs for _ in range(2)]
    assert (folder / "tokenizer.json").is_file() and not list(folder.glob("heads/*/tokenizer*"))
    rows = texts("ag", 12, 6)
    for model in (merged, folder, folder / "tasks" / "ag"):
        assert mergelib.evaluate(model, rows, task="ag").method.item() == "ties"


def test_heads_that_share_features_compute_them_once(saved, monkeypatch):
    counted = Mock(wraps=heads.features)
    monkeypatch.setattr(heads, "features", counted)
    predict(saved[1], ["a late goal"])
    assert counted.call_count == 1


AWKWARD = ['a "quoted" goal, late', "line\nfeed", "a return\rwithin", "ünïcode \u2028 🎉", "1"]


@pytest.mark.parametrize("end", ["csv", "jsonl"])
def test_files_of_predictions_give_back_every_text(saved, tmp_path, end):
    given = tmp_path / "in.jsonl"
    given.write_text("".join(json.dumps({"text": t}) + "\n" for t in AWKWARD))
    out = tmp_path / f"out.{end}"
    command = ["predict", "--model", str(saved[1]), "--inputs", str(given)]
    assert cli.main([*command, "--tasks", "ag", "--out", str(out)]) == 0
    readers = {
        "jsonl": partial(pd.read_json, lines=True, dtype=False),
        "csv": partial(pd.read_csv, dtype=str),
    }
    read = readers[end](out)
    assert r"\/" not in out.read_text() and not re.search(r'"0\.\d+"', out.read_text())
    assert read.input.tolist() == AWKWARD and read.task.unique().tolist() == ["ag"]
    assert cli.main([*command, "--out", str(out)]) == 2  # it exists
    assert cli.main([*command, "--out", str(out), "--overwrite"]) == 0
    out.write_text("mine")
    assert cli.main([*command, "--out", str(out), "--overwrite"]) == 2
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--out", "x.xlsx"], ".csv or .jsonl"),
        (["--tasks", "agg"], "Nearest: 'ag'"),
        (["--inputs", "no.txt"], "no file or folder 'no.txt'"),
        (["--inputs", "empty.txt"], "empty.txt: no inputs"),
        (["--model", "nowhere/at/all"], "no folder"),
        (["--top", "0"], "top"),
        (["--out", "in.txt"], "is or contains an input"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(
    saved, tmp_path, monkeypatch, capsys, change, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(heads, "features", None)
    (tmp_path / "in.txt").write_text("a late goal\n")
    (tmp_path / "empty.txt").write_text("\n")
    given = {"--model": str(saved[1]), "--inputs": "in.txt"} | dict([change])
    assert cli.main(["predict", *(w for pair in given.items() for w in pair)]) == 2
    assert said in capsys.readouterr().err


def test_images_are_named_by_their_files(family, tmp_path, capsys):
    for i, image in enumerate(pictures("colour", 3, 3)[0]):
        image.save(tmp_path / f"{i}.png")
    model = str(family("vit")["colour"])
    assert cli.main(["predict", "--model", model, "--inputs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and f'{tmp_path}/2.png","' in lines[3]
    assert lines[3].split('"')[5] in COLOURS["colour"]


def test_a_folder_is_pushed_with_its_card_and_read_from_the_hub(saved, tmp_path):
    merged, folder = saved[0], tmp_path / "model"
    merged.save_pretrained(folder, single=True)
    card = folder / "README.md"
    card.write_text(f"---\nlicense: mit\n---\n{card.read_text()}")
    (folder / "secret.txt").write_text("not mergelib's")
    push = ["push", "--model", str(folder), "--to"]
    with serving() as hub:
        client = Client(tmp_path, hub.url, HF_HUB_DISABLE_XET="1", HF_TOKEN="hf_" + "x" * 30)
        call = partial(client, "mergelib.run.cli.main")

        def refused(*arguments, said):
            answer = call([*push, *arguments])
            assert answer["value"] == 2 and said in answer["err"] and "hf_xxx" not in answer["err"]

        try:
            assert call([*push, "me/merged"])["value"] == 0
            files = hub.models["me/merged"][list(hub.models["me/merged"])[-1]]
            sent = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
            assert set(files) == sent - {"secret.txt"} | {".gitattributes"}
            assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
            assert b"license: mit" in files["README.md"]
            refused("me/merged", said="add a commit")
            assert call([*push, "me/merged", "--overwrite"])["value"] == 0
            hub.gated.add("other/merged")
            hub.pages["me/x"] = 400
            refused("other/merged", said="hf auth login")
            refused("no/hub/id", said="user/name")
            refused("me/x", said="was not uploaded")
            (tmp_path / "in.txt").write_text("a late goal\nprofits rise\n")
            read = call(["predict", "--model", "me/merged", "--inputs", str(tmp_path / "in.txt")])
            here = predict(merged, ["a late goal", "profits rise"])
            there = [line.split(",")[3].strip('"') for line in read["out"].splitlines()[1:]]
            assert there == here.label.tolist()
        finally:
            client.close()


def test_the_card_says_what_a_stranger_needs(saved):
    merged, folder = saved
    rows = texts("ag", 30, 3)
    (score,) = mergelib.evaluate(merged, rows, task="ag", max_length=CUT).itertuples()
    for card in (folder / "README.md", folder / "tasks" / "ag" / "README.md"):
        read = ModelCard.load(card)
        assert read.data.library_name == "transformers" and read.data.license is None
        for said in (
            "| method | Ties (keep = 0.3, lam = 1.0) |",
            "| base | base |",
            "| expert | ag: ag |",
            "FT-Classifier Eval (preset default) with 25 unlabelled inputs",
            f"of at most {CUT} tokens",
            "| ag | old head | Current Eval |",
            f"| {score.accuracy:.1f} | {score.low:.1f} to {score.high:.1f} | 30 |",
            "## Licence",
        ):
            assert said in read.text, said
        assert str(folder.parent) not in read.text + (folder / "mergelib.json").read_text()
    merged.save_pretrained(folder.parent / "unscored")
    assert "Not evaluated" in (folder.parent / "unscored" / "README.md").read_text()


def test_what_people_print_fits_on_a_screen(saved):
    rows = texts("ag", 60, 1)
    task = mergelib.task("ag", rows, texts("ag", 30, 2), n_validation=10)
    merged = load_merged(saved[1])
    for shown in (task, task.test, merged, merged.heads["ag"], merged.classifier("ag")):
        assert len(repr(shown)) < 300 and ("30" in repr(shown) or "ag" in repr(shown)), repr(shown)
