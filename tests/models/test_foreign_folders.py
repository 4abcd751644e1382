"""What users' folders hold: what is loaded is what transformers loads, or a refusal in words."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml
from conftest import pictures
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
from mergelib.core.spare import spare
from mergelib.merging import get_method
from mergelib.models import folders, heads, load_merged
from mergelib.models.folders import free_file, free_folder, write_file
from mergelib.models.heads import expert_classifier, features
from mergelib.models.parents import open_parent
from mergelib.run import cli

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
CASES = yaml.safe_load(Path(__file__).with_name("foreign_folders.yaml").read_text())
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


def put(folder, tensors, file="model.safetensors"):
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file, {"format": "pt"})


def pickled(folder, tensors):
    """A folder whose weights are a pickle."""
    (folder / "model.safetensors").unlink()
    put(folder, tensors, "pytorch_model.bin")


def configure(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def average(folder, names="xy", **options):
    return mergelib.merge("weight_averaging", experts={n: folder / n for n in names}, **options)


def with_base(folder, method="task_arithmetic", **options):
    experts = {n: folder / n for n in "xy"}
    return mergelib.merge(method, base=folder / "base", experts=experts, **options)


def read(source, inputs, **options):
    """Features of a folder or a classifier."""
    return features(expert_classifier(source), inputs, device="cpu", **options)


def assert_logits(classifier, inputs):
    """Head and features give the model's own logits."""
    batch = classifier.processor(inputs, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = classifier.model(**batch).logits
    found = classifier.head.linear.logits(read(classifier, inputs))
    assert_close(found, logits, atol=1e-5, rtol=1e-4)


# ---- weights ------------------------------------------------------------------------------------


NUMBER = "-00001-of-00001"
FILES = ("model.safetensors", f"model{NUMBER}.safetensors")
FILES += ("pytorch_model.bin", f"pytorch_model{NUMBER}.bin")
UNREAD = {"pytorch_model_old.bin", "model.fp16.safetensors"}


@settings(max_examples=12, deadline=None)
@given(st.sets(st.sampled_from([*FILES, *sorted(UNREAD)]), min_size=1))
@pytest.mark.filterwarnings("ignore:.*outdated")
def test_of_several_files_those_are_read_that_transformers_reads(berts, tmp_path_factory, files):
    folder = shutil.copytree(berts / "x", tmp_path_factory.mktemp("several") / "x")
    whole = state(folder)
    (folder / "model.safetensors").unlink()
    for shift, file in enumerate(sorted(files)):
        put(folder, {n: t + shift for n, t in whole.items()}, file)
        if NUMBER in file:
            index = {"metadata": {}, "weight_map": dict.fromkeys(whole, file)}
            (folder / f"{file.replace(NUMBER, '')}.index.json").write_text(json.dumps(index))
    try:
        model = expert_classifier(folder).model
    except ConfigError as error:
        assert files <= UNREAD and "transformers loads" in str(error)
        return
    theirs = hf.AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert equal(model.state_dict(), theirs)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {re.sub("(Norm.)weight$", r"\1gamma", n): t for n, t in s.items()},
        lambda s: {re.sub("(Norm.)bias$", r"\1beta", n): t for n, t in s.items()},
        lambda s: {n.removeprefix("bert."): t for n, t in s.items()},
        lambda s: s | {"bert.embeddings.position_ids": torch.arange(20)[None]},
        lambda s: s | {"cls.unused.weight": torch.ones(3)},
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not load")
def test_other_names_for_the_same_weights_change_nothing(trio, change):
    expected = with_base(trio).classifier("x").model.state_dict()
    put(trio / "x", change(state(trio / "x")))
    merged = with_base(trio)
    assert merged.encoder.keys() | average(trio).encoder.keys() <= state(trio / "x").keys()
    assert equal(merged.classifier("x").model.state_dict(), expected)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({f"{LAYER}.bias": None}, "model.safetensors lacks"),
        ({"classifier.bias": None}, "model.safetensors lacks"),
        ({f"{LAYER}.weight": torch.ones(8, 8, dtype=torch.int8)}, "integers"),
        ({f"{LAYER}.weight": torch.ones(8, 8).to(torch.float8_e5m2)}, "stored as torch.float8"),
        ({f"{LAYER}.SCB": torch.ones(8)}, "quantised"),
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 8)}, "adapter"),
        ({f"{LAYER}.bias": torch.ones(9)}, "other shapes"),
    ],
)
def test_what_makes_no_whole_model_is_refused_by_file_and_tensor(trio, changed, said):
    tensors = state(trio / "x") | changed
    put(trio / "x", {n: t for n, t in tensors.items() if t is not None})
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
    name = "resnet.embedder.embedder.normalization.running_var"
    assert torch.equal(average(tmp_path).encoder[name], state(tmp_path / "x")[name])


