"""What users' folders hold: what is loaded is what transformers loads, or a refusal in words."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from near import equal, normal
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.testing import assert_close

import mergelib
from mergelib.core.errors import (
    ConfigError,
    DataError,
    MergelibError,
    StateDictError,
    StoreError,
)
from mergelib.merging import get_method
from mergelib.models import folders, heads, load_merged
from mergelib.models.folders import free_file, free_folder, write_file
from mergelib.models.heads import expert_classifier, features
from mergelib.models.parents import open_parent
from mergelib.models.recipes import build, pairs
from mergelib.run import cli, runner

WORDS = "good Good bad Bad film Film game Game news News".split()
SIZE = {
    "vocab_size": 4 + len(WORDS),
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}
LAYER = "bert.encoder.layer.0.attention.self.query"


def tokenizer(lower=True, **special):
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        made.normalizer = normalizers.Lowercase()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]"} | special
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, **{k: v for k, v in names.items() if v is not None}
    )


def make(folder, kind="Bert", base_class="Model", **config):
    """``base``, ``x`` and ``y`` of one architecture, with a tokenizer each."""
    of_kind = getattr(hf, f"{kind}Config")(**(SIZE | config))
    torch.manual_seed(0)
    getattr(hf, kind + base_class)(of_kind).save_pretrained(folder / "base")
    for name in "xy":
        model = getattr(hf, f"{kind}ForSequenceClassification")(of_kind)
        model.save_pretrained(folder / name)
    for name in ("base", "x", "y"):
        tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    return make(tmp_path_factory.mktemp("berts"))


@pytest.fixture
def trio(berts, tmp_path):
    shutil.copytree(berts, tmp_path / "trio")
    return tmp_path / "trio"


def state(folder):
    return load_file(folder / "model.safetensors")


def put(folder, tensors):
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configure(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def average(folder, **options):
    return mergelib.merge("weight_averaging", experts={n: folder / n for n in "xy"}, **options)


def with_base(folder, method="task_arithmetic", **options):
    experts = {n: folder / n for n in "xy"}
    return mergelib.merge(method, base=folder / "base", experts=experts, **options)


# ---- weights ------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    st.sets(
        st.sampled_from(["single", "shards", "bin", "bin shards", "another bin", "variant"]),
        min_size=1,
    )
)
def test_of_several_files_those_are_read_that_transformers_reads(berts, tmp_path_factory, kinds):
    folder = tmp_path_factory.mktemp("several") / "x"
    shutil.copytree(berts / "x", folder)
    whole = state(folder)
    (folder / "model.safetensors").unlink()
    for shift, kind in enumerate(sorted(kinds)):
        tensors = {n: t + shift for n, t in whole.items()}
        stem, suffix = ("pytorch_model", "bin") if "bin" in kind else ("model", "safetensors")
        part = "-00001-of-00001" if "shards" in kind else {"another bin": "_old"}.get(kind, "")
        name = f"{stem}{part}.{suffix}" if kind != "variant" else "model.fp16.safetensors"
        if suffix == "bin":
            torch.save(tensors, folder / name)
        else:
            save_file(tensors, folder / name, {"format": "pt"})
        if "shards" in kind:
            index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
            (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    try:
        model = expert_classifier(folder).model
    except ConfigError as error:
        assert kinds <= {"another bin", "variant"} and "transformers loads" in str(error)
        return
    theirs = hf.AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert equal(model.state_dict(), theirs)


def old_names(tensors):
    return {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in tensors.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        old_names,
        lambda s: {n.removeprefix("bert."): t for n, t in s.items()},
        lambda s: s | {"bert.embeddings.position_ids": torch.arange(20)[None]},
        lambda s: s | {"cls.unused.weight": torch.ones(3)},
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not load")
def test_other_names_for_the_same_weights_change_nothing(trio, change):
    expected = with_base(trio).classifier("x").model.state_dict()
    put(trio / "x", change(state(trio / "x")))
    for merged in (with_base(trio), average(trio)):
        assert merged.encoder.keys() <= state(trio / "x").keys()
    found = with_base(trio).classifier("x").model.state_dict()
    assert equal(found, expected)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: s.pop(f"{LAYER}.bias"), "model.safetensors lacks"),
        (lambda s: s.pop("classifier.bias"), "model.safetensors lacks"),
        (lambda s: s.update({f"{LAYER}.weight": s[f"{LAYER}.weight"].to(torch.int8)}), "integers"),
        (lambda s: s.update({f"{LAYER}.SCB": torch.ones(8)}), "quantised"),
        (lambda s: s.update({f"{LAYER}.lora_A.weight": torch.ones(2, 8)}), "adapter"),
        (lambda s: s.update({f"{LAYER}.bias": torch.ones(9)}), "other shapes"),
    ],
)
def test_what_makes_no_whole_model_is_refused_by_file_and_tensor(trio, change, said):
    tensors = state(trio / "x")
    change(tensors)
    put(trio / "x", tensors)
    for attempt in (average, with_base, lambda f: expert_classifier(f / "x")):
        with pytest.raises(StateDictError, match=rf"'x'.*{said}"):
            attempt(trio)


def test_quantised_models_are_refused_with_the_remedy(trio):
    configure(trio / "x", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ConfigError, match=r"'x' is quantised.*dequantize"):
        average(trio)


def test_running_statistics_are_no_weights(tmp_path):
    config = hf.ResNetConfig(
        embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2
    )
    for seed, name in enumerate("xy"):
        torch.manual_seed(seed)
        model = hf.ResNetForImageClassification(config).train()
        model(torch.randn(4, 3, 16, 16))
        model.save_pretrained(tmp_path / name)
    with pytest.raises(StateDictError, match="running_mean, which is not a weight"):
        average(tmp_path)
    shutil.copytree(tmp_path / "x", tmp_path / "y", dirs_exist_ok=True)
    assert torch.equal(
        average(tmp_path).encoder["resnet.embedder.embedder.normalization.running_var"],
        state(tmp_path / "x")["resnet.embedder.embedder.normalization.running_var"],
    )


def test_tied_names_in_a_pickle_are_one_tensor(tmp_path):
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
             (("layers", 1), ("attention_heads", 2), ("ffn_dim", 8))}  # fmt: skip
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    make(tmp_path, "Bart", "ForConditionalGeneration", d_model=8, **sizes, **tokens)
    expected = with_base(tmp_path).encoder
    for name in "xy":
        model = hf.BartForSequenceClassification.from_pretrained(tmp_path / name)
        torch.save(model.state_dict(), tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "model.safetensors").unlink()
    found = with_base(tmp_path).encoder
    assert found.keys() == expected.keys()
    assert equal(found, expected)


@given(st.sampled_from(["task_arithmetic", "weight_averaging", "ties"]), st.integers(0, 99))
def test_a_tie_of_the_base_alone_is_taken_apart(method, seed):
    w, a, b = normal(3, 4, seed=seed)
    tied, apart = {"in": w, "out": w}, {"in": w, "out": w.clone()}
    experts = [{"in": w + a, "out": w + b}, {"in": w - b, "out": w + a}]
    found, expected = (get_method(method)(base, experts) for base in (tied, apart))
    assert equal(found, expected)


def test_a_model_may_be_trained_and_leaves_what_it_was_made_of(trio):
    torch.save(state(trio / "x"), trio / "x" / "pytorch_model.bin")
    (trio / "x" / "model.safetensors").unlink()
    merged = average(trio)
    makers = (lambda: merged.classifier("x"), lambda: expert_classifier(merged.experts["x"]))
    before = [{n: t.clone() for n, t in m().model.state_dict().items()} for m in makers]
    for made in makers:
        for p in made().model.parameters():
            p.data.add_(1)
    for made, old in zip(makers, before, strict=True):
        assert equal(old, made().model.state_dict())


def test_loaded_models_that_cannot_be_saved_are_refused(trio):
    model = hf.AutoModelForSequenceClassification.from_pretrained(trio / "x")
    with pytest.raises(ConfigError, match="'x' cannot be saved"):
        mergelib.merge("weight_averaging", experts={"x": model.to("meta")})
    with pytest.raises(ConfigError, match="experts is a list"):
        mergelib.merge("weight_averaging", experts=None)


def test_one_pattern_of_names_is_one_pattern(trio):
    found = average(trio, encoder="bert.encoder.*").encoder
    assert found.keys() == average(trio, encoder=["bert.encoder.*"]).encoder.keys()
    assert all(n.startswith("bert.encoder.") for n in found)


# ---- configuration and preprocessing ------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value",
    [
        ("vocab_size", 17),
        ("hidden_size", 64),
        ("num_attention_heads", 4),
        ("hidden_act", "relu"),
        ("layer_norm_eps", 1e-3),
        ("is_decoder", True),
        ("pad_token_id", 1),
        ("rope_parameters", {"rope_theta": 5}),
        ("unheard_of", 3),
        ("token_dropout", True),  # ESM's, which scales embeddings at all times
        ("drop_last_layer", True),
        ("position_init", 3),
    ],
)
def test_a_configuration_that_may_change_the_function_is_refused(trio, key, value):
    configure(trio / "y", **{key: value})
    with pytest.raises(StateDictError, match=f"different architectures: {key}"):
        average(trio)


def test_what_a_trained_model_does_not_compute_with_may_differ(trio):
    configure(
        trio / "y",
        hidden_dropout_prob=0.3,
        classifier_dropout=0.5,
        drop_path_rate=0.1,
        resid_pdrop=0.1,
        initializer_range=1.0,
        layer_scale_init_value=0.1,
        problem_type="single_label_classification",
        _name_or_path="elsewhere",
        use_cache=False,
        transformers_version="3.0",
        reference_compile=True,
        repad_logits_with_grad=True,
    )
    assert average(trio).heads.keys() == {"x", "y"}


def test_experts_of_transformers_4_and_5_go_together(trio):
    """The former wrote the one kind of positions that the latter knows into every BERT."""
    configure(trio / "y", position_embedding_type="absolute")
    assert average(trio).heads.keys() == {"x", "y"}
    configure(trio / "y", position_embedding_type="relative_key")
    with pytest.raises(StateDictError, match="different architectures: position_embedding_type"):
        average(trio)


def shorter(folder):
    tokenizer(model_max_length=5).save_pretrained(folder)


def cased(folder):
    tokenizer(lower=False).save_pretrained(folder)


def no_frame(folder):
    configure(folder, "tokenizer.json", post_processor=None)


@pytest.mark.parametrize("change", [shorter, cased, no_frame])
def test_each_task_reads_inputs_as_its_expert_does(trio, change):
    """In memory, from the merged folder, from the single folder, and after re-alignment."""
    change(trio / "y")
    inputs = ["Good film bad News game", "Film"]
    merged = average(trio)
    merged = merged.with_heads(mergelib.align_classifier(merged, "y", inputs * 4))
    assert merged.processor is None
    merged.save_pretrained(trio / "out", single=True)
    for name in "xy":
        expected = hf.AutoTokenizer.from_pretrained(trio / name)(inputs, truncation=True)
        alone = hf.AutoTokenizer.from_pretrained(trio / "out" / "tasks" / name)
        for processor in (
            merged.classifier(name).processor,
            load_merged(trio / "out").classifier(name).processor,
            alone,
        ):
            assert processor(inputs, truncation=True)["input_ids"] == expected["input_ids"], name


def test_tokenizers_that_do_the_same_are_kept_once(trio):
    configure(trio / "y", "tokenizer_config.json", name_or_path="elsewhere")
    merged = average(trio)
    assert merged.processor is not None
    merged.save_pretrained(trio / "out")
    assert not list((trio / "out" / "heads").rglob("tokenizer*"))


def test_clips_image_classifiers_read_images_though_texts_could_be_read(tmp_path):
    size = {k: SIZE[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    size |= {"intermediate_size": 8, "projection_dim": 4}
    config = hf.CLIPConfig(
        vision_config={**size, "image_size": 8, "patch_size": 4}, text_config=size, num_labels=2
    )
    hf.CLIPForImageClassification(config).save_pretrained(tmp_path / "x")
    hf.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8).save_pretrained(tmp_path / "x")
    tokenizer().save_pretrained(tmp_path / "x")
    pictures = [torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()] * 2
    merged = mergelib.merge("weight_averaging", experts={"x": tmp_path / "x"})
    assert features(merged.classifier("x"), pictures, device="cpu").shape == (2, 8)


def test_images_go_through_weights_of_half_the_precision(tmp_path):
    config = hf.ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, num_labels=3)
    torch.manual_seed(0)
    model = hf.ConvNextForImageClassification(config).eval()
    pictures = list(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8).numpy())
    found = {}
    for name, dtype in (("whole", torch.float32), ("half", torch.bfloat16)):
        model.to(dtype).save_pretrained(tmp_path / name)
        hf.ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / name)
        found[name] = features(expert_classifier(tmp_path / name), pictures, device="cpu")
    assert_close(found["half"], found["whole"], atol=0.05, rtol=0.05)


def test_a_configuration_that_asks_for_tuples_is_read_all_the_same(trio):
    def found():
        return features(expert_classifier(trio / "x"), ["good film"], device="cpu")

    expected = found()
    configure(trio / "x", return_dict=False, output_attentions=True)
    assert torch.equal(found(), expected)


def test_an_architecture_of_two_base_classes_is_saved(tmp_path):
    config = hf.FunnelConfig(
        vocab_size=14, d_model=8, n_head=2, d_head=4, d_inner=8, block_sizes=[1]
    )
    hf.FunnelForSequenceClassification(config).save_pretrained(tmp_path / "x")
    merged = mergelib.merge("weight_averaging", experts={"x": tmp_path / "x"})
    merged.save_pretrained(tmp_path / "out")
    assert load_merged(tmp_path / "out").encoder.keys() == merged.encoder.keys()


# ---- texts that tokenizer or model do not take --------------------------------------------------

LONG = " ".join(WORDS * 4)


@pytest.mark.parametrize(
    "kind, config",
    [
        ("Bert", {}),
        ("MPNet", {"pad_token_id": 1}),
        ("RobertaPreLayerNorm", {}),
        ("IBert", {}),
        ("Esm", {"position_embedding_type": "absolute", "mask_token_id": 1}),
        ("GPT2", {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20}),
        ("XLNet", {"d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 8}),
    ],
)
def test_long_texts_are_cut_to_what_the_model_takes(tmp_path, kind, config):
    clean = {k: v for k, v in SIZE.items() if k in ("vocab_size", "pad_token_id")}
    base = SIZE if kind not in ("GPT2", "XLNet") else clean
    model = getattr(hf, f"{kind}ForSequenceClassification")
    model(getattr(hf, f"{kind}Config")(**(base | config))).save_pretrained(tmp_path)
    # XLNet's feature is its last position.
    tokenizer(padding_side="left" if kind == "XLNet" else "right").save_pretrained(tmp_path)
    classifier = expert_classifier(tmp_path)
    z = features(classifier, [LONG, "good"], device="cpu")
    assert z.isfinite().all() and len(z) == 2
    short = features(classifier, ["good"], device="cpu")
    assert_close(z[1:], short, atol=1e-5, rtol=1e-4)


def test_a_saved_roberta_cuts_long_texts_itself(tmp_path):
    """Its positions start behind the padding token's id, two of them are never used."""
    make(tmp_path, "Roberta", pad_token_id=1)
    aligned = mergelib.align_classifier(average(tmp_path), tmp_path / "x", [LONG, "good"] * 2)
    aligned.save_pretrained(tmp_path / "out")
    plain = hf.pipeline("text-classification", str(tmp_path / "out"))
    assert len(plain(LONG, truncation=True)) == 1


