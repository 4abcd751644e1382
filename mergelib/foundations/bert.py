"""Pre-train a miniature BERT by masked language modelling on the miniature corpus: the f_b of
profile `mini`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import BertConfig, BertTokenizer

from ..core.errors import OfflineError
from ..core.store import Artifact
from ..core.types import State
from ..encoders import TextEncoder, encoder_state, load_base
from ..tasks import miniature_corpus
from ..tasks.miniature import WORLD_VERSION
from ..training.config import TrainConfig
from ..training.loop import seeded, train
from . import shipped
from .distil import distil, sentence_vectors
from .recipe import Foundation, Recipe

SHAPE = ("layers", "width", "heads", "max_length")  # of a text encoder
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEACHER_LENGTH = 64  # tokens of a document that a teacher reads


def words_by_frequency(texts: Sequence[str]) -> list[str]:
    """The words of texts in lower case, as BERT splits them, the most frequent first, ties in
    alphabetical order."""
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text, n in Counter(texts).items():  # captions repeat
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += n
    return sorted(counts, key=lambda w: (-counts[w], w))


def split_as_bert(model: Any, template: str, special: dict[str, int]) -> Tokenizer:
    """A tokenizer of a model for words: it splits texts as BERT does, in lower case, and sets them
    into a template with special tokens (name -> id)."""
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    backend.post_processor = TemplateProcessing(single=template, special_tokens=[*special.items()])
    return backend


def corpus_pieces(corpus: Sequence[str]) -> list[str]:
    """The words of a corpus in lower case, most frequent first, then single characters, at the
    beginning of a word and inside one.

    Built from counts, not trained: the same corpus gives the same vocabulary everywhere, and any
    other word still splits into characters.
    """
    words = words_by_frequency(corpus)
    characters = sorted({*"".join(words), *"abcdefghijklmnopqrstuvwxyz0123456789.,?!'-"})
    return list(dict.fromkeys([*words, *characters, *(f"##{c}" for c in characters)]))


def build_tokenizer(corpus: Sequence[str]):
    """A lower-casing tokenizer whose pieces are the corpus's words and single characters."""
    return tokenizer_from_vocab([*SPECIAL, *corpus_pieces(corpus)])


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


def bert_encoder(vocab: Sequence[str], **shape: int) -> TextEncoder:
    """The miniature BERT of a vocabulary; ``shape`` has the numbers of ``SHAPE``."""
    tokenizer = tokenizer_from_vocab(vocab)
    config = bert_config(len(tokenizer), **shape)
    return TextEncoder(config, tokenizer, shape["max_length"], "miniature")