def test_tied_names_in_a_pickle_are_one_tensor(tmp_path):
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "decoder_attention_heads": 2}
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    make(tmp_path, "Bart", "ForConditionalGeneration", **sizes, **tokens)
    expected = with_base(tmp_path).encoder
    for name in "xy":
        model = hf.BartForSequenceClassification.from_pretrained(tmp_path / name)
        pickled(tmp_path / name, model.state_dict())
    assert equal(with_base(tmp_path).encoder, expected)


@pytest.mark.parametrize("method", ["task_arithmetic", "weight_averaging", "ties"])
def test_a_tie_of_the_base_alone_is_taken_apart(method):
    w, a, b = normal(3, 4)
    experts = [{"in": w + a, "out": w + b}, {"in": w - b, "out": w + a}]
    bases = {"in": w, "out": w}, {"in": w, "out": w.clone()}
    assert equal(*(get_method(method)(base, experts) for base in bases))


def test_a_model_may_be_trained_and_leaves_what_it_was_made_of(trio):
    pickled(trio / "x", state(trio / "x"))
    merged = average(trio)
    makers = (lambda: merged.classifier("x"), lambda: expert_classifier(merged.experts["x"]))
    for made in makers:
        before = spare(made().model.state_dict())
        for p in made().model.parameters():
            p.data.add_(1)
        assert equal(before, made().model.state_dict())


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


@pytest.mark.parametrize("key, value", CASES["fields that change the function"].items())
def test_a_configuration_that_may_change_the_function_is_refused(trio, key, value):
    configure(trio / "y", **{key: value})
    with pytest.raises(StateDictError, match=f"different architectures: {key}"):
        average(trio)


def test_what_a_trained_model_does_not_compute_with_may_differ(trio):
    configure(trio / "y", **CASES["harmless fields"])
    assert average(trio).heads.keys() == {"x", "y"}


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: tokenizer(model_max_length=5).save_pretrained(folder),
        lambda folder: tokenizer(lower=False).save_pretrained(folder),
        lambda folder: configure(folder, "tokenizer.json", post_processor=None),
    ],
)
def test_each_task_reads_inputs_as_its_expert_does(trio, change):
    """In memory, from the merged folder, from the single folder, and after re-alignment."""
    change(trio / "y")
    inputs = ["Good film bad News game", "Film"]
    merged = average(trio)
    merged = merged.with_heads(mergelib.align_classifier(merged, "y", inputs * 4))
    assert merged.processor is None
    merged.save_pretrained(trio / "out", single=True)
    for name in "xy":
        expert, *found = (
            hf.AutoTokenizer.from_pretrained(trio / name),
            merged.classifier(name).processor,
            load_merged(trio / "out").classifier(name).processor,
            hf.AutoTokenizer.from_pretrained(trio / "out" / "tasks" / name),
        )
        for processor in found:
            assert processor(inputs, truncation=True) == expert(inputs, truncation=True), name


def slow(folder):
    """A tokenizer that is defined by a list of words alone."""
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *WORDS]))
    hf.EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


@pytest.mark.parametrize("change", [None, slow])
def test_tokenizers_that_do_the_same_are_kept_once(trio, change):
    for name in "xy" if change else "":
        change(trio / name)
    configure(trio / "y", "tokenizer_config.json", name_or_path="elsewhere")
    merged = average(trio)
    assert merged.processor is not None
    merged.save_pretrained(trio / "out")
    assert not list((trio / "out" / "heads").rglob("tokenizer*"))


def test_clips_image_classifiers_read_images_though_texts_could_be_read(family, tmp_path):
    shutil.copytree(family("clip")["light"], tmp_path / "x")
    tokenizer().save_pretrained(tmp_path / "x")
    merged = average(tmp_path, "x")
    assert read(merged.classifier("x"), pictures("light", 2, 0)[0]).shape == (2, 32)