def test_a_second_alignment_may_read_longer_texts(trio):
    first = mergelib.align_classifier(average(trio), trio / "x", [LONG] * 2, max_length=4)
    merged = average(trio).with_heads(first)
    merged.save_pretrained(trio / "out")
    for length in (8, 0):
        again = mergelib.align_classifier(trio / "out", trio / "x", [LONG] * 2, max_length=length)
        assert again.processor.model_max_length == (length or 20)


def test_nothing_is_left_of_a_text(trio):
    for length in (1, 2):
        with pytest.raises(ConfigError, match=f"cut to {length} tokens .*--max-length"):
            features(expert_classifier(trio / "x"), ["good"], max_length=length)


def test_a_decoder_that_pads_with_its_last_token(tmp_path):
    """A text that ends in it, too: transformers takes such a token for padding."""
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20}
    make(tmp_path, "GPT2", **shape, pad_token_id=3, eos_token_id=3)
    tokenizer(pad_token="[SEP]", eos_token="[SEP]").save_pretrained(tmp_path / "x")
    x = expert_classifier(tmp_path / "x")
    texts = ["good [SEP]", "good film bad", "bad film [SEP] [SEP]"]
    with torch.no_grad():
        logits = x.model(**x.processor(texts, padding=True, return_tensors="pt")).logits
    found = x.head.linear.logits(features(x, texts, device="cpu"))
    assert_close(found, logits, atol=1e-5, rtol=1e-4)


