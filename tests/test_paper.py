"""The profile `paper`, as far as it can be tested without its GPU and its network: what it refuses,
and a road on stand-ins."""

import re
import shutil
import warnings

import nbformat
import pytest
from committed import committed
from test_t5 import write_folder
from tiny import TINY

from mergelib import Study
from mergelib.core.errors import ConfigError, MergelibError, OfflineError
from mergelib.core.store import Store
from mergelib.foundations import t5
from mergelib.profiles import load_profile, profile_names, variant_names
from mergelib.run import runner
from mergelib.run.cli import main

SMALL = TINY | {
    "tasks.source": "miniature",
    "protocols.ks": [1, 5],
    "protocols.seeds": [0],
    "fine_tuning.steps": 4,
    "fine_tuning.precision": "float32",
    "encoder.max_length": 24,
    "encoder.pretraining": None,
}


@pytest.mark.parametrize("item", [i for i in runner.manifest() if i.needs], ids=lambda i: i.id)
@pytest.mark.parametrize("profile", profile_names())
def test_a_notebook_is_refused_where_it_would_fail_and_nowhere_else(item, profile):
    has = {
        *variant_names(profile),
        *(n for n in ("every_method", "non_local") if getattr(load_profile(profile), n)),
    }
    if set(item.needs) <= has:
        runner.refuse_lacking(profile, [item])
        return
    with pytest.raises(ConfigError, match=f"{item.id} needs .* profile '{profile}'") as error:
        runner.check_before(profile, [item], {item.id: {}})
    others = re.search(r"--only (.*)\.", str(error.value))[1].split()
    runner.refuse_lacking(profile, runner.select(others))
    for name in re.search(r"it runs in (.*?)\.", str(error.value))[1].split(", "):
        runner.refuse_lacking(name, [item])


def notebook_of(item):
    return nbformat.read(committed() / "notebooks" / f"{item.id}.ipynb", as_version=4)


@pytest.mark.parametrize(
    "item", [i for i in runner.manifest() if i.id != "99_report"], ids=lambda i: i.id
)
def test_the_notebook_says_in_which_profiles_it_runs_and_names_what_it_needs(item):
    cells = [c for c in notebook_of(item).cells if c.cell_type == "code"]
    first = next(c for c in cells if "parameters" in c.metadata.get("tags", []))
    said = re.search(r"# ([\w, ]+): sizes and sources", first.source)
    runs_in = {p for p in profile_names() if not runner.lacking(item, p)}
    assert set(re.split(r", | or ", said[1])) == runs_in
    code = "\n".join(c.source for c in cells)
    assert all(need in code for need in item.needs)
    named = {v for v in ("t5_a", "t5_b", "vision_a", "vision_b") if v in code}
    named |= {"every_method"} if "every_method=True" in code else set()
    assert named <= set(item.needs)


@pytest.mark.parametrize(
    "variant, part, overrides, error, message",
    [
        ("", "tasks", {}, OfflineError, "data fetch"),
        ("vision_a", "tasks", {"tasks.names": ["eurosat"]}, OfflineError, "eurosat.*data fetch"),
        ("t5_b", "encoder", SMALL, MergelibError, "google-t5/t5-large"),
    ],
)
def test_without_network_the_hub_is_named(variant, part, overrides, error, message, tmp_path):
    """HF_HUB_OFFLINE is set for all tests."""
    study = Study("paper", variant=variant, overrides=overrides, store=Store(tmp_path))
    with pytest.raises(error, match=message):
        getattr(study, part)


def test_every_expert_of_paper_can_be_killed_and_resumed():
    for variant in ("", *variant_names("paper")):
        profile = load_profile("paper", variant=variant)
        assert (
            0 < profile.fine_tuning.save_every < profile.fine_tuning.steps
            and profile.encoder.pretraining is None
            and profile.encoder.base
        )


def test_the_road_of_figure_6_on_a_t5_in_the_hubs_layout(tmp_path):
    write_folder(tmp_path / "t5")
    study = Study(
        "paper",
        variant="t5_a",
        overrides=SMALL | {"encoder.base": str(tmp_path / "t5")},
        store=Store(tmp_path / "store"),
        device="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tiny study may well put lambda on the edge
        scores = study.scores(["f_b", "f_t", "ties"], ["current", "ft_classifier"])
    assert scores.accuracy.notna().all()
    # The notebook shows span corruption with the loaded tokenizer.
    corrupted, target = t5.corrupted_text(
        study.encoder, study.task("ag").test.inputs[1], t5.NOISE_RATE, seed=0
    )
    assert t5.sentinel(0) in corrupted and t5.sentinel(0) in target


@pytest.mark.slow
def test_figure_6_runs_in_paper(tmp_path, monkeypatch):
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path))
    write_folder(tmp_path / "t5")
    (item,) = runner.select(["fig06"])
    overrides = SMALL | {"encoder.base": str(tmp_path / "t5")}
    (result,) = runner.Runner("paper", echo=lambda line: None).run(
        [item], {item.id: {"overrides": overrides, "device": "cpu"}}
    )
    shutil.rmtree(tmp_path / "build")
    assert result.ok, result.error


@pytest.mark.parametrize(
    "given, stays, goes, why",
    [
        ("", "fig02_knn_eval", "fig06_t5", "it needs t5_a, t5_b"),
        ("--text-dir", "fig02_knn_eval", "fig11_vision_protocols", "--image-dir"),
        ("--image-dir", "fig11_vision_protocols", "fig02_knn_eval", "--text-dir"),
    ],
)
def test_without_only_what_cannot_run_is_left_out_and_said(
    given, stays, goes, why, capsys, tmp_path
):
    """Notebooks that the profile cannot run, or whose data were not given where a run names one
    kind of local data only; miniature data need none."""
    local = [given, str(tmp_path)] if given else []
    assert main(["run", "--profile", "real", "--list", *local]) == 0
    said = capsys.readouterr().out
    assert re.search(f"{goes} is left out.*{why}", said)
    assert f"\n{stays}   " in said and f"\n{goes}   " not in said and "\n99_report   " in said
    assert main(["run", "--profile", "mini", "--list", *local]) == 0
    assert "left out" not in capsys.readouterr().out


def test_only_asks_for_what_was_left_out(capsys):
    assert main(["run", "--profile", "real", "--list", "--only", "fig06"]) == 0
    assert "fig06_t5   " in capsys.readouterr().out
