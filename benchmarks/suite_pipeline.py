"""``python -m benchmarks --suite pipeline [--profile mini] [--only text]``: a cold run of notebooks
beside what nobody could leave out. ``--after FOLDER`` takes a run that has been made, from an empty
store, with ``MERGELIB_OUTPUT=FOLDER MERGELIB_STORE=FOLDER/store``.

The notebooks run as a reader runs them, ``python -m mergelib run``, with an empty store. What they
cannot do without is then measured bare, in this process and on the same rows: training steps as a
plain loop of torch, encoder passes over token ids that are at hand. The store says how many of each
there were. Where the rest of the time went is read from the seconds that papermill writes beside
every cell.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from benchmarks.frame import Table, table, timed
from mergelib import Study
from mergelib.core.store import Store
from mergelib.core.types import Inputs
from mergelib.encoders import Encoder
from mergelib.profiles import variant_names
from mergelib.protocols import PRESETS
from mergelib.run import runner
from mergelib.training.experts import EncoderWithHeads
from mergelib.training.loop import MAX_NORM

PARTS = ("imports", "clusters and t-SNE", "plots", "rest")
SAMPLE = 12  # training steps that are timed; all steps of a run have like shapes
REPEATS = 3  # of passes
KEPT = (
    7552 / 7600
)  # of the test rows that the released scripts score, a part: their loader drops the last batch


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", choices=("quick", "mini"), default="mini")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="notebooks or groups; all without it"
    )
    parser.add_argument("--after", type=Path, help="folder of a run that has been made")


# ---- the run, and where its time went ------------------------------------------------------------


def part_of(source: str) -> str:
    """What a cell's time counts as."""
    tree = ast.parse(source)
    called = {
        n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", "")
        for n in ast.walk(tree)
        if isinstance(n, ast.Call)
    }
    if called & {"cluster_panels", "embedding", "tsne"}:
        return "clusters and t-SNE"
    if any(name.startswith("plot_") or name == "save_figure" for name in called):
        return "plots"
    imported = {
        name.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for name in n.names
    }
    return (
        "imports" if "Study" in imported else "rest"
    )  # the cell that waits for torch and transformers


def cell_seconds(notebook: dict[str, Any]) -> dict[str, float]:
    """Seconds of an executed notebook's cells by ``PARTS``."""
    spent = dict.fromkeys(PARTS, 0.0)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            spent[part_of("".join(cell["source"]))] += (
                cell["metadata"].get("papermill", {}).get("duration") or 0.0
            )
    return spent


def cold_run(profile: str, only: Sequence[str], folder: Path) -> float:
    """Run the notebooks with an empty store; wall seconds."""
    env = os.environ | {"MERGELIB_STORE": str(folder / "store"), "MERGELIB_OUTPUT": str(folder)}
    chosen = ["--only", *only] if only else []
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "mergelib", "run", "--profile", profile, *chosen],
        env=env,
        check=True,
        stdout=sys.stderr,
    )
    return time.perf_counter() - start


def where_time_went(profile: str, folder: Path) -> list[dict[str, Any]]:
    """A row per notebook of a run, seconds by part. Several may have run side by side."""
    build, rows = folder / "build" / profile, []
    for name, seconds in json.loads((build / "timings.json").read_text())["seconds"].items():
        spent = cell_seconds(json.loads((build / "notebooks" / f"{name}.ipynb").read_text()))
        rows.append(
            {
                "notebook": name,
                "seconds": float(seconds),
                "process and kernel": max(0.0, seconds - sum(spent.values())),
                **spent,
            }
        )
    return rows


# ---- what could not be left out ------------------------------------------------------------------


