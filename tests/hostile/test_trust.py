"""Nothing foreign is run, nothing is read or written outside its folder, and no secret gets into
what is written."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from committed import committed
from tiny import TINY, python, write_berts, write_notebook

import mergelib
from mergelib.core import documents
from mergelib.core.errors import ConfigError, MergelibError, UnsafeFileError
from mergelib.core.store import Artifact, Store
from mergelib.encoders import load_base
from mergelib.models import recipes
from mergelib.models.merged import load_merged
from mergelib.run import cli
from mergelib.tasks.data import read_csv, rows_of, unlabelled
from mergelib.tasks.parquet import open_image, read_parquet

from .support import Planted, plant, typed

ROOT = Path(__file__).resolve().parents[2]
LABELS = {"ag": ("a", "b", "c"), "yelp": ("d", "e")}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and two classifiers."""
    return write_berts(tmp_path_factory.mktemp("models"), LABELS)


@pytest.fixture
def copies(models, tmp_path):
    """The same, to be spoilt."""
    shutil.copytree(models, tmp_path / "models")
    return tmp_path / "models"


def use(folder):
    """Everything that reads a folder of a model."""
    experts = {"odd": folder, "yelp": folder.parent / "yelp"}
    named = {"base": folder.parent / "base", "experts": experts}
    texts = ["one two", "three"] * 3
    for call in (
        lambda: mergelib.merge("ties", **named),
        lambda: mergelib.align_classifier(mergelib.merge("ties", **named), folder, texts),
        lambda: mergelib.align_classifier(experts["yelp"], folder, texts),
        lambda: mergelib.evaluate(folder, (["one"], [0])),
        lambda: load_base(str(folder), 16),
    ):
        typed(call)


@pytest.fixture
def trap(tmp_path):
    """The folder that whoever runs what was planted makes."""
    yield tmp_path / "trap"
    assert not (tmp_path / "trap").exists()


# ---- pickles -------------------------------------------------------------------------------------

PLACES = """pytorch_model.bin pytorch_model-00001-of-00001.bin model.safetensors training_args.bin
optimizer.pt model.pt model.pkl config.json tokenizer.json tokenizer_config.json vocab.txt
preprocessor_config.json adapter_model.bin model.safetensors.index.json""".split()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", PLACES)
def test_no_pickle_in_a_models_folder_is_run(copies, trap, name, zipped):
    if name.endswith(".bin"):
        (copies / "ag" / "model.safetensors").unlink()  # else a .bin is not even opened
    use(plant(copies / "ag" / name, trap, zipped=zipped).parent)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "name, read",
    [
        ("train.csv", read_csv),
        ("train.csv.gz", read_csv),
        ("train.parquet", lambda p: read_parquet(p, 4)),
        ("x.png", lambda p: open_image(p, "x.png")),
        ("x.csv", rows_of),
        ("x.txt", lambda p: unlabelled(p, False)),
        ("x.yaml", recipes.read_yaml),
    ],
)
def test_no_pickle_among_data_is_run(tmp_path, trap, name, read, zipped):
    with pytest.raises(MergelibError):
        read(plant(tmp_path / name, trap, zipped=zipped))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("file", ["tensors.safetensors", "meta.json"])
def test_no_pickle_in_the_store_is_run(tmp_path, trap, file, zipped):
    store, step, made = Store(tmp_path / "store"), ("merge", {}), Artifact({"z": torch.ones(1)})
    store.get(*step, lambda: made)
    plant(store.folder(*step) / file, trap, zipped=zipped)
    assert store.peek(*step) is None and store.verify() and store.entries() is not None
    with pytest.warns(UserWarning, match="damaged"):
        assert store.get(*step, lambda: made).tensors["z"] == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_in_a_checkpoint_of_a_training_is_run(tmp_path, trap, zipped):
    from toy import run

    run(tmp_path / "scratch")
    checkpoints = list((tmp_path / "scratch").glob("checkpoint-*"))
    assert checkpoints
    for file in checkpoints:
        plant(file, trap, zipped=zipped)
    try:
        run(tmp_path / "scratch")
    except Exception as error:  # refused by torch.load; that nothing was run is what counts
        assert "weights_only" in str(error) or "Weights only" in str(error), error


def test_the_trap_works(tmp_path):
    """Read as pickles are read elsewhere, it does make the folder: the tests above could fail."""
    torch.load(plant(tmp_path / "x.bin", tmp_path / "trap"), weights_only=False)
    assert (tmp_path / "trap").is_dir() and Planted(tmp_path).trap == str(tmp_path)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [{trap}]",
        "!!python/object/new:os.mkdir [{trap}]",
        "!!python/name:os.mkdir",
        "!!python/module:antigravity",
    ],
)
def test_no_tag_of_yaml_is_run(trap, tag):
    text = tag.format(trap=trap)
    for read in (recipes.parse_yaml, lambda t: documents.parse_yaml(t, "x")):
        with pytest.raises(ConfigError):
            read(f"method: {text}")
    recipe = {"method": "ties", "experts": {"a": "b"}, "options": [f"lam={text}"]}
    assert recipes.build("merge", recipe).options == {"lam": text}


