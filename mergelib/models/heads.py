"""Features of Hugging Face classifiers, heads re-aligned to a merged encoder, and scores."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..core.bootstrap import interval, resampled_means
from ..core.documents import read_json
from ..core.errors import (
    ConfigError,
    DataError,
    UnknownNameError,
    check_name,
    first_five,
    shortened,
    warn,
)
from ..core.progress import progress
from ..core.types import Head, Split, is_whole, percent, state_digest
from ..encoders.features import pick_device
from ..protocols import (
    Evidence,
    ft_classifier,
    get_preset,
    get_protocol,
    orthogonal_classifier,
    procrustes_head,
    uniform_order,
)
from ..protocols.draws import shots_order
from ..tasks.data import labelled, unlabelled
from ..tasks.parquet import open_image
from .folders import RECORD
from .kinds import METRICS, check_single, kind_of
from .merged import Classifier, Merged, TaskHead, cast, dtype_of, load_merged
from .parents import Parent, open_parent
from .parts import (
    check_same_architecture,
    find_parts,
    only_added,
    processors_of,
    vocabulary_differs,
)
from .plan import first_line, layout_of, plan

UNLIMITED = 10**6  # tokens
ALIGNMENTS = ("ft_classifier", "orthogonal_classifier", "orthogonal_procrustes")
SCORE_COLUMNS = "task method protocol k draw fit_on seed accuracy low high n".split()


def expert_classifier(
    source: Any, *, name: str = "", encoder: Sequence[str] = (), head: str = ""
) -> Classifier:
    """Any fine-tuned classifier (hub id, folder, loaded model) as a ``Classifier``, unchanged.

    Args:
        source: what ``open_parent`` takes; a ``Classifier`` is returned as it is.
        name: the task's name; default: as of ``open_parent``.
        encoder, head: as of ``find_parts``.
    """
    if isinstance(source, Classifier):
        return source
    parent = open_parent(source, name)
    parts = find_parts(parent, encoder=encoder, head=head)
    tensors = {n: parent.weights.tensor(n) for n in parts.encoder}
    task = TaskHead.of(parent, parts, dtype_of(tensors))
    return Classifier(tensors, task, {}, parent.processor, (parent.folder,))


def _limit(classifier: Classifier, max_length: int) -> int:
    """After how many tokens texts are cut."""
    positions = getattr(classifier.head.config, "max_position_embeddings", 0)
    limits = (max_length, positions, classifier.processor.model_max_length, UNLIMITED)
    # Some architectures have no limit and say -1; others reserve some positions.
    return min(n for n in limits if n and n > 0)


def prepared(classifier: Classifier, inputs: Sequence[Any], max_length: int) -> list[Any]:
    """Images with their numbers, or of each text (or pair) its token ids and masks, cut to the
    model's maximum length. ``collated`` makes a batch of some.

    Raises ``DataError`` without a tokenizer or image processor, and for a token id beyond the
    embedding; ``ConfigError`` where nothing of a text would be left.
    """
    processor, task = classifier.processor, classifier.head.task
    if processor is None:
        raise DataError(
            f"'{task}' has no tokenizer or image processor "
            "in the folder of the model that is asked; copy its files there. "
            "In Python, align_classifier and evaluate take processor=, too."
        )
    if classifier.is_image:
        return list(enumerate(inputs))
    length = _limit(classifier, max_length)
    n_special = processor.num_special_tokens_to_add(isinstance(inputs[0], tuple))
    if length <= n_special:
        raise ConfigError(
            f"Texts cut to {length} tokens (max_length, --max-length) are empty: the tokenizer of "
            f"'{task}' adds {n_special} of its own."
        )
    encoded = _tokens(processor, inputs, length)
    sizes = [len(ids) for ids in encoded["input_ids"]]
    if max(sizes) > length - 8:
        longest = inputs[sizes.index(max(sizes))]
        encoded = _tokens(processor, inputs, _usable_length(classifier, longest, max(sizes)))
    rows = classifier.model.get_input_embeddings().weight.shape[0]
    highest = max(max(ids, default=0) for ids in encoded["input_ids"])
    if highest >= rows:
        token = processor.convert_ids_to_tokens([highest])[0]
        raise DataError(
            f"The tokenizer of '{task}' gives {token!r} the id {highest}, "
            f"but the model's embedding has {rows} rows. "
            "Use the tokenizer that the model was fine-tuned with."
        )
    return [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]


def _tokens(processor: Any, inputs: Sequence[Any], length: int, **options: Any) -> dict[str, Any]:
    """Of texts, or tuples of one or two."""
    rows = [x if isinstance(x, tuple) else (x,) for x in inputs]
    texts = map(list, zip(*rows, strict=True))
    return dict(processor(*texts, truncation=True, max_length=length, **options))


def _usable_length(classifier: Classifier, text: Any, length: int) -> int:
    """The largest number of tokens up to ``length`` that the model accepts, found by trying:
    positions may start after the padding index, or some may be reserved."""
    # on the CPU, where an index out of range is an error that can be caught
    classifier.model.to("cpu")

    def fails(n: int) -> bool:
        try:
            classifier.model(**_tokens(classifier.processor, [text], n, return_tensors="pt"))
        except Exception:  # the tokenizer fails, too, if the length is below its special tokens
            return True
        return False

    if not fails(length):
        return length
    # if nothing fits, length is not the reason
    return bisect_left(range(1, length), True, key=fails) or length


def collated(classifier: Classifier, items: Sequence[Any]) -> dict[str, Tensor]:
    """A batch of what ``prepared`` gave. Raises ``DataError`` for an image that cannot be read, and
    where texts need padding and the tokenizer has no token for it."""
    processor = classifier.processor
    if classifier.is_image:
        return dict(processor([open_image(x, f"Image {i}") for i, x in items], return_tensors="pt"))
    batch = {key: [item[key] for item in items] for key in items[0]}
    if len({len(ids) for ids in batch["input_ids"]}) == 1:
        return {key: torch.tensor(values) for key, values in batch.items()}
    if processor.pad_token is None:
        raise DataError(
            f"The tokenizer of '{classifier.head.task}' has no padding token, which a batch of "
            "texts with different lengths needs. Name one in its tokenizer_config.json "
            "(pad_token) or in config.json (pad_token_id), or use a batch size of 1 "
            "(batch_size=1, --batch-size 1)."
        )
    return dict(processor.pad(batch, return_tensors="pt"))


def into_layer(model: Any, module: str, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What ``module`` receives, a row per input (where it runs on every token, that of the last
    token that is no padding), and the model's logits. Empty unless it runs exactly once."""
    captured = []
    # images come in float32, whatever the weights
    batch = {n: t.to(model.dtype) if t.is_floating_point() else t for n, t in batch.items()}
    hook = model.get_submodule(module).register_forward_pre_hook(
        lambda _, args: captured.append(args[0])
    )
    try:
        logits = model(**batch, return_dict=True).logits
    finally:
        hook.remove()
    feature = captured[0] if len(captured) == 1 else logits.new_empty(0)
    if feature.ndim == 3 and "attention_mask" in batch:
        real = batch["attention_mask"]
        if (pad := getattr(model.config, "pad_token_id", None)) is not None:  # as transformers does
            real = real * (batch["input_ids"] != pad)
        last = torch.arange(real.shape[1], device=real.device).mul(real).argmax(1)
        feature = feature[torch.arange(len(last), device=last.device), last]
    return feature, logits


