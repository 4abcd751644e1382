"""Code that is not ours: it may ruin what it gets, is refused by name for what it gives, and never
finds an older one's results."""

import ctypes
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from near import equal, normal
from tiny import TINY, python
from torch import nn
from torch.testing import assert_close

import mergelib
from mergelib.core.errors import ConfigError, DataError, StateDictError
from mergelib.core.identity import code_identity
from mergelib.core.meter import Meter
from mergelib.core.spare import call, spare
from mergelib.core.store import Artifact, Store
from mergelib.core.types import Head, Task, place, state_digest
from mergelib.merging import METHODS, Context, TaskData
from mergelib.nonlocality.correction import Correction, fold
from mergelib.nonlocality.sites import sites_for
from mergelib.protocols import PROTOCOLS

pytestmark = pytest.mark.filterwarnings("ignore:.*edge of the grid")
IN_VAIN = yaml.safe_load(Path(__file__).with_name("foreign.yaml").read_text())
WRITES = {
    "add_": lambda t: t.add_(1),
    "data": lambda t: t.data.zero_(),
    "numpy": lambda t: np.random.shuffle(t.detach().view(-1).numpy()),
    "view": lambda t: t.view(-1)[:3].fill_(7),
    "out": lambda t: torch.mul(t, 0, out=t),
    "foreach": lambda t: torch._foreach_mul_([t], 0.0),
    "storage": lambda t: t.untyped_storage().fill_(0),
    "dlpack": lambda t: torch.from_dlpack(t).zero_(),
    "set_": lambda t: t.set_(torch.ones(3)),
    "parameter": lambda t: nn.init.zeros_(nn.Parameter(t)),
    "item": lambda t: t.untyped_storage().__setitem__(t.untyped_storage().nbytes() - 1, 7),
    "address": lambda t: ctypes.memset(t.data_ptr(), 1, 8),
    "memory": lambda t: memoryview(t.detach().numpy()).cast("B").__setitem__(0, 99),
    "other dtype": lambda t: t.view(torch.uint8).bitwise_not_(),
    "statistics": lambda t: nn.functional.batch_norm(torch.ones(5, 4), t[0], t[1], training=True),
    "max_norm": lambda t: nn.functional.embedding(torch.arange(2), t, max_norm=0.1),
    "shared": lambda t: t.share_memory_().zero_(),
}
READS = {
    "add": lambda t: t + 1,
    "stack": lambda t: torch.stack([t, t]).mean(0),
    "cast": lambda t: t.double().bfloat16(),
    "svd": torch.linalg.svd,
    "order": lambda t: t.abs().flatten().kthvalue(3),
    "where": lambda t: torch.where(t > 0, t, 0.0),
    "foreach": lambda t: torch._foreach_add([t], 1.0),
    "place": place,
    "copy": lambda t: torch.empty_like(t).copy_(t),
}


@pytest.fixture(autouse=True)
def registries():
    """Whatever a test registers is gone after it."""
    with patch.dict(METHODS), patch.dict(PROTOCOLS):
        yield


def method(name="mine", **options):
    return mergelib.method(name, label=str(name), short=str(name), **options)


def protocol(name="mine", **options):
    return mergelib.protocol(name, **{"label": str(name), "few_shot": False} | options)


def weights(*seeds):
    return [{"a": normal(6, 4, seed=s), "b": normal(6, 4, seed=s + 100)} for s in seeds]


def filled(value, **options):
    return lambda z, n: torch.full((1, 1, len(z)), value, **options)


# ---- copies --------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(WRITES)), st.sampled_from(["own", "numpy", "slice", "tied"]))
def test_no_way_to_write_reaches_the_original(way, kind):
    array = np.arange(24.0, dtype="float32").reshape(6, 4) + 1
    t = torch.from_numpy(array if kind == "numpy" else array.copy())
    t = torch.cat([t, t])[6:] if kind == "slice" else t
    before, given = t.clone(), {"t": t, "again": t}

    def ruin(copies):
        copied = copies["t"]
        assert torch.equal(copied, before)
        WRITES[way](copied)
        assert torch.equal(t, before)
        if way != "set_":
            assert not torch.equal(copied, before)
            assert torch.equal(copies["again"], copied), "tied tensors stay tied"

    ruin(spare(given))
    call(ruin, given)
    assert torch.equal(t, before)


