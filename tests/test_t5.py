"""T5: span corruption can be undone, tied weights count once, folders in the hub's layout load
whole or not at all."""

import itertools
import math
import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from near import ROUNDING, apart, equal, seeded
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from mergelib import claims, tables
from mergelib.core.errors import StateDictError
from mergelib.encoders import TextEncoder, encoder_state, load_base, load_state
from mergelib.encoders.features import extract
from mergelib.foundations import t5
from mergelib.foundations.bert import pretrain
from mergelib.profiles import load_profile
from mergelib.tasks import miniature
from mergelib.training.config import TrainConfig

TEXTS = [
    "The board met.",
    "A rather longer text about ships, harbours and the tide that never came back.",
    "Stop",
    "who won the cup?",
] * 3
VOCABULARY = "shared.weight"


TIED = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]


def tiny_config(**more):
    sizes = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2}
    return T5Config(**sizes | {"num_heads": 2, "decoder_start_token_id": 0} | more)


def real_tokenizer():
    """A tokenizer of T5's own class: pieces with scores, a space before words, sentinels."""
    words = ["▁the", "▁cup", "▁board", "▁who", "▁won"]
    names = [f"<extra_id_{i}>" for i in reversed(range(8))]
    scores = dict.fromkeys(["<pad>", "</s>", "<unk>"], 0.0) | dict.fromkeys(words, -2.0)
    scores |= dict.fromkeys("▁abcdefghijklmnopqrstuvwxyz.,?", -9.0) | dict.fromkeys(names, 0.0)
    return T5Tokenizer(vocab=[*scores.items()], extra_ids=8)


def miniature_tokenizer(n_sentinels=3):
    return t5.t5_tokenizer_from_vocab(t5.t5_vocab(TEXTS, n_sentinels))


@pytest.fixture(scope="module")
def encoder():
    """A tiny T5 with the tokenizer of the miniature world."""
    tokenizer = miniature_tokenizer(t5.sentinels_needed(24, 0.15))
    return TextEncoder(tiny_config(vocab_size=len(tokenizer)), tokenizer, 24)


@pytest.fixture(scope="module")
def states(encoder):
    """f_b and an expert: weights that differ everywhere."""
    torch.manual_seed(0)
    base = encoder_state(encoder.module())
    return base, {n: v + 0.05 * torch.randn_like(v) for n, v in base.items()}


# ---- span corruption -----------------------------------------------------------------------------

SENTINELS = list(range(900, 1000))


def rebuilt(inputs, targets):
    """The text that a corrupted input and its target stand for: plain lists, one token at a
    time."""
    spans, name = {}, None
    for token in targets:
        if token in SENTINELS:
            name = token
            assert name not in spans, "a sentinel stands twice"
            spans[name] = []
        else:
            spans[name].append(token)
    assert spans[name] == [], "the closing sentinel is missing"
    assert [t for t in inputs if t in SENTINELS] == list(spans)[:-1], "other spans are named"
    return [t for token in inputs for t in spans.get(token, [token])]


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=6),
    st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    st.integers(0, 10_000),
)
def test_inputs_and_targets_together_are_the_text(lengths, rate, seed):
    generator = seeded(seed)
    texts = [[*torch.randint(3, 900, (n,), generator=generator).tolist(), 1] for n in lengths]
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    real = ids > 0
    noise = t5.noise_mask(real.sum(1) - 1, width, rate, generator)
    batch = t5.corrupt_spans(ids, real, noise, torch.tensor(SENTINELS), 0)
    for text, *row in zip(texts, *(part.tolist() for part in batch), strict=True):
        n, (given, wanted) = len(text) - 1, row
        seen, said = [t for t in given if t != 0], [t for t in wanted if t != -100]
        assert rebuilt(seen, said) == text
        assert given[: len(seen)] == seen and wanted[: len(said)] == said, "padding is at the end"
        assert seen[-1] == 1, "</s> is not corrupted"
        n_hidden = sum(t not in SENTINELS for t in said)
        assert n_hidden == (0 if n < 2 else min(n - 1, max(1, round(n * rate))))
        n_spans = min(n_hidden, n - n_hidden, max(1, round(n_hidden / 3)))
        assert sum(t in SENTINELS for t in seen) == (0 if n < 2 else n_spans)
        assert n < 2 or seen[0] not in SENTINELS, "a kept stretch comes first"
        # Between two spans something is kept: else they were one.
        assert not any(a in SENTINELS and b in SENTINELS for a, b in itertools.pairwise(seen))


def test_every_split_into_spans_is_equally_likely():
    n = 12_000
    six, three = torch.full((n,), 6), torch.full((n,), 3)
    found = Counter(map(tuple, t5.random_lengths(six, three, 9, seeded(0)).tolist()))
    wanted = {(a, b, 6 - a - b, *[0] * 6) for a in range(1, 5) for b in range(1, 6 - a)}
    assert set(found) == wanted and len(wanted) == math.comb(5, 2)
    p = 1 / len(wanted)
    assert all(abs(c - n * p) < 5 * math.sqrt(n * p * (1 - p)) for c in found.values())


