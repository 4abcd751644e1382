"""T5: span corruption can be undone, tied weights count once, folders in the hub's layout load
whole or not at all."""

import itertools
import json
import math
import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from near import ROUNDING, apart, equal, seeded
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from mergelib import claims, tables
from mergelib.core.errors import StateDictError
from mergelib.encoders import TextEncoder, encoder_state, load_base, load_state
from mergelib.encoders.features import extract
from mergelib.foundations import bert, t5
from mergelib.profiles import load_profile
from mergelib.training.config import TrainConfig

TEXTS = [
    "The board met.",
    "A rather longer text about ships, harbours and the tide that never came back.",
    "Stop",
    "who won the cup?",
] * 3
VOCABULARY = "shared.weight"


def tiny_config(**more):
    return T5Config(
        **{
            "vocab_size": 60,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        }
        | more
    )


def real_tokenizer():
    """A tokenizer of T5's own class: pieces with scores, a space before words, 100 sentinels unless
    told."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [
        ("▁" + w, -2.0) for w in ("the", "cup", "board", "who", "won")
    ]
    pieces += [(c, -9.0) for c in "▁abcdefghijklmnopqrstuvwxyz.,?"] + [
        (f"<extra_id_{i}>", 0.0) for i in reversed(range(8))
    ]
    return T5Tokenizer(vocab=pieces, extra_ids=8)


@pytest.fixture(scope="module")
def encoder():
    """A tiny T5 with the tokenizer of the miniature world."""
    tokenizer = t5.build_t5_tokenizer(TEXTS, t5.sentinels_needed(24, 0.15))
    return TextEncoder(tiny_config(vocab_size=len(tokenizer)), tokenizer, 24)


@pytest.fixture(scope="module")
def states(encoder):
    """f_b and three experts: weights that differ everywhere."""
    torch.manual_seed(0)
    base = encoder_state(encoder.module())
    return [base, *({n: v + 0.05 * torch.randn_like(v) for n, v in base.items()} for _ in range(3))]


@pytest.fixture(scope="module")
def tiny_study(make_study):
    """The profile's variant t5_a, tiny; pre-trained and fine-tuned once."""
    return make_study(variant="t5_a")


# ---- span corruption -----------------------------------------------------------------------------

SENTINELS = list(range(900, 1000))


def rebuilt(inputs, targets):
    """The text that a corrupted input and its target stand for: plain lists, one token at a
    time."""
    said, name = {}, None
    for token in targets:
        if token in SENTINELS:
            name = token
            assert name not in said, "a sentinel stands twice"
            said[name] = []
        else:
            said[name].append(token)
    assert name is not None and said[name] == [], "the closing sentinel is missing"
    text = [t for token in inputs for t in (said[token] if token in SENTINELS else [token])]
    assert [t for t in inputs if t in SENTINELS] == list(said)[:-1], (
        "inputs and targets name other spans"
    )
    return text


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=6),
    st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    st.integers(0, 10_000),
)
def test_inputs_and_targets_together_are_the_text(lengths, rate, seed):
    generator = seeded(seed)
    texts = [[*torch.randint(3, 900, (n,), generator=generator).tolist(), 1] for n in lengths]
    width = max(map(len, texts))
    ids, real = (torch.zeros(len(texts), width, dtype=torch.long) for _ in range(2))
    for row, text in enumerate(texts):
        ids[row, : len(text)], real[row, : len(text)] = torch.tensor(text), 1
    noise = t5.noise_mask(real.sum(1) - 1, width, rate, generator)
    inputs, targets = t5.corrupt_spans(ids, real.bool(), noise, torch.tensor(SENTINELS), 0)
    for row, text in enumerate(texts):
        n = len(text) - 1
        seen, wanted = (
            [t for t in inputs[row].tolist() if t != 0],
            [t for t in targets[row].tolist() if t != -100],
        )
        assert rebuilt(seen, wanted) == text
        assert (inputs[row, len(seen) :] == 0).all() and (
            targets[row, len(wanted) :] == -100
        ).all(), "padding is at the end"
        assert seen[-1] == 1, "</s> is not corrupted"
        hidden = [t for t in wanted if t not in SENTINELS]
        assert len(hidden) == (0 if n < 2 else min(n - 1, max(1, round(n * rate))))
        spans = sum(t in SENTINELS for t in seen)
        assert spans == (
            0 if n < 2 else min(len(hidden), n - len(hidden), max(1, round(len(hidden) / 3)))
        )
        assert n < 2 or seen[0] not in SENTINELS, "a kept stretch comes first"
        # Between two spans something is kept: else they were one.
        assert not any(a in SENTINELS and b in SENTINELS for a, b in itertools.pairwise(seen))


