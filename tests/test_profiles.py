"""Profiles: every file loads, and whatever is wrong with one is said in a typed error."""

import pytest
import yaml

from mergelib.core.errors import ConfigError, MergelibError, UnknownNameError
from mergelib.profiles import (
    FOLDER,
    load_profile,
    parse_profile,
    profile_names,
    variant_names,
)

QUICK = yaml.safe_load((FOLDER / "quick.yaml").read_text())
VARIANTS = QUICK.pop("variants")
PRETRAINING = QUICK["encoder"]["pretraining"]


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads(name):
    profile = load_profile(name)
    assert profile.name == name
    assert 5 in profile.protocols.ks, "the claims name k = 5"
    largest = max(profile.protocols.ks)
    assert profile.tasks.pool_per_class > largest, (
        "a class of the pool must be able to give every k"
    )


@pytest.mark.parametrize("name", profile_names())
def test_a_check_scores_the_rows_and_draws_of_what_it_is_compared_with(name):
    check = load_profile(name)
    if check.compared_with:
        other = load_profile(check.compared_with)
        assert (check.tasks, check.seed) == (other.tasks, other.seed)
        assert check.protocols.seeds == other.protocols.seeds


@pytest.mark.parametrize(
    "call, nearest",
    [
        (lambda: load_profile("mimi"), "mini"),
        (lambda: load_profile("quick", {"fine_tuning.step": 1}), "steps"),
        (lambda: load_profile("quick", {"finetuning.steps": 1}), "fine_tuning"),
        (lambda: load_profile("quick", {"encoder.pretraning.steps": 1}), "pretraining"),
        (lambda: load_profile("quick", {"resample": 1}), "resamples"),
        (lambda: parse_profile(QUICK | {"protocol": {}}, "x"), "protocols"),
        (lambda: parse_profile(QUICK | {"encoder": QUICK["encoder"] | {"widht": 3}}, "x"), "width"),
        (
            lambda: load_profile("quick", {"encoder.pretraining": PRETRAINING | {"stpes": 1}}),
            "steps",
        ),
    ],
)
def test_unknown_names_name_the_nearest(call, nearest):
    with pytest.raises(UnknownNameError, match=f"Nearest: '{nearest}'"):
        call()


def test_a_variant_is_laid_over_its_profile():
    plain = load_profile("quick")
    for name in VARIANTS:
        varied = load_profile("quick", {"fine_tuning.steps": 7}, name)
        kind = VARIANTS[name]["encoder"].get("kind", plain.encoder.kind)
        assert varied.encoder.kind == kind and varied.fine_tuning.steps == 7
        assert (
            varied.encoder.max_length == plain.encoder.max_length
            and varied.encoder.pretraining.batch_size == plain.encoder.pretraining.batch_size
        )
    with pytest.raises(UnknownNameError, match="t5_a"):
        load_profile("quick", variant="t5-a")


@pytest.mark.parametrize("profile", profile_names())
def test_every_variant_is_valid(profile):
    for name in variant_names(profile):
        assert load_profile(profile, variant=name).backbone != load_profile(profile).backbone


@pytest.mark.parametrize(
    "key, value",
    [
        ("fine_tuning.steps", "many"),
        ("fine_tuning.steps", 0),
        ("fine_tuning.steps", 1.5),
        ("fine_tuning.lr", -1),
        ("fine_tuning.lr", float("nan")),
        ("encoder.layers", None),
        ("protocols.ks", [5, 1]),
        ("protocols.ks", []),
        ("protocols.ks", [0]),
        ("protocols.seeds", [1, 1]),
        ("protocols.ft_preset", "best"),
        ("tasks.names", []),
        ("tasks.names", ["ag", "ag"]),
        ("tasks.names", ["../ag"]),
        ("tasks.names", ["agg"]),
        ("tasks", {"names": ["a|b"], "source": "local"}),
        ("tasks.source", "web"),
        ("threads", 0),
        ("judged", "perhaps"),
        ("tasks", 5),
        ("merging.lams", []),
        ("merging.lams", [float("nan")]),
        ("merging.lams", [0.1, "x"]),
    ],
)
def test_a_bad_value_names_its_key(key, value):
    with pytest.raises(ConfigError) as error:
        load_profile("quick", {key: value})
    section, last = key.split(".")[0], key.split(".")[-1]
    assert last in str(error.value) or (
        section in str(error.value) and str(value[0]) in str(error.value)
    )


@pytest.mark.parametrize(
    "overrides",
    [
        {"fine_tuning.steps.more": 1},
        {"": 1},
        {".": 1},
        {"..steps": 1},
        {"encoder.pretraining": None, "encoder.pretraining.steps": 5},
        {"tasks": 5, "tasks.names": ["ag"]},
        {1: 2},
    ],
)
def test_overrides_that_lead_nowhere_are_refused(overrides):
    with pytest.raises(MergelibError):
        load_profile("quick", overrides)