def masked_batch(
    encoder: TextEncoder, rows: Sequence[Sequence[int]], rate: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Token ids as BERT sees them in pre-training: of the chosen tokens 80 % become [MASK], 10 % a
    random word, 10 % stay.

    Args:
        encoder: Its tokenizer's special tokens are never chosen, nor drawn as random words.
        rows: Token ids of B texts.
        rate: The probability that a token is chosen. If none is, all are.
        generator: The random numbers.

    Returns:
        ``input_ids, attention_mask, labels [B, L]``; labels are -100 where nothing is predicted.
    """
    tokenizer, padded = encoder.tokenizer, encoder.collate(rows)
    ids, n_special = padded["input_ids"], max(tokenizer.all_special_ids) + 1
    eligible = padded["attention_mask"].bool() & (ids >= n_special)
    chosen = (torch.rand(ids.shape, generator=generator) < rate) & eligible
    if not chosen.any():  # an empty mean is NaN
        chosen = eligible
    draw = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(n_special, len(tokenizer), ids.shape, generator=generator)
    corrupted = torch.where(chosen & (draw < 0.8), tokenizer.mask_token_id, ids)
    corrupted = torch.where(chosen & (draw >= 0.9), random_ids, corrupted)
    return padded | {"input_ids": corrupted, "labels": torch.where(chosen, ids, -100)}


class MaskedLM(nn.Module):
    """An encoder with BERT's prediction head; the loss is the cross-entropy at masked positions
    only."""

    corrupt = staticmethod(masked_batch)

    def __init__(self, config):
        super().__init__()
        self.model = transformers.BertForMaskedLM(config)

    def forward(self, labels: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        hidden = self.model.bert(**batch).last_hidden_state
        masked = labels != -100
        # The vocabulary projection dominates a small model's cost: apply it only where the loss
        # needs it.
        logits = self.model.cls(hidden[masked])
        return {"loss": nn.functional.cross_entropy(logits.float(), labels[masked])}


def pretrain(
    encoder: TextEncoder,
    corpus: Sequence[str],
    objective: type[nn.Module],
    rate: float,
    *,
    config: TrainConfig,
    start: State | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train an encoder on a corpus, without labels.

    Args:
        encoder: The architecture and tokenizer.
        corpus: Texts.
        objective: The complete model with its loss, ``MaskedLM`` or ``SpanCorruption``; its
            ``corrupt`` makes batches.
        rate: Share of tokens to corrupt.
        config: Steps, batch and rate.
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
            lambda rows: objective.corrupt(encoder, rows, rate, generator),
            config,
            **options,
        )
    trained = whole.model.base_model.state_dict()
    return {k: trained[k].detach().cpu().clone() for k in encoder_state(encoder.module())}, info


def shipped_bert(name: str) -> Foundation:
    """A BERT that ships with the project. Raises ``UnknownNameError``."""
    artifact, shape = shipped.read(name), shipped.sidecar(name)["recipe"]["shape"]
    encoder = bert_encoder(artifact.info["vocab"], **{n: shape[n] for n in SHAPE})
    return Foundation(encoder, artifact.tensors)


@functools.lru_cache(maxsize=1)
def targets(teacher: str, corpus: tuple[str, ...], device: torch.device) -> Tensor:
    """``sentence_vectors`` of a teacher: a shipped BERT's name, or a hub id or folder."""
    if teacher in shipped.names():
        base = shipped_bert(teacher)
    else:
        try:
            base = Foundation(*load_base(teacher, TEACHER_LENGTH))
        except OfflineError as error:
            raise OfflineError(
                f"This recipe's f_b is not shipped, and its teacher cannot be loaded: {error} "
                "Keep encoder and its pretraining unchanged, or set encoder.pretraining.teacher "
                "to '' to pre-train f_b without a teacher."
            ) from error
    return sentence_vectors(base.encoder, base.encoder.module(base.state), corpus, device=device)


class Bert(Recipe):
    """A text encoder that a teacher, or else ``pretrain``, makes of the miniature corpus. The store
    keeps weights and vocabulary."""

    step, desc = "pretrain", "pre-train f_b"
    objective: ClassVar[type[nn.Module]] = MaskedLM

    @property
    def sizes(self) -> dict[str, int]:
        return {n: getattr(self.shape, n) for n in SHAPE}

    def vocabulary(self, corpus: Sequence[str]) -> list[str]:
        """The tokenizer's pieces in id order."""
        return [*SPECIAL, *corpus_pieces(corpus)]

    def encoder(self, vocab: Sequence[str]) -> TextEncoder:
        """The untrained encoder of a vocabulary."""
        return bert_encoder(vocab, **self.sizes)

    def student(self, encoder: TextEncoder) -> nn.Module:
        """What a teacher's student starts as."""
        return encoder.module()

    def key(self) -> dict[str, Any]:
        settings = self.shape.pretraining
        return {
            "world": WORLD_VERSION,
            "documents": settings.documents,
            "mask_rate": settings.mask_rate,
            **({"teacher": settings.teacher} if settings.teacher else {}),
            "shape": list(self.sizes.values()),
            "held_out": [[t.validation.inputs_digest, t.test.inputs_digest] for t in self.tasks],
        }

    def make(self, device: torch.device, scratch: Path) -> Artifact:
        settings, training = self.shape.pretraining, self.training(device, scratch)
        corpus = miniature_corpus(self.profile, self.tasks)
        encoder = self.encoder(vocab := self.vocabulary(corpus))
        if settings.teacher:
            with seeded(training["config"].seed):
                student = self.student(encoder)
                vectors = targets(settings.teacher, tuple(corpus), device)
                state, info = distil(encoder, student, corpus, vectors, **training)
        else:
            state, info = pretrain(encoder, corpus, self.objective, settings.mask_rate, **training)
        return Artifact(state, {"vocab": vocab, "training": info})

    def open(self, made: Artifact) -> Foundation:
        return Foundation(self.encoder(made.info["vocab"]), made.tensors)
