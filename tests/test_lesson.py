"""The lesson: the toy against closed forms, checks against right and wrong answers, what remains of
sliders without a kernel."""

import base64
import io
import math
import re

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from committed import committed
from near import normal
from PIL import Image
from test_tables import scores

from mergelib import lesson, tables
from mergelib.core.errors import ConfigError, UnknownNameError
from mergelib.core.types import Head
from mergelib.lesson import demo, view
from mergelib.lesson import toy as toy_module
from mergelib.protocols import current_eval
from mergelib.run import publish
from mergelib.tables import protocol_label

matplotlib.use("agg")


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
    toy = lesson.make_toy(80)
    for task, n in toy_module.CLASSES.items():
        x, expert = toy.points[task, "test"], toy.expert(task)
        angles = torch.arange(n) * 2 * math.pi / n
        centres = toy_module.RADIUS * torch.stack([angles.cos(), angles.sin()], -1)
        posterior = (-(x[:, None] - centres).square().sum(-1) / (2 * toy_module.SPREAD**2)).softmax(
            -1
        )
        torch.testing.assert_close(
            expert.head.logits(toy.features(expert.state, task)).softmax(-1),
            posterior,
            atol=1e-4,
            rtol=1e-3,
        )


def test_the_angle_changes_no_input():
    a, b = lesson.make_toy(0), lesson.make_toy(130)
    assert all(torch.equal(a.points[key], b.points[key]) for key in a.points)


def test_the_toys_story_holds():
    """What the text says: the clouds never mix, Current Eval breaks, FT-Classifier does not; lambda
    trades the tasks."""
    toy = lesson.make_toy(80)
    half = lesson.score_toy(toy, 0.5).set_index("task")
    assert half.loc["A", "turn (degrees)"] == pytest.approx(-50, abs=0.1)
    assert (half["Fine-tuned"] > 95).all() and (half[protocol_label("ft_classifier")] > 93).all()
    assert half.loc["A", protocol_label("current")] < 50
    current = pd.DataFrame(
        {
            lam: lesson.score_toy(toy, lam).set_index("task")[protocol_label("current")]
            for lam in (0.2, 0.5, 0.8)
        }
    )
    assert current.loc["A"].is_monotonic_increasing and current.loc["B"].is_monotonic_decreasing
    assert current.loc["A", 0.8] > 90 > 20 > current.loc["B", 0.8]
    # Below guessing, yet intact.
    assert current.loc["A", 0.2] < 25 / 2
    assert (
        lesson.score_toy(toy, 0.2).set_index("task").loc["A", protocol_label("ft_classifier")] > 95
    )


@pytest.mark.parametrize("angle", [0, 35, 80, 140])
def test_half_way_to_a_mirror_image_the_plane_falls_onto_a_line(angle):
    """e^ia z + e^ib conj(z) = 2 e^i(a+b)/2 Re(e^i(a-b)/2 z), whatever the angles."""
    broken = lesson.make_toy(angle, mirrored=True)
    x = broken.points["A", "test"]
    z = torch.view_as_complex(x.contiguous())
    a, b = np.radians(angle), np.radians(toy_module.TURN_B)
    line = np.exp(0.5j * (a + b)) * (np.exp(0.5j * (a - b)) * z.numpy()).real
    made = torch.view_as_complex(broken.features(broken.merge(0.5), "A").contiguous()).numpy()
    assert np.allclose(made, line, atol=1e-5)


def test_what_is_destroyed_no_classifier_reads():
    """The ceiling is the posterior's decision on the line; a map that can be inverted has f_t's."""
    broken = lesson.make_toy(80, mirrored=True)
    scores = lesson.score_toy(broken, 0.5).set_index("task")
    fitted, best = scores[protocol_label("ft_classifier")], scores["best possible"]
    assert best["A"] < 70 and (fitted <= best).all() and "turn (degrees)" not in scores
    # On the line, the densities of the four clouds themselves.
    z, means = (
        points @ broken.merge(0.5)["theta"].T
        for points in (broken.points["A", "test"], toy_module.centres(4))
    )
    axis = torch.linalg.svd(z, full_matrices=False)[2][0]
    nearest = ((z @ axis)[:, None] - means @ axis).abs().argmin(-1)
    agree = (nearest == broken.labels("A")).float().mean().item()
    assert best["A"] == pytest.approx(100 * agree, abs=0.5)
    for toy, lam in ((broken, 0.4), (broken, 0.2), (lesson.make_toy(80), 0.5)):
        around = lesson.score_toy(toy, lam)
        assert around["best possible"].tolist() == pytest.approx(around["Fine-tuned"].tolist())