@given(st.integers(3, 600), st.sampled_from([0.05, 0.15, 0.5, 0.9]))
def test_there_are_sentinels_enough(max_length, rate):
    lengths = torch.arange(1, max_length)
    assert int(t5.noise_budget(lengths, rate)[1].max()) + 1 == t5.sentinels_needed(max_length, rate)


# ---- tokenizers ----------------------------------------------------------------------------------


def test_the_miniature_tokenizer_is_t5s(encoder):
    tokenizer, vocab = encoder.tokenizer, t5.t5_vocab(TEXTS, t5.sentinels_needed(24, 0.15))
    assert vocab[:3] == ["<pad>", "</s>", "<unk>"] and vocab[-1] == "<extra_id_0>"
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == vocab
    ids = tokenizer("The board met.")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the board met."
    other = tokenizer("zebra unheard of")["input_ids"]
    assert tokenizer.unk_token_id not in other, "other words split into characters"


@pytest.mark.parametrize("make", [real_tokenizer, miniature_tokenizer])
def test_every_text_ends_in_eos_also_when_cut(make):
    encoder = TextEncoder(tiny_config(), make(), 6)
    rows = encoder.prepare([*TEXTS, ""])
    assert all(row[-1] == 1 and row.count(1) == 1 and len(row) <= 6 for row in rows)
    assert max(map(len, rows)) == 6
    batch = encoder.collate(rows)
    assert ((batch["input_ids"] == 0) == (batch["attention_mask"] == 0)).all()


# ---- the encoder ---------------------------------------------------------------------------------


def test_features_are_the_mean_over_real_tokens_and_know_nothing_of_padding(encoder, states):
    """Against eager attention without padding, one text at a time."""
    module = encoder.module(states[1])
    z = extract(encoder, module, tuple(TEXTS), batch_size=5)
    assert apart(extract(encoder, module, tuple(TEXTS), batch_size=1), z) < ROUNDING
    plain = T5EncoderModel(tiny_config(vocab_size=encoder.config.vocab_size)).eval()
    plain.load_state_dict(states[1] | {"encoder.embed_tokens.weight": states[1][VOCABULARY]})
    plain.set_attn_implementation("eager")
    for text, feature in zip(TEXTS, z, strict=True):
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        assert apart(plain(input_ids=ids).last_hidden_state[0].mean(0), feature) < ROUNDING


def test_the_encoders_identity_does_not_depend_on_what_it_was_used_for(encoder):
    fresh, used = (
        replace(encoder, tokenizer=miniature_tokenizer(t5.sentinels_needed(24, 0.15)))
        for _ in range(2)
    )
    used.module()
    used.prepare(TEXTS)  # leaves its truncation behind in the tokenizer
    assert used.digest == fresh.digest


def test_the_vocabulary_is_tied_and_in_the_state_once(encoder, states):
    module = encoder.module(states[1])
    transformer = module.transformer
    assert transformer.encoder.embed_tokens.weight is transformer.shared.weight
    assert torch.equal(transformer.shared.weight, states[1][VOCABULARY])
    unique = {p.data_ptr(): p.numel() for p in transformer.parameters()}
    assert sum(t.numel() for t in states[0].values()) == sum(unique.values())
    pairs = itertools.combinations(encoder_state(module).values(), 2)
    assert not any(t.is_set_to(u) for t, u in pairs)
    renamed = {TIED[0] if n == VOCABULARY else n: t for n, t in states[0].items()}
    with pytest.raises(StateDictError, match=VOCABULARY):
        load_state(module, renamed)


