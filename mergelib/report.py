"""From tidy scores to the tables that people read: ours beside the paper's, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
import yaml
from pandas.io.formats.style import Styler
from torch import Tensor

from . import __version__
from .clusters import label_purity, silhouette, source_purity
from .merging import METHODS
from .protocols import PROTOCOLS
from .protocols.surgery import trainable_parameters
from .study import BASE, FINE_TUNED, MULTI_TASK, RANDOM, Study
from .types import digest, percent

PUBLISHED_FILE = Path(__file__).parent / "published.yaml"
TASK_LABELS = {
    "ag": "AG News",
    "yelp": "Yelp",
    "amazon": "Amazon",
    "yahoo": "Yahoo",
    "dbpedia": "DBpedia",
    "sun397": "SUN397",
    "cars": "Cars",
    "resisc45": "RESISC45",
    "eurosat": "EuroSAT",
    "svhn": "SVHN",
    "gtsrb": "GTSRB",
    "mnist": "MNIST",
    "dtd": "DTD",
    "fashion_mnist": "Fashion-MNIST",
}
ENCODER_LABELS = {
    BASE: "f_b (base model)",
    FINE_TUNED: "Fine-tuned model",
    MULTI_TASK: "Multi-task learning",
    RANDOM: "Random encoder",
}


def encoder_label(encoder: str) -> str:
    """How tables name an encoder: the method's label, or the reference's."""
    return ENCODER_LABELS.get(encoder) or (
        METHODS[encoder].label if encoder in METHODS else encoder
    )


def short_label(encoder: str) -> str:
    """The same, short: WA, TA, Ties, ..."""
    return (
        METHODS[encoder].short
        if encoder in METHODS
        else {FINE_TUNED: "Fine-tuned", MULTI_TASK: "Multi-task"}.get(encoder, encoder)
    )


def protocol_label(protocol: str) -> str:
    return PROTOCOLS[protocol].label


def at_k(scores: pd.DataFrame, k: int) -> pd.DataFrame:
    """The rows of k shots, and those of protocols without shots."""
    return scores[scores.k.isna() | (scores.k == k)]


def with_average(scores: pd.DataFrame) -> pd.DataFrame:
    """``scores`` plus rows with task ``average``: per seed, the unweighted mean over tasks. Where every input is drawn, k is the
    smallest of the tasks' numbers per class."""
    by = ["backbone", "method", "protocol", "shots", "draw", "fit_on", "seed"]
    groups = scores.assign(shots=scores.k.mask(scores.draw == "all")).groupby(
        by, dropna=False, sort=False, as_index=False
    )
    mean = groups.agg(accuracy=("accuracy", "mean"), n=("n", "sum"), k=("k", "min"))
    return pd.concat([scores, mean.assign(task="average")], ignore_index=True)[scores.columns]


def mean_and_std(scores: pd.DataFrame) -> pd.DataFrame:
    """Over seeds: columns method, protocol, k, draw, fit_on, task, mean, std (ddof 1; missing without seeds), n_seeds.

    The average column's std is that of the seeds' averages, not the mean of the tasks' deviations.
    """
    groups = with_average(scores).groupby(
        ["method", "protocol", "k", "draw", "fit_on", "task"], dropna=False, sort=False
    )
    return groups.accuracy.agg(mean="mean", std="std", n_seeds="count").reset_index()


def mean_std_cell(mean: float, std: float) -> str:
    """ "71.8 ± 0.2"; the mean alone where there is no deviation."""
    return f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"


def with_cells(summary: pd.DataFrame) -> pd.DataFrame:
    """``mean_and_std`` plus a column ``cell``, such as "71.8 ± 0.2"."""
    return summary.assign(
        cell=[mean_std_cell(m, s) for m, s in zip(summary["mean"], summary["std"], strict=True)]
    )


