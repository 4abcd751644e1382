"""The committed notebooks, without running them: one shape, nothing of this machine, prose for the
code."""

import ast
import itertools
import re
import statistics

import nbformat
import pytest
from committed import committed
from format_notebooks import WIDTH, formatted
from format_notebooks import main as format_notebooks
from papermill import inspect_notebook

from mergelib.run import runner

ROOT = committed()
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted((FOLDER / runner.SOLUTIONS).glob("*.ipynb"))
ITEMS = {item.id: item for item in runner.manifest()}
MACHINE = re.compile(r"(?<![\w.:/-])/(home|root|work|tmp|Users|private|var|mnt)/")


@pytest.fixture(
    params=[*PATHS, *SOLUTIONS], ids=lambda p: p.relative_to(FOLDER).with_suffix("").as_posix()
)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


@pytest.fixture
def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


@pytest.fixture
def nodes(code):
    """(cell, node) of everything in the code."""
    return [(cell, node) for cell in code for node in ast.walk(ast.parse(cell.source))]


@pytest.fixture
def prose(notebook):
    return [c.source for c in notebook.cells if c.cell_type == "markdown"]


def is_tagged(cell, tag="parameters"):
    return tag in cell.metadata.get("tags", [])


def test_the_manifest_lists_the_notebooks_that_are_there():
    assert len(ITEMS) == len(runner.manifest()) and set(ITEMS) == {p.stem for p in PATHS}
    assert {p.stem for p in SOLUTIONS} <= set(ITEMS), "solutions are named after their notebook"


def test_format_kernel_and_execution_counts(notebook, code):
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    assert len({c.id for c in notebook.cells}) == len(notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    counts = [c.execution_count for c in code]
    assert counts in ([None] * len(counts), list(range(1, len(counts) + 1)))


def test_one_parameters_cell_that_papermill_understands(code, path):
    assert [is_tagged(c) for c in code] == [True] + [False] * (len(code) - 1)
    assert not any(is_tagged(c, "injected-parameters") for c in code)
    assigned = [node.target.id for node in ast.parse(code[0].source).body]
    seen = inspect_notebook(str(path))
    assert list(seen) == assigned and assigned[0] == "profile"
    for name, p in seen.items():
        kind = runner.TYPES[p["inferred_type_name"].split("[")[0]]
        assert len(p["help"].split()) >= 3, f"{name}: no help text"
        assert isinstance(ast.literal_eval(p["default"]), kind), f"{name}: default is no {kind}"
    assert ast.literal_eval(seen["profile"]["default"]) == "mini"


def test_nothing_large_nothing_of_this_machine_no_errors(notebook, path):
    assert path.stat().st_size < 1_000_000
    for cell in notebook.cells:
        shown = [cell.source]
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr", cell.id
            data = output.get("data", {}).items()
            shown += [output.get("text", ""), *(v for k, v in data if k != "image/png")]
        for string in map(str, shown):
            assert not MACHINE.search(string), f"{cell.id}: {MACHINE.search(string)}"


def test_cells_are_short(code, nodes):
    lengths = [len(c.source.splitlines()) for c in code]
    assert max(lengths) <= 30 and statistics.median(lengths) <= 6
    for cell, node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            length = node.end_lineno - node.lineno
            assert length < 10, f"{cell.id}: move {node.name} to the library"


def test_pictures_have_alt_text(prose):
    for text in prose:
        for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", text, flags=re.S):
            assert len(alt.split()) >= 3, f"{target}: no alt text"
        assert "<img" not in text


def test_files_that_are_named_are_there(prose):
    """Links and pictures: ``test_text.py``."""
    for text in prose:
        for named in re.findall(r"`((?:mergelib|figures|notebooks|benchmarks)/[\w./-]+)`", text):
            assert (ROOT / named).exists(), named


def test_prose_and_code_are_in_proportion(prose, code):
    # Formulas, addresses, names of code and HTML tags are not prose; a line of code is one that is
    # not blank.
    marked = r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|!?\[[^\]]*\]\([^)]*\)|</?[a-z]+>"
    plain = [re.sub(marked, " ", text, flags=re.S) for text in prose]
    words = sum(len(re.findall(r"[^\W\d_][\w'’-]*", text)) for text in plain)
    lines = sum(bool(line.strip()) for c in code for line in c.source.splitlines())
    # The range of the best teaching notebooks, whose lines are about as long as ruff makes ours.
    assert 4 <= words / lines <= 10, f"{words} words for {lines} lines of code"


def test_code_is_formatted(code, path):
    sources = {c.id: c.source for c in code if not is_tagged(c)}
    assert sources == formatted(path), "run python tests/format_notebooks.py"
    for cell, source in sources.items():
        for line in source.splitlines():
            assert len(line) <= WIDTH, f"{cell}: ruff cannot break this line, shorten it: {line}"


def test_formatting_keeps_the_parameters_cell_and_the_outputs(tmp_path):
    text = "# a help text that papermill reads from the end of its line"
    long = f'tasks: list = ["ag", "yelp", "dbpedia"]  {text}'
    output = nbformat.v4.new_output("stream", text="3")
    cells = [
        nbformat.v4.new_code_cell(long, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("f( 1,2 )", execution_count=2, outputs=[output]),
    ]
    file = tmp_path / "x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    format_notebooks([file])
    assert nbformat.read(file, as_version=4).cells == [cells[0], cells[1] | {"source": "f(1, 2)"}]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_the_notebook_names_what_it_judges_and_what_it_shows(code, prose, path):
    item, text = ITEMS[path.stem], "\n".join(prose)
    sources = "\n".join(c.source for c in code)
    judged = set(re.findall(r'"([PCSN][\w.]*-[\w-]+)"', sources))
    assert judged == set(item.claims), "the manifest's claims are the ones that the notebook judges"
    assert item.item in text.splitlines()[0]
    for words in (*item.claims, "2412.13526", "Question", "What to notice", "Exercises"):
        assert words in text, f"{words} is not named in the text"
    for stem in (item.id, *item.extra_figures):
        assert f'"{stem}"' in sources


def test_code_parses_and_shows_no_internals(code, nodes):
    for cell, node in nodes:
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), f"{cell.id}: {node.attr}"
    assert not re.search(r"^\s*[!%]", "\n".join(c.source for c in code), flags=re.M)


def test_headings_form_an_outline(prose):
    levels = [len(h) for text in prose for h in re.findall(r"^(#+) ", text, flags=re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