# ---- code of a model's own, programs that images start, addresses --------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("known", [True, False])
def test_no_code_of_a_models_own_is_run(copies, trap, known):
    """Neither beside a kind of model that transformers knows, nor for one that it does not."""
    folder = copies / "ag"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(trap)!r})\nclass A: pass\n")
    unknown = {
        "model_type": "unheard_of",
        "tokenizer_class": "OwnTokenizer",
        "image_processor_type": "OwnProcessor",
    }
    kinds = "AutoConfig AutoModel AutoModelForSequenceClassification AutoImageProcessor"
    own = dict.fromkeys([*kinds.split(), "AutoProcessor"], "own.A")
    own["AutoTokenizer"] = ["own.A", "own.A"]
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = folder / file
        given = json.loads(path.read_text()) if path.exists() else {}
        given |= {"auto_map": own} | ({} if known else unknown)
        path.write_text(json.dumps(given))
    use(folder)


def test_an_image_starts_no_program_and_an_address_is_not_fetched(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript; transformers' loader fetches addresses."""

    def forbidden(*a, **k):
        raise AssertionError("started or fetched")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(subprocess, "check_call", forbidden)
    monkeypatch.setattr("socket.socket.connect", forbidden)
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    for source in (
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        "http://127.0.0.1:9/x.png",
        tmp_path / "nothing.png",
    ):
        with pytest.raises(MergelibError):
            open_image(source, "x")


# ---- paths ---------------------------------------------------------------------------------------

NAMES = ["../up", "/etc/up", "a/b", "..", ".", ".hidden", "a\0b", "x" * 300, "a\\b", "C:up", "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_a_task_leads_out_of_the_folder(models, tmp_path, name, capsys):
    """By a recipe of merge or align, by a folder that somebody else wrote, and by an aligned head;
    nothing is left anywhere."""
    good, out, written = tmp_path / "in" / "good", tmp_path / "in" / "out", tmp_path / "recipe.yaml"
    good.parent.mkdir()
    base, experts = models / "base", {t: models / t for t in LABELS}
    merged = mergelib.merge("task_arithmetic", base=base, experts=experts)
    merged.save_pretrained(good)
    before = sorted(tmp_path.rglob("*"))
    odd = {"experts": {name: str(models / "ag")}}
    inputs = {name: str(models / "ag" / "vocab.txt")}
    for command, recipe in (
        ("merge", {"method": "ties", "base": str(base)}),
        ("align", {"merged": str(good), "inputs": inputs}),
    ):
        written.write_text(json.dumps(recipe | odd))
        assert cli.main([command, "--recipe", str(written), "--out", str(out)]) == 2
        assert "cannot name a task" in capsys.readouterr().err
        written.unlink()
    with pytest.raises(ConfigError, match="cannot name a task"):
        head = mergelib.align_classifier(merged, models / "ag", ["one", "two", "three"], task=name)
        merged.with_heads(head).save_pretrained(out)
    assert sorted(tmp_path.rglob("*")) == before
    record = json.loads((good / "mergelib.json").read_text())
    (good / "mergelib.json").write_text(json.dumps(record | {"modules": {name: "classifier"}}))
    with pytest.raises(ConfigError, match="cannot name a task"):
        load_merged(good)


@pytest.mark.parametrize("target", ["../ag/model.safetensors", "/etc/hostname", ".."])
def test_no_index_of_shards_leads_out_of_the_folder(copies, target):
    (copies / "yelp" / "model.safetensors").unlink()
    (copies / "yelp" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"bert.x": target}})
    )
    with pytest.raises(UnsafeFileError, match="points outside its folder"):
        mergelib.merge("ties", base=copies / "base", experts={"yelp": copies / "yelp"})


# ---- secrets and machine paths -------------------------------------------------------------------

MARKER = "hf_MARKERmarkerMARKERmarker0123456789"
RUN = """
import os, sys
os.dup2(1, 2)  # what is said on either
from pathlib import Path
import matplotlib, pandas as pd, torch
from mergelib import Study
from mergelib.core import paths
from mergelib.run import cli, runner
from mergelib.figures import save_files
from mergelib.tables import provenance
folder, home, tiny = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])
named = [f"{t}={home / 'models' / t}" for t in ("ag", "yelp")]
(home / "ag.txt").write_text("one two\\nthree four\\nfive six\\n")
assert cli.main(["merge", "--method", "ties", "--base", str(home / "models" / "base"), \
"--experts", *named, "--single", "--out", str(folder / "merged")]) == 0
assert cli.main(["align", "--merged", str(folder / "merged"), "--experts", *named, \
"--inputs", f"ag={home / 'ag.txt'}", "--single", "--out", str(folder / "aligned")]) == 0
study = Study("quick", overrides=tiny | {"tasks.source": "local", "tasks.text_dir": str(home), \
"encoder.max_length": 16}, base=str(home / "models" / "base"), device="cpu")
scores = study.scores(["ties"], ["current"])
figure = matplotlib.pyplot.figure()
save_files(figure, "one", "quick", alt="A figure that shows nothing at all.", data={"": scores}, \
sidecar={"overrides": provenance(study).data.to_json()})
items = (runner.Item("one", "Figure 1", "A title", "mine"),)
(result,) = runner.Runner("quick").run(items, {"one": {}})
assert result.ok, result.error
"""
CELL = """
import os, json, pathlib, mergelib
print(mergelib.__version__)
folder = pathlib.Path(os.environ["MERGELIB_OUTPUT"]) / "figures" / profile
for end in ("pdf", "png", "csv"):
    (folder / f"one.{end}").write_text("x")
(folder / "one.json").write_text(json.dumps({"claims": {}}))
"""


