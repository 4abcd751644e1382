"""The runner: refusals before anything runs, failures that stay alone, Ctrl-C that leaves
nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
from tiny import write_notebook

from mergelib.core import paths
from mergelib.core.errors import ConfigError, DataError, MergelibError, UnknownNameError
from mergelib.core.manifest import manifest
from mergelib.profiles import TASK_NAMES, variant_names
from mergelib.run import runner
from mergelib.run.cli import build_parser, main
from mergelib.run.runner import (
    Item,
    check_before,
    in_parallel,
    parse_parameters,
    parse_value,
    select,
)

PARAMETERS = (
    'profile: str = "mini"  # which profile\nn: int = 3  # how many of them\nrate: float = 0.5  '
    "# how fast it goes\n"
    "flag: bool = False  # yes or no, please\nnames: list = []  # some names, maybe none"
)
WRITE = """
import json, os, pathlib
folder = pathlib.Path(os.environ["MERGELIB_OUTPUT"]) / "figures" / profile
folder.mkdir(parents=True, exist_ok=True)
for end in ("pdf", "png", "csv"):
    (folder / f"{NAME}.{end}").write_text(f"{n}")
(folder / f"{NAME}.json").write_text(json.dumps({"data": [], "claims": {"C1": "reproduced"}}))
"""
SLEEP = (
    "import os, pathlib, time\n"
    'pathlib.Path(os.environ["PID_FILE"]).write_text(str(os.getpid()))\ntime.sleep(600)'
)


def item_of(root, name, *cells):
    write_notebook(root / "notebooks" / f"{name}.ipynb", *cells, parameters=PARAMETERS)
    return Item(name, f"Item {name}", "A title", "mine")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one's own: ``project(name, *cells)`` adds a notebook to its manifest."""
    items = []
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path / "out"))
    monkeypatch.setattr(runner, "manifest", lambda: tuple(items))

    def add(name, *cells):
        items.append(item_of(tmp_path, name, *cells))
        return items[-1]

    add.root = tmp_path
    return add


# ---- what is refused before anything runs --------------------------------------------------------


def test_select_by_id_beginning_or_group():
    everything = runner.manifest()
    for only, wanted in (
        ([], [i.id for i in everything]),
        (["tab02_main", "fig05"], ["fig05_ft_classifier", "tab02_main"]),
        (["fig05", "fig05"], ["fig05_ft_classifier"]),
        (["text"], [i.id for i in everything if i.group == "text"]),
    ):
        assert [i.id for i in select(only)] == wanted
    with pytest.raises(UnknownNameError, match="Nearest: 'tab02_main'"):
        select(["tab02_mian"])


