"""``python -m mergelib merge | align | evaluate | ...``: your own models on the command line;
``methods`` and ``protocols`` list what there is.

Results on stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import json
from dataclasses import replace
from typing import Any

import pandas as pd

from ..core.documents import check_folder_name, user_path
from ..core.errors import ConfigError, UnknownNameError, check_name
from ..core.progress import progress
from ..merging import METHODS, get_method
from ..models.compare import compare
from ..models.folders import free_file, free_folder, whole_folder, write_file, write_record
from ..models.heads import (
    align_classifier,
    draw_inputs,
    evaluate,
    expert_classifier,
    opened,
    predict,
    scoring,
)
from ..models.kinds import kind_of, score_table
from ..models.merged import load_merged
from ..models.merging import merge, named_experts
from ..models.parents import open_parent
from ..models.push import push_folder
from ..models.recipes import COMMANDS, as_command
from ..protocols import PROTOCOLS
from ..tasks.data import labelled, unlabelled

READING = {"device", "batch_size", "max_length"}
"""Options of everything that computes features."""
PATHS = {"base", "merged", "model", "experts", "inputs", "data", "fit", "validation", "test"}
"""Options that say what a command reads."""


def list_methods(_: argparse.Namespace) -> int:
    """List the merging methods: formula, needs, options with defaults, paper."""
    for m in METHODS.values():
        defaults = inspect.signature(m.function).parameters
        _entry(
            f"{m.name}: {m.label}",
            m.about,
            f"needs {' and '.join(('weights', *m.needs))}, gives {m.gives}",
            "options: " + (" ".join(f"{o}={defaults[o].default}" for o in m.options) or "none"),
            m.paper,
        )
    return 0


def list_protocols(_: argparse.Namespace) -> int:
    """List the evaluation protocols: what each learns from, draws, options with defaults, paper."""
    fields = COMMANDS["evaluate"].model_fields
    for p in PROTOCOLS.values():
        source = "k labelled inputs per class"
        if p.name != "knn":
            source = "the expert's outputs for k inputs per class"
        options = ("k", "seeds", "draw") if p.few_shot else ()
        options += ("preset",) * (p.name == "ft_classifier")
        _entry(
            f"{p.name}: {p.label}",
            f"learns from {source if p.few_shot else 'nothing'}",
            f"draws: {', '.join(p.draws)}" if p.few_shot else "",
            "options: " + (" ".join(f"{o}={fields[o].default}" for o in options) or "none"),
            p.paper,
        )
    return 0


def _entry(name: str, *said: str) -> None:
    *lines, paper = said
    lines.append(f"arXiv {paper}" if paper else "")
    print("\n    ".join([name, *filter(None, lines)]))


def _read(recipe: Any) -> list[str]:
    """Every path or id that a recipe reads."""
    values = recipe.model_dump(include=PATHS).values()
    listed = (value.values() if isinstance(value, dict) else [value] for value in values)
    return [path for paths in listed for path in paths if path]


def _need_folder(recipe: Any) -> list[str]:
    """The paths and ids that are read. Raises ``ConfigError``, before any work, if the output may
    not be written."""
    if not recipe.out:
        raise ConfigError("No output folder: give --out FOLDER.")
    read = _read(recipe)
    free_folder(recipe.out, recipe.overwrite, read)
    return read


def _write(recipe: Any, rows: str) -> None:
    """Results as a file. Raises ``ConfigError`` where it may not be written."""
    write_file(free_file(recipe.out, recipe.overwrite, _read(recipe)), rows)


def run_merge(recipe: Any) -> None:
    """Merge and save."""
    _need_folder(recipe)
    method, auto = get_method(recipe.method), recipe.lam == "auto"
    if auto and not method.has_lam:
        raise ConfigError(f"{recipe.method} has no lambda to choose; leave --lam out.")
    experts, inputs = {p.name: p for p in named_experts(recipe.experts)}, {}
    for task, file in recipe.inputs.items() if method.needs or auto else ():
        _need_expert(recipe, task)
        inputs[task] = (
            _labelled(recipe, file, experts[task], task)
            if "labels" in method.needs
            else unlabelled(file, experts[task].is_image, recipe.text_column)
        )
    options, chosen = choose_lam(recipe, experts, inputs)
    if "labels" not in method.needs:
        inputs = {t: _drawn(recipe, rows, experts[t]) for t, rows in inputs.items() if method.needs}
    merged = merge(
        recipe.method,
        base=recipe.base or None,
        experts=experts,
        inputs=inputs,
        show_progress=True,
        **recipe.model_dump(include={"encoder", "head", "dtype", "device", "max_length"}),
        **options,
    )
    merged = replace(merged, record=merged.record | chosen)
    merged.save_pretrained(recipe.out, single=recipe.single, overwrite=recipe.overwrite)
    heads = ", ".join(f"{t} ({len(h.labels)} classes)" for t, h in merged.heads.items())
    size = sum(t.numel() for t in merged.encoder_of(next(iter(merged.heads))).values()) / 1e6
    print(f"{merged.record['label']} of {len(merged.heads)} experts: {heads}")
    print(merged.record["parts"])
    print(
        f"saved in {recipe.out}: {merged.record['gives']} ({size:.3g} M parameters, "
        f"{merged.record['dtype']}), {len(merged.heads)} heads"
    )


def choose_lam(
    recipe: Any, experts: dict[str, Any], inputs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The method's options with ``--lam``, and for the card how ``auto`` chose it; ``experts`` and
    ``inputs`` are those of the recipe, read."""
    if recipe.lam != "auto":
        return recipe.options | ({} if recipe.lam is None else {"lam": recipe.lam}), {}
    excluded = {"out", "overwrite", "base", "method", "options", "lam", "dtype", "single"}
    comparison = compare(
        experts,
        recipe.base or None,
        inputs,
        methods=[recipe.method],
        options={recipe.method: recipe.options},
        show_progress=True,
        **recipe.model_dump(exclude=excluded | {"experts", "inputs"}),
    )
    protocol = "ft_classifier" if recipe.k else "current"
    curve = comparison.curve(recipe.method, protocol)
    lam = comparison.table.set_index(["method", "protocol"]).lam[recipe.method, protocol]
    split, measure = next(iter(comparison.measures.items()))
    rows = [[f"{lam:g}", f"{score:.1f}"] for lam, score in curve.items()]
    print_table(["lambda", f"{measure} (%), {split}"], rows)
    print(f"chosen: {lam:g}\n")
    points = ", ".join(f"{value}: {score} %" for value, score in rows)
    text = f"{lam:g}, by {measure} under {protocol} on {split} rows ({points})"
    return recipe.options | {"lam": lam}, {"lam_curve": text}