def test_what_outlives_a_call_shares_nothing():
    t, kept = torch.ones(8), []
    array = t.numpy()
    made = call(lambda given: kept.append(given) or given["t"][2:], {"t": t})
    t.fill_(2)
    assert (array == 2).all() and (made == 1).all() and (kept[0]["t"] == 1).all()


def test_what_is_only_read_is_not_copied():
    """Else a guarded Weight Averaging takes 2.8 times as long."""
    for read in READS.values():
        t = torch.arange(24.0).reshape(6, 4)
        assert call(lambda given, read=read: (read(given), torch._C._is_cow_tensor(given))[1], t)
    with Meter() as meter:
        call(lambda t: t + 1, torch.zeros(250_000))
    assert meter.cost["peak_mb"] == 2, "what is given, and what is made of it"


def test_tensors_that_are_made_when_asked_for_are_not_mixed_up():
    class Lazy(dict):
        def items(self):
            return ((k, torch.full((300,), float(k))) for k in self)

    copies = [spare(Lazy.fromkeys(range(50)))]
    call(copies.append, Lazy.fromkeys(range(50)))
    assert all((t == k).all() for copied in copies for k, t in copied.items())


def test_other_things_are_copied_too():
    array, sparse = np.ones(2), torch.eye(2).to_sparse()
    given = {"array": array, "sparse": sparse, "empty": torch.empty(0, 3)}
    given["negative"] = torch.tensor([1 + 2j]).conj().imag
    copied = spare(given)
    copied["array"].fill(0)
    copied["sparse"].zero_()
    assert array.all() and sparse.to_dense().sum() == 2
    assert torch.equal(copied["negative"], given["negative"]) and copied["empty"].shape == (0, 3)


def test_parts_that_are_one_stay_one():
    module = nn.Linear(4, 3)
    other, inner, states = spare((nn.Sequential(module), module, [{"w": module.weight}]))
    assert other[0] is inner and inner.weight.requires_grad and not states[0]["w"].requires_grad
    assert inner.weight.data_ptr() == states[0]["w"].data_ptr() != module.weight.data_ptr()
    with torch.no_grad():
        inner.bias.fill_(9)
    assert not (module.bias == 9).any()


# ---- methods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.needs])
def test_our_own_methods_keep_no_graph(name):
    base, *experts = [{n: nn.Parameter(t) for n, t in s.items()} for s in weights(0, 1, 2)]
    merged = METHODS[name](base, experts)
    for state in merged if isinstance(merged, list) else [merged]:
        assert not any(t.requires_grad for t in state.values())


@pytest.mark.parametrize("alias", [False, True])
def test_a_method_may_ruin_all_it_gets(alias):
    base, *experts = weights(0, 1)
    linear, labels, inputs = nn.Linear(4, 2), torch.tensor([0, 1]), torch.ones(2, 4)
    data = (TaskData(inputs, Head(torch.ones(2, 4), torch.zeros(2)), labels),)
    context = Context(linear, linear, lambda rows: rows, data)

    @method("ruin", needs=("inputs", "labels"))
    def ruin(base, experts, context, *, lam=1.0):
        seen, task = base["a"].sum().item(), context.tasks[0]
        for state in (base, *experts, context.module.state_dict(), vars(task), vars(task.head)):
            for t in state.values():
                if isinstance(t, torch.Tensor):
                    t.zero_()
        out = base if alias else {n: t.clone() for n, t in base.items()}
        out["a"].fill_(seen)
        return out

    given = {"x": inputs, "y": labels, "w": data[0].head.weight}
    kept = [base, *experts, linear.state_dict(), given]
    before = spare(kept)
    first, second = METHODS["ruin"].scan(base, experts, [0.5, 1.0], context)
    assert torch.equal(first["a"], second["a"]), "one lambda's call ruined the next one's weights"
    first["b"].fill_(3)
    assert all(map(equal, kept, before))


