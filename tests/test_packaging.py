"""What a user installs, and what the library must not do: static checks."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tiny import python

from mergelib.tables.committed import git

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mergelib"
SOURCES = sorted(PACKAGE.rglob("*.py"))


TOP = """.ci .gitignore CITATION.cff CONTRIBUTING.md LICENSE README.md benchmarks cluster docs
environment.yml figures mergelib notebooks pyproject.toml run_all.sh tests"""


def test_nothing_but_the_project_is_committed():
    names = (git("ls-tree", "--name-only", "HEAD") or TOP.encode()).decode()
    assert names.split() == TOP.split()


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins():
    return PYPROJECT["project"]["dependencies"]


def test_every_dependency_is_pinned():
    project = PYPROJECT["project"]
    extras = [d for group in project.get("optional-dependencies", {}).values() for d in group]
    for dependency in [*project["dependencies"], *extras]:
        assert re.fullmatch(r"[A-Za-z0-9._\[\]-]+==\d[\w.]*", dependency), dependency


def test_conda_gets_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "mergelib"
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert {re.match(r"[a-z]+", d)[0] for d in plain} == {"python", "pip"}
    assert any(d.startswith("python=3.11") for d in plain)
    assert "-e ." in pip and len(pip) == len(set(pip))
    assert set(pip) - {"-e ."} == set(pins())


def imports(path):
    """Top-level packages that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {n.name.split(".")[0] for n in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_what_is_imported_is_declared():
    """Some come with what is pinned: tokenizers, threadpoolctl (scikit-learn), pyarrow and
    huggingface_hub (datasets), nbclient (papermill), psutil (ipykernel), packaging
    (transformers)."""
    names = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow"}
    declared = {re.split(r"[=\[<>]", d)[0].lower() for d in pins()} | set(
        "mergelib tokenizers threadpoolctl pyarrow huggingface_hub nbclient jupyter_client psutil "
        "packaging".split()
    )
    for path in SOURCES:
        extra = {"sphinx", "bokeh"} if path.parent.name == "book" else {"peft"}  # other extras
        for name in imports(path) - sys.stdlib_module_names - extra:
            assert names.get(name, name).lower() in declared, (
                f"{path.relative_to(ROOT)} imports {name}"
            )


BLOCK = """
import sys

sys.modules.update(dict.fromkeys(["datasets", "papermill"]))  # None: as if it were not installed
from mergelib import claims, encoders, figures, merging, protocols, study, tables
from mergelib.encoders import features
"""


def test_the_core_imports_without_datasets_and_papermill():
    python("-c", BLOCK)


def test_names_of_errors_come_without_torch():
    """Refusals of the command line must not wait for torch."""
    code = (
        "import sys; import mergelib, mergelib.core.errors, mergelib.core.paths, mergelib.run.cli; "
        "sys.exit('torch' in sys.modules)"
    )
    python("-c", code)


def test_dir_and_help_show_the_public_names_and_nothing_else():
    import mergelib

    assert dir(mergelib) == sorted(mergelib.__all__)
    for name in dir(mergelib):
        assert name == "__version__" or f"{name} " in mergelib.__doc__.replace(",", " "), name
        assert getattr(mergelib, name)


CALLS_TO_THE_HOST = {"cpu", "numpy", "item", "tolist"}


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if {"merging", "protocols"} & set(p.parts)], ids=lambda p: p.name
)
def test_loops_stay_on_the_device(path):
    """A .cpu(), .numpy() or .item() per step stalls a GPU; one per merge or fit is what a Python
    number costs."""
    loops = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.For | ast.While)]
    for node in (n for loop in loops for statement in loop.body for n in ast.walk(statement)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in CALLS_TO_THE_HOST, (
                f"{path.name}:{node.lineno} .{node.func.attr}()"
            )


@pytest.mark.parametrize("folder", ["merging", "protocols"])
def test_merging_and_protocols_know_only_torch_and_plain_types(folder):
    """The design's rule: neither knows files, Hugging Face, figures or profiles."""
    for path in (PACKAGE / folder).glob("*.py"):
        assert imports(path) <= {"torch", *sys.stdlib_module_names}, path
        relative = {
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.level == 2
        }
        known = ("types", "errors", "identity", "names", "spare")
        assert relative <= {f"core.{m}" for m in known}, path


def test_rooms_lie_in_layers_without_circles(monkeypatch):
    """The contracts of pyproject.toml, inside functions too."""
    linter = pytest.importorskip("importlinter.cli", reason="import-linter: pip install -e .[test]")
    monkeypatch.chdir(ROOT)
    assert linter.lint_imports(no_cache=True) == 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_foreign_is_executed(path):
    text = path.read_text()
    assert not imports(path) & {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
    assert {*re.findall(r"trust_remote_code\W+(\w+)", text)} <= {"False"}
    for call in (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)):
        name, said, where = ast.unparse(call.func), ast.unparse(call), f"{path.name}:{call.lineno}"
        assert name not in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"), where
        assert name != "torch.load" or "weights_only=True" in said, where
        assert "shell=True" not in said, where


def test_package_data_is_shipped():
    shipped = PYPROJECT["tool"]["setuptools"]["package-data"]["mergelib"]
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".yaml", ".mplstyle"):
            assert any(path.relative_to(PACKAGE).match(pattern) for pattern in shipped), path