def run_align(recipe: Any) -> None:
    """Re-align every head that has inputs, score before and after, and save."""
    read = _need_folder(recipe)
    merged = replace(load_merged(recipe.merged), inputs=tuple(map(user_path, read)))
    for name in (*recipe.inputs, *recipe.data):
        check_folder_name(name)
        _need_expert(recipe, name)
    if unused := recipe.data.keys() - recipe.inputs.keys():
        raise ConfigError(f"data: '{min(unused)}' has no inputs to align with; give --inputs, too.")
    ready, aligned, scores = [], [], []
    for task, file in recipe.inputs.items():  # all files, before any model computes
        parent = open_parent(recipe.experts[task], task)
        inputs = _drawn(recipe, unlabelled(file, parent.is_image, recipe.text_column), parent)
        rows = recipe.data.get(task)
        rows = rows and _labelled(recipe, rows, parent, task, recipe.limit)
        ready.append((task, parent, inputs, rows))
    options = recipe.model_dump(include=READING)
    chosen = recipe.model_dump(include={"protocol", "preset"})
    for task, parent, inputs, rows in progress(ready, desc="align"):
        expert = expert_classifier(parent)
        new = align_classifier(merged, expert, inputs, task=task, **chosen, **options)
        aligned.append(new)
        models = {"merged, re-aligned head": new, "expert": expert}
        if task in merged.heads:
            models = {"merged, old head": merged} | models
        for method, model in models.items() if rows else ():
            scores.append(evaluate(model, rows, task=task, method=method, **options))
    table = pd.concat(scores, ignore_index=True) if scores else None
    merged.with_heads(*aligned).save_pretrained(
        recipe.out, scores=table, single=recipe.single, overwrite=recipe.overwrite
    )
    heads = [one.head for one in aligned]
    print_table(
        ["task", "classes", "unlabelled inputs", "way"],
        [[h.task, len(h.labels), h.alignment["n"], h.alignment["protocol"]] for h in heads],
    )
    if table is not None:
        print()
        print_table(*score_table(table))
    print(f"saved in {recipe.out}")


def _need_expert(recipe: Any, task: str) -> None:
    """Raises ``UnknownNameError``."""
    check_name("expert", task, recipe.experts)


def _drawn(recipe: Any, inputs: list[Any], expert: Any) -> list[Any]:
    """k of a task's inputs per class, or all."""
    if not recipe.k:
        return inputs
    return draw_inputs(inputs, len(expert.labels), recipe.k, recipe.seed, expert.name)


