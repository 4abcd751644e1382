"""Merged, aligned, saved, reloaded: three architectures from disk to a process that has no
mergelib."""

import json
import shutil

import pytest
import torch
from conftest import TASKS, is_image, make_family, pictures, texts
from near import equal
from safetensors.torch import load_file, save_file
from test_foreign_folders import configure
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
from mergelib.models.heads import expert_classifier, features
from mergelib.models.merging import Reader
from mergelib.models.parents import open_parent
from mergelib.protocols import kl_to_teacher

KINDS = ("bert", "deberta", "vit")


def experts(family):
    return {name: folder for name, folder in family.items() if name != "base"}


def merge(found, method="ties", **options):
    return mergelib.merge(method, base=found["base"], experts=experts(found), **options)


def batch_of(kind, processor, inputs):
    padding = {} if is_image(kind) else {"padding": True}
    return processor(inputs, return_tensors="pt", **padding)


def data(kind, task, n, seed):
    return (pictures if is_image(kind) else texts)(task, n, seed)


@pytest.fixture(scope="module")
def aligned(family, tmp_path_factory):
    """``aligned(kind)``: a merge with aligned heads, and the folder it was saved in."""
    made = {}

    def get(kind):
        if kind not in made:
            found = family(kind)
            merged = merge(found, keep=0.3, lam=1.0)
            heads = [
                mergelib.align_classifier(merged, t, data(kind, t, 25, 40)[0])
                for t in experts(found)
            ]
            merged = merged.with_heads(*heads)
            folder = tmp_path_factory.mktemp("out") / kind
            merged.save_pretrained(folder, single=True)
            made[kind] = merged, folder
        return made[kind]

    return get


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
def test_alignment_moves_the_head_and_nothing_else(aligned, kind):
    merged, _ = aligned(kind)
    for head in merged.heads.values():
        own = expert_classifier(merged.experts[head.task])
        changed = {
            n
            for n, t in head.tensors.items()
            if not torch.equal(t, {**own.encoder, **own.head.tensors}[n])
        }
        assert changed == {f"{head.module}.weight", f"{head.module}.bias"}
        assert head.alignment["n"] == 25


@pytest.mark.parametrize("kind", ["bert", "roberta", "vit", "clip"])
def test_alignment_brings_the_merged_model_nearer_to_its_expert(family, kind):
    """Mean KL of Eq. 8 to the expert, on inputs that were not fitted on."""
    found = family(kind)
    merged = merge(found, lam=1.0)
    for task in experts(found):
        inputs = data(kind, task, 40, 5)[0]
        own = expert_classifier(merged.experts[task])
        teacher = own.head.linear.logits(features(own, inputs))

        def distance(classifier, inputs=inputs, teacher=teacher):
            return kl_to_teacher(
                classifier.head.linear.logits(features(classifier, inputs)), teacher
            ).mean()

        better = mergelib.align_classifier(merged, task, data(kind, task, 30, 6)[0])
        assert distance(better) < distance(merged.classifier(task)), task


def test_the_shared_encoder_is_saved_once(aligned):
    merged, folder = aligned("bert")
    shared = load_file(folder / "model.safetensors")
    assert shared.keys() == merged.encoder.keys() and all(n.startswith("bert.") for n in shared)
    for task in merged.heads:
        assert load_file(folder / "heads" / task / "head.safetensors").keys() == {
            "classifier.weight",
            "classifier.bias",
        }


def test_what_is_loaded_again_is_what_was_saved(aligned):
    merged, folder = aligned("deberta")
    again = load_merged(folder)
    assert (
        again.record["options"] == {"keep": 0.3, "lam": 1.0}
        and again.heads["ag"].alignment == merged.heads["ag"].alignment
    )
    assert equal(again.encoder, merged.encoder)