def test_a_tokenizer_of_sentencepiece_alone_names_the_packages(trio):
    (trio / "x" / "tokenizer.json").unlink()
    (trio / "x" / "spiece.model").write_bytes(b"pieces")
    (trio / "x" / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    with pytest.raises(ConfigError, match=r"without tokenizer\.json.*pip install sentencepiece"):
        _ = open_parent(str(trio / "x")).processor


def test_no_padding_token_and_a_token_beyond_the_embedding(trio):
    tokenizer(pad_token=None).save_pretrained(trio / "x")
    configure(trio / "x", pad_token_id=None)
    classifier = expert_classifier(trio / "x")
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        features(classifier, ["good", "bad film"], device="cpu")
    assert len(features(classifier, ["good", "bad film"], device="cpu", batch_size=1)) == 2
    more = tokenizer()
    more.add_tokens(["zebra"])
    more.save_pretrained(trio / "y")
    with pytest.raises(DataError, match=r"'zebra' the id 14.*14 rows"):
        features(expert_classifier(trio / "y"), ["zebra"], device="cpu")
    with pytest.raises(StateDictError, match="numbers tokens up to 14"):
        mergelib.merge("weight_averaging", experts={"y": trio / "y"})


def test_a_head_without_a_bias_has_one_of_zero(tmp_path):
    sizes = {"vocab_size": 14, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20}
    config = hf.GPT2Config(**sizes, pad_token_id=0)
    for name in ("base", *"xy"):
        cls = hf.GPT2Model if name == "base" else hf.GPT2ForSequenceClassification
        cls(config).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    merged = with_base(tmp_path)
    classifier = merged.classifier("x")
    texts = ["good film", "bad", "news game film"]
    batch = tokenizer()(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        logits = classifier.model(**batch).logits
    z = features(classifier, texts, device="cpu")
    assert_close(classifier.head.linear.logits(z), logits, atol=1e-5, rtol=1e-4)
    aligned = mergelib.align_classifier(merged, "x", texts, device="cpu")
    assert aligned.head.has_bias is False
    assert not torch.equal(aligned.head.linear.weight, classifier.head.linear.weight)


# ---- what is written ----------------------------------------------------------------------------


def tree(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([".", "x", "y", "link", "mine", "forged", "merged", "merged/tasks/x", "above"]),
    st.booleans(),
)
def test_no_output_replaces_an_input_or_what_mergelib_did_not_write(
    berts, tmp_path_factory, out, by_command
):
    folder = shutil.copytree(berts, tmp_path_factory.mktemp("out") / "w")
    merged = average(folder)
    merged.save_pretrained(folder / "merged", single=True)
    (folder / "merged" / "notes.txt").write_text("mine")
    os.symlink(folder / "x", folder / "link")
    for name in ("mine", "forged", "above"):
        (folder / name).mkdir()
        (folder / name / "thesis.tex").write_text("mine")
    (folder / "forged" / "mergelib.json").write_text('{"files": {}}')
    before = tree(folder)
    target = folder / out
    if by_command:
        named = [f"{n}={folder / n}" for n in "xy"]
        command = ["merge", "--method", "weight_averaging", "--experts", *named, "--overwrite"]
        assert cli.main([*command, "--out", str(target)]) == 2
    else:
        with pytest.raises(ConfigError):
            merged.save_pretrained(target, overwrite=True)
    assert tree(folder) == before


def test_what_mergelib_wrote_is_replaced_until_it_is_changed(trio):
    merged, out = average(trio), trio / "out"
    merged.save_pretrained(out)
    merged.save_pretrained(out, single=True, overwrite=True)
    with pytest.raises(ConfigError, match="overwrite"):
        merged.save_pretrained(out)
    (out / "README.md").write_text("my own card")
    with pytest.raises(ConfigError, match=r"README.md, which mergelib did not write or"):
        merged.save_pretrained(out, overwrite=True)


def test_what_was_changed_or_read_or_looks_like_ours_is_not_replaced(trio, monkeypatch):
    monkeypatch.setattr(folders, "SMALL", 100)  # weights are large
    merged, out = average(trio), trio / "out"
    merged.save_pretrained(out, single=True)
    again = load_merged(out)
    for writer in (
        again,
        again.classifier("x"),
        mergelib.align_classifier(out, trio / "x", ["good"] * 2),
    ):
        with pytest.raises(ConfigError, match="is or contains an input"):
            writer.save_pretrained(out, overwrite=True)
    weights = out / "tasks" / "x"
    put(weights, {n: t + 1 for n, t in state(weights).items()})  # trained further, of one length
    with pytest.raises(ConfigError, match=r"tasks/x/model\.safetensors, which mergelib did not"):
        merged.save_pretrained(out, overwrite=True)
    mine = trio / ".new.partial-backup" / "thesis.tex"
    mine.parent.mkdir()
    mine.write_text("mine")
    merged.save_pretrained(trio / "new")
    assert mine.read_text() == "mine"


def test_a_folder_that_cannot_be_renamed_is_filled(trio, monkeypatch):
    """A mount point: into the empty folder, and over what was written there before."""
    out, replace = trio / "out", Path.replace

    def busy(path, to):
        if path == out:
            raise OSError(16, "Device or resource busy")
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", busy)
    out.mkdir()
    merged = average(trio)
    for single in (True, False):
        merged.save_pretrained(out, single=single, overwrite=True)
        assert load_merged(out).heads.keys() == {"x", "y"}
        assert (out / "tasks").exists() == single
        assert not [p for p in trio.rglob("*") if "partial" in p.name]


@pytest.fixture
def rows(trio):
    path = trio / "rows.csv"
    path.write_text("".join(f'{i % 2 + 1},"good film"\n' for i in range(6)))
    return path


def test_scores_go_to_a_new_file_or_over_scores(trio, rows, capsys):
    def run(out, *flags):
        command = ["evaluate", "--model", str(trio / "x"), "--data", f"x={rows}"]
        return cli.main([*command, "--out", str(out), *flags])

    before = tree(trio)
    for out in (rows, trio / "x", trio / "x" / "config.json"):
        assert run(out, "--overwrite") == 2 and tree(trio) == before
    out = trio / "scores" / "x.csv"
    assert run(out) == 0 and run(out) == 2 and run(out, "--overwrite") == 0
    ours, record = out.read_bytes(), out.with_name(".x.csv.mergelib")
    for theirs in (
        ours + ours.splitlines()[-1] + b"\n",
        ours[:-1],
        ours.replace(b"x", b"y", 1),
        b"",
    ):
        out.write_bytes(theirs)  # rows by hand, say, or a corrected name
        assert run(out, "--overwrite") == 2 and out.read_bytes() == theirs
        assert "no longer, what mergelib wrote" in capsys.readouterr().err
    out.write_bytes(ours)
    record.rename(out.with_name("kept"))
    assert run(out, "--overwrite") == 2
    out.with_name("kept").rename(record)
    assert run(out, "--overwrite") == 0


def test_a_file_of_results_is_refused_before_any_work(tmp_path, monkeypatch):
    def refused(name, said, error=ConfigError):
        with pytest.raises(error, match=said):
            free_file(tmp_path / name, True)

    large = "x" * (2 << 20)
    write_file(free_file(tmp_path / "large", True), large)
    write_file(free_file(tmp_path / "large", True), large)
    now = (tmp_path / "large").stat()
    (tmp_path / "large").write_text("y" + large[1:])
    os.utime(tmp_path / "large", ns=(now.st_atime_ns, now.st_mtime_ns))
    refused("large", "no longer, what mergelib wrote")
    (tmp_path / ".a.mergelib").write_text("my notes")
    (tmp_path / ".b.mergelib").mkdir()
    (tmp_path / ".c.mergelib").symlink_to(tmp_path / ".large.mergelib")
    for name in "abc":
        refused(name, rf"'\.{name}\.mergelib' beside it")
    refused("n" * 220, "too long")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused("loop", "leads nowhere|exists")
    with pytest.raises(ConfigError, match=r"leads nowhere|not a folder"):
        free_folder(tmp_path / "loop", True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused("new", "not writable", StoreError)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_written_files_have_the_umasks_mode(trio, rows, umask):
    held, merged, out = os.umask(umask), average(trio), trio / "new"
    try:
        for single in (True, False):
            merged.save_pretrained(out / f"merged {single}", single=single)
        command = ["evaluate", "--model", str(trio / "x"), "--data", f"x={rows}"]
        assert cli.main([*command, "--out", str(out / "scores.csv")]) == 0
    finally:
        os.umask(held)
    modes = {oct(p.stat().st_mode & 0o777) for p in out.rglob("*") if p.is_file()}
    assert modes == {oct(0o666 & ~umask)}


def test_all_that_is_given_is_read_before_a_model_computes(trio, rows, monkeypatch, capsys):
    def computes(*_, **__):
        raise AssertionError("a model computes")

    monkeypatch.setattr(heads, "features", computes)
    data, pool = (["good", "bad"] * 3, [0, 1] * 3), (["film"] * 2, [0, 1])
    knn = {"protocols": ["knn"]}
    surgery = {"protocols": ["surgery"], "draw": "uniform", "expert": trio / "x"}
    for said, options in (
        ("'x': k = 4 is larger than class 0", {**knn, "k": 4}),
        ("'x': k = 2 is larger than class 0", {**knn, "k": 2, "fit": pool}),
        ("'x': 8 rows requested, but only 6", {**surgery, "k": 4}),
        ("at least 1, not 2.5", {**knn, "k": 2.5}),
        ("at least 1, not True", {**knn, "k": True}),
        ("at least one seed", {**knn, "seeds": []}),
        ("at least one protocol", {"protocols": []}),
    ):
        with pytest.raises(MergelibError, match=said):
            mergelib.evaluate(trio / "x", data, **options)
    merged, few, texts = trio / "merged", trio / "few.csv", trio / "texts.txt"
    average(trio).save_pretrained(merged)
    texts.write_text("good\nbad\n")
    few.write_text("label,text\n0,good\n1,bad\n")
    evaluate = f"evaluate --model {merged} --data x={rows}"
    align = f"align --merged {merged} --experts x={trio / 'x'} y={trio / 'y'} --out {trio / 'o'}"
    small = f"{align} --inputs x={rows} y={texts}"
    for said, command in (
        ("'y': k = 3 is larger", f"{evaluate} y={few} --protocols knn -k 3"),
        ("no file", f"{evaluate} y=none.csv"),
        ("Unknown task of fit 'y'", f"{evaluate} --fit y={rows}"),
        ("'y': 4 rows requested, but only 2", f"{small} -k 2"),
        ("no file", f"{small} --data y=none.csv"),
        ("'y' has no inputs", f"{align} --inputs x={rows} --data y={rows}"),
    ):
        assert cli.main(command.split()) == 2
        assert said in capsys.readouterr().err


def test_a_batch_of_no_size_and_a_fit_on_what_is_scored_are_said(trio):
    classifier = expert_classifier(trio / "x")
    for options in ({"batch_size": -1}, {"batch_size": 0}, {"max_length": -1}, {"max_length": 2.5}):
        with pytest.raises(ConfigError, match="must be an integer of at least"):
            features(classifier, ["good"], device="cpu", **options)
    data = (["good", "bad"], [0, 1])
    with pytest.warns(UserWarning, match="'x': 2 of 2 scored inputs are also in the data"):
        mergelib.evaluate(classifier, data, ["knn"], k=1, fit=data, seeds=0)


# ---- flags --------------------------------------------------------------------------------------


def flags_of(command, *arguments):
    parsed = vars(cli.build_parser().parse_args([command, *arguments]))
    return {k: v for k, v in parsed.items() if k not in ("command", "function", "recipe")}


@given(st.lists(st.sampled_from(["a=1", "b=2", "c=3"]), unique=True, min_size=1), st.data())
def test_a_repeated_flag_adds_up(values, data):
    cut = data.draw(st.integers(0, len(values)))
    parts = [part for part in (values[:cut], values[cut:]) if part]
    arguments = [word for part in parts for word in ("--experts", *part)]
    recipe = build("merge", {"method": "ties"}, flags_of("merge", *arguments))
    assert recipe.experts == dict(v.split("=") for v in values)


def test_flags_of_every_command_add_up_or_contradict(capsys):
    found = cli.build_parser().parse_args(["run", "--only", "tab02", "--only", "fig05"])
    assert found.only == ["tab02", "fig05"]
    for words in (
        ["train", "--device", "cpu", "--device", "cuda"],
        ["data", "list", "--profile", "mini", "--profile", "real"],
    ):
        with pytest.raises(SystemExit):
            cli.build_parser().parse_args(words)
        assert "is given twice" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="-p base is given twice"):
        runner.parse_parameters(["base=a", "base=b"], runner.select(["tab02"]))
    for empty in (
        {"data": {}},
        {"data": {"a": "f"}, "protocols": []},
        {"data": {"a": "f"}, "seeds": []},
    ):
        with pytest.raises(ConfigError, match="at least 1"):
            build("evaluate", {"model": "m"} | empty)


def test_flags_that_contradict_are_errors_and_a_recipes_other_entries_stay(capsys):
    with pytest.raises(SystemExit):
        flags_of("merge", "--method", "ties", "--method", "weight_averaging")
    assert "given twice" in capsys.readouterr().err
    recipe = {"method": "ties", "experts": {"a": "x"}, "options": {"lam": 1.0, "keep": 0.5}}
    told = flags_of("merge", "--options", "keep=3e-1", "--experts", "b=y")
    found = build("merge", recipe, told)
    assert found.options == {"lam": 1.0, "keep": 0.3} and found.experts == {"a": "x", "b": "y"}
    for content, flags in (
        (recipe, flags_of("merge", "--options", "lam=1", "--options", "lam=2")),
        ({"model": "m", "data": {"a": "f"}}, {"seeds": ["0", "0"]}),
        ({"method": "ties", "merge": recipe}, {}),
    ):
        with pytest.raises(MergelibError):
            build("evaluate" if "model" in content else "merge", content, flags)


def test_an_existing_path_is_a_path_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lr=0.1/x", "lr=1", "a=b", "b"):
        Path(name).mkdir(parents=True)
    assert pairs(["lr=0.1/x", "lr=1", "q=b", "."], "experts") == {
        "x": "lr=0.1/x",
        "lr=1": "lr=1",
        "q": "b",
        tmp_path.name: ".",
    }
    assert pairs(["lam=1"], "options") == {"lam": "1"}
    with pytest.raises(ConfigError, match="names the path 'b'"):
        pairs(["a=b"], "experts")
