"""The released pipeline on a stand-in of the published files, against an independent, slow
restatement of its arithmetic."""

import itertools
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hostile.support import plant
from hypothesis import given, settings
from hypothesis import strategies as st
from near import ROUNDING, apart, seeded
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoTokenizer, BertModel

from benchmarks import released as bench
from mergelib import Study, tables
from mergelib.core.errors import ConfigError, DataError, StateDictError, UnsafeFileError
from mergelib.core.store import Store
from mergelib.core.types import Split
from mergelib.encoders import ReleasedEncoder, TextEncoder, released_encoder
from mergelib.encoders.features import extract
from mergelib.profiles import load_profile
from mergelib.protocols import FTPreset, get_preset
from mergelib.run import runner
from mergelib.tasks import released as files

pytestmark = pytest.mark.filterwarnings("ignore:.*edge of the grid")
SHAPE = {"layers": 2, "width": 32, "heads": 2, "positions": 64, "vocabulary": 3000}
TASKS, ROWS, K, LENGTH = ("ag", "dbpedia"), 24, 2, 40
SIZES = {"rows": ROWS, "k": K, "tasks": TASKS, "max_length": LENGTH}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("published")
    bench.write_stand_in(made, shape=SHAPE, **SIZES)
    return made


@pytest.fixture(scope="module")
def make(folder, tmp_path_factory):
    """``make(**overrides)``: the profile `paper` on the stand-in; all share one store."""
    store = tmp_path_factory.mktemp("store")

    def study(**more):
        overrides = bench.stand_in_overrides(folder, **SIZES) | {
            k.replace("__", "."): v for k, v in more.items()
        }
        return Study("paper", overrides=overrides, device="cpu", store=Store(store))

    return study


@pytest.fixture(scope="module")
def paper(make):
    return make()


# ---- the restatement: one text after the other, nothing of mergelib ---------------------


