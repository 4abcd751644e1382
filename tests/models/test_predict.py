"""Predictions, what they are written to, and what is pushed to a hub."""

from __future__ import annotations

import json
import re
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import COLOURS, SIZE, TASKS, pictures, texts
from loopback_hub import Client, serving
from transformers import BertConfig, BertForSequenceClassification, pipeline

import mergelib
from mergelib.models import heads, load_merged, predict
from mergelib.run import cli

CUT = 8


@pytest.fixture(scope="module")
def aligned(family, tmp_path_factory):
    """A merge whose heads were aligned with texts of at most CUT tokens, and its folder."""
    found = family("bert")
    experts = {t: found[t] for t in TASKS}
    merged = mergelib.merge("task_arithmetic", base=found["base"], experts=experts, lam=0.5)
    made = [
        mergelib.align_classifier(merged, t, texts(t, 25, 40)[0], max_length=CUT) for t in TASKS
    ]
    folder = tmp_path_factory.mktemp("aligned") / "model"
    scores = pd.concat(
        [
            mergelib.evaluate(one, texts("ag", 30, 3), task="ag", method=name)
            for name, one in (("old head", merged), ("re-aligned head", made[0]))
        ]
    )
    return merged.with_heads(*made), merged.with_heads(*made).save_pretrained(
        folder, single=True, scores=scores
    )


def test_plain_pipelines_say_the_same_and_cut_where_the_alignment_did(aligned):
    merged, folder = aligned
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
        assert mergelib.evaluate(model, rows, task="ag").method.item() == "task_arithmetic"


def test_heads_that_share_features_compute_them_once(aligned, monkeypatch):
    calls = []
    monkeypatch.setattr(
        heads, "features", lambda *a, f=heads.features, **o: calls.append(a) or f(*a, **o)
    )
    predict(aligned[1], ["a late goal"])
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("labels", "kind", "scores"),
    [(3, "multi_label_classification", torch.sigmoid), (1, None, lambda logits: logits)],
)
def test_heads_with_several_labels_or_values_show_all(tokenizer, labels, kind, scores):
    torch.manual_seed(1)
    config = BertConfig(vocab_size=len(tokenizer), num_labels=labels, problem_type=kind, **SIZE)
    model = BertForSequenceClassification(config).eval()
    source = heads.replace(heads.expert_classifier(model), processor=tokenizer)
    inputs = ["a late goal", "profits rise"]
    with torch.no_grad():
        logits = model(**tokenizer(inputs, padding=True, return_tensors="pt")).logits
    found = predict(source, inputs)
    expected, order = scores(logits).sort(-1, descending=True)
    assert found.score.tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    assert found.label.tolist() == [f"LABEL_{c}" for c in order.flatten().tolist()]


AWKWARD = ['a "quoted" goal, late', "line\nfeed", "a return\rwithin", "ünïcode \u2028 🎉", "1"]


@pytest.mark.parametrize("end", ["csv", "jsonl"])
def test_files_of_predictions_give_back_every_text(aligned, tmp_path, capsys, end):
    given = tmp_path / "in.jsonl"
    given.write_text("".join(json.dumps({"text": t}) + "\n" for t in AWKWARD))
    out = tmp_path / f"out.{end}"
    command = ["predict", "--model", str(aligned[1]), "--inputs", str(given)]
    assert cli.main([*command, "--tasks", "ag", "--out", str(out)]) == 0
    read = (
        pd.read_json(out, lines=True, dtype=False)
        if end == "jsonl"
        else pd.read_csv(out, dtype=str)
    )
    assert r"\/" not in out.read_text() and not re.search(r'"0\.\d+"', out.read_text())
    assert read.input.tolist() == AWKWARD and read.task.unique().tolist() == ["ag"]
    assert cli.main([*command, "--out", str(out)]) == 2  # it exists
    assert cli.main([*command, "--out", str(out), "--overwrite"]) == 0
    capsys.readouterr()
    out.write_text("mine")
    assert cli.main([*command, "--out", str(out), "--overwrite"]) == 2
    assert "no longer, what mergelib wrote" in capsys.readouterr().err and out.read_text() == "mine"


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
    aligned, tmp_path, monkeypatch, capsys, change, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(heads, "features", None)
    (tmp_path / "in.txt").write_text("a late goal\n")
    (tmp_path / "empty.txt").write_text("\n")
    given = {"--model": str(aligned[1]), "--inputs": "in.txt"} | dict([change])
    assert cli.main(["predict", *(w for pair in given.items() for w in pair)]) == 2
    assert said in capsys.readouterr().err