def _labelled(recipe: Any, file: str, model: Any, task: str, limit: int = 0) -> Any:
    """A file as a ``Split``, with the classes of ``model`` (which has ``config``, ``labels`` and
    ``is_image``)."""
    return labelled(
        file,
        model.labels,
        task,
        is_image=model.is_image,
        text_column=recipe.text_column,
        first_label=recipe.first_label,
        limit=limit,
        problem=kind_of(model.config).name,
    )


def run_evaluate(recipe: Any) -> None:
    """Score the model's tasks that have data; ``out`` receives the rows as CSV."""
    if recipe.out:
        free_file(recipe.out, recipe.overwrite, _read(recipe))
    if unused := recipe.fit.keys() - recipe.data.keys():
        raise UnknownNameError("task of fit", min(unused), recipe.data)
    model = opened(recipe.model)
    options = recipe.model_dump(include=READING | {"k", "seeds", "draw", "preset"})
    ready = []
    for task, file in recipe.data.items():  # all files, before any model computes
        classifier = model.classifier(task)
        data, fit = _labelled(recipe, file, classifier.head, task, recipe.limit), None
        if task in recipe.fit:
            fit = _labelled(recipe, recipe.fit[task], classifier.head, task)
        given = {"expert": recipe.experts.get(task), "fit": fit, "show_progress": True}
        ready.append(scoring(classifier, data, recipe.protocols, task=task, **given, **options))
    frames = []
    while ready:  # each with its model, which is freed when it is done
        frames.append(ready.pop(0)())
    table = pd.concat(frames, ignore_index=True)
    print_table(*score_table(table))
    if recipe.out:
        rows = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        _write(recipe, rows)
        print(f"rows in {recipe.out}")


def run_compare(recipe: Any) -> None:
    """Compare, and write the report with the commands that make the chosen model."""
    from ..figures.comparison import write_comparison  # matplotlib: the others draw nothing

    read = _need_folder(recipe)
    options = recipe.model_dump(exclude={"out", "overwrite", "base"})
    result = compare(base=recipe.base or None, show_progress=True, **options)
    with whole_folder(recipe.out, recipe.overwrite, read) as out:
        print(write_comparison(result, out, list(map(as_command, making(recipe, result.best)))))
        write_record(out, {"command": as_command(recipe)})
    print(f"report in {recipe.out}")


def making(recipe: Any, best: dict[str, Any]) -> list[Any]:
    """The recipes that make the model that a comparison chose."""
    aligned, lam = best["protocol"] == "ft_classifier", best["lam"]
    same = recipe.model_dump(include={"experts", "base", "encoder", "head", "device"})
    options = {} if lam is None else {"lam": lam}
    made = {"method": best["method"], "options": options, "out": "merged", "single": not aligned}
    drawn = recipe.model_dump(include={"inputs", "k", "seed", "text_column", "max_length"})
    recipes = [
        COMMANDS["merge"](**same, **made, **(drawn if get_method(best["method"]).needs else {}))
    ]
    if aligned:
        same = drawn | recipe.model_dump(include={"experts", "preset", "batch_size", "device"})
        recipes.append(COMMANDS["align"](**same, merged="merged", out="aligned", single=True))
    return recipes


def run_predict(recipe: Any) -> None:
    """Every head's answers, as CSV or JSON lines."""
    lines = recipe.out.lower().endswith(".jsonl")
    if recipe.out:
        free_file(recipe.out, recipe.overwrite, _read(recipe))
        if not lines and not recipe.out.lower().endswith(".csv"):
            raise ConfigError(f"'{recipe.out}': predictions are written to a .csv or .jsonl file.")
    table = predict(
        recipe.model,
        recipe.inputs,
        recipe.tasks,
        show_progress=True,
        **recipe.model_dump(include=READING | {"top", "text_column"}),
    )
    if lines:
        records = (json.dumps(row, ensure_ascii=False) for row in table.to_dict("records"))
        rows = "".join(f"{line}\n" for line in records)
    else:  # texts are quoted, because they may hold a carriage return
        rows = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    if recipe.out:
        _write(recipe, rows)
        rows = f"{len(table)} rows in {recipe.out}\n"
    print(rows, end="")


def run_push(recipe: Any) -> None:
    """Upload a folder."""
    print(
        push_folder(
            recipe.model, recipe.to, private=recipe.private or None, overwrite=recipe.overwrite
        )
    )


def print_table(header: list[str], rows: list[list[Any]]) -> None:
    """Columns as wide as their widest cell."""
    cells = [header, *([*map(str, row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
