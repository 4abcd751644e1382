"""``python -m benchmarks --suite pipeline``, or ``python -m benchmarks.suite_pipeline [--profile
mini] [--only text]``: a cold run of notebooks beside what nobody could leave out.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.frame import Table, machine, table, timed
from mergelib import Study
from mergelib.encoders import TextEncoder
from mergelib.experts import EncoderWithHeads
from mergelib.protocols import PRESETS
from mergelib.run import runner
from mergelib.store import Store
from mergelib.training import MAX_NORM

PARTS = ("imports", "clusters and t-SNE", "plots", "rest")
SAMPLE = 12  # training steps that are timed; all steps of a run have like shapes
REPEATS = 3  # of passes
KEPT = (
    7552 / 7600
)  # of the test rows that the released scripts score, a part: their loader drops the last batch


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", choices=("quick", "mini"), default="mini")
    parser.add_argument(
        "--only", nargs="+", default=["text"], metavar="NAME", help="notebooks or groups"
    )


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


def cold_run(profile: str, only: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Run the notebooks with an empty store; a row per notebook, seconds by part, and a last one
    for the runner around them."""
    env = os.environ | {"MERGELIB_STORE": str(folder / "store"), "MERGELIB_OUTPUT": str(folder)}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "mergelib", "run", "--profile", profile, "--only", *only],
        env=env,
        check=True,
        stdout=sys.stderr,
    )
    whole = time.perf_counter() - start
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
    between = whole - sum(r["seconds"] for r in rows)
    return [*rows, {"notebook": "runner", "seconds": between, "process and kernel": between}]


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


def pretraining_step(study: Study) -> tuple[int, float]:
    """Number of steps that pre-trained f_b, and seconds of one."""
    from mergelib.pretraining.bert import MaskedLM, masked_batch
    from mergelib.tasks import miniature_corpus

    settings, encoder, g = (
        study.profile.encoder.pretraining,
        study.encoder,
        torch.Generator().manual_seed(0),
    )
    texts, batches = miniature_corpus(study.profile, list(study.tasks.values())), []
    for rows in drawn(len(texts), settings.batch_size):
        prepared = encoder.prepare([texts[i] for i in rows])
        batches.append(masked_batch(encoder, prepared, settings.mask_rate, g))
    return settings.steps, seconds_per_step(MaskedLM(encoder.config), batches, settings.lr)


def fine_tuning_step(study: Study, names: Sequence[str]) -> tuple[int, float]:
    """Number of steps that trained an expert, or the one encoder for all tasks, and seconds of
    one."""
    settings, encoder, tasks = (
        study.profile.fine_tuning,
        study.encoder,
        [study.task(n) for n in names],
    )
    rows = [
        (text, int(y), t)
        for t, task in enumerate(tasks)
        for text, y in zip(task.train.inputs, task.train.labels, strict=True)
    ]
    batches = []
    for chosen in drawn(len(rows), settings.batch_size):
        texts, labels, which = zip(*(rows[i] for i in chosen), strict=True)
        batches.append(
            {
                "batch": encoder.collate(encoder.prepare(texts)),
                "labels": torch.tensor(labels),
                "task": torch.tensor(which),
            }
        )
    model = EncoderWithHeads(
        encoder.module(study.base_state), encoder.width, [t.n_classes for t in tasks]
    )
    return settings.steps * len(names), seconds_per_step(model, batches, settings.lr)


