"""The lesson: the toy against closed forms, checks against right and wrong answers, what remains of
sliders without a kernel."""

import base64
import io
import math
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from committed import committed
from near import normal
from PIL import Image
from torch.nn.functional import cross_entropy, kl_div, mse_loss

from mergelib import lesson
from mergelib.core.errors import ConfigError, UnknownNameError
from mergelib.core.types import Head
from mergelib.lesson import demo, view
from mergelib.lesson import toy as toy_module
from mergelib.protocols import current_eval
from mergelib.run import publish
from mergelib.tables import protocol_label

TOY, BROKEN = lesson.make_toy(80), lesson.make_toy(80, mirrored=True)
CURRENT, FITTED = map(protocol_label, ("current", "ft_classifier"))


def scored(toy, lam):
    return lesson.score_toy(toy, lam).set_index("task")


# ---- the toy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle, lam", [(80, 0.0), (80, 0.3), (80, 1.0), (0, 0.5), (130, 0.5)])
def test_merge_in_complex_numbers(angle, lam):
    """A turn with a stretch is a complex number: m = 1 + lam (e^ia + e^ib - 2)."""
    turns = np.exp(1j * np.radians([angle, toy_module.TURN_B]))
    m = 1 + lam * (turns.sum() - 2)
    made = lesson.make_toy(angle).merge(lam)["theta"]
    assert np.allclose(made.numpy(), [[m.real, -m.imag], [m.imag, m.real]], atol=1e-6)


@pytest.mark.parametrize("degrees", [-170.0, -50.0, 0.0, 45.0, 180.0])
def test_turned_by_reads_the_turn_whatever_the_scale(degrees):
    points = normal(40, 2, seed=1)
    read = lesson.turned_by(0.3 * points @ lesson.turn(degrees).T, points)
    assert (read - degrees + 180) % 360 - 180 == pytest.approx(0, abs=1e-3)


def test_an_expert_is_the_bayes_classifier():
    """Its softmax is the posterior of its Gaussian clouds, so its decision is the nearest
    centre."""
    for task, n in toy_module.CLASSES.items():
        x, expert = TOY.points[task, "test"], TOY.expert(task)
        angles = torch.arange(n) * 2 * math.pi / n
        centres = toy_module.RADIUS * torch.stack([angles.cos(), angles.sin()], -1)
        distances = (x[:, None] - centres).square().sum(-1)
        posterior = (-distances / (2 * toy_module.SPREAD**2)).softmax(-1)
        found = expert.head.logits(TOY.features(expert.state, task)).softmax(-1)
        torch.testing.assert_close(found, posterior, atol=1e-4, rtol=1e-3)


def test_the_angle_changes_no_input():
    a, b = lesson.make_toy(0).points, lesson.make_toy(130).points
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_toys_story_holds():
    """What the text says: the clouds never mix, Current Eval breaks, FT-Classifier does not; lambda
    trades the tasks."""
    low, half, high = (scored(TOY, lam) for lam in (0.2, 0.5, 0.8))
    assert half.loc["A", "turn (degrees)"] == pytest.approx(-50, abs=0.1)
    assert (half["Fine-tuned"] > 95).all() and (half[FITTED] > 93).all()
    assert low[CURRENT]["A"] < half[CURRENT]["A"] < min(50, high[CURRENT]["A"])
    assert low[CURRENT]["B"] > half[CURRENT]["B"] > high[CURRENT]["B"]
    assert high[CURRENT]["A"] > 90 > 20 > high[CURRENT]["B"]
    # Below guessing, yet intact.
    assert low[CURRENT]["A"] < 25 / 2 and low[FITTED]["A"] > 95


@pytest.mark.parametrize("angle", [0, 35, 80, 140])
def test_half_way_to_a_mirror_image_the_plane_falls_onto_a_line(angle):
    """e^ia z + e^ib conj(z) = 2 e^i(a+b)/2 Re(e^i(a-b)/2 z), whatever the angles."""
    broken = lesson.make_toy(angle, mirrored=True)
    z = torch.view_as_complex(broken.points["A", "test"].contiguous())
    a, b = np.radians(angle), np.radians(toy_module.TURN_B)
    line = np.exp(0.5j * (a + b)) * (np.exp(0.5j * (a - b)) * z.numpy()).real
    made = torch.view_as_complex(broken.features(broken.merge(0.5), "A").contiguous()).numpy()
    assert np.allclose(made, line, atol=1e-5)