def test_lines_are_where_two_classes_tie_and_no_third_wins():
    head = Head(normal(4, 2, seed=3), torch.tensor([0.3, 0, -1, 1]))
    _, ax = plt.subplots()
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
        lesson.make_toy().expert("C")


# ---- the checks: what they say about right and wrong answers -------------------------------------

TOY = lesson.make_toy(80)
SEEN = TOY.evidence(TOY.merge(0.5), "A", 5)
W = SEEN.head.weight


def verdict(feedback, right, *words):
    assert feedback.right is right, feedback
    assert repr(feedback).startswith({True: "Right.", False: "Not yet.", None: "Open."}[right])
    for word in words:
        assert word in feedback.says, feedback.says


CHECKS = [
    lambda a: lesson.check_turn(TOY, 0.5, a),
    lesson.check_breaking_turn,
    lambda a: lesson.check_head(TOY, 0.5, a),
    lambda a: lesson.check_loss(LOGITS[0], LOGITS[1], a),
    lambda a: lesson.check_prediction(SUMMARY, "task_arithmetic", 5, a),
]


@pytest.mark.parametrize("check", CHECKS)
def test_no_answer_is_no_mistake(check):
    verdict(check(None), None, "None")


@pytest.mark.parametrize("check", [c for i, c in enumerate(CHECKS) if i != 2])
def test_what_is_no_number_is_named(check):
    verdict(check("fifty"), False, "str", "number")
    verdict(check(True), False, "bool")
    verdict(check(math.nan), False, "finite")


@pytest.mark.parametrize(
    "answer, right, word",
    [
        (-50, True, "W_A"),
        (-49.0, True, "-50"),
        (torch.tensor(-50.0), True, "-50"),
        (50, False, "direction"),
        (80, False, "old classifier"),
        (30, False, "f_b"),
        (-100, False, "whole angle"),
        (100, False, "whole angle"),
        (-0.873, False, "radians"),
        (0, False, "moved"),
        (-60, False, "too small"),
        (12, False, "too large"),
    ],
)
def test_check_turn(answer, right, word):
    verdict(lesson.check_turn(TOY, 0.5, answer), right, word)


def test_check_turn_follows_the_toy():
    """Not a stored number: another angle, another lambda, the other task."""
    for angle, lam, task in ((40.0, 0.5, "A"), (80.0, 0.2, "A"), (80.0, 0.8, "B")):
        toy = lesson.make_toy(angle)
        own = -50 if task == "A" else 50
        right = lesson.score_toy(toy, lam).set_index("task").loc[task, "turn (degrees)"]
        verdict(lesson.check_turn(toy, lam, right, task), True)
        assert lesson.check_turn(toy, lam, own, task).right is False


@pytest.mark.parametrize(
    "answer, right, word",
    [
        (45, True, "45"),
        (90, False, "all are wrong"),
        (60, False, "3 classes"),
        (120, False, "3 classes"),
        (70, False, "slider"),
        (-45, False, "positive"),
        (0.785, False, "radians"),
        (180, False, "opposite"),
        (50, False, "accuracy"),
        (20, False, "too small"),
    ],
)
def test_check_breaking_turn(answer, right, word):
    verdict(lesson.check_breaking_turn(answer), right, word)


def test_half_breaks_where_the_check_says():
    """On many inputs, not on paper: turned by 45 degrees, half of four clouds is lost; by 90,
    nearly all."""
    toy = lesson.make_toy(80)
    expert, labels = toy.expert("A"), torch.cat([toy.labels("A"), toy.labels("A", "pool")])
    z = torch.cat([toy.features(expert.state, "A"), toy.features(expert.state, "A", "pool")])
    wrong = {
        a: (current_eval(z @ lesson.turn(a).T, expert.head) != labels).float().mean().item()
        for a in (0, 45, -45, 90)
    }
    assert wrong[0] < 0.05 and wrong[90] > 0.95
    assert wrong[45] == pytest.approx(0.5, abs=0.08) and wrong[-45] == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    "answer, right, words",
    [
        (W @ lesson.turn(-50).T, True, ["No label"]),
        (3.0 * W @ lesson.turn(-51).T, True, ["% equal"]),
        (W, False, ["Current Eval"]),
        (W @ lesson.turn(50).T, False, ["against the features"]),
        (W @ lesson.turn(-50), False, ["against the features"]),
        (W.T, False, ["transposed"]),
        (SEEN.student_test, False, ["You turned the features"]),
        (lesson.turn(-50), False, ["2 x 2"]),
        ((W @ lesson.turn(-50).T).roll(1, 0), False, ["another order"]),
        (W @ lesson.turn(-80).T, False, ["turned by -80", "-50"]),
        (torch.zeros(3, 2), False, ["[4, 2]"]),
        (torch.full((4, 2), math.nan), False, ["finite"]),
        ([[1, 2]], False, ["list", "tensor"]),
    ],
)
def test_check_head(answer, right, words):
    verdict(lesson.check_head(TOY, 0.5, answer), right, *words)


