"""Choose f_b and fine-tuning for the profile `mini` by what may be looked at, and by nothing else.

    python -m benchmarks.calibrate --variant t5_a --overrides '{"fine_tuning.steps": 100}' --note
    "fewer steps"

One line a candidate is appended to ``benchmarks/CALIBRATION.md``: the linear probe of f_b and of
the same network untrained, and the accuracy under Current Eval of the experts, f_b, Weight
Averaging and Task Arithmetic, with their shares of the experts. Those decide. KNN Eval,
FT-Classifier, the orthogonal classifier, the ladder, purity, Surgery, TACT and ranks are never
computed on a candidate: a world that was chosen by them could not test a claim about them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mergelib.encoders import encoder_state
from mergelib.foundations.command import probe
from mergelib.study import Study

TABLE = Path(__file__).with_name("CALIBRATION.md")
MODELS = {"f_t": "experts", "f_b": "f_b", "weight_averaging": "WA", "task_arithmetic": "TA"}
HEAD = """# Calibration of `mini`

Every candidate that was tried for the laboratory, in the order of trying; \
printed by `python -m benchmarks.calibrate`
(rows with 500 test pictures, and those of 0.75 ink with a CLIP, by its `measure` after a change \
to the pictures that a script made).
Accuracies are means over the tasks in percent, under Current Eval; \
"task vector" is the norm of the first task's vector as a share of
theta_b's. Text (BERT, T5): the probe should lie 5 points above the untrained network's, \
WA / experts between 0.55 and 0.85, TA / experts
between 0.70 and 0.92, f_b / experts at most 0.45. Images (CLIP): f_b / experts at most 0.75, \
TA / experts at least 0.70 and TA at least 6 points
above f_b, which is zero-shot. ViT and BERT, local setting of `ext03`: TA / experts at least 0.80.

"""


def untrained_probe(study: Study) -> float:
    """Mean probe of f_b's architecture at a random start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.profile.seed)
        state = encoder_state(study.encoder.module())
    return mean(probe(study.encoder, state, study.tasks))


def mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def norm(state: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().pow(2).sum()) for t in state.values()))


def measure(variant: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """One candidate as one row."""
    study = Study("mini", variant=variant, overrides=overrides)
    p = study.profile
    row: dict[str, Any] = {
        "variant": variant or "bert",
        "base": recipe(p),
        "fine-tuning": training(p.fine_tuning),
    }
    row["probe"] = round(mean(probe(study.encoder, study.base_state, study.tasks)), 1)
    row["untrained"] = round(untrained_probe(study), 1)
    started = time.monotonic()
    experts = [study.expert(t) for t in study.tasks]
    row["minutes"] = round((time.monotonic() - started) / 60, 1)
    scores = study.scores(list(MODELS), ["current"]).groupby("method").accuracy.mean()
    row |= {label: round(float(scores[name]), 1) for name, label in MODELS.items()}
    shares = scores / scores["f_t"]
    row |= {f"{MODELS[n]} / experts": round(float(shares[n]), 2) for n in list(MODELS)[1:]}
    base = study.base_state
    vector = {n: experts[0].state[n] - base[n] for n in base}
    row["task vector"] = round(norm(vector) / norm(base), 3)
    row["lambda of TA"] = study.lam("task_arithmetic")
    return row


def training(settings: Any) -> str:
    return f"{settings.steps} x {settings.batch_size}, {settings.lr:g}"


def recipe(profile: Any) -> str:
    encoder, pre = profile.encoder, profile.encoder.pretraining
    how = f"distilled, {training(pre)}" if pre.teacher else f"own objective, {training(pre)}"
    return f"{encoder.layers} x {encoder.width}, {how}"


def append(row: dict[str, Any]) -> None:
    """The row behind those of ``CALIBRATION.md``."""
    if not TABLE.exists():
        TABLE.write_text(HEAD + line(row) + line(["---"] * len(row)), encoding="utf-8")
    with TABLE.open("a", encoding="utf-8") as file:
        file.write(line(row.values()))


def line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="")
    parser.add_argument("--overrides", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    row = {
        "date": date.today().isoformat(),
        **measure(args.variant, args.overrides),
        "note": args.note,
    }
    append(row)
    print(row)


if __name__ == "__main__":
    main()