def test_what_is_destroyed_no_classifier_reads():
    """The ceiling is the posterior's decision on the line; a map that can be inverted has f_t's."""
    scores = scored(BROKEN, 0.5)
    best = scores["best possible"]
    assert best["A"] < 70 and (scores[FITTED] <= best).all() and "turn (degrees)" not in scores
    # On the line, the densities of the four clouds themselves.
    theta = BROKEN.merge(0.5)["theta"]
    z, means = BROKEN.points["A", "test"] @ theta.T, toy_module.centres(4) @ theta.T
    axis = torch.linalg.svd(z, full_matrices=False)[2][0]
    nearest = ((z @ axis)[:, None] - means @ axis).abs().argmin(-1)
    agree = (nearest == BROKEN.labels("A")).float().mean().item()
    assert best["A"] == pytest.approx(100 * agree, abs=0.5)
    for toy, lam in ((BROKEN, 0.4), (BROKEN, 0.2), (TOY, 0.5)):
        around = scored(toy, lam)
        assert around["best possible"].tolist() == pytest.approx(around["Fine-tuned"].tolist())


def test_lines_are_where_two_classes_tie_and_no_third_wins():
    head = Head(normal(4, 2, seed=3), torch.tensor([0.3, 0, -1, 1]))
    ax = plt.figure().add_subplot()
    view._draw_head(ax, head, view.OLD)
    (lines,) = ax.collections
    points = torch.tensor(np.concatenate([p.vertices for p in lines.get_paths()])).float()
    first, second = head.logits(points).topk(2).values.T
    assert len(points) and (first - second < 0.05).all()
    # Every change of class on a walk along the rim is next to one of them.
    angles = torch.linspace(0, 2 * torch.pi, 2000)
    rim = 0.99 * view.LIMIT * torch.stack([angles.cos(), angles.sin()], -1)
    winner = current_eval(rim, head)
    changes = rim[1:][winner[1:] != winner[:-1]]
    assert len(changes) and (torch.cdist(changes, points).amin(-1) < 0.05).all()


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="80"):
        lesson.make_toy(math.nan)
    with pytest.raises(UnknownNameError, match="Known: A, B"):
        TOY.expert("C")


# ---- the checks: what they say about right and wrong answers -------------------------------------