ROWS = SEEN.rows(5)[0]
LOGITS = (
    SEEN.head.logits(SEEN.student_fit[ROWS]).double(),
    SEEN.head.logits(SEEN.teacher_fit[ROWS]).double(),
)
S, T = (x.log_softmax(-1) for x in LOGITS)
KL = torch.nn.functional.kl_div(S, T, log_target=True, reduction="batchmean")


@pytest.mark.parametrize(
    "answer, right, word",
    [
        (KL, True, "FT-Classifier"),
        (KL.item(), True, "FT-Classifier"),
        (KL * len(S), False, "mean"),
        (
            torch.nn.functional.kl_div(S, T, log_target=True, reduction="none").sum(-1),
            False,
            "One value per input",
        ),
        (KL / 4, False, "batchmean"),
        (
            torch.nn.functional.kl_div(T, S, log_target=True, reduction="batchmean"),
            False,
            "KL(student || teacher)",
        ),
        (-KL, False, "sign"),
        (torch.nn.functional.cross_entropy(LOGITS[0], T.exp()), False, "cross-entropy"),
        (torch.nn.functional.cross_entropy(LOGITS[0], T.argmax(-1)), False, "label"),
        (KL / math.log(2), False, "bits"),
        (torch.nn.functional.mse_loss(*LOGITS), False, "squared"),
        (0.0, False, "agree"),
        (1e6, False, "too large"),
    ],
)
def test_check_loss(answer, right, word):
    verdict(lesson.check_loss(*LOGITS, answer), right, word)


def made_scores(top, low, new):
    """Two tasks; accuracies of f_t, of f_m under Current Eval and under FT-Classifier Eval."""
    rows = []
    for task, a, b, c in zip(("ag", "yelp"), top, low, new, strict=True):
        rows.append(("b", task, "f_t", "current", None, None, None, None, a, 9))
        rows.append(("b", task, "task_arithmetic", "current", None, None, None, None, b, 9))
        rows += [
            ("b", task, "task_arithmetic", "ft_classifier", 5, "stratified", "train", s, c + d, 9)
            for s, d in enumerate((-1, 0, 1))
        ]
    return tables.mean_and_std(scores(rows))


SUMMARY = made_scores((90, 60), (30, 50), (72, 51))  # averages 75, 40, 61.5


@pytest.mark.parametrize(
    "answer, right, word",
    [
        (61.5, True, "61.5"),
        (59, True, "40.0"),
        (41, False, "nothing comes back"),
        (76, False, "everything comes back"),
        (55, False, "too small"),
    ],
)
def test_check_prediction(answer, right, word):
    verdict(lesson.check_prediction(SUMMARY, "task_arithmetic", 5, answer), right, word)


def test_all_right_can_fail():
    right, wrong, open_ = (lesson.check_breaking_turn(a) for a in (45, 44 / 2, None))
    assert (
        lesson.all_right([right, right])
        and not lesson.all_right([right, wrong])
        and not lesson.all_right([right, open_])
    )


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
    own, moved = fig.axes
    titles = ["".join(map(ax.get_title, ("left", "center"))) for ax in (own, moved)]
    assert titles == ["own: 100 %", "moved: 0 %"]
    drawn = np.concatenate([c.get_offsets() for c in own.collections])
    centred = (z[labels < 4] - z[labels < 4].mean(0)).numpy()
    top = np.linalg.svd(centred, compute_uv=False)[:2]
    assert len(drawn) == 80
    assert np.linalg.svd(drawn, compute_uv=False) == pytest.approx(top, rel=1e-4)
    assert fig.get_suptitle() == "Seen"


def test_a_slider_changes_picture_and_words(explorer):
    before = explorer.picture.value
    assert "lambda 0.5" in before and 'alt="' in before
    explorer.lam.value = 0.8
    after = explorer.picture.value
    assert "lambda 0.8" in after and after.split("base64,")[1] != before.split("base64,")[1]
    explorer.lam.value = 0.5
    assert explorer.picture.value == before


