"""The suites of benchmarks/ count what they say they count; tiny sizes, no time is judged."""

import itertools
import json

import pytest
from committed import committed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import suite_features, suite_pipeline, suite_protocols
from mergelib.core.errors import ConfigError
from mergelib.encoders.features import extract
from mergelib.run.runner import manifest


@pytest.mark.parametrize("preset", ["default", "released"])
def test_the_loop_beside_makes_the_librarys_heads(preset, monkeypatch):
    """``heads`` itself compares every sampled head; a loop with other steps would raise."""
    row = suite_protocols.heads(16, preset, 1, classes=(3, 4), methods=2, ks=(1, 3))
    assert row["fits"] == 2 * 2 * suite_protocols.SEEDS * 2 and row["sampled fits"] == 4
    assert row["ratio"] > 0
    monkeypatch.setattr(suite_protocols, "one_head", lambda seen, k, seed: seen.head)
    with pytest.raises(AssertionError):
        suite_protocols.heads(16, preset, 1, classes=(3,), methods=1, ks=(1,))


def test_the_other_fits_beside_are_the_librarys():
    for row in (
        suite_protocols.surgeries(16, 3, 1, ks=(1, 2)),
        suite_protocols.orthogonal(16, 3, 1, ks=(1, 2)),
        suite_protocols.ladder(8, "scaling", 40, 1, tasks=1, sample=1),
    ):
        assert float(row["difference"]) < 0.05, row


def test_operations_of_an_encoder_are_those_that_torch_counts(study):
    encoder, text = study.encoder, study.task("ag").test.inputs[0]
    batch = encoder.collate(encoder.prepare([text]))
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # it does not know the CPU's fused attention
        encoder.module(study.base_state)(**batch)
    assert suite_features.flops(encoder, [batch["input_ids"].shape[1]]) == counter.get_total_flops()


def test_padding_is_counted_by_the_order_of_batches():
    found = {
        r["order"]: r["positions per token"]
        for r in suite_features.padding([1, 4, 1, 4], [9, 1, 2, 8], 2)
    }
    assert found == {"as they come": 1.6, "by characters": 1.6, "by tokens": 1.0}


def test_the_padded_loop_gives_extracts_features(study):
    encoder, module, texts = (
        study.encoder,
        study.encoder.module(study.base_state),
        study.task("ag").test.inputs[:7],
    )
    exact = extract(encoder, module, texts)
    assert (
        suite_features.apart(suite_features.padded_loop(encoder, module, texts, 3), exact)[1] < 1e-5
    )
    assert suite_features.apart(2 * exact, exact) == pytest.approx((1, 1))
    with pytest.raises(ConfigError, match="--text-dir"):
        suite_features.run()


def test_passes_and_the_floor_come_from_the_store(make_study, monkeypatch):
    """Two encoders see test and pool; one method chooses its lambda on validation. Another's inputs
    in the store belong to no split, and count for the floor."""
    monkeypatch.setattr(suite_pipeline, "SAMPLE", 1)
    monkeypatch.setattr(suite_pipeline, "REPEATS", 1)
    study = make_study()
    for encoder, task, split in itertools.product(("f_t", "ties"), study.tasks, ("test", "pool")):
        study.features(encoder, task, split)
    make_study(study.store.root, overrides={"tasks.n_test": 30}).features("f_b", "ag")
    entries = suite_pipeline.made_by(study)
    found = suite_pipeline.passes(study, entries)
    grid = len(study.profile.merging.lams)
    for task in study.tasks:
        assert (found[task, "test"]["features"], found[task, "pool"]["features"]) == (2, 2)
        assert found[task, "validation"] == {"rows": 40, "features": 0, "lam": grid}
    rows = {r["what"]: r for r in suite_pipeline.floor(study, entries)}
    assert rows["fine-tuning of the experts"]["number"] == 2 * 12
    assert rows["encoder passes for features"]["number"] == 30 + 2 * sum(
        60 + len(study.pool(t)) for t in study.tasks
    )
    assert rows["encoder passes to choose lambda"]["number"] == 2 * grid * 40
    assert all(r["seconds"] > 0 for r in rows.values()) and "multi-task learning" not in rows
    here = suite_pipeline.forwards(study, entries)[0]
    assert here["here, features"] == rows["encoder passes for features"]["number"] - 30


def test_forwards_of_the_released_scripts_by_hand():
    """One task of 4 classes, k = 5, one seed and merge: 5 epochs x 20 rows through f_m and f_t,
    then 7,552 of 7,600 test rows."""
    found = suite_pipeline.released_forwards([4], [7600], [5], seeds=1, methods=1, references=1)
    assert found == {
        "fitting heads": 200,
        "scoring them": 7552,
        "Current Eval and references": 2 * 7552,
    }
    many = suite_pipeline.released_forwards([4], [7600], [5, 10], seeds=3, methods=2, references=1)
    assert many == {
        "fitting heads": 6 * 600,
        "scoring them": 12 * 7552,
        "Current Eval and references": 3 * 7552,
    }


def test_every_cell_of_the_text_notebooks_has_its_part():
    """Imports and plots are found in each; t-SNE where clusters are drawn."""
    for item in manifest():
        if item.group == "text":
            cells = [
                c
                for c in json.loads((committed() / "notebooks" / f"{item.id}.ipynb").read_text())[
                    "cells"
                ]
                if c["cell_type"] == "code"
            ]
            parts = [suite_pipeline.part_of("".join(c["source"])) for c in cells]
            assert parts.count("imports") == 1 and parts.count("plots") >= 2, item.id
            assert ("clusters and t-SNE" in parts) == ("clusters" in item.id), item.id
    executed = {
        "cells": [
            {
                "cell_type": "code",
                "source": ["plots.save_figure(fig)"],
                "metadata": {"papermill": {"duration": 2.5}},
            },
            {"cell_type": "code", "source": ["1 + 1"], "metadata": {}},
            {"cell_type": "markdown", "source": ["# text"], "metadata": {}},
        ]
    }
    assert suite_pipeline.cell_seconds(executed) == {
        "imports": 0.0,
        "clusters and t-SNE": 0.0,
        "plots": 2.5,
        "rest": 0.0,
    }