@pytest.mark.slow
def test_no_token_and_no_home_gets_into_what_is_written(models, tmp_path):
    """A merge, an alignment, a study, a figure and a notebook with HF_TOKEN set and everything read
    from a home folder."""
    home, root, out = tmp_path / "home" / "secretuser", tmp_path / "project", tmp_path / "out"
    shutil.copytree(models, home / "models")
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mergelib", root / "mergelib", ignore=unwanted)
    for task, classes in (("ag", 4), ("yelp", 5)):
        (home / task).mkdir()
        for split in ("train", "test"):
            rows = [f"{i % classes + 1},{split} text number {i}\n" for i in range(300)]
            (home / task / f"{split}.csv").write_text("".join(rows))
    write_notebook(root / "notebooks" / "one.ipynb", CELL)
    places = {
        "HOME": home,
        "MERGELIB_OUTPUT": out,
        "MERGELIB_STORE": out / "store",
        "PYTHONPATH": root,
        "MPLCONFIGDIR": tmp_path / "mpl",
    }
    env = os.environ | {name: str(place) for name, place in places.items()}
    env |= {"HF_TOKEN": MARKER, "HUGGING_FACE_HUB_TOKEN": MARKER, "JUPYTER_PREFER_ENV_PATH": "1"}
    said = python("-c", RUN, out, home, repr(TINY), env=env, cwd=tmp_path)
    written = [p for p in out.rglob("*") if p.is_file()]
    kinds = {p.suffix for p in written}
    assert {".ipynb", ".json", ".csv", ".safetensors", ".md"} <= kinds and len(written) > 25
    for path in written:
        assert not re.search(rf"{MARKER}|secretuser".encode(), path.read_bytes()), path
    assert MARKER not in said


TOKEN = re.compile(
    r"\b(hf_[A-Za-z]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|AKIA[0-9A-Z]{16}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY)"
)
HOME = re.compile(r"(?<![\w.:/-])/(home|Users|root)/[\w.-]+")


def test_no_token_and_no_home_folder_is_committed():
    if committed() == ROOT:
        pytest.skip("no git here")
    files = [p for p in committed().rglob("*") if p.is_file()]
    assert len([p for p in files if p.suffix in (".ipynb", ".json")]) > 40
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if path.name != Path(__file__).name:
            assert not TOKEN.search(text), path
        if path.suffix in (".ipynb", ".json", ".csv", ".md", ".pdf", ".png"):
            assert not HOME.search(text), f"{path}: {HOME.search(text)}"


# ---- JupyterLab ----------------------------------------------------------------------------------


def test_jupyterlab_keeps_its_own_defaults_for_tokens(tmp_path):
    """The very arguments of ./run_all.sh lab, shown as JupyterLab understands them."""
    (line,) = re.findall(
        r'^ *lab\) .*exec "\$python" -m jupyterlab (.*) "\$@" ;;$',
        (ROOT / "run_all.sh").read_text(),
        re.M,
    )
    arguments = line.replace('"$PWD"', str(tmp_path)).split()
    env = {n: value for n, value in os.environ.items() if not n.startswith("JUPYTER_TOKEN")}
    env |= {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    env["JUPYTER_NO_CONFIG"] = "1"
    shown = python("-m", "jupyterlab", *arguments, "--show-config-json", env=env)
    config = json.loads(shown[shown.index("{") :])
    given = {f"{section}.{key}" for section, values in config.items() for key in values}
    assert {"ServerApp.root_dir", "LabApp.default_url"} <= given
    weaker = re.compile(
        r"token|password|(^|\.)ip$|allow_|xsrf|origin|certfile|identity_provider|authori|disable",
        re.I,
    )
    assert not [name for name in given if weaker.search(name)], given


# ---- licences ------------------------------------------------------------------------------------


def test_licences_go_with_ours_and_the_table_is_of_today():
    """Every package that is installed because of mergelib, however far away; docs/licences.md is
    what this gives."""
    from licences import FILE, doubtful, rows, table

    found = rows()
    assert len(found) > 60 and {"torch", "transformers", "jupyterlab"} <= {r.name for r in found}
    assert {r.name: r.licence for r in found if doubtful(r)} == {}
    here = {r.name: r.licence for r in found if r.direct}
    said = dict(re.findall(r"^\| \*\*([\w.-]+)\*\* \| ([^|]+) \|", FILE.read_text(), re.M))
    assert {n: licence.strip() for n, licence in said.items()} == here and table(found)
