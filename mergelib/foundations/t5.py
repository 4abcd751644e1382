"""Pre-train a miniature T5 by span corruption on the miniature corpus; its encoder is the f_b of
the variants t5_a and t5_b.

The corruption follows Raffel et al. (2020, section 3.1.4): 15 % of the tokens, in spans of three on
average, each span replaced by its own sentinel; the decoder writes the sentinels, each followed by
the replaced tokens, and a closing sentinel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from tokenizers import decoders
from tokenizers.models import WordPiece
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config

from ..encoders import TextEncoder
from .bert import Bert, corpus_pieces, split_as_bert

EMBEDDING_SCALE = (
    0.1  # T5 begins with embeddings of deviation 1, which some hundred steps of AdamW hardly move
)
MEAN_SPAN = 3  # tokens
NOISE_RATE = 0.15  # of the published T5s
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as T5 has them


def sentinel(i: int) -> str:
    """The i-th sentinel's name in every T5 vocabulary."""
    return f"<extra_id_{i}>"


def sentinels_needed(max_length: int, rate: float) -> int:
    """Sentinels for the longest text of ``max_length`` tokens, ``</s>`` included: one per span and
    the closing one."""
    _, spans = noise_budget(torch.tensor([max(1, max_length - 1)]), rate)
    return int(spans) + 1


def t5_vocab(corpus: Sequence[str], n_sentinels: int) -> list[str]:
    """T5's special tokens around the pieces of the miniature BERT: the corpus's words and single
    characters, lower case.

    Sentinels have the last ids, the first sentinel the very last, as in T5.
    """
    sentinels = [sentinel(i) for i in reversed(range(n_sentinels))]
    return [PAD, EOS, UNK, *corpus_pieces(corpus), *sentinels]


def t5_tokenizer_from_vocab(vocab: Sequence[str]):
    """The tokenizer whose pieces are ``vocab``, in id order; every text ends in ``</s>``."""
    ids = {piece: i for i, piece in enumerate(vocab)}
    backend = split_as_bert(WordPiece(ids, unk_token=UNK), f"$A {EOS}", {EOS: ids[EOS]})
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=[p for p in vocab if p.startswith("<extra_id_")],
    )


def t5_encoder(
    vocab: Sequence[str], *, layers: int, width: int, heads: int, max_length: int
) -> TextEncoder:
    """The encoder of a small T5, encoder and decoder of equal depth: ReLU, feed-forward 4 x width,
    dropout 0.1, 32 buckets of relative positions."""
    tokenizer = t5_tokenizer_from_vocab(vocab)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=heads,
        decoder_start_token_id=0,
    )
    return TextEncoder(config, tokenizer, max_length, "miniature")


# ---- span corruption ----