def from_numpy(room, n, t):
    room.setdefault(n, t.numpy().copy())[:] = t.numpy()
    return torch.from_numpy(room[n])


@pytest.mark.parametrize(
    "made",
    [
        lambda room, n, t: room.setdefault(n, t.clone()).copy_(t),
        from_numpy,
        lambda room, n, t: room.setdefault(n, t).copy_(t),
        lambda room, n, t: room.setdefault(n, [t])[0].copy_(t).view(2, -1).view_as(t),
    ],
)
def test_what_a_method_writes_later_changes_no_result(made):
    room = {}

    @method("again")
    def again(base, experts, *, lam=1.0):
        return {n: made(room, n, base[n] + lam * (experts[0][n] - base[n])) for n in base}

    base, *experts = weights(0, 1, 2)
    assert_close([METHODS["again"](base, [e]) for e in experts], experts)
    half, whole = METHODS["again"].scan(base, experts[:1], [0.5, 1.0])
    middle = {n: (b + experts[0][n]) / 2 for n, b in base.items()}
    assert_close([half, whole], [middle, experts[0]])


def test_options_and_base_are_whole_for_every_lambda():
    @method("shares", lam=0.5)
    def shares(base, experts, *, shares=(1,)):
        tau = {n: sum(shares) * (experts[0][n] - base[n]) for n in base}
        for t in base.values():
            t.zero_()
        shares.clear()
        return tau

    (base, expert), given = weights(0, 1), [2, 3]
    wanted = [{n: b + lam * 5 * (expert[n] - b) for n, b in base.items()} for lam in (0.5, 1.0)]
    found = METHODS["shares"].scan(base, [expert], [0.5, 1.0], shares=given)
    assert_close(list(found), wanted)
    assert_close(METHODS["shares"](base, [expert], shares=given), wanted[0])
    assert given == [2, 3]


def test_what_a_method_gives_is_refused_by_its_name():
    base, *experts = weights(0, 1)
    for wrong, said in (
        (lambda b, e: b | {"a": b["a"].double()}, r"a \(float64 \[6, 4\], base float32"),
        (lambda b, e: b | {"a": b["a"][:2]}, r"a \(float32 \[2, 4\], base float32 \[6, 4\]"),
        (lambda b, e: {n: t.numpy() for n, t in b.items()}, "ndarray, not a dense tensor"),
        (lambda b, e: {n: t / 0 for n, t in b.items()}, "NaN or inf"),
        (lambda b, e: {"a": b["a"]}, "lacks b"),
        (lambda b, e: [dict(b)], "not a state dict"),
        (lambda b, e: None, "not a state dict"),
    ):
        method("odd")(wrong)
        with pytest.raises(StateDictError, match=rf"(?s)'odd'.*{said}"):
            METHODS["odd"](base, experts)


def test_a_method_may_use_its_tensors_again(make_study, study, monkeypatch):
    """Each task keeps the encoder of its own lambda, though one buffer held them all."""
    room = [{}, {}]

    @method("again", gives="one per task")
    def again(base, experts, lam=1.0):  # an option, though it stands before no star
        for out, expert in zip(room, experts, strict=True):
            for n, t in base.items():
                out.setdefault(n, t.clone()).copy_(t + lam * (expert[n] - t))
        return room

    lams = {"ag": 0.25, "yelp": 1.0}
    monkeypatch.setattr(mergelib.Study, "lams", lambda *_: lams)
    mine = make_study(study.store.root)
    for task, lam in lams.items():
        found, base, expert = mine.weights("again", task), mine.base_state, mine.expert(task).state
        for n, t in found.items():
            assert_close(t, base[n] + lam * (expert[n] - base[n]))


def test_lambda_is_chosen_by_our_current_eval_whatever_bears_its_name(make_study, study):
    @protocol("current", replace=True)
    def ruin(evidence):
        raise AssertionError("lambda was chosen by it")

    mine = make_study(study.store.root, overrides={"merging.lams": [0.15, 0.35]})
    assert len(mine.lam_curve("task_arithmetic")) == 4


