"""Pre-train a miniature BERT by masked language modelling on the miniature corpus: the f_b of
profile `mini`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertTokenizer

from ..core.errors import OfflineError
from ..core.store import Artifact
from ..core.types import State, Task
from ..encoders import TextEncoder, encoder_state
from ..profiles import EncoderSettings, Profile
from ..tasks import miniature_corpus
from ..tasks.miniature import WORLD_VERSION
from ..training.config import TrainConfig
from ..training.loop import seeded, train
from . import shipped
from .distil import distil, hub_teacher, sentence_vectors
from .recipe import Foundation, Recipe

PRETRAIN_VERSION = 1
SHAPE = ("layers", "width", "heads", "max_length")  # of a text encoder
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build_tokenizer(corpus: Sequence[str]):
    """A lower-casing tokenizer whose pieces are the corpus's words and single characters."""
    return tokenizer_from_vocab([*SPECIAL, *corpus_pieces(corpus)])


def words_by_frequency(texts: Sequence[str]) -> list[str]:
    """The words of texts in lower case, as BERT splits them, the most frequent first, ties in
    alphabetical order."""
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text, n in Counter(texts).items():  # captions repeat
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += n
    return sorted(counts, key=lambda w: (-counts[w], w))


def corpus_pieces(corpus: Sequence[str]) -> list[str]:
    """The words of a corpus in lower case, most frequent first, then single characters, at the
    beginning of a word and inside one.

    Built from counts, not trained: the same corpus gives the same vocabulary everywhere, and any
    other word still splits into characters.
    """
    words = words_by_frequency(corpus)
    characters = sorted(
        {c for w in words for c in w} | set("abcdefghijklmnopqrstuvwxyz0123456789.,?!'-")
    )
    return list(dict.fromkeys([*words, *characters, *(f"##{c}" for c in characters)]))