@torch.no_grad()  # not inference mode: heads are fitted on the result
def features(
    classifier: Classifier,
    inputs: Sequence[Any],
    *,
    device: str = "auto",
    batch_size: int = 64,
    max_length: int = 0,
    desc: str = "",
) -> Tensor:
    """Inputs of the last linear layer, in evaluation mode and in the inputs' order.

    Args:
        classifier: encoder and head.
        inputs: N texts, batched by length; or files, PIL images or arrays.
        device: where the model runs.
        batch_size: inputs at a time.
        max_length: cut texts to this many tokens; default: the model's maximum.
        desc: label of the progress bar; without it there is none.

    Returns:
        ``[N, d]`` float32 on the CPU.

    Raises:
        DataError: inputs of the wrong kind, or that the tokenizer or the model does not accept.
        ConfigError: the model's output is not that linear layer's.
    """
    batch_size = _whole("batch_size", batch_size, 1)
    max_length = _whole("max_length", max_length, 0)
    inputs = unlabelled(inputs, classifier.is_image)
    task, module = classifier.head.task, classifier.head.module
    items = prepared(classifier, inputs, max_length)
    order = range(len(items))
    if not classifier.is_image:
        order = sorted(order, key=lambda i: len(items[i]["input_ids"]))
    target = pick_device(device)
    model = classifier.model.to(target)
    z = torch.empty(len(inputs), classifier.head.linear.weight.shape[1])
    for rows in progress(torch.tensor(order).split(batch_size), desc=desc):
        batch = collated(classifier, [items[i] for i in rows])
        batch = {k: v.to(target) for k, v in batch.items()}
        try:
            feature, logits = into_layer(model, module, batch)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, ValueError) as error:
            raise DataError(
                f"The model of '{task}' does not accept its inputs ({first_line(error)}). Are "
                "they too long (--max-length), too many at once (--batch-size 1), or of another "
                "kind than the model was trained on?"
            ) from error
        if feature.shape != (len(rows), z.shape[1]):
            raise ConfigError(
                f"'{module}' of '{task}' is not applied exactly once, to one feature per input; "
                "name the last linear layer when merging (head=, --head)."
            )
        z[rows] = feature.float().cpu()
        through = model.get_submodule(module)(feature)
        if through.shape != logits.shape or not torch.allclose(
            through, logits, rtol=1e-3, atol=1e-4
        ):
            raise ConfigError(
                f"The logits of '{task}' are not what '{module}' computes from the feature of an "
                "input (or of its last token); name the last linear layer when merging (head=, "
                "--head), and check that config.json's pad_token_id is the tokenizer's."
            )
    return z


