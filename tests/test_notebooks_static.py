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

from mergelib.run import runner

ROOT = committed()
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted((FOLDER / runner.SOLUTIONS).glob("*.ipynb"))
MACHINE = re.compile(r"(?<![\w.:/-])/(home|root|work|tmp|Users|private|var|mnt)/")


@pytest.fixture(
    params=[*PATHS, *SOLUTIONS], ids=lambda p: p.relative_to(FOLDER).with_suffix("").as_posix()
)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def prose(notebook):
    return [c.source for c in notebook.cells if c.cell_type == "markdown"]


def tagged(notebook, tag="parameters"):
    return [c for c in code(notebook) if tag in c.metadata.get("tags", [])]


def test_the_manifest_lists_the_notebooks_that_are_there():
    ids = [item.id for item in runner.manifest()]
    assert len(ids) == len(set(ids)) and set(ids) == {p.stem for p in PATHS}
    assert {p.stem for p in SOLUTIONS} <= set(ids), "solutions are named after their notebook"


def test_format_and_kernel(notebook):
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    ids = [c.id for c in notebook.cells]
    assert len(ids) == len(set(ids))
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata


def test_one_parameters_cell_that_papermill_understands(notebook, path):
    from papermill import inspect_notebook

    assert len(tagged(notebook)) == 1 and code(notebook)[0] is tagged(notebook)[0]
    assert not tagged(notebook, "injected-parameters")
    assigned = [node.target.id for node in ast.parse(tagged(notebook)[0].source).body]
    seen = inspect_notebook(str(path))
    assert list(seen) == assigned and assigned[0] == "profile"
    for name, p in seen.items():
        kind = runner.TYPES.get(p["inferred_type_name"].split("[")[0])
        assert kind, f"{name}: no type"
        assert len(p["help"].split()) >= 3, f"{name}: no help text"
        assert isinstance(ast.literal_eval(p["default"]), kind), (
            f"{name}: default is no {kind.__name__}"
        )
    assert ast.literal_eval(seen["profile"]["default"]) == "mini"


def test_execution_counts_are_empty_or_in_order(notebook):
    counts = [c.execution_count for c in code(notebook)]
    assert counts in ([None] * len(counts), list(range(1, len(counts) + 1)))


def test_nothing_large_nothing_of_this_machine_no_errors(notebook, path):
    text = path.read_text()
    assert len(text) < 1_000_000
    for cell in notebook.cells:
        outputs = [nbformat.from_dict(o) for o in cell.get("outputs", [])]
        assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs), (
            cell.id
        )
        shown = [cell.source] + [
            str(v)
            for o in outputs
            for k, v in [("t", o.get("text", "")), *o.get("data", {}).items()]
            if not k.startswith("image/png")
        ]
        for string in shown:
            assert not MACHINE.search(string), f"{cell.id}: {MACHINE.search(string)}"


def test_cells_are_short(notebook):
    lengths = [len(c.source.splitlines()) for c in code(notebook)]
    assert max(lengths) <= 30 and statistics.median(lengths) <= 6
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 10, (
                    f"{cell.id}: move {node.name} to the library"
                )


def test_pictures_have_alt_text(notebook):
    pictures = [
        m for text in prose(notebook) for m in re.findall(r"!\[(.*?)\]\((.*?)\)", text, flags=re.S)
    ]
    for alt, target in pictures:
        assert len(alt.split()) >= 3, f"{target}: no alt text"
    assert not any("<img" in text for text in prose(notebook))


def test_files_that_are_named_are_there(notebook):
    """Links and pictures: ``test_text.py``."""
    for text in prose(notebook):
        for named in re.findall(r"`((?:mergelib|figures|notebooks|benchmarks)/[\w./-]+)`", text):
            assert (ROOT / named).exists(), named


def test_prose_and_code_are_in_proportion(notebook):
    # Formulas, addresses, names of code and HTML tags are not prose; a line of code is one that is
    # not blank.
    marked = r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|!?\[[^\]]*\]\([^)]*\)|</?[a-z]+>"
    plain = [re.sub(marked, " ", text, flags=re.S) for text in prose(notebook)]
    words = sum(len(re.findall(r"[^\W\d_][\w'’-]*", text)) for text in plain)
    lines = sum(1 for c in code(notebook) for line in c.source.splitlines() if line.strip())
    # The range of the best teaching notebooks, whose lines are about as long as ruff makes ours.
    assert 4 <= words / lines <= 10, (
        f"{words} words for {lines} lines of code: {words / lines:.1f} per line"
    )


def test_code_is_formatted(notebook, path):
    cells = [c for c in code(notebook) if c not in tagged(notebook)]
    assert {c.id: c.source for c in cells} == formatted(path), (
        "run python tests/format_notebooks.py"
    )
    for cell in cells:
        for line in cell.source.splitlines():
            assert len(line) <= WIDTH, f"{cell.id}: ruff cannot break this line, shorten it: {line}"


def test_formatting_keeps_the_parameters_cell_and_the_outputs(tmp_path):
    long = (
        'tasks: list = ["ag", "yelp", "dbpedia"]  '
        "# a help text that papermill reads from the end of its line"
    )
    cells = [
        nbformat.v4.new_code_cell(long, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "f( 1,2 )", execution_count=2, outputs=[nbformat.v4.new_output("stream", text="3")]
        ),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "x.ipynb")
    format_notebooks([tmp_path / "x.ipynb"])
    first, second = nbformat.read(tmp_path / "x.ipynb", as_version=4).cells
    assert (first.source, second.source, second.outputs, second.id) == (
        long,
        "f(1, 2)",
        cells[1].outputs,
        cells[1].id,
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_the_notebook_names_what_it_judges_and_what_it_shows(notebook, path):
    item = next(i for i in runner.manifest() if i.id == path.stem)
    text = "\n".join(prose(notebook))
    sources = "\n".join(c.source for c in code(notebook))
    for claim in item.claims:
        assert claim in text, f"{claim} is not named in the text"
        assert claim in sources, f"{claim} is not judged"
    judged = set(re.findall(r'"([PCSN][\w.]*-[\w-]+)"', sources))
    assert judged == set(item.claims), "the manifest's claims are the ones that the notebook judges"
    assert item.item in text.splitlines()[0] and "2412.13526" in text
    for heading in ("Question", "What to notice", "Exercises"):
        assert heading in text
    for stem in (item.id, *item.extra_figures):
        assert f'"{stem}"' in sources


def test_code_parses_and_shows_no_internals(notebook):
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_"), f"{cell.id}: {node.attr}"
    assert not re.search(r"^\s*[!%]", "\n".join(c.source for c in code(notebook)), flags=re.M)


def test_headings_form_an_outline(notebook):
    levels = [len(h) for text in prose(notebook) for h in re.findall(r"^(#+) ", text, flags=re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
