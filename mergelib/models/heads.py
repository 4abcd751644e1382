"""Features of Hugging Face classifiers, heads re-aligned to a merged encoder, and scores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..documents import user_path
from ..errors import ConfigError, DataError, UnknownNameError
from ..features import pick_device
from ..progress import progress
from ..protocols import (
    Evidence,
    ft_classifier,
    get_preset,
    get_protocol,
    orthogonal_classifier,
    stratified_order,
    uniform_order,
)
from ..tasks.parquet import read_image
from ..types import Head, Split, percent
from .merged import RECORD, Classifier, Merged, TaskHead, load_merged
from .parents import open_parent
from .parts import base_names, check_same_architecture, find_parts

ALIGNMENTS = ("ft_classifier", "orthogonal_classifier", "orthogonal_procrustes")
SCORE_COLUMNS = ["task", "method", "protocol", "k", "draw", "fit_on", "seed", "accuracy", "n"]


def expert_classifier(
    source: Any, *, name: str = "", encoder: Sequence[str] = (), head: str = ""
) -> Classifier:
    """Any fine-tuned classifier (hub id, folder, loaded model) as a ``Classifier``, whole and unchanged."""
    if isinstance(source, Classifier):
        return source
    parent = open_parent(source, name)
    parts = find_parts(parent, encoder=encoder, head=head)
    tensors = {n: parent.weights.tensor(n) for n in parts.encoder}
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    return Classifier(tensors, TaskHead.of(parent, parts, dtype), {}, parent.processor())


def _text_batches(
    processor: Any, inputs: Sequence[str], config: Any, batch_size: int, max_length: int
) -> Iterator[tuple[list[int], Any]]:
    positions = getattr(config, "max_position_embeddings", 0) or 10**6
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= (
            config.pad_token_id or 0
        ) + 1  # their positions count from behind the padding index
    length = min(max_length or 10**6, positions, processor.model_max_length)
    encoded = processor(list(inputs), truncation=True, max_length=length)
    order = sorted(range(len(inputs)), key=lambda i: (len(encoded["input_ids"][i]), i))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield (
            rows,
            processor.pad(
                {key: [values[i] for i in rows] for key, values in encoded.items()},
                return_tensors="pt",
            ),
        )


def _image(x: Any) -> Any:
    """A PIL image. Texts are files' names and nothing else: transformers' own loader would fetch an address, and Pillow start programs."""
    if isinstance(x, str | os.PathLike):
        return read_image(user_path(x), str(x))
    from transformers.image_utils import load_image

    return load_image(x)


def _image_batches(
    processor: Any, inputs: Sequence[Any], batch_size: int
) -> Iterator[tuple[list[int], Any]]:
    for start in range(0, len(inputs), batch_size):
        rows = list(range(start, min(len(inputs), start + batch_size)))
        images = [_image(inputs[i]) for i in rows]
        yield rows, processor(images, return_tensors="pt")


@torch.no_grad()  # not inference mode: heads are fitted on what comes out
def features(
    classifier: Classifier,
    inputs: Sequence[Any],
    *,
    device: str = "auto",
    batch_size: int = 64,
    max_length: int = 0,
    desc: str = "",
) -> Tensor:
    """Inputs of the last linear layer, ``[N, d]`` float32 on the CPU, in evaluation mode and in the inputs' order.

    Texts are batched by length and cut to ``max_length`` tokens (default: what the model takes); images are files, PIL images or
    arrays. Raises ``DataError`` for inputs of the wrong kind or without a processor, ``ConfigError`` when the model's output is
    not that linear layer's.
    """
    inputs = _checked_inputs(inputs, classifier.is_image)
    if classifier.processor is None:
        raise DataError(
            f"'{classifier.head.task}' has no tokenizer or image processor in its folder; give processor=."
        )
    to, model = pick_device(device), classifier.model
    model.to(to)
    seen: list[Tensor] = []
    hook = model.get_submodule(classifier.head.module).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    batches = (
        _image_batches(classifier.processor, inputs, batch_size)
        if classifier.is_image
        else _text_batches(
            classifier.processor, inputs, classifier.head.config, batch_size, max_length
        )
    )
    z = torch.empty(len(inputs), classifier.head.linear.weight.shape[1])
    try:
        for rows, batch in (
            progress(batches, desc=desc, total=-(-len(inputs) // batch_size)) if desc else batches
        ):
            seen.clear()
            logits = model(**{k: v.to(to) for k, v in batch.items()}).logits
            if len(seen) != 1 or seen[0].shape != (len(rows), z.shape[1]):
                raise ConfigError(
                    f"'{classifier.head.module}' of '{classifier.head.task}' is not applied once to one feature per input; name "
                    "the last linear layer with head=."
                )
            z[rows] = seen[0].float().cpu()
            through = model.get_submodule(classifier.head.module)(seen[0])
            if through.shape != logits.shape or not torch.allclose(
                through, logits, rtol=1e-3, atol=1e-4
            ):
                raise ConfigError(
                    f"The logits of '{classifier.head.task}' are not what '{classifier.head.module}' gives; name the last linear layer "
                    "with head=."
                )
    finally:
        hook.remove()
    return z


def _checked_inputs(inputs: Any, is_image: bool) -> list[Any]:
    if isinstance(inputs, str | bytes | os.PathLike) or not hasattr(inputs, "__iter__"):
        raise DataError("Inputs are a list of texts or images, not one of them or a file's name.")
    inputs = list(inputs)
    if not inputs:
        raise DataError("No inputs.")
    if not is_image:
        odd = next(
            (i for i, x in enumerate(inputs) if not isinstance(x, str) or not x.strip()), None
        )
        if odd is not None:
            raise DataError(
                f"Input {odd} (counted from 0) is {'an empty text' if isinstance(inputs[odd], str) else type(inputs[odd]).__name__}; "
                "a text model takes texts."
            )
    return inputs


def _check_softmax(head: TaskHead) -> None:
    if (
        head.config.problem_type in ("regression", "multi_label_classification")
        or head.config.num_labels < 2
    ):
        raise ConfigError(
            f"'{head.task}' is no single-label classifier ({head.config.problem_type}, {head.config.num_labels} outputs); Eq. 8 "
            "compares distributions over classes."
        )


def student_of(merged: Any, expert: Classifier, task: str) -> Classifier:
    """The merged encoder under the expert's own neck and head. ``merged``: a ``Merged``, its folder, or any model of the
    expert's architecture whose encoder is to be used.

    Raises ``ConfigError`` when the merged model's head for this task has other labels than the expert's.
    """
    if isinstance(merged, str | os.PathLike) and (user_path(merged) / "heads").is_dir():
        merged = load_merged(merged)
    if isinstance(merged, Merged):
        held = merged.heads.get(task)
        if held is not None and held.labels != expert.head.labels:
            raise ConfigError(
                f"The merged model's head for '{task}' has the labels {_few(held.labels)}, the expert {_few(expert.head.labels)}. "
                "Give the expert that this head came from, or another task name."
            )
        encoder, record, processor = merged.encoder, merged.record, merged.processor
    else:
        parent = open_parent(merged)
        check_same_architecture(task, expert.head.config, parent.name, parent.config)
        known = base_names(list(expert.encoder), parent)
        encoder = {n: parent.weights.tensor(raw) for n, raw in known.items()}
        record, processor = (
            {"label": "given", "experts": {}, "method": "given", "base": None},
            parent.processor(),
        )
    wrong = [
        n for n, t in encoder.items() if n in expert.encoder and t.shape != expert.encoder[n].shape
    ]
    extra = [n for n in encoder if n not in expert.encoder and n not in expert.head.tensors]
    if wrong or extra or not encoder:
        raise ConfigError(
            f"The merged encoder is not of '{task}'s architecture: {(wrong or extra or ['nothing in common'])[0]}."
        )
    # What the merge left to the task (a neck) is the expert's own.
    own = {n: t for n, t in {**expert.encoder, **expert.head.tensors}.items() if n not in encoder}
    head = replace(expert.head, tensors=own, task=task)
    return Classifier(
        encoder, head, record, processor if processor is not None else expert.processor
    )


def _few(labels: Sequence[str]) -> str:
    return ", ".join(map(str, labels[:4])) + (f", ... ({len(labels)})" if len(labels) > 4 else "")


def align_classifier(
    merged: Any,
    expert: Any,
    inputs: Sequence[Any],
    *,
    task: str = "",
    protocol: str = "ft_classifier",
    preset: str = "default",
    device: str = "auto",
    batch_size: int = 64,
    max_length: int = 0,
    processor: Any = None,
) -> Classifier:
    """Re-align an expert's head to the merged encoder with a few unlabelled inputs (Eq. 8).

    ``merged``: what ``merge`` gave, its folder, or any model with the encoder to use. ``expert``: the fine-tuned model (hub id,
    folder, loaded), or the name of one that ``merged`` still knows; its outputs on ``inputs`` are the targets. ``protocol`` is
    "ft_classifier", "orthogonal_classifier" or "orthogonal_procrustes", ``preset`` one of FT-Classifier's.

    Warns when there are fewer inputs than classes. Raises ``DataError`` for unusable inputs, ``ConfigError`` for a head whose
    labels are not the expert's or that is no single-label classifier, ``UnknownNameError`` for names.
    """
    if protocol not in ALIGNMENTS:
        raise UnknownNameError("way to align", protocol, ALIGNMENTS)
    settings = get_preset(preset)
    known = isinstance(merged, Merged) and isinstance(expert, str) and expert in merged.experts
    teacher = expert_classifier(merged.experts[expert] if known else expert, name=task)
    task = task or teacher.head.task
    _check_softmax(teacher.head)
    student = student_of(merged, teacher, task)
    if processor is not None or teacher.processor is None:
        teacher = replace(teacher, processor=processor or student.processor)
    if processor is not None:
        student = replace(student, processor=processor)
    inputs = _checked_inputs(inputs, teacher.is_image)
    n_classes = teacher.head.config.num_labels
    if len(inputs) < n_classes:
        warnings.warn(
            f"'{task}': {len(inputs)} inputs for {n_classes} classes; some class is certainly unseen. About five per class is what "
            "the paper uses.",
            UserWarning,
            stacklevel=2,
        )
    options = {"device": device, "batch_size": batch_size, "max_length": max_length}
    z_m, z_t = (
        features(student, inputs, **options)[None],
        features(teacher, inputs, **options)[None],
    )
    linear = teacher.head.linear
    if protocol == "ft_classifier":
        fitted = ft_classifier(z_m, linear.logits(z_t), linear, settings)
    else:
        fitted = orthogonal_classifier(
            z_m,
            z_t,
            linear,
            settings,
            fit="kl" if protocol == "orthogonal_classifier" else "procrustes",
        )
    said = {
        "protocol": protocol,
        "preset": preset,
        "n": len(inputs),
        "classes": n_classes,
        "max_length": max_length or "model's own",
    }
    return replace(
        student, head=student.head.with_linear(Head(fitted.weight[0], fitted.bias[0]), said)
    )


def labelled(dataset: Any, head: TaskHead) -> Split:
    """``(inputs, labels)``, a ``Split``, or a ``datasets.Dataset`` with text or image and label columns, as a ``Split``.

    Labels are 0-based numbers or the head's label names. Raises ``DataError`` for labels that the head does not have.
    """
    if isinstance(dataset, Split):
        inputs, labels = dataset.inputs, dataset.labels.tolist()
    elif hasattr(dataset, "column_names"):
        columns = [c for c in ("text", "sentence", "image", "img") if c in dataset.column_names]
        if not columns or "label" not in dataset.column_names:
            raise DataError(
                f"A data set needs a column text or image and a column label; it has {', '.join(dataset.column_names)}."
            )
        inputs, labels = dataset[columns[0]], dataset["label"]
    else:
        try:
            inputs, labels = dataset
        except (TypeError, ValueError) as error:
            raise DataError(
                "A data set is (inputs, labels), a Split, or a datasets.Dataset."
            ) from error
    numbers = {str(name): i for i, name in enumerate(head.labels)}
    labels = [
        numbers.get(y, y) if isinstance(y, str) else int(y)
        for y in (labels.tolist() if isinstance(labels, Tensor) else labels)
    ]
    odd = next((y for y in labels if isinstance(y, str) or not 0 <= y < len(head.labels)), None)
    if odd is not None:
        raise DataError(
            f"Label {odd!r} is none of '{head.task}'s: 0..{len(head.labels) - 1} or {_few(head.labels)}."
        )
    if not labels:
        raise DataError("The data set is empty.")
    return Split(tuple(inputs), torch.tensor(labels))


def evaluate(
    model: Any,
    dataset: Any,
    protocols: Sequence[str] = ("current",),
    *,
    task: str = "",
    expert: Any = None,
    fit: Any = None,
    k: int = 5,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    draw: str = "stratified",
    preset: str = "default",
    device: str = "auto",
    batch_size: int = 64,
    max_length: int = 0,
    processor: Any = None,
    method: str = "",
    show_progress: bool = False,
) -> pd.DataFrame:
    """Accuracy in percent of one classifier under the given protocols; the columns are those of ``Study.scores``.

    ``model``: a ``Classifier``, a fine-tuned model (hub id, folder, loaded), or a ``Merged`` (or its folder) with ``task``.
    ``dataset``: see ``labelled``. Few-shot protocols draw ``k`` inputs per class from ``fit`` (a data set; without it from the
    scored inputs themselves, as the paper does, and the column ``fit_on`` says "test") for each seed; those that learn from an
    ``expert`` need it. FT-Classifier starts at the expert's head. ``draw``: "stratified" or "uniform".

    Raises ``UnknownNameError`` and ``ConfigError`` before anything runs, ``DataError`` for unusable data.
    """
    found = [get_protocol(p) for p in protocols]
    get_preset(preset)
    if draw not in ("stratified", "uniform"):
        raise UnknownNameError("draw", draw, ("stratified", "uniform"))
    for p in found:
        if p.few_shot and draw not in p.draws:
            raise ConfigError(
                f"{p.label} needs a stratified draw: its anchors stand for their class."
            )
        if p.few_shot and p.name != "knn" and expert is None:
            raise ConfigError(f"{p.label} learns from the expert's outputs: give expert=.")
    classifier = as_classifier(model, task)
    if processor is not None:
        classifier = replace(classifier, processor=processor)
    _check_softmax(classifier.head)
    scored = labelled(dataset, classifier.head)
    options = {"device": device, "batch_size": batch_size, "max_length": max_length}
    name = classifier.head.task
    z = features(
        classifier, scored.inputs, **options, desc=f"features {name}" if show_progress else ""
    )
    common = {"task": name, "method": method or _method_name(classifier), "n": len(scored)}
    rows = [
        common
        | {
            "protocol": p.name,
            "accuracy": percent(
                p.function(Evidence(z, classifier.head.linear))[0, 0] == scored.labels
            ),
        }
        for p in found
        if not p.few_shot
    ]
    if any(p.few_shot for p in found):
        pool = scored if fit is None else labelled(fit, classifier.head)
        z_fit = (
            z
            if fit is None
            else features(
                classifier,
                pool.inputs,
                **options,
                desc=f"features {name}, pool" if show_progress else "",
            )
        )
        teacher = None if expert is None else expert_classifier(expert, name=name)
        if teacher is not None and teacher.head.labels != classifier.head.labels:
            raise ConfigError(
                f"'{name}' has the labels {_few(classifier.head.labels)}, the expert {_few(teacher.head.labels)}."
            )
        if teacher is not None and (processor is not None or teacher.processor is None):
            teacher = replace(teacher, processor=classifier.processor)
        z_t = None if teacher is None else features(teacher, pool.inputs, **options)
        linear = classifier.head.linear if teacher is None else teacher.head.linear
        n_classes = len(classifier.head.labels)
        draws = torch.stack(
            [
                stratified_order(pool.labels, n_classes, k, s)
                if draw == "stratified"
                else uniform_order(len(pool), k * n_classes, s).view(k, n_classes).T
                for s in seeds
            ]
        )
        evidence = Evidence(z, linear, z_fit, z_t, draws, (k,), get_preset(preset))
        for p in found:
            if p.few_shot:
                rows += [
                    common
                    | {
                        "protocol": p.name,
                        "k": k,
                        "draw": draw,
                        "fit_on": "test" if fit is None else "train",
                        "seed": s,
                        "accuracy": percent(predicted == scored.labels),
                    }
                    for s, predicted in zip(seeds, p.function(evidence)[0], strict=True)
                ]
    return pd.DataFrame(rows).reindex(columns=SCORE_COLUMNS).astype({"k": "Int64", "seed": "Int64"})


def as_classifier(model: Any, task: str = "") -> Classifier:
    """Whatever ``evaluate`` takes, as a ``Classifier``. Raises ``ConfigError`` for a merged model without ``task``."""
    if (
        isinstance(model, str | os.PathLike)
        and (user_path(model) / RECORD).is_file()
        and (user_path(model) / "heads").is_dir()
    ):
        model = load_merged(model)
    if isinstance(model, Merged):
        if not task and len(model.heads) > 1:
            raise ConfigError(f"Which head? Give task=, one of {', '.join(model.heads)}.")
        return model.classifier(task or next(iter(model.heads)))
    classifier = expert_classifier(model)
    return replace(classifier, head=replace(classifier.head, task=task)) if task else classifier


def _method_name(classifier: Classifier) -> str:
    return classifier.record.get("method", "f_t") if classifier.record else "f_t"
