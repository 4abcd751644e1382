"""Shared fixtures: everything is written below one temporary folder, and one tiny study serves all
tests."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Set before anything imports mergelib, and inherited by every subprocess: no test may touch the
# real store or figures.
SCRATCH = Path(tempfile.mkdtemp(prefix="mergelib-tests-"))
os.environ["MERGELIB_STORE"] = str(SCRATCH / "store")
os.environ["MERGELIB_OUTPUT"] = str(SCRATCH / "output")
os.environ["MERGELIB_HUB_LOCK"] = str(SCRATCH / "hub.lock.json")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny here: a second thread only waits

import shutil  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from tiny import TINY  # noqa: E402

torch.set_num_threads(1)
settings.register_profile(
    "mergelib",
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# The long search draws new cases each time: HYPOTHESIS_PROFILE=long ./run_all.sh test tests/hostile
settings.register_profile(
    "long",
    settings.get_profile("mergelib"),
    max_examples=10_000,
    derandomize=False,
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "mergelib"))


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="no NVIDIA GPU")
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip)


def pytest_unconfigure():
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def make_study(tmp_path_factory):
    """``make_study(store=None, ...)``: a tiny CPU study; without a store, on a new empty one."""
    from mergelib import Study
    from mergelib.core.store import Store

    def make(store=None, tasks=None, base="", overrides=(), every_method=False, variant=""):
        store = Store(store or tmp_path_factory.mktemp("store"))
        return Study(
            "quick",
            overrides=TINY | dict(overrides),
            store=store,
            tasks=tasks,
            base=base,
            device="cpu",
            every_method=every_method,
            variant=variant,
        )

    return make


@pytest.fixture(scope="session")
def study(make_study):
    """A finished tiny study: two tasks, every merge and every protocol in its store. Tests must not
    change it."""
    import warnings

    made = make_study()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tiny study may well put lambda on the edge
        made.scores(["f_t", "f_b", *made.methods], ["current", "knn", "ft_classifier"])
        made.scores(made.methods, ["ft_classifier"], draw="uniform")
    return made
