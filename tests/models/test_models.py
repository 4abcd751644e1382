"""Merged, aligned, saved, reloaded: three architectures from disk to a process that has no
mergelib."""

import json
import shutil
from unittest.mock import Mock

import pytest
import torch
from conftest import TASKS, data, experts, is_image, make_family, merge, named, texts
from near import equal
from safetensors.torch import load_file, save_file
from test_foreign_folders import configure, put, state
from tiny import python
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import mergelib
from mergelib import merging
from mergelib.core.errors import (
    ConfigError,
    DataError,
    StateDictError,
    UnknownNameError,
)
from mergelib.merging import get_method
from mergelib.models import find_parts, load_merged
from mergelib.models.heads import ALIGNMENTS, expert_classifier, features
from mergelib.models.merging import Reader
from mergelib.models.parents import open_parent
from mergelib.protocols import kl_to_teacher

KINDS = ("bert", "deberta", "vit")


def batch_of(kind, processor, inputs):
    padding = {} if is_image(kind) else {"padding": True}
    return processor(inputs, return_tensors="pt", **padding)


FRESH = """
import json, sys
sys.modules["mergelib"] = None  # importing it fails
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, \
AutoModelForSequenceClassification, AutoTokenizer, AutoImageProcessor, pipeline
found = {}
for kind, folder, tasks, texts in json.loads(sys.argv[1]):
    sys.path.insert(0, folder)
    sys.modules.pop("load_merged", None)
    import load_merged
    assert load_merged.tasks() == sorted(tasks)
    batch = load_file(folder + "-batch.safetensors")
    AutoModel.from_pretrained(folder)
    for task in tasks:
        auto = AutoModelForSequenceClassification if texts else AutoModelForImageClassification
        single = auto.from_pretrained(f"{folder}/tasks/{task}").eval()
        with torch.no_grad():
            found[f"{kind}.{task}.single"] = single(**batch).logits
            found[f"{kind}.{task}.shared"] = load_merged.load(task)(**batch).logits
        if texts:
            said = pipeline("text-classification", f"{folder}/tasks/{task}")(texts)
            names = single.config.id2label
            assert [s["label"] for s in said] == [names[int(i)] \
for i in found[f"{kind}.{task}.single"].argmax(-1)], said
    sys.path.remove(folder)
save_file(found, sys.argv[2])
"""