def test_images_go_through_weights_of_half_the_precision(family, tmp_path):
    inputs, whole = pictures("light", 2, 0)[0], family("vit")["light"]
    shutil.copytree(whole, tmp_path / "half")
    model = hf.ViTForImageClassification.from_pretrained(whole)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert_close(read(tmp_path / "half", inputs), read(whole, inputs), atol=0.05, rtol=0.05)


def test_a_configuration_that_asks_for_tuples_is_read_all_the_same(trio):
    expected = read(trio / "x", ["good film"])
    configure(trio / "x", return_dict=False, output_attentions=True)
    assert torch.equal(read(trio / "x", ["good film"]), expected)


def test_an_architecture_of_two_base_classes_is_saved(tmp_path):
    config = hf.FunnelConfig(
        vocab_size=14, d_model=8, n_head=2, d_head=4, d_inner=8, block_sizes=[1]
    )
    hf.FunnelForSequenceClassification(config).save_pretrained(tmp_path / "x")
    merged = average(tmp_path, "x")
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
        ("GPT2", {}),
        ("XLNet", {"max_position_embeddings": -1, "d_head": 4}),  # no limit
    ],
)
def test_long_texts_are_cut_to_what_the_model_takes(tmp_path, kind, config):
    config = {name: value for name, value in (SIZE | config).items() if value != -1}
    model = getattr(hf, f"{kind}ForSequenceClassification")
    model(getattr(hf, f"{kind}Config")(**config)).save_pretrained(tmp_path)
    # XLNet's feature is its last position.
    tokenizer(padding_side="left" if kind == "XLNet" else "right").save_pretrained(tmp_path)
    z = read(tmp_path, [LONG, "good"])
    assert z.isfinite().all() and len(z) == 2
    assert_close(z[1:], read(tmp_path, ["good"]), atol=1e-5, rtol=1e-4)


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
            read(trio / "x", ["good"], max_length=length)


def test_a_decoder_that_pads_with_its_last_token(tmp_path):
    """A text that ends in it, too: transformers takes such a token for padding."""
    make(tmp_path, "GPT2", pad_token_id=3, eos_token_id=3)
    tokenizer(pad_token="[SEP]", eos_token="[SEP]").save_pretrained(tmp_path / "x")
    texts = ["good [SEP]", "good film bad", "bad film [SEP] [SEP]"]
    assert_logits(expert_classifier(tmp_path / "x"), texts)


def test_a_head_without_a_bias_has_one_of_zero(tmp_path):
    merged, texts = with_base(make(tmp_path, "GPT2")), ["good film", "bad", "news game film"]
    classifier = merged.classifier("x")
    assert_logits(classifier, texts)
    aligned = mergelib.align_classifier(merged, "x", texts, device="cpu").head
    assert not aligned.has_bias
    assert not torch.equal(aligned.linear.weight, classifier.head.linear.weight)