SEEN = TOY.evidence(TOY.merge(0.5), "A", 5)
W, TURN = SEEN.head.weight, lesson.turn
ROWS = SEEN.rows(5)[0]
LOGITS = [SEEN.head.logits(z[ROWS]).double() for z in (SEEN.student_fit, SEEN.teacher_fit)]
S, T = (x.log_softmax(-1) for x in LOGITS)
KL = kl_div(S, T, log_target=True, reduction="batchmean")
SUMMARY = pd.DataFrame(
    [
        ("f_t", "current", None, 75.0),
        ("task_arithmetic", "current", None, 40.0),
        ("task_arithmetic", "ft_classifier", 5, 61.5),
    ],
    columns=["method", "protocol", "k", "mean"],
).assign(task="average", draw="stratified")
CHECKS = {
    "turn": lambda a: lesson.check_turn(TOY, 0.5, a),
    "breaking": lesson.check_breaking_turn,
    "head": lambda a: lesson.check_head(TOY, 0.5, a),
    "loss": lambda a: lesson.check_loss(*LOGITS, a),
    "prediction": lambda a: lesson.check_prediction(SUMMARY, "task_arithmetic", 5, a),
    "choice": lambda a: lesson.check_choice(a, "ag", ["ag", "yelp"]),
    "number": lambda a: lesson.check_number(
        a, 42.0, within=1, unit="percent", slips={-42: "It is the other way round."}
    ),
}
# Words of what is said -> the answer
RIGHT = {
    "turn": {"W_A": -50, "by -50": -49.0, "turned by -50": torch.tensor(-50.0)},
    "breaking": {"45": 45},
    "head": {"No label": W @ TURN(-50).T, "% equal": 3.0 * W @ TURN(-51).T},
    "loss": {"FT-Classifier": KL, "you have FT-Classifier": KL.item()},
    "prediction": {"61.5": 61.5, "40.0": 59},
    "choice": {"ag": "ag"},
    "number": {"42 percent": 41.5},
}
NO_NUMBER = {"str; give one number": "fifty", "bool": True, "finite": math.nan}
WRONG = {
    "turn": NO_NUMBER
    | {
        "direction": 50,
        "old classifier": 80,
        "f_b": 30,
        "half-way between": -100,
        "other direction": 100,
        "radians": -0.873,
        "moved": 0,
        "too small": -60,
        "too large": 12,
    },
    "breaking": NO_NUMBER
    | {
        "all are wrong": 90,
        "for 3 classes": 60,
        "between 3 classes": 120,
        "slider": 70,
        "positive": -45,
        "radians": 0.785,
        "opposite": 180,
        "accuracy": 50,
        "too small": 20,
    },
    "head": {
        "Current Eval": W,
        "against the features": W @ TURN(50).T,
        "twice as far": W @ TURN(-50),
        "transposed": W.T,
        "You turned the features": SEEN.student_test,
        "2 x 2": TURN(-50),
        "another order": (W @ TURN(-50).T).roll(1, 0),
        "turned by -80 degrees and the features are turned by -50": W @ TURN(-80).T,
        "[4, 2]": torch.zeros(3, 2),
        "finite": torch.full((4, 2), math.nan),
        "list; give W' as a tensor": [[1, 2]],
    },
    "loss": NO_NUMBER
    | {
        "mean": KL * len(S),
        "One value per input": kl_div(S, T, log_target=True, reduction="none").sum(-1),
        "batchmean": KL / 4,
        "KL(student || teacher)": kl_div(T, S, log_target=True, reduction="batchmean"),
        "sign": -KL,
        "cross-entropy": cross_entropy(LOGITS[0], T.exp()),
        "label": cross_entropy(LOGITS[0], T.argmax(-1)),
        "bits": KL / math.log(2),
        "squared": mse_loss(*LOGITS),
        "agree": 0.0,
        "too large": 1e6,
    },
    "prediction": NO_NUMBER
    | {"nothing comes back": 41, "everything comes back": 76, "too small": 55},
    "choice": {"not yelp": "yelp", "Choose": "x"},
    "number": {"other way round": -42, "too large": 50, "str": "many"},
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_confirms_what_is_right_names_a_mistake_and_waits_for_an_answer(name):
    for verdict, table in (("Right.", RIGHT[name]), ("Not yet.", WRONG[name])):
        for words, answer in table.items():
            found = CHECKS[name](answer)
            assert repr(found).startswith(verdict) and words in found.says, (answer, found)
            assert found.right is (verdict == "Right.")
    assert repr(CHECKS[name](None)).startswith("Open.") and CHECKS[name](None).right is None


def test_check_turn_follows_the_toy():
    """Not a stored number: another angle, another lambda, the other task."""
    for angle, lam, task, elsewhere in (40, 0.5, "A", -50), (80, 0.2, "A", -50), (80, 0.8, "B", 50):
        toy = lesson.make_toy(angle)
        right = scored(toy, lam).loc[task, "turn (degrees)"]
        assert lesson.check_turn(toy, lam, right, task).right
        assert lesson.check_turn(toy, lam, elsewhere, task).right is False


def test_half_breaks_where_the_check_says():
    """On many inputs, not on paper: turned by 45 degrees, half of four clouds is lost; by 90,
    nearly all."""
    expert, splits = TOY.expert("A"), ("test", "pool")
    labels = torch.cat([TOY.labels("A", split) for split in splits])
    z = torch.cat([TOY.features(expert.state, "A", split) for split in splits])
    wrong = [
        (current_eval(z @ TURN(angle).T, expert.head) != labels).float().mean().item()
        for angle in (0, 45, -45, 90)
    ]
    assert wrong == pytest.approx([0, 0.5, 0.5, 1], abs=0.08)
    assert wrong[0] < 0.05 and wrong[3] > 0.95


def test_all_right_can_fail():
    right, wrong, open_ = map(lesson.check_breaking_turn, (45, 22, None))
    answers = ([right, right], [right, wrong], [right, open_])
    assert [lesson.all_right(given) for given in answers] == [True, False, False]


# ---- pictures and sliders ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explorer():
    return lesson.explore()


def test_real_features_are_drawn_in_the_references_plane_and_scored_whole():
    """Of six classes four are drawn; titles count all."""
    labels = torch.arange(6).repeat_interleave(20)
    z = 4 * torch.eye(6)[labels] + 0.1 * normal(120, 6)
    head = Head(torch.eye(6), torch.zeros(6))
    fig = lesson.draw_real({"own": z, "moved": z.roll(1, -1)}, labels, head, "own", "Seen")
    titles = [ax.get_title("left") + ax.get_title() for ax in fig.axes]
    assert titles == ["own: 100 %", "moved: 0 %"] and fig.get_suptitle() == "Seen"
    drawn = np.concatenate([c.get_offsets() for c in fig.axes[0].collections])
    centred = (z[labels < 4] - z[labels < 4].mean(0)).numpy()
    top = np.linalg.svd(centred, compute_uv=False)[:2]
    assert len(drawn) == 80
    assert np.linalg.svd(drawn, compute_uv=False) == pytest.approx(top, rel=1e-4)


def test_a_slider_changes_picture_and_words(explorer):
    before = explorer.picture.value
    explorer.lam.value = 0.8
    after = explorer.picture.value
    explorer.lam.value = 0.5
    assert explorer.picture.value == before
    words, pictures = zip(*(value.split("base64,") for value in (before, after)), strict=True)
    assert "lambda 0.5" in words[0] and "lambda 0.8" in words[1] and 'alt="' in words[0]
    assert pictures[0] != pictures[1]


def test_without_a_kernel_a_static_picture_remains(explorer):
    """What the committed notebook keeps, after the normaliser, is a PNG of every still, with
    words."""
    data, metadata = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)
    cell = nbformat.v4.new_code_cell("x", id="x", outputs=[output])
    (clean,) = publish.normalise(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert set(clean.data) == {"image/png", "text/plain"}
    text = clean.data["text/plain"]
    assert clean.metadata["image/png"]["alt"] == text
    assert len(text.splitlines()) == len(view.STILLS)
    width, height = Image.open(io.BytesIO(base64.b64decode(clean.data["image/png"]))).size
    assert height / width == pytest.approx(len(view.STILLS) / 3, abs=0.01)  # a row per still


def test_classes_differ_in_grey():
    """By marker, and what is wrong by a hollow face; no two classes share a marker."""
    markers = [m for _, m in view.CLASS_STYLE]
    assert len(set(markers)) == len(markers) >= max(toy_module.CLASSES.values())


# ---- the notebooks -------------------------------------------------------------------------------

FOLDER = committed() / "notebooks"
SOLVED = sorted(p.stem for p in (FOLDER / "solutions").glob("*.ipynb"))


def cells(name):
    return {c.id: c.source for c in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells}


def test_the_core_notebooks_have_solutions():
    core = {"tab02_main", "fig01_clusters", "fig04_transformations", "fig05_ft_classifier"}
    assert set(SOLVED) == {"00_start_here", *core}


@pytest.mark.parametrize("name", SOLVED)
def test_every_exercise_has_hint_check_and_solution(name):
    asked, solved = cells(name), cells(f"solutions/{name}")
    exercises = [i for i in asked if re.fullmatch(r"exercise-\d", i)]
    assert len(exercises) >= 4 and all("<summary>Hint</summary>" in asked[i] for i in exercises)
    numbers = range(1, len(exercises) + 1)
    assert {f"solution-{n}" for n in numbers} <= set(solved)
    for n in numbers[:-1]:  # the last is a run of its own
        check = re.search(r"lesson\.check_\w+", asked[f"answer-{n}"])[0]
        assert check in solved[f"answer-{n}"] and "answer = None" in asked[f"answer-{n}"]


def test_the_glossary_is_the_readmes():
    readme = (committed() / "README.md").read_text()
    table = readme.split("| symbol | meaning |")[1].split("\n\n")[0]
    assert table in cells("00_start_here")["glossary"]


# ---- models of one's own -------------------------------------------------------------------------


def test_an_expert_from_the_store_is_saved_as_when_it_was_trained(study, tmp_path):
    """Else a second run would compare its merges anew."""
    base = demo.save_base(study, tmp_path / "base")
    trained, stored = (
        demo.fine_tune_classifier(study, "ag", base, tmp_path / name) for name in ("a", "b")
    )
    files = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (trained, stored)]
    assert files[0] == files[1]