def test_relative_position_biases_are_trained_and_matter(encoder, states):
    (name,) = (n for n in states[0] if "relative_attention_bias" in n)  # one for all blocks
    moved = states[0] | {name: states[0][name] + torch.randn_like(states[0][name])}
    a, b = (extract(encoder, encoder.module(s), tuple(TEXTS)) for s in (states[0], moved))
    assert (a - b).abs().max() > 1e-3
    module, gradients = encoder.module(states[0]), []
    for attention in ("sdpa", "eager"):
        module.transformer.set_attn_implementation(attention)
        module.zero_grad()
        module(**encoder.collate(encoder.prepare(TEXTS))).sum().backward()
        gradients.append(module.transformer.get_parameter(name).grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


# ---- folders -------------------------------------------------------------------------------------


def write_folder(folder, *, feed_forward="relu", drop=(), change=dict, **config):
    """A whole T5 as the hub has it: both halves, the vocabulary under every name, a bias that only
    old checkpoints hold."""
    kind = {"feed_forward_proj": feed_forward, "architectures": ["T5ForConditionalGeneration"]}
    torch.manual_seed(1)
    model = T5ForConditionalGeneration(tiny_config(**kind, **config)).eval()
    tensors = {n: t.clone() for n, t in model.state_dict().items() if n not in drop}
    old = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors = change(tensors | {old: torch.zeros(32, 2)})
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    real_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])  # T5 and T5 v1.1
@pytest.mark.parametrize("drop", [[], TIED], ids=["every name", "first name"])
def test_a_folder_in_the_hubs_layout_gives_its_encoder(tmp_path, feed_forward, drop):
    whole = write_folder(tmp_path, feed_forward=feed_forward, drop=drop)
    encoder, state = load_base(str(tmp_path), 12)
    of_encoder = {n for n in whole.state_dict() if n.startswith("encoder.")}
    assert state.keys() == {VOCABULARY, *of_encoder} - {*TIED}
    batch = encoder.collate(encoder.prepare(["the board won", "who won the cup?"]))
    hidden = whole.encoder(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    wanted = (hidden * mask).sum(1) / mask.sum(1)
    assert apart(encoder.module(state)(**batch), wanted) < ROUNDING


LAYERS = [
    "encoder.block.1.layer.0.SelfAttention.v.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
]


def two_vocabularies(tensors):
    """transformers would load them untied and say so in a warning."""
    return tensors | {TIED[0]: tensors[TIED[0]] + 1}


@pytest.mark.parametrize(
    "broken, named",
    [
        ({"drop": LAYERS}, LAYERS),
        ({"drop": [VOCABULARY, *TIED]}, [VOCABULARY]),
        ({"change": two_vocabularies}, TIED[:1]),
    ],
    ids=["layers", "vocabulary", "two vocabularies"],
)
def test_a_broken_folder_is_an_error_that_lists_the_weights(tmp_path, broken, named):
    write_folder(tmp_path, **broken)
    with pytest.raises(StateDictError) as error:
        load_base(str(tmp_path), 12)
    assert all(name in str(error.value) for name in named)


def test_features_are_float32_whatever_the_config_says(tmp_path):
    write_folder(tmp_path, dtype="bfloat16")
    encoder, state = load_base(str(tmp_path), 12)
    tensors = [*state.values(), *encoder.module(state).parameters()]
    assert {t.dtype for t in tensors} == {torch.float32}


def test_an_encoder_saved_alone_loads_too(tmp_path, encoder, states):
    encoder.module(states[1]).transformer.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    found, state = load_base(str(tmp_path), 24)
    assert equal(state, states[1])
    assert found.prepare(TEXTS) == encoder.prepare(TEXTS)


# ---- pre-training and the whole road -------------------------------------------------------------


def test_pretraining_lowers_the_loss(tmp_path):
    profile = load_profile("quick", variant="t5_b")
    settings, recipe = profile.encoder.pretraining, t5.T5(profile, ())
    corpus = miniature.corpus(settings.documents, seed=3, exclude=set())
    encoder, losses = recipe.encoder(recipe.vocabulary(corpus)), []
    for steps in (1, 3 * settings.steps):
        training = recipe.training(torch.device("cpu"), tmp_path / str(steps))
        training["config"] = TrainConfig(steps, settings.batch_size, settings.lr, threads=1)
        state, info = pretrain(encoder, corpus, t5.SpanCorruption, settings.mask_rate, **training)
        losses.append(info["last_loss"])
    assert losses[1] < losses[0] - 0.5
    assert all(t.isfinite().all() for t in state.values())


def test_the_road_from_corpus_to_scores(make_study):
    first = make_study(variant="t5_a")
    again = make_study(first.store.root, variant="t5_a")
    assert first.encoder.config.model_type == "t5" and "T5" in first.profile.backbone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tiny study may well put lambda on the edge
        protocols = ["current", "ft_classifier"]
        scores = [s.scores(["f_b", "f_t", "ties"], protocols) for s in (first, again)]
    assert scores[0].equals(scores[1]) and scores[0].accuracy.notna().all()
    assert equal(again.base_state, first.base_state)
    assert first.merged_state("ties").keys() == first.base_state.keys() >= {VOCABULARY}


def test_the_claim_is_the_worse_of_two_differences(study):
    found = claims.METRICS["P6.3-t5"](claims.Bootstrap(study))
    summary = tables.mean_and_std(study.scores(study.methods, ["current", "knn", "ft_classifier"]))
    for method in study.methods:
        current = tables.average_of(summary, method)
        fitted, knn = (tables.average_of(summary, method, p, 5) for p in ("ft_classifier", "knn"))
        value = float(found[tables.short_label(method)][0])
        assert value == pytest.approx(fitted - max(current, knn), abs=1e-4)


@pytest.mark.parametrize("profile", ["quick", "mini"])
def test_the_two_sizes_differ_in_nothing_but_size(profile):
    a, b = (load_profile(profile, variant=v) for v in ("t5_a", "t5_b"))
    assert (a.tasks, a.merging, a.protocols) == (b.tasks, b.merging, b.protocols)
    assert a.tasks == load_profile(profile).tasks
    assert (a.encoder.layers, a.encoder.width) < (b.encoder.layers, b.encoder.width)