def test_a_fresh_process_without_mergelib_predicts_the_same(aligned, tmp_path):
    """By plain transformers from the single-task folder, and by the folder's own loader from the
    shared encoder."""
    expected, jobs = {}, []
    for kind in KINDS:
        merged, folder = aligned(kind)
        inputs = data(kind, next(iter(merged.heads)), 6, 77)[0]
        batch = batch_of(kind, merged.processor, inputs)
        save_file(dict(batch), f"{folder}-batch.safetensors")
        for task in merged.heads:
            with torch.no_grad():
                expected[f"{kind}.{task}"] = merged.classifier(task).model(**batch).logits
        jobs.append((kind, str(folder), list(merged.heads), [] if is_image(kind) else inputs))
    out = tmp_path / "logits.safetensors"
    python("-c", FRESH, json.dumps(jobs), out, cwd=tmp_path)
    found = load_file(out)
    assert len(found) == 2 * len(expected) == 12
    for name, logits in found.items():
        assert_close(logits, expected[name.rpartition(".")[0]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_alignment_moves_the_head_alone_and_what_is_loaded_again_is_what_was_saved(aligned, kind):
    merged, folder = aligned(kind)
    again = load_merged(folder)
    assert again.record["options"] == {"keep": 0.3, "lam": 1.0}
    assert equal(again.encoder, merged.encoder)
    for task, head in merged.heads.items():
        own = expert_classifier(merged.experts[task])
        before = {**own.encoder, **own.head.tensors}
        changed = {n for n, t in head.tensors.items() if not torch.equal(t, before[n])}
        assert changed == {f"{head.module}.weight", f"{head.module}.bias"}
        assert not head.tensors.keys() & merged.encoder.keys()  # which is saved once
        assert equal(again.heads[task].tensors, head.tensors)
        assert again.heads[task].alignment == head.alignment and head.alignment["n"] == 25


@pytest.mark.parametrize("protocol", ALIGNMENTS)
@pytest.mark.parametrize("kind", ["bert", "roberta", "vit", "clip"])
def test_alignment_brings_the_merged_model_nearer_to_its_expert(family, kind, protocol):
    """Mean KL of Eq. 8 to the expert, on inputs that were not fitted on."""
    merged = merge(family(kind), lam=1.0)
    for task, expert in merged.experts.items():
        inputs = data(kind, task, 40, 5)[0]
        few = data(kind, task, 30, 6)[0]
        better = mergelib.align_classifier(merged, task, few, protocol=protocol)
        logits = [
            model.head.linear.logits(features(model, inputs))
            for model in (better, merged.classifier(task), expert_classifier(expert))
        ]
        near, far = (kl_to_teacher(student, logits[2]).mean() for student in logits[:2])
        assert near < far, task


# ---- which part is what --------------------------------------------------------------------------

EXPECTED = {  # neck, head
    "bert": (set(), "classifier"),
    "roberta": ({"classifier.dense"}, "classifier.out_proj"),
    "distilbert": ({"pre_classifier"}, "classifier"),
    "deberta": ({"pooler.dense"}, "classifier"),
    "vit": (set(), "classifier"),
    "clip": (set(), "classifier"),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_encoder_neck_and_head_of_each_architecture(family, kind):
    found = family(kind)
    expert, base = (open_parent(found[n]) for n in (next(iter(experts(found))), "base"))
    parts = find_parts(expert, base)
    neck, head = EXPECTED[kind]
    assert {n.rpartition(".")[0] for n in parts.neck} == neck and parts.head == head
    assert sorted((*parts.encoder, *parts.own)) == sorted(expert.weights)
    # A feature is the input of that layer: the library's features through it are the model's own
    # logits.
    own = expert_classifier(expert)
    inputs = data(kind, expert.name, 7, 1)[0]
    with torch.no_grad():
        logits = own.model(**batch_of(kind, own.processor, inputs)).logits
    assert_close(own.head.linear.logits(features(own, inputs)), logits, atol=1e-5, rtol=1e-5)


def test_a_pooler_that_the_base_lacks_stays_with_its_task(family, tmp_path):
    found = family("bert")
    base = copied(found["base"], tmp_path / "base")
    put(base, {n: t for n, t in state(base).items() if "pooler" not in n})
    merged = merge(found | {"base": base}, "task_arithmetic")
    aligned = mergelib.align_classifier(merged, "ag", texts("ag", 20, 4)[0])
    own = merged.heads["ag"].neck
    assert own.keys() == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert equal(aligned.head.neck, own)
    with_heads = merged.with_heads(aligned).save_pretrained(tmp_path / "out")
    assert mergelib.evaluate(with_heads, texts("ag", 20, 3), task="ag").n[0] == 20


def test_the_split_can_be_overridden(family):
    found, more = family("roberta"), ["roberta.*", "classifier.dense.*"]
    merged = mergelib.merge("weight_averaging", experts=experts(found), encoder=more)
    name = "classifier.dense.weight"
    assert_close(merged.encoder[name], sum(state(found[t])[name] for t in TASKS) / 2)
    aligned = mergelib.align_classifier(merged, "ag", texts("ag", 20, 4)[0])
    assert {*aligned.head.tensors} == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    expert, base = open_parent(found["ag"]), open_parent(found["base"])
    for given, options, error, said in [
        ((base,), {"encoder": more}, StateDictError, r"lacks classifier.dense"),
        ((), {"encoder": ["nothing.*"]}, ConfigError, "matches encoder"),
        ((), {"head": "nowhere"}, ConfigError, r"no tensor nowhere\.weight"),
    ]:
        with pytest.raises(error, match=said):
            find_parts(expert, *given, **options)


def test_a_layer_that_is_not_the_last_is_noticed(family):
    found = family("roberta")
    wrong = expert_classifier(found["ag"], head="classifier.dense")
    with pytest.raises(
        ConfigError, match=r"not what 'classifier.dense' computes|not applied exactly once"
    ):
        features(wrong, texts("ag", 5, 0)[0])


# ---- merging from disk ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, options",
    [
        ("weight_averaging", {}),
        ("task_arithmetic", {"lam": 0.7}),
        ("ties", {"keep": 0.2, "lam": 1.0}),
    ],
)
@pytest.mark.parametrize("piece", [1 << 21, 40])
def test_streamed_equals_in_memory(family, monkeypatch, method, options, piece):
    """The same numbers to the last bit, however small the pieces."""
    monkeypatch.setattr("mergelib.models.merging.PIECE", piece)
    found = family("bert")
    streamed = merge(found, method, **options).encoder
    base = {f"bert.{n}": t for n, t in state(found["base"]).items()}
    states = [{n: t for n, t in state(f).items() if n in base} for f in experts(found).values()]
    assert equal(streamed, get_method(method)(base, states, **options))


def test_shards_and_bf16_are_read_and_kept(family, tokenizer, tmp_path):
    found = make_family(tmp_path, "bert", tokenizer, steps=2, dtype=torch.bfloat16)
    model = AutoModelForSequenceClassification.from_pretrained
    for folder in experts(found).values():
        whole = model(folder)
        (folder / "model.safetensors").unlink()
        whole.save_pretrained(folder, max_shard_size="30KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    merged = merge(found, "task_arithmetic", lam=0.5, dtype="bfloat16")
    name = "bert.embeddings.word_embeddings.weight"
    base = state(found["base"])[name.removeprefix("bert.")]
    taus = (model(found[t]).state_dict()[name].float() - base for t in experts(found))
    assert {t.dtype for t in merged.encoder.values()} == {torch.bfloat16}
    assert torch.equal(merged.encoder[name], (base + 0.5 * sum(taus)).bfloat16())  # rounded once
    merged.save_pretrained(tmp_path / "out", single=True)
    assert model(tmp_path / "out" / "tasks" / "ag").dtype == torch.bfloat16
    whole = merge(found, "ties", dtype="float32")
    aligned = mergelib.align_classifier(whole, "ag", texts("ag", 9, 4)[0])
    assert {t.dtype for t in aligned.model.state_dict().values()} == {torch.float32}
    (next(found["ag"].glob("model-00002*"))).unlink()
    with pytest.raises(ConfigError, match="lacks model-00002"):
        merge(found)


def test_loaded_models_and_a_method_of_ones_own(family, monkeypatch):
    """A registered function without a streaming form loads everything, and says so."""
    found = family("bert")

    def first_half(base, experts, *, lam=0.5):
        return {n: base[n] + lam * (experts[0][n] - base[n]) for n in base}

    mine = merging.Method("ties_mine", "Mine", "Mine", first_half)
    monkeypatch.setitem(merging.METHODS, "ties_mine", mine)
    loaded = {t: AutoModelForSequenceClassification.from_pretrained(found[t]) for t in TASKS}
    base = AutoModel.from_pretrained(found["base"])
    with pytest.warns(UserWarning, match="no streaming form"):
        merged = mergelib.merge("ties_mine", base=base, experts=loaded, lam=1.0)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert_close(merged.encoder[name], state(found["ag"])[name])
    assert merged.processor is None
    with pytest.raises(DataError, match="processor="):
        mergelib.align_classifier(merged, "ag", ["a text"] * 5)


# ---- bad input -----------------------------------------------------------------------------------


def copied(folder, to, **config):
    shutil.copytree(folder, to)
    configure(to, **config)
    return to


def test_what_does_not_go_together_is_refused(family, tmp_path):
    bert, roberta = family("bert"), family("roberta")
    (tmp_path / "empty").mkdir()
    damaged, odd = (copied(bert["ag"], tmp_path / name) for name in ("damaged", "odd"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    renumber(odd)
    for one, other, error, said in [
        (bert["ag"], roberta["ag"], StateDictError, "model_type bert and roberta"),
        (roberta["ag"], roberta["yelp"], StateDictError, "different architecture"),
        (bert["ag"], odd, StateDictError, r"tokenizers of .* differ"),
        (tmp_path / "nowhere" / "x", bert["ag"], ConfigError, "no folder"),
        (tmp_path / "empty", bert["ag"], ConfigError, "no configuration"),
        (3, bert["ag"], ConfigError, "not int"),
        (bert["base"], bert["ag"], ConfigError, "not a ...ForSequenceClassification"),
        (bert["base"] / "config.json", bert["ag"], ConfigError, "is a file"),
        (bert["ag"], damaged, ConfigError, "damaged or not a safetensors"),
    ]:
        with pytest.raises(error, match=said):
            mergelib.merge("ties", base=bert["base"], experts={"a": one, "b": other})
    for given, said in [
        ({"experts": [bert["ag"]] * 2}, "Two experts are called 'ag'"),
        ({"experts": {"../up": bert["ag"]}}, "cannot name a task"),
        ({"base": None}, "needs base="),
        ({"keep": 2.0}, "keep must lie in"),
        ({"density": 0.2}, "Unknown option of method"),
    ]:
        with pytest.raises((ConfigError, UnknownNameError), match=said):
            mergelib.merge("ties", **{"base": bert["base"], "experts": experts(bert)} | given)


@pytest.mark.parametrize("method", ["weight_averaging", "task_arithmetic", "ties"])
@pytest.mark.parametrize("who", ["ag", "base"])
def test_weights_that_are_not_finite_are_refused(family, tmp_path, method, who):
    """Also theta_b's, which Weight Averaging does not use."""
    found = family("bert")
    odd = copied(found[who], tmp_path / "odd")
    tensors = state(odd)
    [name] = [n for n in tensors if n.endswith("encoder.layer.0.output.dense.bias")]
    tensors[name][0] = torch.nan
    put(odd, tensors)
    folders = {"base": found["base"], "ag": found["ag"], "other": found["ag"], who: odd}
    base = folders.pop("base")
    bases = [base, None] if method == "weight_averaging" and who == "ag" else [base]
    for given in bases:
        with pytest.raises(StateDictError, match=f"'{who}' holds NaN or inf in {name}"):
            mergelib.merge(method, base=given, experts=folders)


def renumber(folder):
    """Two words of a tokenizer change places."""
    vocab = json.loads((folder / "tokenizer.json").read_text())
    words = vocab["model"]["vocab"]
    words["good"], words["the"] = words.get("the", 5), words.get("good", 6)
    (folder / "tokenizer.json").write_text(json.dumps(vocab))


def test_another_experts_head_is_refused(family, tmp_path):
    """Also one with the same labels, as of classes without names; once re-aligned, it may be
    any."""
    found, few, rows = family("bert"), texts("ag", 8, 0)[0], texts("ag", 20, 0)
    merged = merge(found, "task_arithmetic", dtype="bfloat16")
    names = named([f"other {i}" for i in range(4)])
    renamed = copied(found["ag"], tmp_path / "renamed", **names)
    other = copied(found["ag"], tmp_path / "other")
    put(other, state(other) | {"classifier.weight": state(other)["classifier.weight"].flip(0)})
    for wrong, said in (
        (renamed, r"labels World, Sports.* the expert other 0"),
        (other, "head for 'ag' is not the expert's"),
    ):
        with pytest.raises(ConfigError, match=said):
            mergelib.align_classifier(merged, wrong, few, task="ag")
        with pytest.raises(ConfigError, match=said):
            mergelib.evaluate(merged, rows, ["ft_classifier"], task="ag", expert=wrong)
    with pytest.raises(DataError, match="Label 9 is none"):
        mergelib.evaluate(merged, (["a text"], [9]), task="ag")
    half = AutoModelForSequenceClassification.from_pretrained(found["ag"], dtype=torch.float16)
    again = mergelib.align_classifier(merged, half, few, task="ag", processor=merged.processor)
    again = mergelib.align_classifier(merged.with_heads(again), other, few, task="ag")
    assert again.head.alignment["n"] == 8


def test_a_new_tasks_tokenizer_is_compared_where_tasks_have_their_own(family, tmp_path):
    found = dict(family("bert"))
    found["ag"] = copied(found["ag"], tmp_path / "ag")
    own = AutoTokenizer.from_pretrained(found["ag"])
    own.model_max_length = 7
    own.save_pretrained(found["ag"])
    merged = merge(found, "task_arithmetic")
    assert merged.processor is None
    renumber(found["ag"])
    with pytest.raises(ConfigError, match=r"tokenizers of the merged model .* differ"):
        mergelib.align_classifier(merged, found["ag"], texts("ag", 8, 0)[0], task="new")


def test_fewer_inputs_than_classes_work_and_warn(family):
    found = family("bert")
    merged = merge(found, "task_arithmetic")
    with pytest.warns(UserWarning, match="2 inputs for 4 classes"):
        aligned = mergelib.align_classifier(merged, "ag", texts("ag", 2, 0)[0])
    assert aligned.head.linear.weight.isfinite().all() and aligned.head.alignment["n"] == 2
    for wrong, said in [
        ([], "no inputs"),
        ("one text", "a list of texts"),
        (["x", ""], "row 1"),
        (["x", 3], "row 1"),
    ]:
        with pytest.raises(DataError, match=said):
            mergelib.align_classifier(merged, "ag", wrong)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("place", ["save_torch_state_dict", "_save_processor", "_encoder_config"])
def test_an_interrupted_write_changes_nothing(aligned, tmp_path, monkeypatch, error, place):
    merged, new, old = aligned("bert")[0], tmp_path / "new", tmp_path / "old"
    merged.save_pretrained(old)
    before = (old / "model.safetensors").read_bytes()
    monkeypatch.setattr(f"mergelib.models.merged.{place}", Mock(side_effect=error))
    for folder, options, refusal in (
        (new, {}, error),
        (old, {}, ConfigError),
        (old, {"overwrite": True}, error),
    ):
        with pytest.raises(refusal):
            merged.save_pretrained(folder, **options)
    assert (old / "model.safetensors").read_bytes() == before and [*tmp_path.iterdir()] == [old]


def test_reading_does_not_keep_files_mapped(family, monkeypatch):
    """A handle is opened anew after so many bytes: mapped pages would count as memory."""
    monkeypatch.setattr("mergelib.models.parents.REOPEN_AFTER", 1)
    parent = open_parent(family("bert")["ag"])
    first = parent.weights._handle("model.safetensors")
    parent.weights.tensor("classifier.weight")
    assert parent.weights._handle("model.safetensors") is not first


def test_pieces_are_no_larger_than_asked(family, monkeypatch):
    monkeypatch.setattr("mergelib.models.merging.PIECE", 100)
    parents = [open_parent(f) for f in experts(family("bert")).values()]
    names = find_parts(parents[0]).encoder
    sources = [(p, {n: n for n in names}) for p in parents]
    reader = Reader(sources, sources[0], torch.device("cpu"))
    assert max(b.numel() for b, _ in reader.pieces()) <= 100