def test_the_card_states_where_it_comes_from(aligned):
    merged, folder = aligned("bert")
    text = (folder / "README.md").read_text()
    for said in (
        "Ties (keep = 0.3, lam = 1.0)",
        "expert | ag: ag",
        "25 unlabelled inputs",
        "FT-Classifier Eval",
        "Not evaluated",
        "base | base",
    ):
        assert said in text, said
    assert str(folder.parent) not in text + (folder / "mergelib.json").read_text()
    rows = mergelib.evaluate(merged, data("bert", "ag", 20, 3), task="ag")
    merged.save_pretrained(folder.parent / "scored", scores=rows)
    interval = f"{rows.low[0]:.1f} to {rows.high[0]:.1f}"
    text = (folder.parent / "scored" / "README.md").read_text()
    assert f"| {rows.accuracy[0]:.1f} | {interval} | 20 |" in text


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
    batch = batch_of(kind, own.processor, inputs)
    with torch.no_grad():
        assert_close(
            own.head.linear.logits(features(own, inputs)),
            own.model(**batch).logits,
            atol=1e-5,
            rtol=1e-5,
        )


def test_a_pooler_that_the_base_lacks_stays_with_its_task(family, tmp_path):
    found = family("bert")
    copied(found["base"], tmp_path / "base")
    state = {
        n: t for n, t in load_file(found["base"] / "model.safetensors").items() if "pooler" not in n
    }
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    merged = merge(found | {"base": tmp_path / "base"}, "task_arithmetic")
    assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} < merged.heads[
        "ag"
    ].tensors.keys()
    aligned = mergelib.align_classifier(merged, "ag", texts("ag", 20, 4)[0])
    assert torch.equal(
        aligned.head.tensors["bert.pooler.dense.weight"],
        merged.heads["ag"].tensors["bert.pooler.dense.weight"],
    )
    with_heads = merged.with_heads(aligned).save_pretrained(tmp_path / "out")
    assert mergelib.evaluate(with_heads, texts("ag", 20, 3), task="ag").n[0] == 20


def test_the_split_can_be_overridden(family):
    found = family("roberta")
    expert = open_parent(found["ag"])
    parts = find_parts(expert, encoder=["roberta.*", "classifier.dense.*"])
    assert not parts.neck and "classifier.dense.weight" in parts.encoder
    merged = mergelib.merge(
        "weight_averaging", experts=experts(found), encoder=["roberta.*", "classifier.dense.*"]
    )
    a, b = (load_file(found[t] / "model.safetensors")["classifier.dense.weight"] for t in TASKS)
    assert_close(merged.encoder["classifier.dense.weight"], (a + b) / 2)
    assert mergelib.align_classifier(merged, "ag", texts("ag", 20, 4)[0]).head.tensors.keys() == {
        "classifier.out_proj.weight",
        "classifier.out_proj.bias",
    }
    with pytest.raises(StateDictError, match=r"lacks classifier.dense"):
        find_parts(expert, open_parent(found["base"]), encoder=["roberta.*", "classifier.dense.*"])
    with pytest.raises(ConfigError, match="matches encoder"):
        find_parts(expert, encoder=["nothing.*"])
    with pytest.raises(ConfigError, match=r"no tensor nowhere\.weight"):
        find_parts(expert, head="nowhere")


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
        ("ties", {"keep": 0.7, "combine": "mean"}),
        ("ties", {"keep": 1e-9}),
        ("ties", {"keep": 1.0}),
    ],
)
@pytest.mark.parametrize("piece", [1 << 21, 40])
def test_streamed_equals_in_memory(family, monkeypatch, method, options, piece):
    """The same numbers to the last bit, however small the pieces."""
    monkeypatch.setattr("mergelib.models.merging.PIECE", piece)
    found = family("bert")
    streamed = merge(found, method, **options).encoder
    base = {f"bert.{n}": t for n, t in load_file(found["base"] / "model.safetensors").items()}
    states = [
        {n: t for n, t in load_file(f / "model.safetensors").items() if n in base}
        for f in experts(found).values()
    ]
    whole = get_method(method)(base, states, **options)
    assert streamed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(streamed[name], tensor), name