def seconds_per_step(model: nn.Module, batches: Sequence[dict[str, Any]], lr: float) -> float:
    """Of a plain training loop with AdamW, the median over ready-made batches; every model must
    take ``forward(**batch)["loss"]``."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    pending = iter([batches[0], *batches])

    def step() -> None:
        optimizer.zero_grad()
        model(**next(pending))["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()

    return timed(step, n=len(batches), warmup=1).median


def drawn(n: int, size: int) -> list[list[int]]:
    """Rows of ``SAMPLE`` random batches out of n."""
    order = torch.randint(n, (SAMPLE, size), generator=torch.Generator().manual_seed(0))
    return order.tolist()


def fine_tuning_step(study: Study, names: Sequence[str]) -> float:
    """Seconds of a step that trains an expert, or the one encoder for all tasks."""
    settings, encoder, tasks = (
        study.profile.fine_tuning,
        study.encoder,
        [study.task(n) for n in names],
    )
    rows = [
        (x, int(y), t)
        for t, task in enumerate(tasks)
        for x, y in zip(task.train.inputs, task.train.labels, strict=True)
    ]
    batches = []
    for chosen in drawn(len(rows), settings.batch_size):
        inputs, labels, which = zip(*(rows[i] for i in chosen), strict=True)
        inputs = torch.stack(inputs) if isinstance(inputs[0], torch.Tensor) else inputs
        batches.append(
            {
                "batch": encoder.collate(encoder.prepare(inputs)),
                "labels": torch.tensor(labels),
                "task": torch.tensor(which),
            }
        )
    model = EncoderWithHeads(
        encoder.module(study.base_state), encoder.width, [t.n_classes for t in tasks]
    )
    return seconds_per_step(model, batches, settings.lr)


@torch.inference_mode()
def bare_pass(encoder: Encoder, module: nn.Module, inputs: Inputs, batch_size: int) -> float:
    """Seconds of the forward passes alone: rows by length, batched and padded beforehand."""
    rows = sorted(encoder.prepare(inputs), key=encoder.length)
    batches = [encoder.collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    return timed(lambda: [module(**b) for b in batches], n=REPEATS, warmup=1).median


def made_by(study: Study) -> list[dict[str, Any]]:
    """The store's entries of the study's architecture; other sizes may have seen its inputs."""
    return [e for e in study.store.entries() if e["key"].get("encoder") == study.encoder.digest]


def passes(
    study: Study, entries: Sequence[dict[str, Any]]
) -> dict[tuple[str, str], dict[str, int]]:
    """(task, split) -> how many encoders saw it, by step of the store, and its number of rows."""
    known = {
        study.split(t, s).inputs_digest: (t, s)
        for t in study.tasks
        for s in ("train", "validation", "pool", "fit", "test")
    }
    found: dict[tuple[str, str], dict[str, int]] = {}

    def count(place: tuple[str, str], step: str, n: int) -> None:
        here = found.setdefault(place, {"rows": len(study.split(*place)), "features": 0, "lam": 0})
        here[step] += n

    for entry in entries:
        if entry["step"] == "features" and entry["key"]["inputs"] in known:
            count(known[entry["key"]["inputs"]], "features", 1)
        elif entry["step"] == "lam":
            for task in study.tasks:
                count((task, "validation"), "lam", len(entry["key"]["lams"]))
    return found


def elsewhere(study: Study, entries: Sequence[dict[str, Any]], seen: Iterable[tuple]) -> int:
    """Rows of the store's features that are of none of the ``seen`` splits: ``ext03_nonlocal``
    scores fewer of each."""
    digests, rows = {study.split(*place).inputs_digest for place in seen}, 0
    for entry in entries:
        if entry["step"] == "features" and entry["key"]["inputs"] not in digests:
            folder = study.store.root / "features" / entry["digest"]
            with safe_open(folder / "tensors.safetensors", "pt") as file:
                rows += sum(file.get_slice(n).get_shape()[0] for n in file.keys())
    return rows


def floor(study: Study, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per kind of training and of passes: how many, seconds of one, seconds in all."""
    rows: list[dict[str, Any]] = []

    def add(what: str, unit: str, n: int, seconds: float) -> None:
        rows.append(
            {
                "study": study.variant or "text",
                "what": what,
                "unit": unit,
                "number": n,
                "ms each": 1000 * seconds / max(n, 1),
                "seconds": seconds,
            }
        )

    for step, what, groups in (
        ("fine_tune", "fine-tuning of the experts", [[t] for t in study.tasks]),
        ("multi_task", "multi-task learning", [list(study.tasks)]),
    ):
        made = [e["key"] for e in entries if e["step"] == step]
        if made:
            steps = sum(key["train"]["steps"] * key["steps_factor"] for key in made)
            each = sum(fine_tuning_step(study, names) for names in groups) / len(groups)
            add(what, "step", steps, steps * each)
    module, seen = study.encoder.module(study.base_state), passes(study, entries)
    one = {
        place: bare_pass(
            study.encoder, module, study.split(*place).inputs, study.profile.encoder.batch_size
        )
        for place in seen
    }
    each = sum(one.values()) / max(1, sum(c["rows"] for c in seen.values()))
    for step, what, more in (
        ("features", "encoder passes for features", elsewhere(study, entries, seen)),
        ("lam", "encoder passes to choose lambda", 0),
    ):
        add(
            what,
            "input",
            sum(c["rows"] * c[step] for c in seen.values()) + more,
            sum(one[p] * c[step] for p, c in seen.items()) + more * each,
        )
    return [r for r in rows if r["number"]]


# ---- forwards that the released scripts would need -----------------------------------------------


