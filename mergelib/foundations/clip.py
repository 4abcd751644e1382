"""Pre-train a miniature CLIP contrastively on captioned drawings: the f_b of the vision variants,
and every W_t with it.

Image and text tower are those of transformers. Captions and class names are made of the same words,
but no caption holds the words of one class together, so zero-shot accuracy depends on the words'
meanings. How settings were chosen: docs/laboratory.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import CLIPConfig, PreTrainedTokenizerFast

from ..core.documents import own_yaml
from ..core.errors import DataError, UnknownNameError
from ..core.hub import fetch_model
from ..core.store import Artifact
from ..core.types import Head, Task, below
from ..encoders import ImageEncoder
from ..models.parents import Parent
from ..profiles import EncoderSettings
from ..tasks.miniature.images import CAPTIONS_VERSION, captioned, prompts
from ..training.config import TrainConfig
from ..training.loop import seeded, train
from .bert import split_as_bert, words_by_frequency
from .recipe import Foundation, Recipe
from .zero_shot import ClipParts, as_batches, load_clip

MAX_SCALE = math.log(100.0)
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
PAD, UNK, BOS, EOS = range(4)
CAPTION_SEED = 3
MAX_WORDS = 24
TEXT_LAYERS, TEXT_WIDTH, TEXT_HEADS = 2, 64, 2

PROMPTS: dict[str, list[str]] = own_yaml(__file__, "prompts.yaml")


def caption_vocab(captions: Sequence[str]) -> list[str]:
    """Special tokens, then the captions' words from the most frequent on; built from counts, so the
    same captions give the same ids."""
    return [*SPECIAL, *words_by_frequency(captions)]


def word_tokenizer(vocab: Sequence[str]) -> Any:
    """A lower-casing tokenizer of whole words that sets a text between [BOS] and [EOS], as CLIP's
    text tower expects."""
    words = WordLevel({w: i for i, w in enumerate(vocab)}, unk_token=SPECIAL[UNK])
    between = f"{SPECIAL[BOS]} $A {SPECIAL[EOS]}"
    return PreTrainedTokenizerFast(
        tokenizer_object=split_as_bert(words, between, {SPECIAL[BOS]: BOS, SPECIAL[EOS]: EOS}),
        pad_token=SPECIAL[PAD],
        unk_token=SPECIAL[UNK],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        model_max_length=MAX_WORDS,
    )


def clip_config(shape: EncoderSettings, vocab_size: int) -> Any:
    """A small CLIP of a profile's shape; feed-forward 4 x width, no dropout, logit scale from 1 /
    0.07 on, as CLIP."""

    def tower(layers: int, width: int, heads: int) -> dict[str, int]:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "projection_dim": shape.projection,
        }

    # Any eos id except 2: with that one, transformers pools at a text's largest id instead of at
    # [EOS].
    text = tower(TEXT_LAYERS, TEXT_WIDTH, TEXT_HEADS) | {
        "vocab_size": vocab_size,
        "max_position_embeddings": MAX_WORDS,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    vision = tower(shape.layers, shape.width, shape.heads) | {
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape.projection)


class CaptionContrast(nn.Module):
    """CLIP's symmetric contrastive loss, in which equal captions of a batch share their targets.

    Short captions repeat within a batch, and telling their pictures apart would mean learning
    noise. Without repetition the loss is CLIP's. The logit scale is learned and kept at 100 or
    less, as in CLIP.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.clip = transformers.CLIPModel(config)

    def forward(self, input_ids: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=MAX_SCALE)
        logits = self.clip(input_ids=input_ids, **batch).logits_per_image.float()
        matches = (input_ids[:, None] == input_ids[None]).all(-1).to(logits.dtype)
        target = matches / matches.sum(1, keepdim=True)
        return {"loss": (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2}


def _templates(task: Task) -> Sequence[str]:
    """The task's own prompts, or those of the miniature image world."""
    return task.templates or prompts(task.name)


def _class_names(task: Task) -> list[str]:
    """As prompts say them: those of a task of one's own with spaces for underscores."""
    return [n.replace("_", " ") if task.templates else n for n in task.label_names]


def check_words(task: Task, captions: Sequence[str]) -> None:
    """Raises ``DataError`` naming words of class names that no caption has: their embeddings would
    be noise."""
    words = words_by_frequency(_class_names(task))
    unknown = sorted(set(words) - set(words_by_frequency(captions)))
    if unknown:
        raise DataError(
            f"Task '{task.name}': no caption contains the words {', '.join(unknown[:5])} "
            "of its class names; its zero-shot head would be noise. "
            f"Use class names made of the words {', '.join(sorted(captions))}; "
            "or a profile with a published CLIP, or trained heads (variant 'vit')."
        )


def pretrain_clip(
    pictures: Tensor,
    captions: Sequence[str],
    config: TrainConfig,
    make_config: Callable[[int], Any],
    **options: Any,
) -> tuple[nn.Module, list[str], dict]:
    """A ``CLIPModel`` trained on pictures ``uint8 [N, 3, S, S]`` with a caption each;
    ``make_config`` takes the vocabulary's size; ``options`` are those of ``train``.

    Returns the model (CPU, evaluation mode, logit scale 100), its vocabulary in id order and
    training info.
    """
    vocab = caption_vocab(captions)
    tokens = as_batches(word_tokenizer(vocab), MAX_WORDS)(captions)
    shape = make_config(len(vocab))
    encoder = ImageEncoder(shape.vision_config, "miniature")
    pictures = encoder.prepare(pictures)

    def collate(rows: list[int]) -> dict[str, Tensor]:
        mask = tokens["attention_mask"][rows]
        length = int(mask.sum(1).max())
        return {
            **encoder.collate(pictures[rows]),
            "input_ids": tokens["input_ids"][rows, :length],
            "attention_mask": mask[:, :length],
        }

    with seeded(config.seed):
        model = CaptionContrast(shape)
        info = train(model, range(len(captions)), collate, config, **options)
    clip = model.clip.cpu().eval().requires_grad_(False)
    learned = min(100.0, float(clip.logit_scale.exp()))
    # The scale that CLIP reaches after long training, and that of its published heads. At rates
    # around 1e-3 a few hundred steps hardly change it; predictions of the zero-shot head do not
    # depend on it, but the experts' training does.
    clip.logit_scale.fill_(MAX_SCALE)
    return clip, vocab, {**info, "learned_logit_scale": learned}


def clip_parts(model: nn.Module, vocab: Sequence[str]) -> ClipParts:
    """The parts of a pre-trained CLIP with this vocabulary."""
    encoder = ImageEncoder(model.config.vision_config, "miniature")
    return ClipParts(encoder, model, as_batches(word_tokenizer(vocab), MAX_WORDS))


class Clip(Recipe):
    """A CLIP of the miniature image world, or a published one. The store keeps both towers, the
    vocabulary and a head per task."""

    step, desc = "pretrain_clip", "pre-train f_b (CLIP)"

    def key(self) -> dict[str, Any]:
        shape = ("layers", "width", "heads", "image_size", "patch_size", "projection")
        return {
            "world": CAPTIONS_VERSION,
            "captions": self.shape.pretraining.documents,
            "shape": [getattr(self.shape, n) for n in shape],
            "text": [TEXT_LAYERS, TEXT_WIDTH, TEXT_HEADS, MAX_WORDS],
            "classes": [[t.name, list(t.label_names), list(_templates(t))] for t in self.tasks],
        }

    def make(self, device: torch.device, scratch: Path) -> Artifact:
        # No combination of words that is a class of any task is among the captions, so no held-out
        # image needs to be left out.
        pictures, captions = captioned(self.shape.pretraining.documents, seed=CAPTION_SEED)
        known = words_by_frequency(captions)
        for task in self.tasks:
            check_words(task, known)
        clip, vocab, info = pretrain_clip(
            pictures,
            captions,
            make_config=lambda n: clip_config(self.shape, n),
            **self.training(device, scratch),
        )
        tensors = {f"clip.{n}": t.clone() for n, t in clip.state_dict().items()}
        # Stored, not recomputed at each opening: an expert's identity includes the bytes of its
        # head.
        parts = clip_parts(clip, vocab)
        heads = {t.name: parts.head(_class_names(t), _templates(t)) for t in self.tasks}
        return Artifact(
            tensors | {f"head.{n}": h.weight for n, h in heads.items()},
            {"vocab": vocab, "training": info},
        )

    def parts(self, made: Artifact) -> ClipParts:
        """The complete pre-trained CLIP with its text tower, for your own prompts."""
        vocab = made.info["vocab"]
        model = transformers.CLIPModel(clip_config(self.shape, len(vocab)))
        model.load_state_dict(below(made.tensors, "clip."))
        return clip_parts(model.eval().requires_grad_(False), vocab)

    def open(self, made: Artifact) -> Foundation:
        parts, heads = self.parts(made), {}
        for task in self.tasks:
            if task.templates:
                check_words(task, made.info["vocab"][len(SPECIAL) :])
                heads[task.name] = parts.head(_class_names(task), task.templates)
            else:
                weight = made.tensors[f"head.{task.name}"]
                heads[task.name] = Head(weight, torch.zeros(task.n_classes))
        return Foundation(parts.encoder, parts.state, heads)

    def load(self) -> Foundation:
        base = self.shape.base
        if not base.startswith((".", "/", "~")) and not Path(base).exists():
            folder = fetch_model(base, self.shape.revision, kind="clip")
            base = Parent(base.rpartition("/")[2], base, folder)
        parts, heads = load_clip(base), {}
        for task in self.tasks:
            if not task.templates and task.name not in PROMPTS:
                raise UnknownNameError("image task with prompts", task.name, PROMPTS)
            heads[task.name] = parts.head(_class_names(task), task.templates or PROMPTS[task.name])
        return Foundation(parts.encoder, parts.state, heads)