def test_every_split_into_spans_is_equally_likely():
    n = 12_000
    got = Counter(
        map(
            tuple,
            t5.random_lengths(torch.full((n,), 6), torch.full((n,), 3), 9, seeded(0)).tolist(),
        )
    )
    wanted = [(a, b, 6 - a - b, *[0] * 6) for a in range(1, 5) for b in range(1, 6 - a)]
    assert set(got) == set(wanted) and len(wanted) == math.comb(5, 2)
    p = 1 / len(wanted)
    assert all(abs(c - n * p) < 5 * math.sqrt(n * p * (1 - p)) for c in got.values())


@given(st.integers(3, 600), st.sampled_from([0.05, 0.15, 0.5, 0.9]))
def test_there_are_sentinels_enough(max_length, rate):
    lengths = torch.arange(1, max_length)
    assert int(t5.noise_budget(lengths, rate)[1].max()) + 1 == t5.sentinels_needed(max_length, rate)


# ---- tokenizers ----------------------------------------------------------------------------------


def test_the_tokenizer_is_rebuilt_from_its_vocabulary(encoder):
    vocab = bert.tokenizer_vocab(encoder.tokenizer)
    again = t5.t5_tokenizer_from_vocab(json.loads(json.dumps(vocab)))
    texts = [*TEXTS, "Zebra, unheard-of!", "", "ünïcode"]
    assert again(texts)["input_ids"] == encoder.tokenizer(texts)["input_ids"]
    assert vocab[:3] == ["<pad>", "</s>", "<unk>"] and vocab[-1] == "<extra_id_0>"
    assert replace(encoder, tokenizer=again).digest == encoder.digest
    assert (
        encoder.tokenizer.decode(again("The board met.")["input_ids"], skip_special_tokens=True)
        == "the board met."
    )
    assert again.unk_token_id not in again("zebra unheard of")["input_ids"], (
        "other words split into characters"
    )


@pytest.mark.parametrize(
    "make", [real_tokenizer, lambda: t5.build_t5_tokenizer(TEXTS, 3)], ids=["T5's own", "miniature"]
)
def test_every_text_ends_in_eos_also_when_cut(make):
    encoder = TextEncoder(tiny_config(), make(), 6)
    rows = encoder.prepare([*TEXTS, ""])
    assert all(row[-1] == 1 and row.count(1) == 1 and len(row) <= 6 for row in rows)
    assert max(map(len, rows)) == 6
    batch = encoder.collate(rows)
    assert ((batch["input_ids"] == 0) == (batch["attention_mask"] == 0)).all()


# ---- the encoder ---------------------------------------------------------------------------------


def test_features_are_the_mean_over_real_tokens_and_know_nothing_of_padding(encoder, states):
    module = encoder.module(states[1])
    z = extract(encoder, module, tuple(TEXTS), batch_size=5)
    assert apart(extract(encoder, module, tuple(TEXTS), batch_size=1), z) < ROUNDING
    plain = T5EncoderModel(
        tiny_config(vocab_size=encoder.config.vocab_size)
    ).eval()  # eager attention, no padding, one text at a time
    plain.load_state_dict(states[1] | {"encoder.embed_tokens.weight": states[1][VOCABULARY]})
    plain.set_attn_implementation("eager")
    for text, feature in zip(TEXTS, z, strict=True):
        with torch.no_grad():
            hidden = plain(
                input_ids=torch.tensor([encoder.tokenizer(text)["input_ids"]])
            ).last_hidden_state[0]
        assert apart(hidden.mean(0), feature) < ROUNDING


