"""The runner: refusals before anything runs, failures that stay alone, Ctrl-C that leaves
nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from tiny import write_notebook

from mergelib.core import paths
from mergelib.core.errors import ConfigError, DataError, MergelibError, UnknownNameError
from mergelib.core.manifest import manifest
from mergelib.profiles import variant_names
from mergelib.run import runner
from mergelib.run.cli import build_parser, main
from mergelib.run.runner import (
    Item,
    check_before,
    failing_cell,
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
(folder / f"{NAME}.json").write_text(json.dumps({"claims": {"C1": "reproduced"}}))
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
    everything = list(runner.manifest())
    assert select([]) == everything
    assert [i.id for i in select(["tab02_main", "fig05"])] == [
        i.id for i in everything if i.id in ("tab02_main", "fig05_ft_classifier")
    ]
    assert [i.id for i in select(["fig05", "fig05"])] == ["fig05_ft_classifier"]
    assert {i.id for i in select(["text"])} == {i.id for i in everything if i.group == "text"}
    with pytest.raises(UnknownNameError, match="Nearest: 'tab02_main'"):
        select(["tab02_mian"])


@pytest.mark.parametrize(
    "kind, text, value",
    [
        ("int", "3", 3),
        ("int", "-1", -1),
        ("float", "2", 2.0),
        ("float", "1e-3", 1e-3),
        ("bool", "true", True),
        ("bool", "False", False),
        ("str", "3", "3"),
        ("str", "a=b c", "a=b c"),
        ("list", "[1, 'x']", [1, "x"]),
        ("dict", '{"a.b": 1}', {"a.b": 1}),
        ("str", "", ""),
    ],
)
def test_values_take_the_declared_type(kind, text, value):
    found = parse_value("p", text, kind)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "kind, text",
    [
        ("int", "3.0"),
        ("int", "true"),
        ("int", "three"),
        ("int", ""),
        ("bool", "1"),
        ("float", "fast"),
        ("dict", "[1]"),
        ("dict", "{1:"),
        ("list", "__import__('os')"),
        ("int", "True"),
    ],
)
def test_values_of_another_type_are_refused(kind, text):
    with pytest.raises(ConfigError, match=f"p is declared as {kind}"):
        parse_value("p", text, kind)


def test_parameters_go_to_the_notebooks_that_declare_them(project):
    items = [project("one"), project("two")]
    assert parse_parameters(["n=4", "names=['a']"], items) == {
        i: {"n": 4, "names": ["a"]} for i in ("one", "two")
    }
    with pytest.raises(UnknownNameError, match="Nearest: 'rate'"):
        parse_parameters(["rates=1"], items)
    with pytest.raises(ConfigError, match="name=value"):
        parse_parameters(["n"], items)


def test_a_parameter_only_some_declare_reaches_only_those():
    items = select(["tab02", "fig05"])
    given = parse_parameters(["k=1"], items)
    assert given["tab02_main"] == {"k": 1} and given["fig05_ft_classifier"] == {}


def test_the_profile_is_not_a_parameter_behind_the_runners_back():
    """-p profile=... would run one profile and look for the figures of another; an unknown one
    would fail only later."""
    items = select(["tab02"])
    with pytest.raises(MergelibError):
        check_before("quick", items, parse_parameters(["profile=nope"], items))
    with pytest.raises(MergelibError):
        check_before("quick", items, parse_parameters(["profile=mini"], items))


def test_missing_data_is_refused_before_anything_runs(tmp_path):
    items = select(["tab02"])
    with pytest.raises(MergelibError, match="--text-dir"):
        check_before("quick", items, {"tab02_main": {"overrides": {"tasks.source": "local"}}})
    check_before("real", items, {"tab02_main": {}})  # its data are on the hub
    with pytest.raises(DataError, match=r"No train\.csv"):
        check_before("real", items, {"tab02_main": {"text_dir": str(tmp_path)}})
    for name in ("ag", "yelp", "amazon", "yahoo", "dbpedia"):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.csv").write_text("1,a\n")
    check_before("real", items, {"tab02_main": {"text_dir": str(tmp_path)}})


def test_bad_overrides_are_refused_before_anything_runs():
    items = select(["tab02"])
    for overrides in ({"fine_tuning.step": 3}, {"fine_tuning.steps": "x"}, {1: 2}):
        with pytest.raises(MergelibError):
            check_before("quick", items, {"tab02_main": {"overrides": overrides}})


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--profile", "quik"], "Nearest: 'quick'"),
        (["--only", "tab2"], "Nearest: 'tab02_main'"),
        (["-p", "kk=3", "--only", "tab02"], "Nearest: 'k'"),
        (["-p", "k=x", "--only", "tab02"], "declared as int"),
        (["--text-dir", "/nowhere", "--profile", "quick"], "/nowhere"),
    ],
)
def test_the_command_line_refuses_with_a_sentence(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(runner.Runner, "run", lambda *_: pytest.fail("something ran"))
    assert main(["run", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said


def test_the_list_runs_nothing(capsys, monkeypatch):
    monkeypatch.setattr(runner.Runner, "run", lambda *_: pytest.fail("something ran"))
    assert main(["run", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(i.id in said for i in runner.manifest()) and "k: int" in said


# ---- failures ------------------------------------------------------------------------------------


def test_failing_cell_shows_source_and_traceback(tmp_path):
    error = nbformat.v4.new_output("error", ename="E", evalue="v", traceback=["line a", "line b"])
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("fine"),
            nbformat.v4.new_code_cell("1 / 0", outputs=[error]),
        ]
    )
    nbformat.write(notebook, tmp_path / "x.ipynb")
    assert failing_cell(tmp_path / "x.ipynb") == "1 / 0\nline a\nline b"
    assert "No output" in failing_cell(tmp_path / "none.ipynb")
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "y.ipynb")
    assert "kernel may have died" in failing_cell(tmp_path / "y.ipynb")


@pytest.mark.slow
def test_a_failing_notebook_stops_no_other(project, capsys):
    project("bad", "1 / 0  # the culprit")
    project("good", 'NAME = "good"', WRITE)
    project("silent", "'writes nothing'")
    assert main(["run", "--profile", "quick", "-p", "n=7"]) == 1
    said = capsys.readouterr()
    assert "ZeroDivisionError" in said.out and "the culprit" in said.out
    assert "did not write silent.pdf" in said.out
    assert "Failed: bad, silent" in said.err
    assert "C1: reproduced" in said.out
    assert (project.root / "out" / "figures" / "quick" / "good.csv").read_text() == "7"
    executed = project.root / "out" / "build" / "quick" / "notebooks"
    assert {p.name for p in executed.iterdir()} == {"bad.ipynb", "good.ipynb", "silent.ipynb"}
    assert list(
        json.loads((project.root / "out" / "build" / "quick" / "timings.json").read_text())[
            "seconds"
        ]
    ) == ["good"]


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
    item_of(tmp_path, "sleepy", SLEEP)
    item_of(tmp_path, "later", SLEEP)
    env = os.environ | {"MERGELIB_OUTPUT": str(tmp_path / "out"), "PID_FILE": str(tmp_path / "pid")}
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert wait_for(
            lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 90
        ), "the notebook did not start"
        kernel = int((tmp_path / "pid").read_text())
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130 and "Interrupted" in said
    assert wait_for(lambda: not alive(kernel), 10), "the kernel outlives the run"
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []
    assert "== later" not in said and "Traceback" not in said, "whoever pressed Ctrl-C knows why"


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failure(project, capsys):
    project("dead", "import os\nos._exit(1)")
    assert main(["run", "--profile", "quick"]) == 1
    assert "dead" in capsys.readouterr().err


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
    for name in ("run_all.sh", "pyproject.toml", "mergelib/core/manifest.yaml"):
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
