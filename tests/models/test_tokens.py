"""Experts that added tokens: the merged embedding, token by token, and the models around it."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from test_foreign_folders import (
    WORDS,
    average,
    configure,
    make,
    pickled,
    read,
    tokenizer,
    with_base,
)
from torch.testing import assert_close

import mergelib
from mergelib.core.errors import StateDictError
from mergelib.core.store import Store
from mergelib.models import load_merged
from mergelib.models.compare import compare
from mergelib.models.heads import expert_classifier

TEXTS = ["good <a> film", "bad", "<both> news <b>", "game <a>", "good <b> game", "news film"]
ADDED = {"x": ["<both>", "<a>"], "y": ["<b>", "<both>"]}
pytestmark = pytest.mark.filterwarnings("ignore:Vocabularies differ")


def resize(folder, *rows, n_new=0, **options):
    """Another number of rows in a model's embedding, the last of them drawn anew."""
    kind = hf.AutoModel if folder.name == "base" else hf.AutoModelForSequenceClassification
    model = kind.from_pretrained(folder)
    model.resize_token_embeddings(*rows, mean_resizing=False, **options)
    with torch.no_grad():
        model.get_input_embeddings().weight[len(WORDS) + 4 :][:n_new].normal_()
    model.save_pretrained(folder)


def grown(folder, **added):
    """Each expert with tokens of its own, whose numbers mean something else in the other."""
    make(folder)
    for seed, (name, tokens) in enumerate((added or ADDED).items()):
        own = tokenizer()
        own.add_tokens(tokens)
        own.save_pretrained(folder / name)
        torch.manual_seed(seed)
        resize(folder / name, len(own), n_new=len(tokens))
    return {name: folder / name for name in "xy"}


def row(source, token):
    classifier = expert_classifier(source)
    weight = classifier.model.get_input_embeddings().weight
    return weight[classifier.processor.convert_tokens_to_ids(token)].detach()


def test_the_union_has_the_rows_of_base_and_holders(tmp_path):
    experts = grown(tmp_path)
    with pytest.warns(UserWarning, match=r"tokenizer of 'base' with <both>, <a>, <b>"):
        merged = with_base(tmp_path, lam=0.5, dtype="float32")
    x, y = experts.values()
    base = hf.AutoModel.from_pretrained(tmp_path / "base").get_input_embeddings().weight
    both = merged.classifier("x")
    b = base[tokenizer().convert_tokens_to_ids("film")].detach()
    wanted = {
        "film": b + 0.5 * (row(x, "film") + row(y, "film") - 2 * b),
        "<a>": row(x, "<a>"),
        "<b>": row(y, "<b>"),
        "<both>": (row(x, "<both>") + row(y, "<both>")) / 2,
    }
    for token, one in wanted.items():
        assert_close(row(both, token), one, msg=token)
    for name, expert in experts.items():  # renumbered, and the same function
        texts = [t for t in TEXTS if "<" not in t or (ADDED[name][-1] in t and "<both>" not in t)]
        assert_close(read(merged.experts[name], texts), read(expert, texts))
    merged.save_pretrained(tmp_path / "out", single=True)
    for name in "xy":  # from folders, as on the command line
        loaded = load_merged(tmp_path / "out")
        aligned = mergelib.align_classifier(loaded, tmp_path / name, TEXTS, device="cpu")
        assert_close(row(aligned, "<a>"), wanted["<a>"])
        plain = hf.pipeline("text-classification", str(tmp_path / "out" / "tasks" / name))
        assert len(plain(TEXTS)) == len(TEXTS)


def test_only_one_expert_grew_and_compare_takes_it(tmp_path):
    experts = grown(tmp_path, x=["<a>"])
    texts = [*TEXTS, *(f"{t} good" for t in TEXTS), *(f"bad {t}" for t in TEXTS)]
    found = compare(
        experts,
        tmp_path / "base",
        dict.fromkeys("xy", texts),
        methods="weight_averaging",
        k=1,
        store=Store(tmp_path / "store"),
        device="cpu",
    )
    assert not found.failed and {"f_b", "f_t"} <= {*found.table.method}