def test_a_tokenizer_of_sentencepiece_alone_names_the_packages(trio):
    (trio / "x" / "tokenizer.json").unlink()
    (trio / "x" / "spiece.model").write_bytes(b"pieces")
    (trio / "x" / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    with pytest.raises(ConfigError, match=r"without tokenizer\.json.*pip install sentencepiece"):
        _ = open_parent(str(trio / "x")).processor


def test_no_padding_token_and_a_token_beyond_the_embedding(trio):
    tokenizer(pad_token=None).save_pretrained(trio / "x")
    configure(trio / "x", pad_token_id=None)
    texts = ["good", "bad film"]
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        read(trio / "x", texts)
    assert len(read(trio / "x", texts, batch_size=1)) == 2
    more = tokenizer()
    more.add_tokens(["zebra"])
    more.save_pretrained(trio / "y")
    with pytest.raises(DataError, match=r"'zebra' the id 14.*14 rows"):
        read(trio / "y", ["zebra"])
    with pytest.raises(StateDictError, match="numbers tokens up to 14"):
        average(trio, "y")


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
        command = f"merge --method weight_averaging --experts x={folder / 'x'} y={folder / 'y'}"
        assert cli.main(f"{command} --overwrite --out {target}".split()) == 2
    else:
        with pytest.raises(ConfigError):
            merged.save_pretrained(target, overwrite=True)
    assert tree(folder) == before


def test_what_mergelib_wrote_is_replaced_until_it_is_changed_or_read(trio, monkeypatch):
    monkeypatch.setattr(folders, "SMALL", 100)  # weights are large
    merged, out = average(trio), trio / "out"

    def refused(said, writer=merged, overwrite=True):
        with pytest.raises(ConfigError, match=said):
            writer.save_pretrained(out, overwrite=overwrite)

    merged.save_pretrained(out)
    merged.save_pretrained(out, single=True, overwrite=True)
    refused("overwrite", overwrite=False)
    again, aligned = load_merged(out), mergelib.align_classifier(out, trio / "x", ["good"] * 2)
    for writer in (again, again.classifier("x"), aligned):
        refused("is or contains an input", writer)
    weights = out / "tasks" / "x"
    put(weights, {n: t + 1 for n, t in state(weights).items()})  # trained further, of one length
    refused(r"tasks/x/model\.safetensors, which mergelib did not")
    (out / "README.md").write_text("my own card")
    refused(r"README.md, tasks/x/model.*, which mergelib did not write or")
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
    path.write_text("1,good film\n2,good film\n" * 3)
    return path


def score(trio, out, *flags):
    command = f"evaluate --model {trio / 'x'} --data x={trio / 'rows.csv'} --out {out}"
    return cli.main([*command.split(), *flags])


def test_scores_go_to_a_new_file_or_over_scores(trio, rows, capsys):
    before = tree(trio)
    for out in (rows, trio / "x", trio / "x" / "config.json"):
        assert score(trio, out, "--overwrite") == 2 and tree(trio) == before
    out = trio / "scores" / "x.csv"
    codes = [score(trio, out), score(trio, out), score(trio, out, "--overwrite")]
    assert codes == [0, 2, 0]
    ours, record = out.read_bytes(), out.with_name(".x.csv.mergelib")
    more = ours + ours.splitlines()[-1] + b"\n"  # rows by hand, say, or a corrected name
    for theirs in (more, ours[:-1], ours.replace(b"x", b"y", 1), b""):
        out.write_bytes(theirs)
        assert score(trio, out, "--overwrite") == 2 and out.read_bytes() == theirs
        assert "no longer, what mergelib wrote" in capsys.readouterr().err
    out.write_bytes(ours)
    record.rename(out.with_name("kept"))
    assert score(trio, out, "--overwrite") == 2
    out.with_name("kept").rename(record)
    assert score(trio, out, "--overwrite") == 0


def test_a_file_of_results_is_refused_before_any_work(tmp_path, monkeypatch):
    def refused(name, said, error=ConfigError):
        with pytest.raises(error, match=said):
            free_file(tmp_path / name, True)

    large, text = tmp_path / "large", "x" * (2 << 20)
    for _ in range(2):
        write_file(free_file(large, True), text)
    now = large.stat()
    large.write_text("y" + text[1:])
    os.utime(large, ns=(now.st_atime_ns, now.st_mtime_ns))
    refused("large", "no longer, what mergelib wrote")
    os.mkfifo(tmp_path / "pipe")
    refused("pipe", "no longer, what mergelib wrote")
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
        assert score(trio, out / "scores.csv") == 0
    finally:
        os.umask(held)
    assert {p.stat().st_mode & 0o777 for p in tree(out)} == {0o666 & ~umask}


def test_all_that_is_given_is_read_before_a_model_computes(trio, rows, monkeypatch, capsys):
    def computes(*_, **__):
        raise AssertionError("a model computes")

    monkeypatch.setattr(heads, "features", computes)
    monkeypatch.chdir(trio)
    data = ["good", "bad"] * 3, [0, 1] * 3
    for said, options in CASES["options of evaluate"]:
        with pytest.raises(MergelibError, match=said):
            mergelib.evaluate("x", data, **options)
    average(trio).save_pretrained("merged")
    Path("texts.txt").write_text("good\nbad\n")
    Path("few.csv").write_text("label,text\n0,good\n1,bad\n")
    for said, command in CASES["commands"]:
        align = " --merged merged --experts x=x y=y --out o" * command.startswith("align")
        assert cli.main(f"{command}{align}".split()) == 2
        assert said in capsys.readouterr().err


def test_a_batch_of_no_size_and_a_fit_on_what_is_scored_are_said(trio):
    for options in ({"batch_size": -1}, {"batch_size": 0}, {"max_length": -1}, {"max_length": 2.5}):
        with pytest.raises(ConfigError, match="must be an integer of at least"):
            read(trio / "x", ["good"], **options)
    data = (["good", "bad"], [0, 1])
    with pytest.warns(UserWarning, match="'x': 2 of 2 scored inputs are also in the data"):
        mergelib.evaluate(trio / "x", data, ["knn"], k=1, fit=data, seeds=0)