@torch.inference_mode()
def bare_pass(
    encoder: TextEncoder, module: nn.Module, texts: Sequence[str], batch_size: int
) -> float:
    """Seconds of the forward passes alone: token ids by length, batched and padded beforehand."""
    rows = sorted(encoder.prepare(texts), key=len)
    batches = [encoder.collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    return timed(lambda: [module(**b) for b in batches], n=REPEATS, warmup=1).median


def passes(study: Study) -> dict[tuple[str, str], dict[str, int]]:
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

    for entry in study.store.entries():
        if entry["step"] == "features" and entry["key"]["inputs"] in known:
            count(known[entry["key"]["inputs"]], "features", 1)
        elif entry["step"] == "lam":
            for task in study.tasks:
                count((task, "validation"), "lam", len(entry["key"]["lams"]))
    return found


def floor(study: Study) -> list[dict[str, Any]]:
    """A row per kind of training and of passes: how many, seconds of one, seconds in all."""
    made = {
        step: sum(e["step"] == step for e in study.store.entries())
        for step in ("pretrain", "fine_tune", "multi_task")
    }
    rows: list[dict[str, Any]] = []

    def add(what: str, unit: str, n: int, seconds: float) -> None:
        rows.append(
            {
                "what": what,
                "unit": unit,
                "number": n,
                "ms each": 1000 * seconds / max(n, 1),
                "seconds": seconds,
            }
        )

    if made["pretrain"]:
        steps, each = pretraining_step(study)
        add("pre-training of f_b", "step", steps, steps * each)
    if made["fine_tune"]:
        runs = [fine_tuning_step(study, [t]) for t in study.tasks]
        add(
            "fine-tuning of the experts",
            "step",
            sum(n for n, _ in runs),
            sum(n * each for n, each in runs),
        )
    if made["multi_task"]:
        steps, each = fine_tuning_step(study, list(study.tasks))
        add("multi-task learning", "step", steps, steps * each)
    module, seen = study.encoder.module(study.base_state), passes(study)
    one = {
        place: bare_pass(
            study.encoder, module, study.split(*place).inputs, study.profile.encoder.batch_size
        )
        for place in seen
    }
    for step, what in (
        ("features", "encoder passes for features"),
        ("lam", "encoder passes to choose lambda"),
    ):
        add(
            what,
            "text",
            sum(c["rows"] * c[step] for c in seen.values()),
            sum(one[p] * c[step] for p, c in seen.items()),
        )
    return rows


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


def forwards(study: Study) -> list[dict[str, Any]]:
    """Encoder forwards that the store holds beside those of the released scripts, for one k and for
    all."""
    tasks, settings = list(study.tasks.values()), study.profile.protocols
    ours = {
        step: sum(c["rows"] * c[step] for c in passes(study).values())
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


def run(peers: bool = False, profile: str = "mini", only: Sequence[str] = ("text",)) -> list[Table]:
    """``peers`` changes nothing; the released scripts are counted, not run."""
    runner.select(only)
    with tempfile.TemporaryDirectory() as scratch:
        spent = cold_run(profile, only, Path(scratch))
        study = Study(profile, device="cpu", store=Store(Path(scratch) / "store"))
        torch.set_num_threads(study.profile.threads)
        bare, counted = floor(study), forwards(study)
    columns = ("seconds", "process and kernel", *PARTS)
    total = {c: sum(r.get(c, 0.0) for r in spent) for c in columns}
    least = sum(r["seconds"] for r in bare)
    apart = (
        total["process and kernel"]
        + total["imports"]
        + total["clusters and t-SNE"]
        + total["plots"]
    )
    verdict = [
        {
            "what": "wall, all",
            "seconds": total["seconds"],
            "over the floor": total["seconds"] / least,
        },
        {
            "what": "wall without processes, kernels, imports, t-SNE and plots",
            "seconds": total["seconds"] - apart,
            "over the floor": (total["seconds"] - apart) / least,
        },
        {"what": "the floor", "seconds": least, "over the floor": 1.0},
    ]
    return [
        table(
            f"Cold run of {' '.join(only)}, profile {profile}: seconds of cells",
            [*spent, {"notebook": "all", **total}],
            "Imports include reading the profile and the style of figures; clusters and t-SNE "
            "include the features they ask for first.",
        ),
        table(
            "What could not be left out, measured bare",
            bare,
            f"Training: median of {SAMPLE} steps on random batches, times the number of steps.",
        ),
        table("Wall time over that", verdict),
        table(
            "Encoder forwards (texts)",
            counted,
            "The released scripts hold no KNN Eval; choosing lambda is not theirs and stands "
            "apart. "
            "Features here are those of all notebooks of the run, KNN Eval's and f_b's included.",
        ),
    ]


if __name__ == "__main__":  # with options, which `python -m benchmarks` has none of
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    print(machine(), *run(**vars(parser.parse_args())), sep="\n\n")