def _whole(name: str, value: Any, least: int) -> int:
    if not is_whole(value) or value < least:
        raise ConfigError(f"{name} must be an integer of at least {least}, not {shortened(value)}.")
    return int(value)


def check_same_head(head: TaskHead, expert: TaskHead, whole: bool = True) -> None:
    """Raises ``ConfigError`` if a merged model's head has other labels than the expert's or, if
    ``whole`` and before its first re-alignment, another last layer."""
    remedy = "Give the expert that this head comes from, or another task name."
    if head.labels != expert.labels:
        raise ConfigError(
            f"The head for '{head.task}' has the labels {first_five(head.labels)}, the expert "
            f"{first_five(expert.labels)}. {remedy}"
        )
    ours, given = head.linear.weight, expert.linear.weight
    rounding = {"rtol": 2**-7, "atol": 1e-6}  # of bfloat16 and float16
    if whole and not head.alignment and not torch.allclose(ours, given, **rounding):
        raise ConfigError(
            f"The merged model's head for '{head.task}' is not the expert's: their last layers "
            f"differ. {remedy}"
        )


def student_of(merged: Any, expert: Classifier, task: str) -> Classifier:
    """The merged encoder with the expert's neck and head.

    Args:
        merged: a ``Merged``, its folder, or any model of the expert's architecture whose encoder is
            used.
        expert: the classifier with the neck and the head.
        task: the head's name; of a ``Merged``, also the head whose labels are compared.

    Raises:
        ConfigError: the merged model's head for this task is another than the expert's, or its
            encoder or tokenizer is not that of the expert.
        StateDictError: the configurations differ, see ``check_same_architecture``.
    """
    merged, shared, extended = _merged_or_parent(merged), None, False
    model_class, own = type(expert.model), expert.head.config
    config = copy.deepcopy(own)
    if isinstance(merged, Merged):
        head = merged.heads.get(task)
        like = (head or next(iter(merged.heads.values()))).config
        shared = merged.processors.get(task, merged.processor)
        processor = shared or next(iter(merged.processors.values()), None)
        n_rows = {getattr(c, "vocab_size", 0) for c in (own, like)}
        extended = len(n_rows) > 1 or only_added(processor, expert.processor)
        if extended:  # by tokens that another expert added
            for key, value in like.to_dict().items():
                if key == "vocab_size" or key.endswith("_token_id"):
                    setattr(config, key, value)
        elif head:
            check_same_architecture(task, own, "the merged model", like)
        if head:
            check_same_head(head, expert.head)
        encoder, record, inputs = merged.encoder_of(task), merged.record, merged.inputs
        loaded = plan(model_class, config, layout_of(encoder))
    else:
        check_same_architecture(task, own, merged.name, merged.config)
        loaded = merged.plan_as(model_class, own)
        encoder = {n: merged.weights.tensor(n) for n in loaded.fills}
        inputs, processor = (merged.folder,), processors_of([merged])[0]
        record = {"label": "given", "experts": {}, "method": "given", "base": None}
    layer, prefix = f"{expert.head.module}.", f"{model_class.base_model_prefix}."
    filled = {p for places in loaded.fills.values() for p in places if not p.startswith(layer)}
    misfits = [p for p in loaded.mismatched if not p.startswith(layer)] + loaded.gaps(prefix)
    misfits += [n for n in encoder if n not in loaded.fills]
    if misfits or not filled:
        raise ConfigError(
            f"The merged encoder's architecture is not that of '{task}': "
            f"{first_five(misfits) or 'nothing in common'}."
        )
    encoder = {n: t for n, t in encoder.items() if filled & {*loaded.fills[n]}}
    differ = vocabulary_differs(processor, expert.processor)
    if differ and not extended:
        raise ConfigError(
            f"The tokenizers of the merged model and of the expert for '{task}' differ in {differ}."
        )
    # The neck, which is not merged, and the way inputs are read are the expert's.
    whole = {**expert.encoder, **expert.head.tensors}
    places = plan(model_class, own, layout_of(whole)).fills
    tensors = {n: t for n, t in whole.items() if not filled & {*places.get(n, ())}}
    if not (shared or extended):
        processor = expert.processor or processor
    config.dtype = dtype_of(encoder)
    tensors = cast(tensors, config.dtype)
    head = replace(expert.head, tensors=tensors, task=task, config=config)
    return Classifier(encoder, head, record, processor, (*inputs, *expert.inputs))


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
    """Re-align an expert's head to the merged encoder with a few unlabelled inputs.

    The head solves Eq. 8; for several classes at once with the KL of sigmoids, for numbers with the
    squared error. Warns if there are fewer inputs than classes.

    Args:
        merged: what ``merge`` gave, its folder, or any model with the encoder to use.
        expert: the fine-tuned model (hub id, folder, loaded), or the name of an expert that
            ``merged`` still holds; its outputs on ``inputs`` are the targets.
        inputs: texts, or files, PIL images or arrays.
        task: the head's name; default: the expert's.
        protocol: "ft_classifier", "orthogonal_classifier" or "orthogonal_procrustes".
        preset: one of FT-Classifier's.
        device, batch_size, max_length: as of ``features``.
        processor: tokenizer or image processor, instead of the models'.

    Raises:
        DataError: inputs that cannot be used.
        ConfigError: a head whose labels are not the expert's, or one that ``protocol`` cannot fit.
        UnknownNameError: a protocol or preset that does not exist.

    Example:
        >>> from mergelib.foundations.bert import build_tokenizer
        >>> texts = ["the cup final", "shares fell", "a late goal", "profits rise"]
        >>> tokenizer = build_tokenizer(texts)  # folders of models have one
        >>> aligned = mergelib.align_classifier(merged, "news", texts, processor=tokenizer)
        >>> aligned.head.alignment["n"]
        4
    """
    check_name("way to align", protocol, ALIGNMENTS)
    settings = get_preset(preset)
    if isinstance(merged, Merged) and isinstance(expert, str):
        expert = merged.experts.get(expert, expert)
    teacher = expert_classifier(expert, name=task)
    task = task or teacher.head.task
    kind = kind_of(teacher.head.config)
    if protocol == "orthogonal_classifier":
        check_single(teacher.head.config, task, protocol)
    student = student_of(merged, teacher, task)
    student = student.reading_by(processor or student.processor)
    teacher = teacher.reading_by(processor or teacher.processor or student.processor)
    if not teacher.is_image and student.processor:  # an earlier one may cut shorter
        student = _cut_at(student, teacher.processor.model_max_length)
    inputs = unlabelled(inputs, teacher.is_image)
    n_classes = teacher.head.config.num_labels
    if len(inputs) < n_classes:
        warn(
            f"'{task}': {len(inputs)} inputs for {n_classes} classes; at least one class is "
            "unseen. The paper uses about five per class."
        )
    options = {"device": device, "batch_size": batch_size, "max_length": max_length}
    z_m, z_t = (features(model, inputs, **options)[None] for model in (student, teacher))
    linear = teacher.head.linear
    if protocol == "ft_classifier":
        fit_options = {"loss": kind.loss, "fit_bias": teacher.head.has_bias}
        fitted = ft_classifier(z_m, linear.logits(z_t), linear, settings, **fit_options)
    elif protocol == "orthogonal_classifier":
        fitted = orthogonal_classifier(z_m, z_t, linear, settings)
    else:
        fitted = procrustes_head(z_m, z_t, linear)
    if not student.is_image and (length := _limit(student, max_length)) < UNLIMITED:
        parts = inputs[0] if isinstance(inputs[0], tuple) else (inputs[0],)
        long = tuple(" ".join([part] * length) for part in parts)
        student = _cut_at(student, _usable_length(student, long, length))
    record = {
        "protocol": protocol,
        "preset": preset,
        "n": len(inputs),
        "classes": n_classes,
        "max_length": max_length or "model's own",
    }
    return replace(
        student, head=student.head.with_linear(Head(fitted.weight[0], fitted.bias[0]), record)
    )