def test_shards_and_bf16_are_read_and_kept(family, tokenizer, tmp_path):
    found = make_family(tmp_path, "bert", tokenizer, steps=2, dtype=torch.bfloat16)
    for name in experts(found):
        model = AutoModelForSequenceClassification.from_pretrained(found[name])
        (found[name] / "model.safetensors").unlink()
        model.save_pretrained(found[name], max_shard_size="30KB")
        assert len(list(found[name].glob("model-*.safetensors"))) > 2
    merged = merge(found, "task_arithmetic", lam=0.5, dtype="bfloat16")
    assert {t.dtype for t in merged.encoder.values()} == {torch.bfloat16}
    base = load_file(found["base"] / "model.safetensors")["embeddings.word_embeddings.weight"]
    states = [
        AutoModelForSequenceClassification.from_pretrained(
            found[t]
        ).bert.embeddings.word_embeddings.weight.float()
        for t in experts(found)
    ]
    expected = (
        (base + 0.5 * sum(s - base for s in states)).detach().to(torch.bfloat16)
    )  # rounded once
    assert torch.equal(merged.encoder["bert.embeddings.word_embeddings.weight"], expected)
    merged.save_pretrained(tmp_path / "out", single=True)
    assert (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "tasks" / "ag").dtype
        == torch.bfloat16
    )
    aligned = mergelib.align_classifier(
        merge(found, "ties", dtype="float32"), "ag", texts("ag", 9, 4)[0]
    )
    dtypes = {t.dtype for t in (*aligned.encoder.values(), *aligned.head.tensors.values())}
    assert dtypes == {torch.float32} and aligned.model.dtype == torch.float32
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
    with pytest.warns(UserWarning, match="no streaming form"):
        merged = mergelib.merge(
            "ties_mine",
            base=AutoModel.from_pretrained(found["base"]),
            experts={
                t: AutoModelForSequenceClassification.from_pretrained(found[t]) for t in TASKS
            },
            lam=1.0,
        )
    own = load_file(found["ag"] / "model.safetensors")
    assert_close(
        merged.encoder["bert.encoder.layer.0.output.dense.weight"],
        own["bert.encoder.layer.0.output.dense.weight"],
    )
    assert merged.processor is None
    with pytest.raises(DataError, match="processor="):
        mergelib.align_classifier(merged, "ag", ["a text"] * 5)
    with pytest.raises(UnknownNameError, match="option of method"):
        merge(found, density=0.2)
    with pytest.raises(ConfigError, match="keep must lie in"):
        merge(found, keep=2.0)
    with pytest.raises(ConfigError, match="needs base="):
        mergelib.merge("ties", experts=experts(found))


# ---- bad input -----------------------------------------------------------------------------------


def copied(folder, to, **config):
    shutil.copytree(folder, to)
    configure(to, **config)
    return to


def test_parents_of_different_architecture_are_refused(family):
    bert, roberta = family("bert"), family("roberta")
    with pytest.raises(StateDictError, match="model_type bert and roberta"):
        mergelib.merge("ties", base=bert["base"], experts={"a": bert["ag"], "b": roberta["ag"]})
    with pytest.raises(StateDictError, match="different architecture"):
        mergelib.merge("ties", base=roberta["base"], experts={"a": bert["ag"]})


@pytest.mark.parametrize("method", ["weight_averaging", "task_arithmetic", "ties"])
@pytest.mark.parametrize("who", ["ag", "base"])
def test_weights_that_are_not_finite_are_refused(family, tmp_path, method, who):
    """Also theta_b's, which Weight Averaging does not use."""
    found = family("bert")
    odd = copied(found[who], tmp_path / "odd")
    state = load_file(odd / "model.safetensors")
    [name] = [n for n in state if n.endswith("encoder.layer.0.output.dense.bias")]
    state[name][0] = torch.nan
    save_file(state, odd / "model.safetensors")
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


def test_another_numbering_of_the_same_words_is_refused(family, tmp_path):
    odd = copied(family("bert")["ag"], tmp_path / "odd")
    renumber(odd)
    with pytest.raises(StateDictError, match=r"tokenizers of .* differ"):
        mergelib.merge(
            "ties", base=family("bert")["base"], experts={"ag": family("bert")["ag"], "odd": odd}
        )