def tokenizer_vocab(tokenizer) -> list[str]:
    """Pieces in id order; what ``tokenizer_from_vocab`` needs to build the same tokenizer again."""
    return [p for p, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def tokenizer_from_vocab(vocab: Sequence[str]):
    return BertTokenizer(vocab={p: i for i, p in enumerate(vocab)}, do_lower_case=True)


def bert_config(vocab_size: int, layers: int, width: int, heads: int, max_length: int):
    """A small BERT: dropout 0.1 as BERT-base, feed-forward 4 x width, ``max_length`` positions."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=max_length,
        pad_token_id=0,
    )


def bert_encoder(
    tokenizer: Any, *, layers: int, width: int, heads: int, max_length: int
) -> TextEncoder:
    """The miniature BERT of a tokenizer."""
    return TextEncoder(
        bert_config(len(tokenizer), layers, width, heads, max_length),
        tokenizer,
        max_length,
        "miniature",
    )


class MaskedLM(nn.Module):
    """An encoder with BERT's prediction head; the loss is the cross-entropy at masked positions
    only."""

    def __init__(self, config):
        super().__init__()
        self.model = transformers.BertForMaskedLM(config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        hidden = self.model.bert(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        masked = labels != -100
        # The vocabulary projection dominates a small model's cost: apply it only where the loss
        # needs it.
        logits = self.model.cls(hidden[masked])
        return {"loss": nn.functional.cross_entropy(logits.float(), labels[masked])}


def mask_tokens(
    ids: Tensor,
    attention_mask: Tensor,
    *,
    mask_id: int,
    n_special: int,
    vocab_size: int,
    rate: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """BERT's corruption of token ids: of the chosen tokens 80 % become [MASK], 10 % a random word,
    10 % stay.

    Args:
        ids: Token ids ``[B, L]``.
        attention_mask: ``[B, L]``, 0 for padding, which is never chosen.
        mask_id: The id of [MASK].
        n_special: Ids below it are never chosen, nor drawn as random words.
        vocab_size: Random words are drawn below it.
        rate: The probability that a token is chosen. If none is, all are.
        generator: The random numbers.

    Returns:
        Corrupted ids and labels ``[B, L]`` (-100 where nothing is predicted).
    """
    chosen = (
        (torch.rand(ids.shape, generator=generator) < rate)
        & attention_mask.bool()
        & (ids >= n_special)
    )
    if not chosen.any():  # an empty mean is NaN
        chosen = attention_mask.bool() & (ids >= n_special)
    draw = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(n_special, vocab_size, ids.shape, generator=generator)
    corrupted = torch.where(chosen & (draw < 0.8), mask_id, ids)
    corrupted = torch.where(chosen & (draw >= 0.9), random_ids, corrupted)
    return corrupted, torch.where(chosen, ids, -100)


def masked_batch(
    encoder: TextEncoder, rows: Sequence[Sequence[int]], rate: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Token ids as BERT sees them in pre-training: ``input_ids, attention_mask, labels [B, L]``."""
    padded = encoder.collate(rows)
    ids, labels = mask_tokens(
        padded["input_ids"],
        padded["attention_mask"],
        mask_id=encoder.tokenizer.mask_token_id,
        n_special=max(encoder.tokenizer.all_special_ids) + 1,
        vocab_size=len(encoder.tokenizer),
        rate=rate,
        generator=generator,
    )
    return {"input_ids": ids, "attention_mask": padded["attention_mask"], "labels": labels}


def pretrain(
    encoder: TextEncoder,
    corpus: Sequence[str],
    config: TrainConfig,
    objective: Callable[[Any], nn.Module],
    corrupt: Callable[..., dict[str, Tensor]],
    rate: float,
    *,
    start: State | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train an encoder on a corpus, without labels.

    Args:
        encoder: The architecture and tokenizer.
        corpus: Texts.
        config: Steps, batch and rate.
        objective: Makes the complete model with its loss, ``MaskedLM`` or ``SpanCorruption``.
        corrupt: Makes its batches, ``masked_batch`` or ``corrupted_batch``.
        rate: Share of tokens to corrupt.
        start: The encoder's weights at the start; what it lacks starts at random.
        options: ``device``, ``scratch`` and ``desc`` of ``train``.

    Returns:
        The encoder's state (float32, CPU) and training info; other parts that the objective trained
            are discarded.
    """
    generator = torch.Generator().manual_seed(config.seed)
    with seeded(config.seed):
        whole = objective(encoder.config)
        whole.model.base_model.load_state_dict(dict(start or {}), strict=False)
        info = train(
            whole,
            encoder.prepare(corpus),
            lambda rows: corrupt(encoder, rows, rate, generator),
            config,
            **options,
        )
    trained = whole.model.base_model.state_dict()
    return {k: trained[k].detach().cpu().clone() for k in encoder_state(encoder.module())}, info


def corpus_key(profile: Profile, tasks: Sequence[Task]) -> dict[str, Any]:
    """Everything that determines a text encoder pre-trained here: corpus, corruption, shape."""
    settings = profile.encoder
    return {
        "world": WORLD_VERSION,
        "documents": settings.pretraining.documents,
        "mask_rate": settings.pretraining.mask_rate,
        **({"teacher": settings.pretraining.teacher} if settings.pretraining.teacher else {}),
        "shape": [settings.layers, settings.width, settings.heads, settings.max_length],
        "held_out": [[t.validation.inputs_digest, t.test.inputs_digest] for t in tasks],
    }


def shipped_bert(name: str) -> Foundation:
    """A BERT that ships with the project. Raises ``UnknownNameError``."""
    artifact, shape = shipped.read(name), shipped.sidecar(name)["recipe"]["shape"]
    tokenizer = tokenizer_from_vocab(artifact.info["vocab"])
    return Foundation(bert_encoder(tokenizer, **{n: shape[n] for n in SHAPE}), artifact.tensors)


@functools.lru_cache(maxsize=1)
def targets(teacher: str, corpus: tuple[str, ...], device: torch.device) -> Tensor:
    """``sentence_vectors`` of a teacher: a shipped BERT's name, or a hub id or folder."""
    if teacher in shipped.names():
        student = shipped_bert(teacher)
        encoder, module = student.encoder, student.encoder.module(student.state)
    else:
        try:
            encoder, module = hub_teacher(teacher)
        except OfflineError as error:
            raise OfflineError(
                f"This recipe's f_b is not shipped, and its teacher cannot be loaded: {error} "
                "Keep encoder and its pretraining unchanged, or set encoder.pretraining.teacher "
                "to '' to pre-train f_b without a teacher."
            ) from error
    return sentence_vectors(encoder, module, corpus, device=device)


def text_recipe(
    step: str,
    version: int,
    objective: Callable[[Any], nn.Module],
    corrupt: Callable[..., dict[str, Tensor]],
    rebuild_tokenizer: Callable[[Sequence[str]], Any],
    rebuild_encoder: Callable[..., TextEncoder],
    build_tokenizer: Callable[[Sequence[str], EncoderSettings], Any],
    *,
    start: Callable[[nn.Module], nn.Module] = lambda module: module,
    desc: str,
) -> Recipe:
    """The recipe of a text encoder that a teacher, or else ``pretrain`` with ``objective`` and
    ``corrupt``, makes of the miniature corpus.

    ``start`` prepares a student's random weights. The store keeps weights and vocabulary.
    """

    def shape(profile: Profile) -> dict[str, int]:
        return {n: getattr(profile.encoder, n) for n in SHAPE}

    def make(
        profile: Profile, tasks: Sequence[Task], device: torch.device, scratch: Path
    ) -> Artifact:
        settings = profile.encoder.pretraining
        corpus, config = miniature_corpus(profile, tasks), profile.train_config(settings, device)
        options = {"device": device, "scratch": scratch, "desc": desc}
        encoder = rebuild_encoder(build_tokenizer(corpus, profile.encoder), **shape(profile))
        if settings.teacher:
            with seeded(config.seed):
                student = start(encoder.module())
                vectors = targets(settings.teacher, tuple(corpus), device)
                state, info = distil(encoder, student, corpus, vectors, config, **options)
        else:
            state, info = pretrain(
                encoder, corpus, config, objective, corrupt, settings.mask_rate, **options
            )
        return Artifact(state, {"vocab": tokenizer_vocab(encoder.tokenizer), "training": info})

    def reopen(profile: Profile, tasks: Sequence[Task], made: Artifact) -> Foundation:
        return Foundation(
            rebuild_encoder(rebuild_tokenizer(made.info["vocab"]), **shape(profile)), made.tensors
        )

    return Recipe(step, version, corpus_key, make, reopen)


RECIPE = text_recipe(
    "pretrain",
    PRETRAIN_VERSION,
    MaskedLM,
    masked_batch,
    tokenizer_from_vocab,
    bert_encoder,
    lambda corpus, settings: build_tokenizer(corpus),
    desc="pre-train f_b",
)