def test_the_encoders_identity_does_not_depend_on_what_it_was_used_for(encoder):
    vocab = bert.tokenizer_vocab(encoder.tokenizer)
    fresh, used = (
        TextEncoder(encoder.config, t5.t5_tokenizer_from_vocab(vocab), 24) for _ in range(2)
    )
    used.module()
    used.prepare(TEXTS)  # leaves its truncation behind in the tokenizer
    assert used.digest == fresh.digest


def test_the_vocabulary_is_tied_and_in_the_state_once(encoder, states):
    module = encoder.module(states[1])
    transformer = module.transformer
    assert transformer.encoder.embed_tokens.weight is transformer.shared.weight
    assert torch.equal(transformer.shared.weight, states[1][VOCABULARY])
    assert "encoder.embed_tokens.weight" not in states[0]
    unique = {p.data_ptr(): p.numel() for p in transformer.parameters()}
    assert sum(t.numel() for t in states[0].values()) == sum(unique.values())
    assert not any(
        t.is_set_to(u) for t, u in itertools.combinations(encoder_state(module).values(), 2)
    )


def test_a_state_with_the_tied_tensor_under_its_second_name_alone_is_refused(encoder, states):
    renamed = {
        ("encoder.embed_tokens.weight" if n == VOCABULARY else n): t for n, t in states[0].items()
    }
    with pytest.raises(StateDictError, match=VOCABULARY):
        load_state(encoder.module(), renamed)


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
        gradients.append(dict(module.transformer.named_parameters())[name].grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


# ---- folders -------------------------------------------------------------------------------------


TIED = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]


def write_folder(folder, *, feed_forward="relu", drop=(), **config):
    """A whole T5 as the hub has it: both halves, the vocabulary under every name, a bias that only
    old checkpoints hold."""
    kind = {"feed_forward_proj": feed_forward, "architectures": ["T5ForConditionalGeneration"]}
    torch.manual_seed(1)
    model = T5ForConditionalGeneration(tiny_config(**kind, **config)).eval()
    tensors = {n: t.clone() for n, t in model.state_dict().items() if n not in drop}
    old = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    folder.mkdir()
    save_file(tensors | {old: torch.zeros(32, 2)}, folder / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(folder)
    real_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])  # T5 and T5 v1.1