def wide(summary: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """A row per (method, protocol, draw), a column per task and the average, cells such as "71.8 ± 0.2"."""
    cells = with_cells(summary)
    several = cells.draw.nunique() > 1
    cells["Model"] = cells.method.map(encoder_label)
    cells["Protocol"] = cells.protocol.map(protocol_label) + (
        cells.draw.map(lambda d: ", uniform draw" if d == "uniform" else "") if several else ""
    )
    # A table row may not depend on how pandas orders missing keys.
    rows = list(dict.fromkeys(zip(cells.Model, cells.Protocol, strict=True)))
    table = cells.pivot(index=["Model", "Protocol"], columns="task", values="cell").loc[
        rows, [*tasks, "average"]
    ]
    table.columns = [*(TASK_LABELS.get(t, t) for t in tasks), "Average"]
    return table


def published() -> dict:
    """The paper's printed numbers."""
    return yaml.safe_load(PUBLISHED_FILE.read_text())


def published_table2() -> pd.DataFrame:
    """Table 2 as printed, in the shape of ``mean_and_std``: columns method, protocol, task, mean, std."""
    rows = []
    table = published()["table2"]
    for row in table["rows"]:
        for i, task in enumerate([*table["tasks"], "average"]):
            last = task == "average"
            rows.append(
                {
                    "method": row["method"],
                    "protocol": row["protocol"],
                    "task": task,
                    "mean": row["average"] if last else row["mean"][i],
                    "std": row.get("average_std") if last else row.get("std", [None] * 5)[i],
                }
            )
    return pd.DataFrame(rows)


def beside_paper(summary: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """ "paper | here" of the average over the tasks at hand. The paper's backbone and data differ from every profile but
    ``paper``."""
    ours = summary[summary.task == "average"]
    tasks = set(summary.task) - {"average"}
    whole = tasks == set(paper.task) - {"average"}
    cells = paper[paper.task == "average"] if whole else paper[paper.task.isin(tasks)]
    theirs = cells.groupby(["method", "protocol"])["mean"].mean().round(1)
    rows = [
        {
            "Model": encoder_label(r.method),
            "Protocol": protocol_label(r.protocol),
            "paper (BERT-base, real data)": theirs.get((r.method, r.protocol)),
            "here": round(r.mean, 1),
        }
        for r in ours.itertuples()
        if (r.method, r.protocol) in theirs.index
    ]
    return pd.DataFrame(rows)


def stack(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Several score tables as one; an empty one for none."""
    return pd.concat(
        [pd.DataFrame(), *(f for f in frames if len(f))], ignore_index=True
    )  # a frame without rows has no dtypes to give


def average_of(
    summary: pd.DataFrame,
    encoder: str,
    protocol: str = "current",
    k: int | None = None,
    draw: str = "stratified",
) -> float:
    """The five-task average of one row of ``mean_and_std``."""
    rows = summary[
        (summary.task == "average") & (summary.method == encoder) & (summary.protocol == protocol)
    ]
    if k is not None:
        rows = rows[(rows.k == k) & (rows.draw == draw)]
    return float(rows["mean"].iloc[0])


def shots_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Average accuracy against k: a row per (method, protocol, draw), a column per k, cells such as "71.8 ± 0.2"."""
    rows = summary[(summary.task == "average") & summary.k.notna()]
    cells = with_cells(rows).assign(
        Model=rows.method.map(encoder_label),
        Protocol=rows.protocol.map(protocol_label),
        Draw=rows.draw,
    )
    table = cells.pivot(index=["Model", "Protocol", "Draw"], columns="k", values="cell").fillna("")
    order = list(dict.fromkeys(zip(cells.Model, cells.Protocol, cells.Draw, strict=True)))
    return table.loc[order].rename(columns=lambda k: f"k = {k}").rename_axis(columns=None)


def show(frame: pd.DataFrame, precision: int = 2) -> Styler:
    """A table for a notebook: whole texts, no running numbers, the same bytes every time."""
    style = (
        frame.style.format(precision=precision)
        .set_uuid(digest(frame.to_csv())[:8])
        .set_properties(**{"text-align": "left"})
    )
    return style.hide() if isinstance(frame.index, pd.RangeIndex) else style


def task_table(study: Study) -> pd.DataFrame:
    """A row per task: classes, chance level, sizes of the splits and of the pool of few-shot draws, source."""
    rows = [
        {
            "task": TASK_LABELS.get(t.name, t.name),
            "classes": t.n_classes,
            "chance (%)": round(100 / t.n_classes, 1),
            "train": len(t.train),
            "validation": len(t.validation),
            "test": len(t.test),
            "pool": len(study.pool(t.name)),
            "source": t.source,
        }
        for t in study.tasks.values()
    ]
    return pd.DataFrame(rows)


def example_table(study: Study, row: int = 0, width: int = 220) -> Styler:
    """One test input per task with its label, cut to ``width`` characters."""
    rows = [
        {
            "task": TASK_LABELS.get(t.name, t.name),
            "label": t.label_names[int(t.test.labels[row])],
            "text": t.test.inputs[row][:width] + ("…" if len(t.test.inputs[row]) > width else ""),
        }
        for t in study.tasks.values()
    ]
    return show(pd.DataFrame(rows))


def contact_sheet(
    study: Study, classes: int = 5, each: int = 8
) -> dict[str, tuple[list[str], Tensor]]:
    """Some test images for ``plots.plot_contact_sheet``: per task the names of ``classes`` classes, spread over all of them, and
    ``each`` images of each, uint8 ``[classes, each, 3, H, W]``; fewer where a class has fewer images."""
    sheets = {}
    for task in study.tasks.values():
        chosen = sorted(
            {
                round(i * (task.n_classes - 1) / max(1, classes - 1))
                for i in range(min(classes, task.n_classes))
            }
        )
        rows = [(task.test.labels == c).nonzero().flatten()[:each] for c in chosen]
        kept = min(map(len, rows))
        sheets[task.name] = (
            [task.label_names[c] for c in chosen],
            torch.stack([task.test.inputs[r[:kept]] for r in rows]),
        )
    return sheets


def bounds_table(study: Study) -> pd.DataFrame:
    """A row per task: classes, chance, f_b and f_t under Current Eval, in percent, and f_b's part of f_t. Of a CLIP, whose heads are the
    embeddings of class names, f_b's is the zero-shot accuracy."""
    rows = []
    for task in study.tasks.values():
        base, tuned = (
            percent(study.correct(e, task.name, "current")[0]) for e in (BASE, FINE_TUNED)
        )
        rows.append(
            {
                "task": TASK_LABELS.get(task.name, task.name),
                "classes": task.n_classes,
                "chance": 100 / task.n_classes,
                "f_b": base,
                "f_t": tuned,
                "f_b / f_t": base / tuned if tuned else math.nan,
            }
        )
    frame = pd.DataFrame(rows)
    means = frame.drop(columns="task").mean()
    means["f_b / f_t"] = means["f_b"] / means["f_t"]
    return pd.concat(
        [
            frame.astype({"classes": object}),
            pd.DataFrame([{"task": "Average", **means, "classes": ""}]),
        ],
        ignore_index=True,
    )


def cluster_panels(
    study: Study, tasks: Sequence[str], methods: Sequence[str], n: int = 400
) -> tuple[dict, pd.DataFrame]:
    """Panels for ``plots.plot_clusters`` and the table of the same numbers, all in R^d and on the same test rows.

    Columns: label purity (10-NN, leave-one-out) and silhouette of f_t and f_m, source purity of the two together.
    """
    panels, rows = {}, []
    for task in tasks:
        labels = study.task(task).test.labels
        z_t = study.features(FINE_TUNED, task)
        purity_t, silhouette_t = float(label_purity(z_t, labels).mean()), silhouette(z_t, labels)
        for method in methods:
            z_m = study.features(method, task)
            purity_m, source = (
                float(label_purity(z_m, labels).mean()),
                float(source_purity(z_t, z_m).mean()),
            )
            points, shown = study.embedding(method, task, n)
            accuracy = percent(study.correct(method, task, "current")[0])
            panels[task, method] = {
                "points": points.numpy(),
                "labels": shown.numpy(),
                "classes": study.task(task).n_classes,
                "accuracy": accuracy,
                "note": f"label purity {purity_t:.2f} → {purity_m:.2f}, source purity {source:.2f}",
            }
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "Current Eval (%)": accuracy,
                    "label purity f_t": purity_t,
                    "label purity f_m": purity_m,
                    "silhouette f_t": silhouette_t,
                    "silhouette f_m": silhouette(z_m, labels),
                    "source purity": source,
                    "n": len(labels),
                }
            )
    return panels, pd.DataFrame(rows)


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """A table for the eye: tasks and methods by their labels. ``show`` rounds it, once."""
    names = {
        "task": lambda t: TASK_LABELS.get(t, t),
        "method": short_label,
        "protocol": protocol_label,
    }
    return frame.assign(**{c: frame[c].map(f) for c, f in names.items() if c in frame}).reset_index(
        drop=True
    )


def alt_clusters(table: pd.DataFrame) -> str:
    """Alt text of a cluster figure, from the numbers themselves."""
    said = [
        f"{TASK_LABELS.get(r['task'], r['task'])} with {short_label(r['method'])}, label purity {r['label purity f_m']:.2f} "
        f"(fine-tuned {r['label purity f_t']:.2f}), source purity {r['source purity']:.2f}"
        for _, r in table.iterrows()
    ]
    return (
        f"t-SNE maps of fine-tuned and merged outputs together, shaded by label. {'; '.join(said)}."
    )


def alt_base_model(summary: pd.DataFrame, study: Study, k: int, chance: float) -> str:
    """Alt text of Table 3's figure, from the numbers themselves."""
    said = [
        f"{short_label(e)} {average_of(summary, e):.1f}, {average_of(summary, e, 'knn', k):.1f} and "
        f"{average_of(summary, e, 'ft_classifier', k):.1f}"
        for e in (BASE, *study.methods)
    ]
    return (
        f"Average accuracy in percent under Current, KNN and FT-Classifier Eval, k = {k}: {'; '.join(said)}; chance "
        f"{chance:.1f}, fine-tuned models {average_of(summary, FINE_TUNED):.1f}."
    )


def size_table(studies: Mapping[str, Study]) -> pd.DataFrame:
    """A row per panel: its base model, d, and its weights, each tensor once, with the vocabulary's share."""
    rows = []
    for panel, study in studies.items():
        count = sum(t.numel() for t in study.base_state.values())
        vocabulary = study.encoder.module().transformer.get_input_embeddings().weight.numel()
        rows.append(
            {
                "": panel,
                "base model": study.profile.backbone,
                "d": study.encoder.width,
                "weights": count,
                "in the vocabulary (%)": 100 * vocabulary / count,
            }
        )
    return pd.DataFrame(rows)


def alt_sizes(summaries: Mapping[str, pd.DataFrame], studies: Mapping[str, Study], k: int) -> str:
    """Alt text of a figure with a panel per size, from the numbers themselves."""
    said = []
    for panel, study in studies.items():
        summary = summaries[panel]
        rows = [
            f"{short_label(m)} {average_of(summary, m):.1f}, {average_of(summary, m, 'knn', k):.1f} and "
            f"{average_of(summary, m, 'ft_classifier', k):.1f}"
            for m in (BASE, *study.methods)
        ]
        said.append(
            f"{panel} {study.profile.backbone}, {', '.join(rows)}, fine-tuned models {average_of(summary, FINE_TUNED):.1f}"
        )
    return f"Average accuracy in percent under Current, KNN and FT-Classifier Eval, k = {k}, a panel per size: {'; '.join(said)}."


def knn_by_task(summary: pd.DataFrame, k: int) -> pd.DataFrame:
    """KNN Eval minus Current Eval in points, a row per method, a column per task and the average."""
    cells = summary[
        (summary.protocol == "current") | ((summary.protocol == "knn") & (summary.k == k))
    ]
    wide_cells = cells.pivot_table(
        index=["method", "task"], columns="protocol", values="mean", sort=False
    )
    gain = (wide_cells["knn"] - wide_cells["current"]).unstack("task")[
        list(dict.fromkeys(summary.task))
    ]
    return (
        gain.rename(
            index=encoder_label,
            columns=lambda t: TASK_LABELS.get(t, "Average" if t == "average" else t),
        )
        .round(1)
        .rename_axis(index="KNN - Current (points)", columns=None)
    )


def table3(summary: pd.DataFrame, study: Study, k: int) -> pd.DataFrame:
    """Table 3: averages of Table 2's rows, a row per protocol, a column per encoder; ours and the paper's."""
    rows = []
    for printed_for in ("here", "paper"):
        for protocol in ("current", "knn", "ft_classifier"):
            row = {"": printed_for, "Protocol": protocol_label(protocol)}
            for encoder in (BASE, *study.methods):
                ours = average_of(summary, encoder, protocol, k if protocol != "current" else None)
                theirs = next(
                    (r[protocol] for r in published()["table3"] if r["method"] == encoder), None
                )
                row[short_label(encoder)] = round(ours, 1) if printed_for == "here" else theirs
            rows.append(row)
    return pd.DataFrame(rows).set_index(["", "Protocol"])


def cost_table(study: Study) -> pd.DataFrame:
    """Numbers trained and added, summed over the profile's tasks, for FT-Classifier and Surgery."""
    d = study.encoder.width
    heads = sum(t.n_classes * (d + 1) for t in study.tasks.values())
    module = len(study.tasks) * trainable_parameters(d)
    return pd.DataFrame(
        [
            {
                "protocol": protocol_label("ft_classifier"),
                "trained": heads,
                "added to the model": 0,
            },
            {
                "protocol": protocol_label("surgery"),
                "trained": module,
                "added to the model": module,
            },
        ]
    )


def fit_seconds(
    study: Study, method: str, protocols: Sequence[str], k: int | None = None
) -> pd.Series:
    """Wall seconds to fit and score all seeds of all tasks at one k, per protocol, from stored features."""
    import time
    from dataclasses import replace

    k = k or (5 if 5 in study.profile.protocols.ks else study.profile.protocols.ks[-1])
    seconds = {}
    for protocol in protocols:
        evidence = [replace(study.evidence(method, t), ks=(k,)) for t in study.tasks]
        start = time.perf_counter()
        for one in evidence:
            PROTOCOLS[protocol].function(one)
        seconds[protocol_label(protocol)] = time.perf_counter() - start
    return pd.Series(seconds, name=f"seconds, k = {k}")


def chance_level(study: Study) -> float:
    """Mean over tasks of 1/C, in percent."""
    return 100 * sum(1 / t.n_classes for t in study.tasks.values()) / len(study.tasks)


def versions() -> str:
    """What computed a notebook's numbers, in one line."""
    import platform

    import torch
    import transformers

    return (
        f"mergelib {__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}"
    )


def provenance(study: Study, methods: Sequence[str] | None = None) -> Styler:
    """What made the numbers of a notebook: profile, backbone, device, versions, seeds, and lambda of ``methods`` (all by default)."""
    p = study.profile
    rows = {
        "profile": p.name,
        "base model": p.backbone,
        "overrides": public_overrides(study.overrides) or "none",
        **({"note": p.note} if p.note else {}),
        "device": study.device.type,
        "training": f"{p.train_config(p.fine_tuning, study.device).precision}, {p.threads} threads",
        **(
            {"experts": "released checkpoints, their classes' order checked on validation rows"}
            if p.experts == "released"
            else {}
        ),
        **(
            {"preprocessing": p.encoder.preprocessing}
            if p.encoder.preprocessing != "default"
            else {}
        ),
        "seeds of the draws": ", ".join(map(str, p.protocols.seeds)),
        "FT-Classifier preset": p.protocols.ft_preset,
        "lambda": ", ".join(
            f"{short_label(m)} {study.lam(m)}"
            for m in methods or study.methods
            if study.lam(m) is not None
        ),
        "bootstrap": f"{p.resamples} resamples, paired over test inputs and seeds",
        "versions": versions(),
    }
    return show(pd.DataFrame({"what": rows.keys(), "value": rows.values()}))


def public_overrides(overrides: dict) -> dict:
    """Overrides without the places of files on this machine."""
    return {
        k: v
        for k, v in overrides.items()
        if k not in ("tasks.text_dir", "tasks.image_dir", "encoder.base", "released_dir")
    }


def alt_protocols(summary: pd.DataFrame, study: Study, k: int) -> str:
    """Alt text of Table 2's figure, from the numbers themselves."""
    said = [
        f"{short_label(m)} {average_of(summary, m):.1f} under Current Eval, {average_of(summary, m, 'knn', k):.1f} under KNN "
        f"Eval and {average_of(summary, m, 'ft_classifier', k):.1f} under FT-Classifier Eval"
        for m in study.methods
    ]
    return (
        f"Accuracy per task and on average of the base model and three merges under three protocols, k = {k}. "
        f"Averages in percent: {'; '.join(said)}; fine-tuned models {average_of(summary, FINE_TUNED):.1f}."
    )


def alt_shots(summary: pd.DataFrame, study: Study, protocol: str) -> str:
    """Alt text of a figure over k, from the numbers themselves."""
    first, last = study.profile.protocols.ks[0], study.profile.protocols.ks[-1]
    said = [
        f"{short_label(m)} from {average_of(summary, m):.1f} under Current Eval to "
        f"{average_of(summary, m, protocol, first):.1f} at k = {first} and {average_of(summary, m, protocol, last):.1f} at "
        f"k = {last}"
        for m in study.methods
    ]
    return (
        f"Average accuracy of {protocol_label(protocol)} against the number of samples per class, one panel per merging "
        f"method. In percent: {'; '.join(said)}; fine-tuned models {average_of(summary, FINE_TUNED):.1f}."
    )
