"""Small real models on disk: random configurations, briefly fine-tuned, saved as anybody would save
them."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    CLIPConfig,
    DebertaV2Config,
    DistilBertConfig,
    RobertaConfig,
    ViTConfig,
    ViTImageProcessor,
)

import mergelib
from mergelib.foundations.bert import build_tokenizer
from mergelib.tasks import miniature

CUT = 8  # tokens
SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
TASKS = {"ag": 4, "yelp": 5}
COLOURS = {"colour": ("red", "green", "blue"), "light": ("dark", "bright")}


def texts(task: str, n: int, seed: int) -> tuple[list[str], list[int]]:
    inputs, labels = zip(*miniature.generate(task, n, seed=seed), strict=True)
    return list(inputs), list(labels)


def pictures(task: str, n: int, seed: int) -> tuple[list[Image.Image], list[int]]:
    random = np.random.default_rng(seed)
    labels = [i % len(COLOURS[task]) for i in range(n)]
    found = []
    for y in labels:
        pixels = random.integers(0, 90, (16, 16, 3))
        if task == "colour":
            pixels[:, :, y] += 120
        else:
            pixels += 140 * y
        found.append(Image.fromarray(pixels.astype(np.uint8)))
    return found, labels


def data(kind: str, task: str, n: int, seed: int):
    """Inputs, which this kind of model reads, and labels."""
    return (pictures if is_image(kind) else texts)(task, n, seed)


def experts(found):
    return {name: folder for name, folder in found.items() if name != "base"}


def merge(found, method="ties", **options):
    return mergelib.merge(method, base=found["base"], experts=experts(found), **options)


@pytest.fixture(scope="session")
def tokenizer():
    corpus = [t for task in TASKS for t in texts(task, 200, 5)[0]]
    return build_tokenizer(corpus)


def named(labels):
    """Names of classes, as a configuration holds them."""
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}


def config_of(kind: str, vocab: int, **labels):
    text = {"vocab_size": vocab, "max_position_embeddings": 64, "pad_token_id": 0, **labels}
    return {
        "bert": lambda: BertConfig(**text, **SIZE),
        "roberta": lambda: RobertaConfig(**text, **SIZE),
        "deberta": lambda: DebertaV2Config(
            **text,
            **SIZE,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            position_biased_input=False,
            pooler_hidden_size=32,
        ),
        "distilbert": lambda: DistilBertConfig(
            **text, dim=32, n_layers=2, n_heads=2, hidden_dim=48
        ),
        "vit": lambda: ViTConfig(image_size=16, patch_size=8, **SIZE, **labels),
        "clip": lambda: CLIPConfig(
            text_config={"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, **SIZE},
            projection_dim=16,
            vision_config={"image_size": 16, "patch_size": 8, **SIZE},
            **labels,
        ),
    }[kind]()


def is_image(kind: str) -> bool:
    return kind in ("vit", "clip")


def processor_of(kind: str, tokenizer):
    return ViTImageProcessor(size={"height": 16, "width": 16}) if is_image(kind) else tokenizer


def make_family(folder, kind: str, tokenizer, *, steps: int = 12, dtype=torch.float32):
    """``base/`` and one fine-tuned folder per task, under ``folder``; returns the folders by
    name."""
    processor = processor_of(kind, tokenizer)
    names = COLOURS if is_image(kind) else {task: miniature.TEXT_TASKS[task] for task in TASKS}
    auto = AutoModelForImageClassification if is_image(kind) else AutoModelForSequenceClassification
    cut = {} if is_image(kind) else {"padding": True, "truncation": True, "max_length": 48}
    found = {name: folder / name for name in ("base", *names)}
    torch.manual_seed(0)
    base = transformers.AutoModel.from_config(config_of(kind, len(tokenizer))).eval()
    base.save_pretrained(found["base"])
    for seed, (task, labels) in enumerate(names.items()):
        torch.manual_seed(seed)
        config = config_of(kind, len(tokenizer), **named(labels))
        if kind == "clip":
            model = auto.from_config(config)
            model.vision_model.load_state_dict(base.vision_model.state_dict())
        else:
            model = auto.from_pretrained(found["base"], config=config)
        inputs, y = data(kind, task, 96, 10 + seed)
        batch = processor(inputs, return_tensors="pt", **cut)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            model(**batch, labels=torch.tensor(y)).loss.backward()
            optimizer.step()
        model.to(dtype).eval().save_pretrained(found[task])
    for place in found.values():
        processor.save_pretrained(place)
    return found


@pytest.fixture(scope="session")
def family(tmp_path_factory, tokenizer):
    """``family(kind)``: base and two experts of one architecture, made once."""
    return functools.cache(lambda kind: make_family(tmp_path_factory.mktemp(kind), kind, tokenizer))


@pytest.fixture(scope="session")
def aligned(family, tmp_path_factory):
    """``aligned(kind)``: a merge whose heads were re-aligned with texts of at most CUT tokens, and
    the folder that it was saved in."""

    @functools.cache
    def get(kind: str):
        old, new = merge(family(kind), keep=0.3, lam=1.0), []
        for task in old.heads:
            inputs = data(kind, task, 25, 40)[0]
            new.append(mergelib.align_classifier(old, task, inputs, max_length=CUT))
        first, models = new[0].head.task, {"old head": old, "re-aligned head": new[0]}
        rows = data(kind, first, 30, 3)
        scores = [mergelib.evaluate(m, rows, task=first, method=n) for n, m in models.items()]
        merged, folder = old.with_heads(*new), tmp_path_factory.mktemp("aligned") / kind
        return merged, merged.save_pretrained(folder, single=True, scores=pd.concat(scores))

    return get