@pytest.mark.parametrize("drop", [[], TIED], ids=["every name", "first name"])
def test_a_folder_in_the_hubs_layout_gives_its_encoder(tmp_path, feed_forward, drop):
    whole = write_folder(tmp_path / "t5", feed_forward=feed_forward, drop=drop)
    encoder, state = load_base(str(tmp_path / "t5"), 12)
    of_encoder = {n for n in whole.state_dict() if n.startswith("encoder.")}
    assert state.keys() == {VOCABULARY, *of_encoder} - {*TIED}
    module = encoder.module(state)
    assert isinstance(module.transformer, T5EncoderModel)
    batch = encoder.collate(encoder.prepare(["the board won", "who won the cup?"]))
    with torch.no_grad():
        hidden = whole.encoder(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    assert apart(module(**batch), (hidden * mask).sum(1) / mask.sum(1)) < ROUNDING


MISSING = [
    "encoder.block.1.layer.0.SelfAttention.v.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
]


@pytest.mark.parametrize(
    "drop, named",
    [(MISSING, MISSING), ([VOCABULARY, *TIED], [VOCABULARY])],
    ids=["layers", "vocabulary"],
)
def test_a_folder_with_missing_weights_is_an_error_that_lists_them(tmp_path, drop, named):
    write_folder(tmp_path / "t5", drop=drop)
    with pytest.raises(StateDictError) as error:
        load_base(str(tmp_path / "t5"), 12)
    assert all(name in str(error.value) for name in named)


def test_a_folder_with_two_vocabularies_is_refused(tmp_path):
    """transformers would load them untied and say so in a warning."""
    write_folder(tmp_path / "t5")
    tensors = load_file(tmp_path / "t5" / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] += 1
    save_file(tensors, tmp_path / "t5" / "model.safetensors", {"format": "pt"})
    with pytest.raises(StateDictError, match=r"encoder\.embed_tokens\.weight"):
        load_base(str(tmp_path / "t5"), 12)


def test_features_are_float32_whatever_the_config_says(tmp_path):
    write_folder(tmp_path / "t5", dtype="bfloat16")
    encoder, state = load_base(str(tmp_path / "t5"), 12)
    assert {t.dtype for t in [*state.values(), *encoder.module(state).parameters()]} == {
        torch.float32
    }


def test_an_encoder_saved_alone_loads_too(tmp_path, encoder, states):
    encoder.module(states[2]).transformer.save_pretrained(tmp_path / "alone")
    encoder.tokenizer.save_pretrained(tmp_path / "alone")
    found, state = load_base(str(tmp_path / "alone"), 24)
    assert equal(state, states[2])
    assert found.prepare(TEXTS) == encoder.prepare(TEXTS)


# ---- pre-training and the whole road -------------------------------------------------------------


def test_pretraining_lowers_the_loss(tmp_path):
    settings = load_profile("quick", variant="t5_b").encoder
    p = settings.pretraining
    from mergelib.tasks import miniature

    corpus = miniature.corpus(p.documents, seed=3, exclude=set())
    n_sentinels = t5.sentinels_needed(settings.max_length, p.mask_rate)
    tokenizer = t5.build_t5_tokenizer(corpus, n_sentinels)
    encoder = t5.t5_encoder(tokenizer, **{n: getattr(settings, n) for n in bert.SHAPE})
    losses = []
    for steps in (1, 3 * p.steps):
        state, info = bert.pretrain(
            encoder,
            corpus,
            TrainConfig(steps, p.batch_size, p.lr, threads=1),
            t5.SpanCorruption,
            t5.corrupted_batch,
            p.mask_rate,
            device=torch.device("cpu"),
            scratch=tmp_path / str(steps),
            desc="t5",
        )
        losses.append(info["last_loss"])
    assert losses[1] < losses[0] - 0.5
    assert all(t.isfinite().all() for t in state.values())


def test_the_road_from_corpus_to_scores(tiny_study, make_study):
    assert tiny_study.encoder.config.model_type == "t5" and "T5" in tiny_study.profile.backbone
    again = make_study(tiny_study.store.root, variant="t5_a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tiny study may well put lambda on the edge
        scores = [
            s.scores(["f_b", "f_t", "ties"], ["current", "ft_classifier"])
            for s in (tiny_study, again)
        ]
    assert scores[0].equals(scores[1]) and scores[0].accuracy.notna().all()
    assert equal(again.base_state, tiny_study.base_state)
    assert VOCABULARY in tiny_study.merged_state(
        "ties"
    ) and "encoder.embed_tokens.weight" not in tiny_study.merged_state("ties")


def test_the_claim_is_the_worse_of_two_differences(study):
    found = claims.METRICS["P6.3-t5"](claims.Bootstrap(study))
    summary = tables.mean_and_std(study.scores(study.methods, ["current", "knn", "ft_classifier"]))
    for method in study.methods:
        fitted = tables.average_of(summary, method, "ft_classifier", 5)
        worse = fitted - max(
            tables.average_of(summary, method), tables.average_of(summary, method, "knn", 5)
        )
        assert float(found[tables.short_label(method)][0]) == pytest.approx(worse, abs=1e-4)


@pytest.mark.parametrize("profile", ["quick", "mini"])
def test_the_two_sizes_differ_in_nothing_but_size(profile):
    a, b = (load_profile(profile, variant=v) for v in ("t5_a", "t5_b"))
    assert (a.tasks, a.merging, a.protocols) == (b.tasks, b.merging, b.protocols)
    assert a.tasks == load_profile(profile).tasks
    assert (a.encoder.layers, a.encoder.width) < (b.encoder.layers, b.encoder.width)