def slow_ids(folder, text, length):
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        known = AutoTokenizer.from_pretrained(folder / "base").get_vocab()
        vocabulary.write_text("\n".join(sorted(known, key=known.get)) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerLegacy(str(vocabulary), do_lower_case=True)
    ids = tokenizer.convert_tokens_to_ids(tokenizer._tokenize(text, split_special_tokens=True))[
        : length - 3
    ]
    half = math.floor(len(ids) / 2)
    return [101, *ids[:half], 102, *ids[half:], 102]


def slow_feature(folder, state, ids, length, *, mask=False, padding=True):
    """transformers' BERT in float64 on one text, all positions attended to unless told."""
    model = BertModel.from_pretrained(
        folder / "base", add_pooling_layer=False, attn_implementation="eager", dtype=torch.float64
    )
    model.load_state_dict({n: state[n] for n in model.state_dict()})
    padded = torch.tensor([[*ids, *[0] * (length - len(ids))]])
    attend = torch.arange(length)[None] < (len(ids) if mask else length)
    with torch.no_grad():
        hidden = model.eval()(padded, attention_mask=attend.long()).last_hidden_state[0]
    return hidden.mean(0) if padding else hidden[: len(ids)].mean(0)


def published(folder, task):
    return torch.load(folder / "checkpoints" / f"{task}.pth", weights_only=True)


def slow_task_arithmetic(folder, lam):
    base = load_file(folder / "base" / "model.safetensors")
    merged = {n.removeprefix("bert."): t.clone() for n, t in base.items()}
    for task in TASKS:
        expert = published(folder, task)
        for n, t in base.items():
            merged[n.removeprefix("bert.")] += lam * (expert["bert." + n.removeprefix("bert.")] - t)
    return merged


def rows_of_csv(folder, task, split):
    frame = pd.read_csv(folder / task / f"{split}.csv", header=None, keep_default_na=False)
    return [int(y) - 1 for y in frame[0]], list(frame[2])


def test_data_features_and_predictions_are_the_restatements(paper, folder):
    """f_t through its own head and f_m through the old one: texts, tokens, features, logits."""
    merged = slow_task_arithmetic(folder, paper.lam("task_arithmetic"))
    for task in TASKS:
        labels, texts = rows_of_csv(folder, task, "test")
        test = paper.task(task).test
        assert test.inputs == tuple(texts) and test.labels.tolist() == labels
        state = published(folder, task)
        own = {n.removeprefix("bert."): t for n, t in state.items() if n.startswith("bert.")}
        weight, bias = (state[f"classifier.0.{n}"].double() for n in ("weight", "bias"))
        ids = [slow_ids(folder, text, LENGTH) for text in texts[:8]]
        assert paper.encoder.prepare(texts[:8]) == ids
        for encoder, weights in (("f_t", own), ("task_arithmetic", merged)):
            z = torch.stack([slow_feature(folder, weights, i, LENGTH) for i in ids])
            found = paper.features(encoder, task)[:8]
            assert apart(found, z) < ROUNDING
            ours, logits = paper.head(encoder, task).logits(found), z @ weight.T + bias
            assert_close(ours.double(), logits, atol=1e-3, rtol=1e-4)
            predicted = paper.predictions(encoder, task, "current")[0, 0, :8]
            assert torch.equal(predicted.long(), logits.argmax(-1))


def test_merged_weights_are_the_restatements(paper, folder):
    for method, lam in (
        ("task_arithmetic", paper.lam("task_arithmetic")),
        ("weight_averaging", 1 / len(TASKS)),
    ):
        merged, ours = slow_task_arithmetic(folder, lam), paper.merged_state(method)
        assert merged.keys() - ours.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
        for name, t in ours.items():
            assert_close(t, merged[name], atol=1e-6, rtol=1e-6)


def test_the_classifier_is_trained_as_the_authors_do(paper):
    """Adam at 5e-4, batches of one, five epochs; tests/protocols/test_ft_classifier.py compares
    these with a plain loop."""
    found = get_preset(paper.profile.protocols.ft_preset)
    assert found == FTPreset(lr=5e-4, epochs=5, batch_size=1)
    assert paper.evidence("task_arithmetic", "ag").preset == found


# ---- preprocessing -------------------------------------------------------------------------------


@pytest.mark.parametrize("mask, padding", list(itertools.product((False, True), repeat=2)))
def test_mask_and_padding_do_what_they_say(paper, folder, mask, padding):
    encoder = replace(paper.encoder, mask=mask, padding_in_mean=padding)
    texts = ["Short.", "", *paper.task("ag").test.inputs[:2]]
    state, ids = paper.base_state, [slow_ids(folder, t, LENGTH) for t in texts]
    expected = torch.stack(
        [slow_feature(folder, state, i, LENGTH, mask=mask, padding=padding) for i in ids]
    )
    with torch.no_grad():
        z = encoder.module(state)(**encoder.collate(encoder.prepare(texts)))
        assert apart(z, expected) < ROUNDING
        if mask and not padding:  # on the same ids the default's pooling
            assert apart(TextEncoder.module(encoder, state)(**encoder.collate(ids)), z) < ROUNDING


def test_every_preprocessing_has_an_identity_of_its_own(paper):
    plain = TextEncoder(paper.encoder.config, paper.encoder.tokenizer, paper.encoder.max_length)
    settings = itertools.product((False, True), repeat=2)
    encoders = [plain, *(replace(paper.encoder, mask=m, padding_in_mean=p) for m, p in settings)]
    before = [e.digest for e in encoders]
    assert len(set(before)) == 5
    encoders[1].prepare(["a text"])
    assert [replace(e).digest for e in encoders] == before, "a call changed an identity"


@pytest.mark.parametrize("n", [0, 1, 2, 3, 252, 253, 254, 600])
def test_256_positions_two_halves(paper, n):
    encoder = replace(paper.encoder, max_length=256)
    (ids,) = encoder.prepare([" ".join("." * n)])
    kept, dot = min(n, 253), encoder.tokenizer.convert_tokens_to_ids(".")
    assert ids == [101, *[dot] * (kept // 2), 102, *[dot] * (kept - kept // 2), 102]
    batch = encoder.collate([ids])
    assert batch["input_ids"].tolist() == [ids + [0] * (256 - len(ids))]
    assert batch["attention_mask"].sum() == len(ids)


@settings(max_examples=30)
@given(st.text(alphabet="ab .,[SEP]Ünull\t\n", max_size=60))
def test_no_text_makes_a_separator(paper, text):
    (ids,) = paper.encoder.prepare([text + " [SEP] [CLS][MASK]"])
    assert len(ids) <= LENGTH and (ids[0], ids[-1]) == (101, 102)
    assert [ids.count(special) for special in (101, 102, 103)] == [1, 2, 0]


def test_without_mask_padding_counts_and_company_does_not(paper):
    module = paper.encoder.module(paper.base_state)
    texts = ["Short.", *paper.task("ag").test.inputs[:6]]
    z = extract(paper.encoder, module, texts, batch_size=3)
    alone = torch.cat([extract(paper.encoder, module, [t]) for t in texts])
    assert apart(z, alone) < ROUNDING
    longer = replace(paper.encoder, max_length=LENGTH + 8)
    assert (extract(longer, longer.module(paper.base_state), texts[:1]) - z[:1]).abs().max() > 1e-3


def test_a_tokenizer_without_separators_is_refused(paper):
    class NoCls:
        cls_token, sep_token, pad_token = None, "[SEP]", "[PAD]"

    with pytest.raises(ConfigError, match="'gpt' has no cls_token"):
        released_encoder(TextEncoder(paper.encoder.config, NoCls(), 40, "gpt"))


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def load(paper, folder, tmp_path):
    """``load(change)``: the stand-in's checkpoint of ag, changed, as an expert."""

    def expert(change=lambda s: s, n_classes=4):
        state = published(folder, "ag")
        torch.save(change(state), tmp_path / "ag.pth")
        return files.load_checkpoint(
            tmp_path / "ag.pth", "ag", paper.base_state, SHAPE["width"], n_classes
        )

    return expert


def test_a_checkpoint_is_its_tensors(load, folder, paper):
    expert, state = load(), published(folder, "ag")
    assert expert.state.keys() == paper.base_state.keys()
    assert all(torch.equal(t, state[f"bert.{n}"]) for n, t in expert.state.items())
    assert torch.equal(expert.head.weight, state["classifier.0.weight"])
    assert torch.equal(expert.head.bias, state["classifier.0.bias"])
    halved = load(lambda s: {n: t.half() if t.is_floating_point() else t for n, t in s.items()})
    assert all(t.dtype == torch.float32 for t in halved.state.values())
    unused = [n for n in state if "pooler" in n or "position_ids" in n]
    assert unused and load(without(*unused)).state.keys() == expert.state.keys()


def without(*names):
    return lambda s: {n: t for n, t in s.items() if n not in names}


@pytest.mark.parametrize(
    "change, says",
    [
        (
            without("bert.embeddings.LayerNorm.weight"),
            r"missing: bert\.embeddings\.LayerNorm\.weight\.",
        ),
        (without("classifier.0.bias"), r"missing: classifier\.0\.bias"),
        (
            lambda s: s | {"bert.embeddings.more": torch.ones(2)},
            r"unexpected: bert\.embeddings\.more",
        ),
        (
            lambda s: {n.replace("classifier.0.", "classifier."): t for n, t in s.items()},
            r"missing: classifier\.0\.weight.*unexpected: classifier\.weight",
        ),
        (
            lambda s: {n.removeprefix("bert."): t for n, t in s.items()},
            r"missing: bert\.embeddings.* and \d+ more; unexpected: embeddings.*Names must begin "
            r"with bert\.",
        ),
        (
            lambda s: s | {"bert.embeddings.LayerNorm.bias": torch.zeros(5)},
            r"other shapes: bert\.embeddings\.LayerNorm\.bias \[5\] instead of \[32\]",
        ),
        (
            lambda s: s | {"classifier.0.bias": torch.full((4,), torch.nan)},
            r"NaN or inf: classifier\.0\.bias",
        ),
        (
            lambda s: s | {"classifier.0.bias": torch.zeros(4, dtype=torch.int64)},
            r"no floating-point numbers: classifier\.0\.bias",
        ),
        (lambda s: {"state_dict": s}, "holds no state dict"),
        (lambda s: list(s.values()), "holds no state dict"),
        (lambda s: torch.ones(3), "holds no state dict"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_what_is_wrong(load, change, says):
    with pytest.raises(StateDictError, match=says):
        load(change)


def test_a_checkpoint_of_another_task_is_refused(load):
    says = r"of 'ag' \(14 classes\).*classifier\.0\.weight \[4, 32\] instead of \[14, 32\]"
    with pytest.raises(StateDictError, match=says):
        load(n_classes=14)


@pytest.mark.filterwarnings("ignore:Detected pickle")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_code_is_not_run(paper, tmp_path, zipped):
    path = plant(tmp_path / "ag.pth", tmp_path / "trapped", zipped=zipped)
    with pytest.raises(
        UnsafeFileError, match=r"ag\.pth holds more than plain tensors.*was not run"
    ):
        files.load_checkpoint(path, "ag", paper.base_state, SHAPE["width"], 4)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!doctype html><title>503</title>",
        b"version https://git-lfs.github.com/spec/v1\n",
        "cut",
    ],
    ids=str,
)
def test_a_damaged_file_says_so(folder, tmp_path, content):
    whole = (folder / "checkpoints" / "ag.pth").read_bytes()
    (tmp_path / "ag.pth").write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises((StateDictError, UnsafeFileError), match=r"^ag\.pth .*[Ff]etch it again"):
        files.read_state(tmp_path / "ag.pth")


def test_missing_files_are_named(make, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "yelp.pth").touch()
    with pytest.raises(DataError, match=r"No .*ag\.pth\. Beside it: yelp\.pth"):
        files.released_checkpoint("ag", str(tmp_path))
    with pytest.raises(DataError, match=r"No .*train\.csv"):
        make(released_dir=str(tmp_path)).task("ag")


def test_csv_rows_without_text_are_kept_and_labels_checked(tmp_path):
    (tmp_path / "ag").mkdir()
    for split in ("train", "test"):
        (tmp_path / "ag" / f"{split}.csv").write_text('1,q,"a, b"\n4,null,\n2,NA,NA\n')
    names, train, _ = files.released_splits("ag", str(tmp_path))
    assert train.inputs == ("a, b", "", "NA") and train.labels.tolist() == [0, 3, 1]
    assert len(names) == 4
    for row, says in (
        ("5,q,text\n", r"test\.csv.*Label '5' is none of 'ag's: 1"),
        ("1,text\n", "column"),
    ):
        (tmp_path / "ag" / "test.csv").write_text(row)
        with pytest.raises(DataError, match=says):
            files.released_splits("ag", str(tmp_path))


# ---- the order of labels -------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_order_is_the_best_of_all_assignments(pairs):
    predicted, labels = torch.tensor(pairs).T
    order = files.label_order(predicted, labels, 4)
    scored = {p: sum(p[a] == b for a, b in pairs) for p in itertools.permutations(range(4))}
    assert scored[order] == max(scored.values())
    if scored[0, 1, 2, 3] == max(scored.values()):
        assert order == (0, 1, 2, 3)


def test_another_numbering_is_an_error_that_prints_the_mapping(paper, make):
    ag, study = paper.task("ag"), make()

    def renumbered(split):
        return Split(split.inputs, torch.tensor([2, 0, 1, 3])[split.labels])

    splits = {n: renumbered(getattr(ag, n)) for n in ("train", "validation", "test")}
    study.tasks = dict(paper.tasks) | {"ag": replace(ag, **splits)}
    mapping = r"1 -> 3 \(class 3\), 2 -> 1 \(class 1\), 3 -> 2 \(class 2\)\. Use the released"
    with pytest.raises(DataError, match=f"Task 'ag': .* {mapping}") as error:
        study.expert("ag")
    assert "4 ->" not in str(error.value)
    with pytest.raises(DataError, match="numbers its classes differently"):
        study.scores(["task_arithmetic"], ["current"])  # and again: no expert is kept
    assert study.expert("dbpedia").head.weight.shape[0] == 14
    shuffled = torch.randperm(ROWS, generator=seeded(1))
    study, test = make(), Split(ag.test.inputs, ag.test.labels[shuffled])
    study.tasks = dict(paper.tasks) | {"ag": replace(ag, test=test)}
    study.expert("ag")  # no label of a scored input is looked at


# ---- the profile ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, says",
    [
        ({"experts": "released"}, "experts: the released ones are BERTs and need encoder.base"),
        (
            {"encoder.preprocessing": "released", "encoder.kind": "t5"},
            "preprocessing: the released one is a bert's",
        ),
        ({"experts": "published"}, "experts"),
        ({"multi_task": "none"}, "multi_task"),
    ],
)
def test_profiles_that_make_no_sense_are_refused(overrides, says):
    with pytest.raises(ConfigError, match=says):
        load_profile("mini", overrides)


def test_no_multi_task_checkpoint_exists(paper, make):
    assert paper.baselines == ()
    with pytest.raises(ConfigError, match="paper only"):
        paper.scores(["multi_task"], ["current"])
    with pytest.raises(ConfigError, match="nothing to train"):
        paper.train("ag")
    own = paper.scores(["f_t"], ["current"])
    both = tables.stack([own, paper.scores(paper.baselines, ["current"])])
    pd.testing.assert_frame_equal(both, own)
    training = {"steps": 2, "save_every": 0, "precision": "float32"}
    trained = make(multi_task="trained", **{f"fine_tuning__{k}": v for k, v in training.items()})
    assert trained.baselines == ("multi_task",)
    assert trained.scores(["multi_task"], ["current"]).accuracy.notna().all()


def test_a_miniature_encoder_can_be_trained_and_read_the_released_way(make_study):
    study = make_study(
        overrides={
            "encoder.preprocessing": "released",
            "merging.methods": ["task_arithmetic"],
            "merging.lams": [0.3],
        }
    )
    assert study.scores(["f_t", "task_arithmetic"], ["current"]).accuracy.notna().all()
    assert isinstance(study.encoder, ReleasedEncoder)


# ---- paper | here, cell by cell ------------------------------------------------------------------


def test_every_cell_of_the_paper_has_a_row_and_its_verdict(paper):
    summary = pd.DataFrame(
        [
            ("f_t", "current", None, None, "ag", 91.4, None),
            ("f_t", "current", None, None, "dbpedia", 98.4, None),
            ("ties", "knn", 5, "stratified", "ag", 88.5, 0.2),
            ("weight_averaging", "knn", 5, "stratified", "ag", 79.4, 1.0),
            ("task_arithmetic", "knn", 5, "stratified", "ag", 84.0, 1.0),
            ("task_arithmetic", "knn", 5, "uniform", "ag", 86.4, 1.0),
            ("task_arithmetic", "ft_classifier", 1, "stratified", "ag", 87.5, 1.0),
        ],
        columns=["method", "protocol", "k", "draw", "task", "mean", "std"],
    )
    cells = tables.paper_cells(summary, tables.published_table2(), paper)
    assert len(cells) == 11 * 2, "an average over two of five tasks is not the paper's"
    rows = {f"{r.Model} | {r.Protocol} | {r.Task}": list(r)[4:] for r in cells.itertuples()}
    for cell, shown in {
        "Fine-tuned model | Current Eval | AG News": "91.6 | 91.4 | -0.2 | no ± | reproduced",
        "Fine-tuned model | Current Eval | DBpedia": "98.8 | 98.4 | -0.4 | no ± | not reproduced",
        "Ties | KNN Eval | AG News": "87.0 ± 1.6 | 88.5 ± 0.2 | +1.5 | yes | reproduced",
        "Weight Averaging | KNN Eval | AG News": "81.9 ± 1.6 | 79.4 ± 1.0 | -2.5 | no | undecided",
        "Task Arithmetic | KNN Eval | AG News": (
            "86.4 ± 1.3 | 84.0 ± 1.0 | -2.4 | no | not reproduced"
        ),
        "Multi-task learning | Current Eval | AG News": "90.6 |  |  |  | paper only",
    }.items():
        assert " | ".join(rows[cell]) == shown, cell
    other_k = rows["Task Arithmetic | FT-Classifier Eval | AG News"]
    assert other_k[1:] == ["", "", "", "paper only"], "k = 1 is not the paper's"


def test_other_networks_are_shown_and_not_judged(study):
    summary = tables.mean_and_std(tables.at_k(study.scores(["f_t", "ties"], ["current", "knn"]), 5))
    cells = tables.paper_cells(summary, tables.published_table2(), study)
    measured = cells[cells.here != ""]
    assert len(measured) == 6 and set(measured.verdict) == {"not judged"}
    assert (measured.difference != "").all()


def test_table_3_has_the_spreads_that_table_2_prints():
    table = tables.published_table3().set_index(["method", "protocol"])
    assert table.loc[("ties", "knn"), "std"] == 1.2
    assert table["std"][[("ties", "current"), ("f_b", "knn")]].isna().all()
    average = tables.published_table2().query("task == 'average'")
    second = average.set_index(["method", "protocol"])["mean"]
    for cell, mean in table["mean"].items():
        assert cell not in second or second[cell] == mean


# ---- end to end ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tables_notebooks_run_on_the_stand_in(folder, make, tmp_path, monkeypatch):
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path))
    monkeypatch.setenv("MERGELIB_STORE", str(make().store.root))
    items, overrides = runner.select(["tab02", "tab03"]), bench.stand_in_overrides(folder, **SIZES)
    given = {i.id: {"overrides": overrides, "device": "cpu", "k": K} for i in items}
    for result in runner.Runner("paper", jobs=2, echo=lambda line: None).run(items, given):
        assert result.ok, result.error
        name = result.item.id
        sidecar = (tmp_path / "figures" / "paper" / f"{name}.json").read_text()
        page = (tmp_path / "build" / "paper" / "notebooks" / f"{name}.ipynb").read_text()
        assert str(folder) not in sidecar, "a place of this machine"
        assert "reproduced" in page or "undecided" in page
        assert name != "tab02_main" or "paper only" in page