def _cut_at(classifier: Classifier, length: int) -> Classifier:
    """With a tokenizer that knows after how many tokens it cuts, in its folder, too."""
    return classifier.reading_by(_cutting(classifier.processor, length))


@functools.lru_cache(maxsize=8)  # so that tasks that share a tokenizer still do
def _cutting(tokenizer: Any, length: int) -> Any:
    if tokenizer.model_max_length == length:
        return tokenizer
    shorter = copy.deepcopy(tokenizer)
    shorter.model_max_length = length
    return shorter


def predict(
    model: Any,
    inputs: Any,
    tasks: Sequence[str] = (),
    *,
    top: int = 1,
    text_column: str | int | None = None,
    device: str = "auto",
    batch_size: int = 64,
    max_length: int = 0,
    show_progress: bool = False,
) -> pd.DataFrame:
    """The classes that a model's heads predict; features that heads share are computed once.

    Args:
        model: what ``evaluate`` takes; a ``Merged``, or its folder, answers with every head.
        inputs: N unlabelled texts or images, in any form that ``tasks.rows_of`` takes.
        tasks: heads to ask; default: all.
        top: how many classes of each input, best first. Of heads with several labels or
            values, all.
        text_column: column of the text in tables.
        device, batch_size, max_length: as of ``features``.
        show_progress: whether to show bars.

    Returns:
        Columns task, row, input, label and score. ``row`` counts inputs from 0, ``input`` is the
        text or the image's file, ``score`` the class's probability, of a regression its value.

    Raises:
        DataError, ConfigError, UnknownNameError: what cannot be used, before features are computed.
    """
    top = _whole("top", top, 1)
    model = opened(model)
    for task in tasks:
        check_name("task", task, model.heads)
    inputs = unlabelled(inputs, next(iter(model.heads.values())).is_image, text_column)
    rows = pd.DataFrame({"row": range(len(inputs)), "input": [*map(_shown, inputs)]})
    z, frames = {}, []
    for task in tasks or model.heads:
        classifier = model.classifier(task)
        head = classifier.head
        key = id(classifier.processor), state_digest(head.neck)
        if key not in z:
            z[key] = features(
                classifier,
                inputs,
                device=device,
                batch_size=batch_size,
                max_length=max_length,
                desc=f"features {task}" * show_progress,
            )
        kind, k = kind_of(head.config), len(head.labels)
        k = k if kind.scores else min(top, k)
        best, classes = kind.outputs(head.linear.logits(z[key])).topk(k)
        frame = rows.loc[rows.row.repeat(k)].assign(
            label=[head.labels[c] for c in classes.flatten().tolist()],
            score=best.flatten().double().numpy().round(6),
        )
        frame.insert(0, "task", task)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _shown(x: Any) -> str:
    """An input in a table of predictions."""
    if isinstance(x, tuple):
        return " | ".join(x)
    return str(x) if isinstance(x, str | os.PathLike) else ""