def released_forwards(
    classes: Sequence[int],
    n_test: Sequence[int],
    ks: Sequence[int],
    seeds: int,
    methods: int,
    references: int,
) -> dict[str, int]:
    """Texts through an encoder for Current Eval and FT-Classifier Eval of Table 2 by the published
    code, by kind.

    One run is one seed, one number of shots and one merge: for every task the merged encoder and
    the expert see each of the k C rows in each of the preset's epochs, then the merged encoder sees
    the test set. ``references`` encoders are scored once.
    """
    fit = sum(2 * PRESETS["released"].epochs * k * c for c in classes for k in ks)
    score = len(ks) * sum(int(KEPT * n) for n in n_test)
    return {
        "fitting heads": seeds * methods * fit,
        "scoring them": seeds * methods * score,
        "Current Eval and references": (methods + references) * sum(int(KEPT * n) for n in n_test),
    }


def forwards(study: Study, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Encoder forwards that the store holds beside those of the released scripts, for one k and for
    all."""
    tasks, settings = list(study.tasks.values()), study.profile.protocols
    ours = {
        step: sum(c["rows"] * c[step] for c in passes(study, entries).values())
        for step in ("features", "lam")
    }
    rows = []
    for name, ks in (
        (
            f"Table 2, k = {settings.ks[len(settings.ks) // 2]}",
            settings.ks[len(settings.ks) // 2 : len(settings.ks) // 2 + 1],
        ),
        (f"Table 2 and Figures 2, 5, k = {', '.join(map(str, settings.ks))}", settings.ks),
    ):
        theirs = released_forwards(
            [t.n_classes for t in tasks],
            [len(t.test) for t in tasks],
            ks,
            len(settings.seeds),
            len(study.methods),
            1 + len(study.baselines),
        )
        rows.append(
            {
                "what": name,
                **theirs,
                "released, all": sum(theirs.values()),
                "here, features": ours["features"],
                "here, lambda": ours["lam"],
                "ratio": sum(theirs.values()) / ours["features"],
            }
        )
    return rows


def run(
    peers: bool = False,
    profile: str = "mini",
    only: Sequence[str] = (),
    after: Path | None = None,
) -> list[Table]:
    """``peers`` changes nothing; the released scripts are counted, not run."""
    runner.select(only)
    with tempfile.TemporaryDirectory() as scratch:
        folder = after or Path(scratch)
        whole = None if after else cold_run(profile, only, folder)
        spent = where_time_went(profile, folder)
        store = Store(folder / "store")
        # Variants of one architecture share the store's entries: counted once, under the first.
        first_of: dict[str, Study] = {}
        for variant in ("", *variant_names(profile)):
            study = Study(profile, device="cpu", store=store, variant=variant)
            first_of.setdefault(study.encoder.digest, study)
        studies = list(first_of.values())
        torch.set_num_threads(studies[0].profile.threads)
        entries = [made_by(s) for s in studies]
        bare = [row for s, e in zip(studies, entries, strict=True) for row in floor(s, e)]
        counted = forwards(studies[0], entries[0])
    columns = ("seconds", "process and kernel", *PARTS)
    total = {c: sum(r.get(c, 0.0) for r in spent) for c in columns}
    least = sum(r["seconds"] for r in bare)
    apart = sum(total[c] for c in columns[1:-1])
    verdict = [
        {
            "what": "cells of all notebooks",
            "seconds": total["seconds"],
            "over the floor": total["seconds"] / least,
        },
        {
            "what": "the same without processes, kernels, imports, t-SNE and plots",
            "seconds": total["seconds"] - apart,
            "over the floor": (total["seconds"] - apart) / least,
        },
        {"what": "the floor", "seconds": least, "over the floor": 1.0},
    ]
    wall = f"{whole:.0f} s of wall time. " if whole else ""
    return [
        table(
            f"Cold run of {' '.join(only) or 'everything'}, profile {profile}: seconds of cells",
            [*spent, {"notebook": "all", **total}],
            f"{wall}Notebooks run side by side, so their seconds add up to more. Imports include "
            "reading the profile and the style of figures; clusters and t-SNE include the "
            "features they ask for first.",
        ),
        table(
            "What could not be left out, measured bare",
            bare,
            f"One thread. Training: median of {SAMPLE} steps on random batches, times the number "
            "of steps.",
        ),
        table("Seconds over that", verdict),
        table(
            "Encoder forwards (texts)",
            counted,
            "The released scripts hold no KNN Eval; choosing lambda is not theirs and stands "
            "apart. "
            "Features here are those of all notebooks of the run, KNN Eval's and f_b's included.",
        ),
    ]