def noise_budget(lengths: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Tokens to corrupt and spans to put them in, per text: ``lengths [B]`` (without ``</s>``) ->
    two ``[B]``.

    A text of one token is not corrupted: nothing would remain to reconstruct it from.
    """
    wanted = (lengths.double() * rate).round().long().clamp(min=1)
    noise = wanted.minimum(lengths - 1).clamp(min=0)
    spans = (noise / MEAN_SPAN).round().long().clamp(min=1)
    return noise, spans.minimum(noise).minimum(lengths - noise)


def random_lengths(total: Tensor, parts: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Split ``total [B]`` into ``parts [B]`` positive lengths, every split equally likely: ``[B,
    width]``, zeros behind."""
    gaps, shape = torch.arange(width), (len(total), width)  # gap i lies between items i and i + 1
    keys = torch.rand(shape, generator=generator)
    keys = keys.masked_fill(gaps >= total[:, None] - 1, 2.0)
    cut = keys.argsort(1).argsort(1) < parts[:, None] - 1
    part = nn.functional.pad(cut.long().cumsum(1), (1, -1))
    lengths = torch.zeros(shape, dtype=torch.long)
    return lengths.scatter_add_(1, part, (gaps < total[:, None]).long())


def noise_mask(lengths: Tensor, width: int, rate: float, generator: torch.Generator) -> Tensor:
    """Which tokens are corrupted, bool ``[B, width]``: kept and corrupted stretches take turns, and
    a kept one comes first."""
    noise, spans = noise_budget(lengths, rate)
    kept_lengths = random_lengths(lengths - noise, spans, width, generator)
    noise_lengths = random_lengths(noise, spans, width, generator)
    ends = (kept_lengths + noise_lengths).cumsum(1)
    # +1 where a span begins, -1 behind its end: the running sum is 1 inside. Behind the last span
    # both fall on one place.
    steps = torch.zeros(len(lengths), width + 1, dtype=torch.long)
    ones = torch.ones_like(ends)
    steps.scatter_add_(1, ends - noise_lengths, ones).scatter_add_(1, ends, -ones)
    return steps.cumsum(1)[:, :width] > 0


def corrupt_spans(
    ids: Tensor, real: Tensor, noise: Tensor, sentinels: Tensor, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Inputs with a sentinel for each corrupted span, and targets that say what each sentinel
    stands for.

    Args:
        ids: Token ids ``[B, L]``.
        real: ``[B, L]``, whether a token is no padding.
        noise: ``[B, L]``, whether a token is corrupted; only where ``real``.
        sentinels: Ids ``[S]``, S above the number of spans.
        pad_id: The id of padding.

    Returns:
        Inputs ``[B, L_in]`` padded with ``pad_id`` and targets ``<0> span 0 <1> span 1 ... <n>``
        ``[B, L_out]`` padded with -100.
    """
    first = noise & ~nn.functional.pad(noise, (1, -1))
    span = first.cumsum(1)  # 1 for tokens of the first span and what follows it
    rows = torch.arange(len(ids))[:, None].expand_as(ids)

    kept = real & (~noise | first)
    inputs = torch.full((len(ids), int(kept.sum(1).max())), pad_id)
    with_sentinels = torch.where(first, sentinels[(span - 1).clamp(min=0)], ids)
    inputs[rows[kept], (kept.cumsum(1) - 1)[kept]] = with_sentinels[kept]

    n_noise, n_spans = noise.sum(1), first.sum(1)
    targets = torch.full((len(ids), int((n_noise + n_spans).max()) + 1), -100)
    place = noise.cumsum(1) - 1 + span
    targets[rows[noise], place[noise]] = ids[noise]
    targets[rows[first], place[first] - 1] = sentinels[span[first] - 1]
    targets[torch.arange(len(ids)), n_noise + n_spans] = sentinels[n_spans]
    return inputs, targets


def corrupted_batch(
    encoder: TextEncoder, rows: Sequence[Sequence[int]], rate: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Token ids as the whole T5 sees them in pre-training: ``input_ids, attention_mask [B, L_in]``
    and ``labels [B, L_out]``."""
    padded, tokenizer = encoder.collate(rows), encoder.tokenizer
    real, pad_id = padded["attention_mask"].bool(), tokenizer.pad_token_id
    noise = noise_mask(real.sum(1) - 1, real.shape[1], rate, generator)  # </s> is never corrupted
    names = [sentinel(i) for i in range(sentinels_needed(encoder.max_length, rate))]
    sentinels = torch.tensor(tokenizer.convert_tokens_to_ids(names))
    inputs, labels = corrupt_spans(padded["input_ids"], real, noise, sentinels, pad_id)
    mask = (inputs != pad_id).long()
    return {"input_ids": inputs, "attention_mask": mask, "labels": labels}


def corrupted_text(encoder: TextEncoder, text: str, rate: float, *, seed: int) -> tuple[str, str]:
    """Input and target of one text, to be read."""
    generator = torch.Generator().manual_seed(seed)
    batch = corrupted_batch(encoder, encoder.prepare([text]), rate, generator)
    decode = encoder.tokenizer.decode
    return decode(batch["input_ids"][0]), decode(batch["labels"][0])


@torch.no_grad()
def shrink_embeddings(model: nn.Module) -> None:
    """Makes a T5's random embeddings smaller."""
    model.shared.weight.mul_(EMBEDDING_SCALE)


class SpanCorruption(nn.Module):
    """The whole T5, encoder and decoder; the loss is the cross-entropy of the target tokens."""

    corrupt = staticmethod(corrupted_batch)

    def __init__(self, config):
        super().__init__()
        self.model = transformers.T5ForConditionalGeneration(config)
        shrink_embeddings(self.model)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.model(**batch, use_cache=False).loss}


class T5(Bert):
    """A T5 whose encoder a teacher or span corruption trains on the miniature corpus."""

    step, desc = "pretrain_t5", "pre-train f_b (T5)"
    objective = SpanCorruption

    def vocabulary(self, corpus: Sequence[str]) -> list[str]:
        rate = self.shape.pretraining.mask_rate
        return t5_vocab(corpus, sentinels_needed(self.shape.max_length, rate))

    def encoder(self, vocab: Sequence[str]) -> TextEncoder:
        return t5_encoder(vocab, **self.sizes)

    def student(self, encoder: TextEncoder) -> nn.Module:
        module = encoder.module()
        shrink_embeddings(module.transformer)
        return module