def scoring(
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
) -> Callable[[], pd.DataFrame]:
    """Accuracy in percent of one classifier under ``protocols``; the columns are those of
    ``Study.scores``, and ``low`` and ``high``: the 95 % interval of a protocol's mean over its
    seeds, by resampling inputs and seeds. A multi-label head has micro and macro F1 in percent
    instead, one that predicts numbers Pearson's r and the mean squared error; the interval is that
    of the first.

    ``evaluate`` gives the rows. ``scoring`` reads and checks everything, and gives the function
    that computes features and rows.

    Args:
        model: a ``Classifier``, a fine-tuned model (hub id, folder, loaded), or a ``Merged`` (or
            its folder) with ``task``.
        dataset: anything that ``tasks.rows_of`` takes, labels as names or 0-based numbers.
        protocols: names of protocols.
        task: which of a ``Merged``'s heads.
        expert: the fine-tuned model, for protocols that learn from it; FT-Classifier starts at its
            head.
        fit: a data set that few-shot protocols draw from. Without it they draw from the scored
            inputs, as the paper does, and the column ``fit_on`` says "test".
        k: inputs per class, drawn for each of ``seeds``.
        seeds: of the draws.
        draw: "stratified" or "uniform".
        preset: one of FT-Classifier's.
        device, batch_size, max_length: as of ``features``.
        processor: tokenizer or image processor, instead of the model's.
        method: what the column method says; default: the merging method.
        show_progress: whether to show bars.

    Raises:
        ConfigError, UnknownNameError, DataError: what cannot be scored, before features are
            computed.

    Example:
        >>> data = (["they won the cup", "a bank fails"], [0, 1])  # texts, labels
        >>> scores = mergelib.evaluate(aligned, data, processor=tokenizer)
        >>> list(scores.columns[:5])
        ['task', 'method', 'protocol', 'k', 'draw']
        >>> scores.task.item(), scores.protocol.item(), scores.n.item()
        ('news', 'current', 2)
    """
    chosen = [get_protocol(p) for p in protocols]
    few_shot = [p for p in chosen if p.few_shot]
    settings = get_preset(preset)
    k = _whole("k, the number of inputs per class,", k, 1)
    seeds = [_whole("A seed", s, 0) for s in ([seeds] if isinstance(seeds, int) else seeds)]
    if not chosen or not seeds:
        raise ConfigError(f"Give at least one {'seed' if chosen else 'protocol'}.")
    if draw not in ("stratified", "uniform"):
        raise UnknownNameError("draw", draw, ("stratified", "uniform"))
    for p in few_shot:
        if draw not in p.draws:
            raise ConfigError(
                f"{p.label} needs a stratified draw: each anchor stands for its class."
            )
        if p.name != "knn" and expert is None:
            raise ConfigError(
                f"{p.label} learns from the expert's outputs: give expert= (--experts)."
            )
    model = opened(model)
    classifier = model.classifier(task)
    classifier = classifier.reading_by(processor or classifier.processor)
    head, is_image = classifier.head, classifier.is_image
    name, labels, kind = head.task, head.labels, kind_of(head.config)
    for p in chosen:
        if p.name != "current":
            check_single(head.config, name, p.label)
    scored = labelled(dataset, labels, name, is_image=is_image, problem=kind.name)
    pool, draws, teacher = scored, None, None
    if few_shot:
        if fit is not None:
            pool = labelled(fit, labels, name, is_image=is_image)
            _warn_of_shared(scored, pool, name)
        try:
            order = functools.partial(shots_order, pool.labels, len(labels), k, draw=draw)
            draws = torch.stack([order(seed) for seed in seeds])
        except DataError as error:
            raise DataError(f"'{name}': {error}") from error
        teacher = None if expert is None else expert_classifier(expert, name=name)
    if teacher:
        check_same_head(head, teacher.head, isinstance(model, Merged))
        teacher = teacher.reading_by(processor or teacher.processor or classifier.processor)

    def scores() -> pd.DataFrame:
        options = {"device": device, "batch_size": batch_size, "max_length": max_length}
        desc = f"features {name}" * show_progress
        z = features(classifier, scored.inputs, **options, desc=desc)
        common = {"task": name, "method": method or classifier.record.get("method", "f_t")}
        common["n"] = len(scored)
        if kind.scores:
            metrics = kind.measured(kind.predict(head.linear.logits(z)), scored.labels)
            low, high = interval(next(iter(metrics.values())))
            common |= {"protocol": "current", "low": low, "high": high}
            row = common | {name: float(values[0]) for name, values in metrics.items()}
            names = [*(c for c in SCORE_COLUMNS if c not in METRICS), *metrics]
            return pd.DataFrame([row]).reindex(columns=names)
        evidence = once = Evidence(z, head.linear)
        if few_shot:
            z_fit, z_t = z, None
            if fit is not None:
                desc += ", pool" * show_progress
                z_fit = features(classifier, pool.inputs, **options, desc=desc)
            if teacher:
                z_t = features(teacher, pool.inputs, **options)
            linear = (teacher or classifier).head.linear
            evidence = Evidence(z, linear, z_fit, z_t, draws, (k,), settings)
        shots = {"k": k, "draw": draw, "fit_on": "test" if fit is None else "train"}
        rows = []
        for p in sorted(chosen, key=lambda p: p.few_shot):
            correct = p(evidence if p.few_shot else once, where=name)[0] == scored.labels
            low, high = interval(100 * resampled_means(correct))
            measured = common | {"protocol": p.name, "low": low, "high": high}
            for seed, hits in zip(seeds, correct, strict=p.few_shot):
                drawn = shots | {"seed": seed} if p.few_shot else {}
                rows.append(measured | drawn | {"accuracy": percent(hits)})
        frame = pd.DataFrame(rows).reindex(columns=SCORE_COLUMNS)
        return frame.astype({"k": "Int64", "seed": "Int64"})

    return scores