VALUES = {
    "int": {"3": 3, "-1": -1},
    "float": {"2": 2.0, "1e-3": 1e-3},
    "bool": {"true": True, "False": False},
    "str": {"3": "3", "a=b c": "a=b c", "": ""},
    "list": {"[1, 'x']": [1, "x"]},
    "dict": {'{"a.b": 1}': {"a.b": 1}},
}
OTHERS = {
    "int": ("3.0", "true", "True", "three", ""),
    "bool": ("1",),
    "float": ("fast",),
    "dict": ("[1]", "{1:"),
    "list": ("__import__('os')", "[{1}]"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_take_the_declared_type_or_are_refused(kind):
    for text, value in VALUES[kind].items():
        found = parse_value("p", text, kind)
        assert (found, type(found)) == (value, type(value))
    for text in OTHERS.get(kind, ()):
        with pytest.raises(ConfigError, match=f"p is declared as {kind}"):
            parse_value("p", text, kind)


def test_parameters_go_to_the_notebooks_that_declare_them(project):
    items, both = [project("one"), project("two")], {"n": 4, "names": ["a"]}
    assert parse_parameters(["n=4", "names=['a']"], items) == {"one": both, "two": both}
    for pairs, says in (
        (["rates=1"], "Nearest: 'rate'"),
        (["n"], "name=value"),
        (["n=1", "n=1"], "given twice"),
        (["profile=mini"], "--profile"),  # it would run one and look for the figures of another
    ):
        with pytest.raises((UnknownNameError, ConfigError), match=says):
            parse_parameters(pairs, items)


def test_a_parameter_only_some_declare_reaches_only_those():
    given = parse_parameters(["k=1"], select(["tab02", "fig05"]))
    assert given == {"tab02_main": {"k": 1}, "fig05_ft_classifier": {}}


def test_what_cannot_run_is_refused_before_anything_runs(tmp_path):
    def check(profile, **values):
        check_before(profile, select(["tab02"]), {"tab02_main": values})

    with pytest.raises(MergelibError, match="--text-dir"):
        check("quick", overrides={"tasks.source": "local"})
    for overrides in ({"fine_tuning.step": 3}, {"fine_tuning.steps": "x"}, {1: 2}):
        with pytest.raises(MergelibError):
            check("quick", overrides=overrides)
    check("real")  # its data are on the hub
    with pytest.raises(DataError, match=r"No train\.csv"):
        check("real", text_dir=str(tmp_path))
    for name, split in product(TASK_NAMES, ("train", "test")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{split}.csv").write_text("1,a\n")
    check("real", text_dir=str(tmp_path))


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("--profile quik", "Nearest: 'quick'"),
        ("--only tab2", "Nearest: 'tab02_main'"),
        ("-p kk=3 --only tab02", "Nearest: 'k'"),
        ("-p k=x --only tab02", "declared as int"),
        ("--text-dir /nowhere --profile quick", "/nowhere"),
    ],
)
def test_the_command_line_refuses_with_a_sentence(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(runner.Runner, "run", lambda *_: pytest.fail("something ran"))
    assert main(["run", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said


def test_the_list_runs_nothing(capsys, monkeypatch):
    monkeypatch.setattr(runner.Runner, "run", lambda *_: pytest.fail("something ran"))
    assert main(["run", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(i.id in said for i in runner.manifest()) and "k: int" in said


# ---- failures ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failing_notebook_or_a_kernel_that_dies_stops_no_other(project, capsys):
    project("bad", "1 / 0  # the culprit")
    project("dead", "import os\nos._exit(1)")
    project("good", 'NAME = "good"', WRITE)
    project("silent", "'writes nothing'")
    assert main(["run", "--profile", "quick", "-p", "n=7"]) == 1
    said = capsys.readouterr()
    assert "Failed: bad, dead, silent" in said.err
    for part in (
        "1 / 0  # the culprit\n",
        "ZeroDivisionError",
        "No cell failed; the kernel may have died.",
        "did not write silent.pdf",
        "C1: reproduced",
    ):
        assert part in said.out, part
    out = project.root / "out"
    build = out / "build" / "quick"
    assert (out / "figures" / "quick" / "good.csv").read_text() == "7"
    executed = {p.stem for p in (build / "notebooks").iterdir()}
    assert executed - {"dead"} == {"bad", "good", "silent"}
    assert "No output" in runner.failing_cell(paths.root() / "none.ipynb")
    assert [*json.loads((build / "timings.json").read_text())["seconds"]] == ["good"]


STARTER = """
import signal
import sys
from pathlib import Path
from mergelib.core import paths
from mergelib.run import runner
from mergelib.run.cli import build_parser, main
signal.signal(signal.SIGINT, signal.default_int_handler)  \
# as in a terminal: a shell's background job starts with it ignored
root = Path(sys.argv[1])
paths.root = lambda: root
runner.manifest = lambda: (runner.Item("sleepy", "Item", "A title", "mine"), \
runner.Item("later", "Item", "A title", "mine"))
sys.exit(main(["run", "--profile", "quick", "--jobs", "1"]))
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not condition():
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_kernel_and_nothing_half_written(tmp_path, number):
    for name in ("sleepy", "later"):
        item_of(tmp_path, name, SLEEP)
    pid, out = tmp_path / "pid", tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)],
        env=os.environ | {"MERGELIB_OUTPUT": str(out), "PID_FILE": str(pid)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert wait_for(lambda: pid.exists() and pid.read_text(), 90), "it did not start"
        kernel = int(pid.read_text())
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Interrupted" in said
    assert wait_for(lambda: not alive(kernel), 10), "the kernel outlives the run"
    assert [p for p in out.rglob("*") if p.is_file()] == []
    assert "== later" not in said and "Traceback" not in said, "whoever pressed Ctrl-C knows why"


def test_the_kernel_is_this_interpreter_whatever_jupyter_knows(tmp_path, monkeypatch):
    from mergelib.run.execute import OwnKernel

    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    manager = OwnKernel(kernel_name="python3")
    assert manager.kernel_spec.argv[0] == sys.executable
    assert manager.format_kernel_cmd()[1:3] == ["-m", "ipykernel_launcher"]


def test_beside_the_lesson_runs_what_needs_its_experts():
    first, second, *rest = in_parallel(manifest(), "mini")
    assert first.group == "lesson"
    assert {*second.needs}.isdisjoint(variant_names("mini"))
    assert second.minutes["mini"] >= 5
    minutes = [i.minutes["mini"] for i in rest]
    assert minutes == sorted(minutes, reverse=True)


@pytest.fixture
def bare(tmp_path):
    """A checkout without an environment, and the call of a command in it."""
    root = paths.root()
    core = (f"mergelib/core/{name}.yaml" for name in ("manifest", "minutes"))
    for name in ("run_all.sh", "pyproject.toml", *core):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / "notebooks").symlink_to(root / "notebooks")

    def call(*arguments):
        done = subprocess.run(
            [tmp_path / "run_all.sh", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.defpath},
        )
        assert done.returncode == 0 and not (tmp_path / ".venv").exists(), done.stderr
        return done.stdout

    return call


def test_help_and_list_need_no_installation(bare, capsys):
    said = bare("--help")
    run = next(a for a in build_parser()._actions if a.dest == "command").choices["run"]
    flags = {a.option_strings[-1] for a in run._actions} - {"--help"}
    for word in (*flags, "test", "lab", "--wheelhouse"):
        assert f"{word} " in said, word
    assert main(["run", "--list"]) == 0
    assert bare("--list") == capsys.readouterr().out