def test_images_are_named_by_their_files(family, tmp_path, capsys):
    for i, image in enumerate(pictures("colour", 3, 3)[0]):
        image.save(tmp_path / f"{i}.png")
    assert (
        cli.main(["predict", "--model", str(family("vit")["colour"]), "--inputs", str(tmp_path)])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and f'{tmp_path}/2.png","' in lines[3]
    assert lines[3].split('"')[5] in COLOURS["colour"]


def test_a_folder_is_pushed_with_its_card_and_read_from_the_hub(aligned, tmp_path):
    folder = tmp_path / "model"
    merged, _ = aligned
    merged.save_pretrained(folder, single=True)
    (folder / "README.md").write_text(
        f"---\nlicense: mit\n---\n{(folder / 'README.md').read_text()}"
    )
    (folder / "secret.txt").write_text("not mergelib's")
    push = ["push", "--model", str(folder), "--to"]
    with serving() as hub:
        client = Client(tmp_path, hub.url, HF_HUB_DISABLE_XET="1", HF_TOKEN="hf_" + "x" * 30)
        call = partial(client, "mergelib.run.cli.main")
        try:
            assert call([*push, "me/merged"])["value"] == 0
            files = hub.models["me/merged"][list(hub.models["me/merged"])[-1]]
            sent = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
            assert set(files) == sent - {"secret.txt"} | {".gitattributes"}
            assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
            assert b"license: mit" in files["README.md"]
            again = call([*push, "me/merged"])
            assert again["value"] == 2 and "add a commit" in again["err"]
            assert call([*push, "me/merged", "--overwrite"])["value"] == 0
            hub.gated.add("other/merged")
            refused = call([*push, "other/merged"])
            assert refused["value"] == 2 and "hf auth login" in refused["err"]
            assert "hf_xxx" not in refused["err"]
            for name, said in (("no/hub/id", "user/name"), ("me/x", "was not uploaded")):
                hub.pages["me/x"] = 400
                refused = call([*push, name])
                assert refused["value"] == 2 and said in refused["err"], refused
            (tmp_path / "in.txt").write_text("a late goal\nprofits rise\n")
            read = call(["predict", "--model", "me/merged", "--inputs", str(tmp_path / "in.txt")])
            here = predict(merged, ["a late goal", "profits rise"])
            assert [line.split(",")[3].strip('"') for line in read["out"].splitlines()[1:]] == (
                here.label.tolist()
            )
        finally:
            client.close()


def test_the_card_says_what_a_stranger_needs(aligned):
    from huggingface_hub import ModelCard

    for card in (aligned[1] / "README.md", aligned[1] / "tasks" / "ag" / "README.md"):
        read = ModelCard.load(card)
        assert read.data.library_name == "transformers" and read.data.license is None
        for said in (
            "lam = 0.5",
            "25 unlabelled inputs",
            f"of at most {CUT} tokens",
            "| old head |",
        ):
            assert said in read.text, said
        assert "re-aligned head" in read.text and " to " in read.text and "Licence" in read.text


def test_what_people_print_fits_on_a_screen(aligned):
    rows = texts("ag", 60, 1)
    task = mergelib.task("ag", rows, texts("ag", 30, 2), n_validation=10)
    merged = load_merged(aligned[1])
    for shown in (task, task.test, merged, merged.heads["ag"], merged.classifier("ag")):
        assert len(repr(shown)) < 300 and ("30" in repr(shown) or "ag" in repr(shown)), repr(shown)
