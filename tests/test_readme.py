"""The README's code blocks, run as they stand, on a study small enough for a test; and what its
bash blocks promise."""

import re
import runpy
import shlex

import pytest
import torch
from committed import committed
from PIL import Image
from tiny import TINY

from mergelib import merging, profiles, protocols, tables
from mergelib.core import paths
from mergelib.core.errors import ConfigError
from mergelib.figures import style
from mergelib.run import cli, runner
from mergelib.study import study

PAGES = [paths.root() / n for n in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted((paths.root() / "docs").glob("*.md"))
BLOCKS = re.findall(
    r"```python\n(.*?)```", (paths.root() / "docs/extending.md").read_text(), flags=re.S
)
pytestmark = pytest.mark.filterwarnings("ignore:.*edge of the grid")
SMALL = {k: v for k, v in TINY.items() if k != "tasks.names"} | {"fine_tuning.steps": 4}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """``run(code)``: the names that a block leaves. Whoever asks for ``mini`` gets ``quick``,
    smaller still."""
    load = study.load_profile
    monkeypatch.setattr(
        study,
        "load_profile",
        lambda name, overrides=None, variant="": load("quick", SMALL | (overrides or {}), variant),
    )
    registries = [merging.METHODS, protocols.PROTOCOLS, style.METHOD_STYLE, style.PROTOCOL_STYLE]
    before = [dict(r) for r in registries]

    def go(code):
        path = tmp_path / "block.py"  # a file, so that the study can read a function's source
        path.write_text(code)
        return runpy.run_path(str(path))

    yield go
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)


def block(word):
    found = [b for b in BLOCKS if word in b]
    assert len(found) == 1, word
    return found[0]


def test_there_is_one_block_each_of_at_most_ten_lines():
    for kind in ("method", "protocol", "task(", "image_task("):
        assert len(re.findall(r"\S.*\n", block(f"mergelib.{kind}"))) <= 10
    assert len(BLOCKS) == 4, "every one is tested"


@pytest.mark.slow
def test_the_methods_block(run):
    made = run(block("@mergelib.method") + "\nscores = study.scores(['halves'], ['current'])")
    assert set(made["scores"].method) == {"halves"} and len(made["scores"]) == 5
    assert tables.encoder_label("halves") == "Two halves"
    assert (
        made["study"].lam("halves") in made["study"].profile.merging.lams
    )  # chosen, because the signature has it


@pytest.mark.slow
def test_the_protocols_block(run):
    made = run(block("@mergelib.protocol"))
    s = made["study"]
    assert s.predictions("ties", "ag", "cosine").shape == (1, 1, 60)
    assert tables.protocol_label("cosine") == "Cosine Eval"
    # Its body is its version: another body under the same name must not find the stored
    # predictions.
    nearest = s.predictions("ties", "ag", "cosine")
    run(block("@mergelib.protocol").replace("(z @ w.T)", "(-z @ w.T)"))
    assert not s.predictions("ties", "ag", "cosine").equal(nearest)
    flat = block("@mergelib.protocol").replace("[None, None]", "")
    run(flat.replace('study.scores(["ties"], ["current", "cosine"])', ""))
    with pytest.raises(ConfigError, match=r"returned int64 \[60\].* in 0\.\.3, \[1, 1, 60\]"):
        s.predictions("ties", "ag", "cosine")


@pytest.mark.slow
def test_the_tasks_block(run):
    scored = "\nscores = study.scores(['f_t', 'ties'], ['current', 'ft_classifier'])"
    made = run(block("mergelib.task(") + scored)
    assert set(made["scores"].task) == {"ag", "yelp", "amazon", "yahoo", "dbpedia", "tickets"}
    assert made["tickets"].label_names == ("billing", "bug")
    assert made["study"].head("f_t", "tickets").weight.shape[0] == 2


@pytest.mark.slow
def test_the_image_tasks_block(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("walls", "fences"):
        for split, shades in (("train", range(150, 250, 2)), ("test", range(151, 191, 2))):
            for place, colour in enumerate(("red", "blue")):
                (to := tmp_path / folder / split / colour).mkdir(parents=True)
                for shade in shades:
                    pixel = [20, len(folder), 20]
                    pixel[2 * place] = shade
                    Image.new("RGB", (40, 32), tuple(pixel)).save(to / f"{shade}.png")
    made = run(block("mergelib.image_task(").replace("study.scores", "scores = study.scores"))
    assert {*made["scores"].task} == {"walls", "fences"} and {*made["scores"].n} == {40}
    old = made["study"].head("f_t", "walls").weight
    assert old.shape[0] == 2 and not torch.equal(*old)


def test_the_lesson_plans_numbers_are_printed_where_it_says():
    root = committed()
    rows = re.findall(
        r"^\| \d+ \| (.*) \| `(.*)` \|$", (root / "docs/teaching.md").read_text(), re.M
    )
    assert len(rows) == 12
    for answer, place in rows:
        text = (root / place).read_text()
        for number in re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"`[^`]*`", "", answer)):
            assert re.search(rf"(?<![\d.]){number}(?![\d]|\.\d)", text), (number, place)


TEXT = "\n".join(page.read_text() for page in PAGES)
COMMANDS = sorted(set(re.findall(r"^\s*\./run_all\.sh (.*?)(?:\s+#.*)?$", TEXT, flags=re.M)))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_text_are_known_to_the_command_line(command):
    words = shlex.split(command)
    if words[:1] == ["--wheelhouse"]:
        words = words[2:]
    if words[:1] not in (["test"], ["lab"]):
        known = cli.build_parser().parse_args(["run", *words])
        assert known.profile in profiles.profile_names()
        runner.select(known.only)
        runner.parse_parameters(known.parameters, runner.select(known.only))