@functools.wraps(scoring, assigned=("__doc__",))
def evaluate(*args: Any, **options: Any) -> pd.DataFrame:
    return scoring(*args, **options)()


evaluate.__signature__ = inspect.signature(scoring).replace(return_annotation="pd.DataFrame")


def draw_inputs(inputs: Sequence[Any], n_classes: int, k: int, seed: int, task: str) -> list[Any]:
    """k per class on average of a task's inputs, without labels. Raises ``DataError`` for too
    few."""
    try:
        rows = uniform_order(len(inputs), k * n_classes, seed)
    except DataError as error:
        raise DataError(f"'{task}': {error}") from error
    return [inputs[i] for i in rows.tolist()]


def _warn_of_shared(scored: Split, fit: Split, name: str) -> None:
    """Warn that rows are both fitted on and scored, which the column ``fit_on`` does not show."""
    kinds = str | tuple | os.PathLike
    known = {x for x in fit.inputs if isinstance(x, kinds)}
    n = sum(x in known for x in scored.inputs if isinstance(x, kinds))
    if n:
        warn(
            f"'{name}': {n} of {len(scored)} scored inputs are also in the data to draw from "
            "(fit); their accuracy is not a test."
        )


def opened(model: Any) -> Merged | Classifier:
    """A hub id, folder or loaded model; what is one already stays as it is."""
    if isinstance(model, Classifier):
        return model
    model = _merged_or_parent(model)
    if isinstance(model, Merged):
        return model
    file = model.folder / RECORD
    record = read_json(file, RECORD) if file.is_file() else {}  # of a merged model's task
    return replace(expert_classifier(model), record={"method": str(record.get("method", "f_t"))})


def _merged_or_parent(model: Any) -> Merged | Parent:
    if isinstance(model, Merged):
        return model
    parent = open_parent(model)
    return load_merged(parent.folder) if (parent.folder / "heads").is_dir() else parent