def test_what_is_no_model_is_said_in_words(family, tmp_path):
    base = family("bert")["base"]
    (tmp_path / "empty").mkdir()
    for wrong, said in [
        (tmp_path / "nowhere" / "x", "no folder"),
        (tmp_path / "empty", "no configuration"),
        (3, "not int"),
        (base, "not a ...ForSequenceClassification"),
        (base / "config.json", "is a file"),
    ]:
        with pytest.raises(ConfigError, match=said):
            mergelib.merge("ties", base=base, experts={"x": wrong})
    damaged = copied(family("bert")["ag"], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfigError, match="damaged or not a safetensors"):
        mergelib.merge("ties", base=base, experts={"x": damaged})
    with pytest.raises(ConfigError, match="Two experts are called 'ag'"):
        mergelib.merge("ties", base=base, experts=[family("bert")["ag"], family("bert")["ag"]])
    with pytest.raises(ConfigError, match="cannot name a task"):
        mergelib.merge("ties", base=base, experts={"../up": family("bert")["ag"]})


def test_a_head_with_other_labels_than_the_experts_is_refused(family, tmp_path):
    found = family("bert")
    merged = merge(found, "task_arithmetic")
    other = copied(
        found["ag"],
        tmp_path / "other",
        id2label={str(i): f"other {i}" for i in range(4)},
        label2id={f"other {i}": i for i in range(4)},
    )
    with pytest.raises(ConfigError, match=r"labels World, Sports.* the expert other 0"):
        mergelib.align_classifier(merged, other, ["a text"] * 8, task="ag")
    with pytest.raises(ConfigError, match="the expert other 0"):
        mergelib.evaluate(
            merged, texts("ag", 20, 0), ["ft_classifier"], task="ag", expert=other, k=2, seeds=[0]
        )
    with pytest.raises(DataError, match="Label 9 is none"):
        mergelib.evaluate(merged, (["a text"], [9]), task="ag")


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


def test_another_experts_head_with_the_same_labels_is_refused(family, tmp_path):
    """As of two tasks whose classes have no names; once re-aligned, the head may be any."""
    found = family("bert")
    merged = merge(found, "task_arithmetic", dtype="bfloat16")
    other = copied(found["ag"], tmp_path / "other")
    state = load_file(other / "model.safetensors")
    state["classifier.weight"] = state["classifier.weight"].flip(0)
    save_file(state, other / "model.safetensors", {"format": "pt"})
    few = texts("ag", 8, 0)[0]
    with pytest.raises(ConfigError, match="head for 'ag' is not the expert's"):
        mergelib.align_classifier(merged, other, few, task="ag")
    with pytest.raises(ConfigError, match="head for 'ag' is not the expert's"):
        mergelib.evaluate(merged, texts("ag", 20, 0), ["ft_classifier"], task="ag", expert=other)
    half = AutoModelForSequenceClassification.from_pretrained(found["ag"], dtype=torch.float16)
    own = mergelib.align_classifier(merged, half, few, task="ag", processor=merged.processor)
    assert own.head.alignment["n"] == 8
    again = merged.with_heads(mergelib.align_classifier(merged, found["ag"], few))
    assert mergelib.align_classifier(again, other, few, task="ag").head.alignment["n"] == 8


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
def test_an_interrupted_write_leaves_no_folder(aligned, tmp_path, monkeypatch, error):
    merged, _ = aligned("bert")

    def stop(*args, **kwargs):
        raise error

    for place in ("save_torch_state_dict", "_save_processor", "_encoder_config"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mergelib.models.merged.{place}", stop)
            with pytest.raises(error):
                merged.save_pretrained(tmp_path / "out")
        assert not list(tmp_path.iterdir())
    merged.save_pretrained(tmp_path / "out")
    kept = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        merged.save_pretrained(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("mergelib.models.merged._encoder_config", stop)
        with pytest.raises(error):
            merged.save_pretrained(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == kept and [
        p.name for p in tmp_path.iterdir()
    ] == ["out"]


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