def test_labels_that_were_written_to_are_other_labels():
    split = mergelib.core.types.Split(("a", "b"), torch.tensor([0, 1]))
    before = split.digest
    split.labels.fill_(0)
    assert split.digest != before


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("register, registry", [(method, METHODS), (protocol, PROTOCOLS)])
def test_a_name_of_ours_is_taken_only_on_request(register, registry):
    for name in list(registry):
        held = registry[name]
        with pytest.raises(ConfigError, match=f"'{name}'.*replace=True"):
            register(name)(lambda *_: None)
        assert registry[name] is held
        with pytest.raises(ConfigError, match="replace=True"):  # another one of ours
            register(name)(next(r for n, r in registry.items() if n != name).function)
        register(name, replace=True)(lambda *_: None)
        assert registry[name] is not held
    register("mine")(lambda *_: None)
    register("mine")(lambda *_: 1)  # a cell that is run again
    for nameless in ("", " ", 3, None):
        with pytest.raises(ConfigError, match="cannot name"):
            register(nameless)(lambda *_: None)


@pytest.mark.parametrize(
    "function, needs",
    [
        (lambda base: base, ()),
        (lambda base, experts: base, ("inputs",)),
        (lambda base, experts, context: base, ()),
        (lambda base, experts, *, alpha: base, ()),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_when_it_is_registered(function, needs):
    with pytest.raises(ConfigError, match=r"'odd' is called with \(base, experts"):
        method("odd", needs=needs)(function)
    with pytest.raises(ConfigError, match=r"'odd' is called with \(evidence\)"):
        protocol("odd")(lambda: 0)
    method("even")(lambda base, experts, *, lam, seed, k=1: base)
    assert "odd" not in METHODS and "odd" not in PROTOCOLS


def test_labels_that_read_alike_are_told_apart():
    from mergelib.tables.labels import encoder_label, protocol_label, short_label

    mergelib.method("mine", label="Ties", short="Ties")(lambda *_: None)
    mergelib.protocol("mine", label="KNN Eval")(lambda *_: None)
    assert short_label("ties") == "Ties" and protocol_label("knn") == "KNN Eval"
    assert short_label("mine") == encoder_label("mine") == "Ties (mine)"
    assert protocol_label("mine") == "KNN Eval (mine)"


@pytest.mark.parametrize("name", IN_VAIN["methods"])
def test_a_method_is_not_called_like_another_encoder(name):
    with pytest.raises(ConfigError, match="cannot name a merging method"):
        method(name)


# ---- identity ------------------------------------------------------------------------------------

BODIES = (
    "def f(b): return b",
    "def f(b): return b + 1",
    "def f(b): return b + 2",
    "def f(b, c=1): return b + c",
    "def f(b, c=2): return b + c",
    "def f(b, *, c=2): return b + c",
    "S = 1\ndef f(b): return b + S",
    "S = 2\ndef f(b): return b + S",
    "def g(b): return b + 1\ndef f(b): return g(b)",
    "def g(b): return b + 2\ndef f(b): return g(b)",
    "def g(s):\n def f(b): return b + s\n return f\nf = g(1)",
    "def g(s):\n def f(b): return b + s\n return f\nf = g(2)",
    "import functools\ndef g(s, b): return b + s\nf = functools.partial(g, 1)",
    "import functools\ndef g(s, b): return b + s\nf = functools.partial(g, 2)",
    "class F:\n def __call__(self, b): return b + self.s\nf = F()\nf.s = 1",
    "class F:\n def __call__(self, b): return b + self.s\nf = F()\nf.s = 2",
    "import torch\nS = torch.ones(2)\ndef f(b): return b + S",
    "import torch\nS = torch.zeros(2)\ndef f(b): return b + S",
)


def run(body):
    space = {"__name__": "__main__"}
    exec(body, space)
    return space["f"]


def test_other_meanings_have_other_identities_without_any_source_file():
    assert len({code_identity(run(b)) for b in BODIES}) == len(BODIES)
    assert all(code_identity(run(b)) == code_identity(run(b)) for b in BODIES)
    said = "def f(b):\n  'Adds.'\n  # one\n  return b + 1"
    assert code_identity(run(said)) == code_identity(run(BODIES[1]))


def test_a_script_from_stdin_finds_its_own_results_again_and_no_others():
    script = """
import mergelib, torch
from mergelib.core.identity import code_identity
@mergelib.method("twice", label="O", short="O")
def own(base, experts):
    return {n: base[n] * 2 for n in base}
@mergelib.method("thrice", label="O", short="O")
def other(base, experts):
    return {n: base[n] * 3 for n in base}
print(code_identity(own), code_identity(other))
"""

    def identities():
        return python("-", input=script).split()

    own, other = identities()
    assert own != other and identities() == [own, other]


# ---- a study -------------------------------------------------------------------------------------


def test_nothing_of_a_study_is_poisoned(study, make_study):
    """Methods, protocols and whoever holds a study's weights may write to them."""

    @method("poison")
    def poison(base, experts, *, lam=0.5):
        for state in (base, *experts):
            for t in state.values():
                t.data.add_(1)
        return base

    @protocol("poison", few_shot=True, draws=("stratified",))
    def blank(evidence):
        for t in (evidence.student_test, evidence.head.weight, evidence.head.bias, evidence.draws):
            t.zero_()
        return [[[0] * len(evidence.student_test)] * len(evidence.draws)] * len(evidence.ks)

    mine = make_study(study.store.root, overrides={"merging.methods": ["poison"]})
    mine.scores(["poison"], ["poison", "current"])
    expert, head = mine.expert("ag"), mine.head("ties", "ag")
    held = [mine.base_state, expert.state, mine.weights("ties", "ag"), mine.merged_state("poison")]
    for state in (*held, vars(expert.head), vars(head)):
        for t in state.values():
            t.fill_(5)
    assert equal(mine.base_state, study.base_state)
    for name in ("f_t", "task_arithmetic"):
        assert mine.weights_digest(name, "ag") == state_digest(study.weights(name, "ag"))
        items, module = mine.encoder.prepare(mine.task("ag").test.inputs), mine.module(name, "ag")
        z = mergelib.encoders.features.extract_prepared(mine.encoder, module, items)
        assert (z - study.features(name, "ag")).abs().max() < 1e-5
    assert torch.equal(mine.head("ties", "ag").weight, study.head("ties", "ag").weight)


def test_a_folded_state_shares_nothing(study):
    state, sites = study.base_state, sites_for(study.encoder.config)
    before = spare(state)
    site = next(s for s in sites if s.fold is not None)
    width = len(state[site.fold.shifted[0]])
    one = Correction({site.name: torch.ones(width)}, {site.name: torch.zeros(width)})
    for t in fold(one, sites, state)[0].values():
        t.fill_(1)
    assert equal(state, before)


@pytest.mark.parametrize(
    "gives, said",
    [
        (lambda z, n: z @ torch.ones(z.shape[1], n), r"float32 \[60, 4\].*argmax"),
        (filled(torch.nan), "float32"),
        (filled(False), "bool"),
        (filled(99), r"99.*in 0\.\.3"),
        (filled(-1), r"-1.*0\.\.3"),
        (lambda z, n: torch.zeros(len(z), dtype=torch.long), r"int64 \[60\].* \[1, 1, 60\]"),
        (lambda z, n: ["World"] * len(z), "class numbers"),
        (lambda z, n: None, "class numbers"),
        (lambda z, n: [[[2**70] * len(z)]], "class numbers"),
        (lambda z, n: filled(0)(z, n).to_sparse(), "int64"),
        (filled(0, device="meta"), "int64"),
    ],
)
def test_what_a_protocol_gives_is_refused_by_its_name(study, gives, said):
    protocol("odd")(lambda e: gives(e.student_test, len(e.head.weight)))
    with pytest.raises(ConfigError, match=rf"(?s)'odd' \(f_t on task 'ag'\).*{said}"):
        study.predictions("f_t", "ag", "odd")


@pytest.mark.parametrize("form", [torch.as_tensor, np.asarray, np.ndarray.tolist, np.uint8])
def test_classes_in_any_form_are_the_same(study, form):
    @protocol(f"form {form}")
    def body(e):
        return form((e.student_test @ e.head.weight.T).argmax(-1)[None, None].numpy())

    predicted = study.predictions("f_t", "ag", f"form {form}")
    z, head = study.features("f_t", "ag"), study.head("f_t", "ag")
    assert torch.equal(predicted.long(), (z @ head.weight.T).argmax(-1)[None, None])


# ---- before training -----------------------------------------------------------------------------


def rows(n, labels="xy"):
    return [(f"text {i}", labels[i % len(labels)]) for i in range(n)]


def own_task(name="own", **change):
    given = {"train": rows(60), "test": rows(90)[60:], "n_validation": 10} | change
    return mergelib.task(name, **given)


def own_study(folder, tasks, options):
    over = TINY | {"protocols.ks": [1, 50], "merging.options": options}
    return mergelib.Study("quick", overrides=over, tasks=tasks, store=Store(folder))


@pytest.mark.parametrize("encoder, protocols, said", IN_VAIN["scores"])
def test_scores_that_cannot_be_are_refused_before_training(tmp_path, encoder, protocols, said):
    study = own_study(tmp_path, {"own": own_task()}, {})
    with pytest.raises((ConfigError, DataError, ValueError), match=said):
        study.scores([encoder], protocols)
    with pytest.raises(ConfigError, match="KNN Eval does not take the draw uniform"):
        study.scores(["ties"], ["knn"], draw="uniform")
    assert not list(tmp_path.glob("[a-z]*")), "something was trained first"


@pytest.mark.parametrize("tasks, options, said", IN_VAIN["studies"])
def test_a_study_that_cannot_be_is_refused(tmp_path, tasks, options, said):
    if isinstance(tasks, dict):
        tasks = {n: own_task(t) if isinstance(t, str) else t for n, t in tasks.items()}
    with pytest.raises((ConfigError, DataError, ValueError), match=said):
        own_study(tmp_path, tasks, options)
    assert not list(tmp_path.glob("[a-z]*")), "something was trained first"


def test_images_are_no_task_of_a_text_study():
    pictures = [torch.full((2, 3, 4, 4), i, dtype=torch.uint8) for i in range(3)]
    splits = [mergelib.core.types.Split(p, torch.tensor([0, 1])) for p in pictures]
    task = Task("own", ("x", "y"), *splits, modality="image")
    with pytest.raises(ConfigError, match=r"'own' classifies images.*texts"):
        mergelib.Study("quick", overrides=TINY, tasks={"own": task})
    with pytest.raises(ConfigError, match=r"'own'.*size=32"):
        mergelib.Study("quick", variant="vision_a", tasks={"own": task})


@pytest.mark.parametrize(
    "change, said",
    [
        ({"n_validation": -5}, "n_validation is -5"),
        ({"n_validation": 0}, "at least one"),
        ({"n_validation": True}, "n_validation is True"),
        ({"n_validation": 2.5}, "n_validation is 2.5"),
        ({"train": rows(60, "x"), "test": rows(90, "x")[60:]}, "only one class"),
        ({"test": rows(30)}, "30 of 30 test rows are also training"),
        ({"name": ""}, "cannot name a task"),
    ],
)
def test_a_task_that_tests_nothing_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        own_task(**change)


def test_a_task_that_tests_little_is_said():
    with pytest.warns(UserWarning, match="'own': 4 of 34 test rows"):
        own_task(test=rows(90)[56:], n_validation=np.int64(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own_task()


@pytest.mark.parametrize(
    "size, said",
    [
        (4, "20 of 20 test rows are also training"),
        (0, "whole number of pixels"),
        (8.5, "whole number of pixels"),
    ],
)
def test_an_image_task_that_tests_nothing_is_refused(size, said):
    pictures = [(np.full((4, 4, 3), i, np.uint8), "xy"[i % 2]) for i in range(60)]
    with pytest.raises(DataError, match=said):
        mergelib.image_task("own", pictures, pictures[:20], size=size, n_validation=10)


def test_stored_files_have_the_umasks_mode(tmp_path):
    (tmp_path / "plain").write_text("")
    Store(tmp_path / "store").get("step", {}, lambda: Artifact({"w": torch.ones(2)}))
    modes = {p.stat().st_mode for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}
