"""Small real models on disk: random configurations, briefly fine-tuned, saved as anybody would save
them."""

from __future__ import annotations

import numpy as np
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

from mergelib.foundations.bert import build_tokenizer
from mergelib.tasks import miniature

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
TASKS = {"ag": 4, "yelp": 5}
COLOURS = {"colour": ("red", "green", "blue"), "light": ("dark", "bright")}


def texts(task: str, n: int, seed: int) -> tuple[list[str], list[int]]:
    rows = miniature.generate(task, n, seed=seed)
    return [t for t, _ in rows], [y for _, y in rows]


def pictures(task: str, n: int, seed: int) -> tuple[list[Image.Image], list[int]]:
    random = np.random.default_rng(seed)
    found, labels = [], []
    for i in range(n):
        y = i % len(COLOURS[task])
        pixels = random.integers(0, 90, (16, 16, 3))
        if task == "colour":
            pixels[:, :, y] += 120
        else:
            pixels += 140 * y
        found.append(Image.fromarray(pixels.astype(np.uint8)))
        labels.append(y)
    return found, labels


@pytest.fixture(scope="session")
def tokenizer():
    corpus = [t for task in TASKS for t in texts(task, 200, 5)[0]]
    return build_tokenizer(corpus)


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
    names = COLOURS if is_image(kind) else TASKS
    auto = AutoModelForImageClassification if is_image(kind) else AutoModelForSequenceClassification
    torch.manual_seed(0)
    base = transformers.AutoModel.from_config(config_of(kind, len(tokenizer))).eval()
    base.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    found = {"base": folder / "base"}
    for seed, task in enumerate(names):
        torch.manual_seed(seed)
        labels = COLOURS[task] if is_image(kind) else miniature.TEXT_TASKS[task]
        config = config_of(
            kind,
            len(tokenizer),
            id2label=dict(enumerate(labels)),
            label2id={n: i for i, n in enumerate(labels)},
        )
        if kind == "clip":
            model = auto.from_config(config)
            model.vision_model.load_state_dict(base.vision_model.state_dict())
        else:
            model = auto.from_pretrained(folder / "base", config=config)
        inputs, y = (pictures if is_image(kind) else texts)(task, 96, 10 + seed)
        batch = (
            processor(inputs, return_tensors="pt")
            if is_image(kind)
            else processor(
                inputs, padding=True, truncation=True, max_length=48, return_tensors="pt"
            )
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        for _ in range(steps):
            loss = model(**batch, labels=torch.tensor(y)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.to(dtype).eval().save_pretrained(folder / task)
        processor.save_pretrained(folder / task)
        found[task] = folder / task
    return found


@pytest.fixture(scope="session")
def family(tmp_path_factory, tokenizer):
    """``family(kind)``: base and two experts of one architecture, made once."""
    made = {}

    def get(kind: str):
        if kind not in made:
            made[kind] = make_family(tmp_path_factory.mktemp(kind), kind, tokenizer)
        return made[kind]

    return get