def test_a_padding_token_that_was_added_is_the_merged_models(tmp_path):
    make(tmp_path, "GPT2", pad_token_id=None)
    for name in ("base", "x", "y"):
        own = tokenizer(pad_token=None if name == "base" else "<pad>")
        own.save_pretrained(tmp_path / name)
        if name != "base":
            resize(tmp_path / name, len(own))
            configure(tmp_path / name, pad_token_id=own.pad_token_id)
    classifier = with_base(tmp_path, "ties", lam=0.0).classifier("x")
    assert classifier.processor.pad_token_id == classifier.head.config.pad_token_id
    assert read(classifier, TEXTS).isfinite().all()


@pytest.mark.filterwarnings("error::UserWarning")
def test_rows_that_only_fill_up_an_embedding_are_cut(tmp_path):
    """Each task keeps its tokenizer: here one reads lower case and one does not."""
    make(tmp_path)
    tokenizer(lower=False).save_pretrained(tmp_path / "y")
    for name in "xy":
        resize(tmp_path / name, pad_to_multiple_of=64)
    merged = with_base(tmp_path)
    assert len(merged.classifier("x").model.get_input_embeddings().weight) == len(tokenizer())
    merged.save_pretrained(tmp_path / "out")
    for model in (merged, load_merged(tmp_path / "out")):
        for name in "xy":
            own = hf.AutoTokenizer.from_pretrained(tmp_path / name)
            assert model.classifier(name).processor("Good")["input_ids"] == own("Good")["input_ids"]
    alone = average(tmp_path, "x", base=tmp_path / "base").classifier("x")
    assert_close(read(alone, TEXTS), read(tmp_path / "x", TEXTS))


def test_a_cased_tokenizer_gets_the_others_tokens_and_stays_cased(tmp_path):
    """Alone or beside another; also from binary files in which tensors share memory."""
    grown(tmp_path, x=["<a>"])
    tokenizer(lower=False).save_pretrained(tmp_path / "y")
    y, texts = expert_classifier(tmp_path / "y"), ["Good film", "good Film", "NEWS"]
    base = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    pickled(tmp_path / "base", base.state_dict())
    merged = with_base(tmp_path, lam=0.5, dtype="float32")
    own = merged.classifier("y").processor
    assert own(texts)["input_ids"] == y.processor(texts)["input_ids"]
    assert own.convert_tokens_to_ids("<a>") == len(y.processor)
    aligned = mergelib.align_classifier(merged, tmp_path / "y", texts, task="new")
    assert len(read(aligned, texts)) == 3


@pytest.mark.parametrize("tokens", [{"x": ["<a>"], "y": ["<b>"]}, {"x": ["<a>", "<b>"]}])
def test_added_tokens_may_stand_in_rows_that_were_there(tmp_path, tokens):
    """All embeddings then have one size, as of models that are published with empty rows."""
    experts = grown(tmp_path, **tokens)
    for name in ("base", "x", "y"):
        resize(tmp_path / name, 64)
    merged = with_base(tmp_path, lam=1.0, dtype="float32")
    assert_close(row(merged.classifier("x"), "<a>"), row(experts["x"], "<a>"))
    merged.save_pretrained(tmp_path / "out")
    for name in "xy":
        mergelib.align_classifier(tmp_path / "out", tmp_path / name, TEXTS)


def test_a_token_without_a_row_is_refused_beside_a_padded_embedding(tmp_path):
    grown(tmp_path, y=["<b>"])
    own = tokenizer()
    own.add_tokens(["<a>"])
    own.save_pretrained(tmp_path / "x")
    with pytest.raises(StateDictError, match="'x' numbers tokens up to 14, its embedding has 14"):
        with_base(tmp_path)


def test_tokens_that_differ_otherwise_are_refused(tmp_path):
    grown(tmp_path, x=["<a>"])
    file = tmp_path / "y" / "tokenizer.json"
    file.write_text(file.read_text().replace("Film", "Movie"))
    with pytest.raises(StateDictError, match="different architectures: vocab_size"):
        with_base(tmp_path)