def test_without_a_kernel_a_static_picture_remains(explorer):
    """What the committed notebook keeps, after the normaliser, is a PNG of every still, with
    words."""
    data, metadata = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    output = nbformat.v4.new_output(
        "execute_result", data=data, metadata=metadata, execution_count=1
    )
    clean = (
        publish.normalise(
            nbformat.v4.new_notebook(
                cells=[nbformat.v4.new_code_cell("x", id="x", outputs=[output])]
            )
        )
        .cells[0]
        .outputs[0]
    )
    assert set(clean.data) == {"image/png", "text/plain"}
    assert clean.metadata["image/png"]["alt"] == clean.data["text/plain"] and len(
        clean.data["text/plain"].splitlines()
    ) == len(view.STILLS)
    width, height = Image.open(io.BytesIO(base64.b64decode(clean.data["image/png"]))).size
    assert height / width == pytest.approx(len(view.STILLS) / 3, abs=0.01)  # a row per still


def test_classes_differ_in_grey():
    """By marker, and what is wrong by a hollow face; no two classes share a marker."""
    markers = [m for _, m in view.CLASS_STYLE]
    assert len(set(markers)) == len(markers) >= max(toy_module.CLASSES.values())


# ---- the notebooks -------------------------------------------------------------------------------

FOLDER = committed() / "notebooks"
LESSON = nbformat.read(FOLDER / "00_start_here.ipynb", as_version=4)
SOLVED = sorted(p.stem for p in (FOLDER / "solutions").glob("*.ipynb"))


def test_the_core_notebooks_have_solutions():
    core = {"tab02_main", "fig01_clusters", "fig04_transformations", "fig05_ft_classifier"}
    assert set(SOLVED) == {"00_start_here", *core}


@pytest.mark.parametrize("name", SOLVED)
def test_every_exercise_has_hint_check_and_solution(name):
    asked, solved = (
        {c.id: c.source for c in nbformat.read(FOLDER / f, as_version=4).cells}
        for f in (f"{name}.ipynb", f"solutions/{name}.ipynb")
    )
    exercises = [i for i in asked if re.fullmatch(r"exercise-\d", i)]
    assert len(exercises) >= 4 and all("<summary>Hint</summary>" in asked[i] for i in exercises)
    for n in range(1, len(exercises) + 1):
        assert f"solution-{n}" in solved
    for n in range(1, len(exercises)):  # the last is a run of its own
        check = re.search(r"lesson\.check_\w+", asked[f"answer-{n}"])[0]
        assert check in solved[f"answer-{n}"] and "answer = None" in asked[f"answer-{n}"]


def test_the_glossary_is_the_readmes():
    table = (
        (committed() / "README.md").read_text().split("| symbol | meaning |")[1].split("\n\n")[0]
    )
    assert table in next(c.source for c in LESSON.cells if c.id == "glossary")


@pytest.mark.parametrize(
    "answer, right, says",
    [
        (None, None, "Open."),
        (41.5, True, "42 percent"),
        (-42, False, "other way round"),
        (50, False, "too large"),
        ("many", False, "str"),
    ],
)
def test_a_computed_number_is_checked(answer, right, says):
    found = lesson.check_number(
        answer, 42.0, within=1, unit="percent", slips={-42: "It is the other way round."}
    )
    assert found.right is right and says in str(found)


@pytest.mark.parametrize(
    "answer, right, says",
    [
        (None, None, "Open."),
        ("ag", True, "ag"),
        ("yelp", False, "not yelp"),
        ("x", False, "Choose"),
    ],
)
def test_a_choice_is_checked(answer, right, says):
    found = lesson.check_choice(answer, "ag", ["ag", "yelp"])
    assert found.right is right and says in str(found)


# ---- models of one's own -------------------------------------------------------------------------


def test_an_expert_from_the_store_is_saved_as_when_it_was_trained(study, tmp_path):
    """Else a second run would compare its merges anew."""
    base = demo.save_base(study, tmp_path / "base")
    trained, stored = (
        demo.fine_tune_classifier(study, "ag", base, tmp_path / name) for name in ("a", "b")
    )
    names = sorted(p.name for p in trained.iterdir())
    assert names == sorted(p.name for p in stored.iterdir())
    assert all((trained / n).read_bytes() == (stored / n).read_bytes() for n in names)
