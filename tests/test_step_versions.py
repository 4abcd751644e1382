"""A change of meaning without a new step version must not go unnoticed: old artifacts would be
taken for new ones.

``step_versions.json`` holds, per step, its version and the digest of the syntax trees (without
comments and docstrings) of the functions that define what the step computes. After a change of
meaning raise the step's version in ``mergelib`` and run ``python tests/test_step_versions.py
--update``. A change that leaves every result as it was (a renamed variable) keeps the
version: ``--update --same-meaning``.
"""

import ast
import importlib
import inspect
import json
import pkgutil
import sys
import textwrap
from functools import cache
from pathlib import Path
from types import FunctionType

import pytest

from mergelib.core.types import digest

FILE = Path(__file__).with_name("step_versions.json")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@cache
def function_digest(function):
    """Digest of a function's or class's syntax tree without comments and docstrings."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return digest(ast.dump(tree))


def defined_in(module):
    """Functions and classes that a module defines itself."""
    return [
        v
        for v in vars(module).values()
        if isinstance(v, FunctionType | type) and v.__module__ == module.__name__
    ]


def constants(module):
    """A module's plain values in capitals."""
    return [
        v
        for k, v in vars(module).items()
        if k.isupper() and isinstance(v, int | float | str | tuple | dict)
    ]


def meaning():
    """Step -> the functions and classes (or plain values) that define what it computes."""
    from mergelib import encoders, merging, protocols
    from mergelib.core import types
    from mergelib.encoders import features
    from mergelib.foundations import bert, clip, further, t5, vit, zero_shot
    from mergelib.protocols import current
    from mergelib.study import Study, experts, merges, scores, versions
    from mergelib.training import experts as trainers
    from mergelib.training import loop as training

    tokens = [
        encoders.TextEncoder.prepare,
        encoders.TextEncoder.collate,
        encoders.TextEncoder.module,
        encoders.encoder_class,
    ]
    pooled = [encoders.PooledEncoder, encoders.ReleasedEncoder, *tokens]
    trained = [
        training.train,
        training.TrainConfig,
        training.shuffled_batches,
        training.learning_rate,
        training.MAX_NORM,
    ]
    fine_tune = [
        trainers.EncoderWithHeads,
        trainers.TrainRows,
        trainers.fine_tune,
        experts.trained,
        *trained,
        encoders.encoder_state,
        *pooled,
    ]
    # Every file of protocols but the ladder, which is a step of its own; a new file counts without
    # being listed.
    files = {
        m.name: importlib.import_module(f"mergelib.protocols.{m.name}")
        for m in pkgutil.iter_modules(protocols.__path__)
    }
    ladder = files.pop("alignment", None)
    # Every family of methods; the streaming forms make merges on disk, which are no step of the
    # store.
    families = [
        importlib.import_module(f"mergelib.merging.{m.name}")
        for m in pkgutil.iter_modules(merging.__path__)
        if m.name not in ("registry", "streaming")
    ]
    extract = [encoders.load_state, features.extract, features.extract_prepared, *pooled]
    # Data that a method sees passes through the pool, the tokenizer and the pooled encoder.
    merging_code = [f for module in families for f in defined_in(module)] + [
        merges.arguments,
        merges._merge,
        Study.pool,
        Study.split,
        Study.merges,
        versions.POOL_SEED,
        *pooled,
    ]
    found = {
        "pretrain": [*defined_in(bert), *trained, *tokens],
        "pretrain_further": [*defined_in(further), *defined_in(bert), *trained, *tokens],
        "pretrain_t5": [
            *defined_in(t5),
            t5.EMBEDDING_SCALE,
            bert.corpus_pieces,
            bert.words_by_frequency,
            bert.corpus_key,
            bert.tokenizer_vocab,
            bert.pretrain,
            bert.text_recipe,
            encoders.encoder_state,
            *trained,
            *tokens,
        ],
        "pretrain_clip": [
            *defined_in(clip),
            *constants(clip),
            bert.words_by_frequency,
            *trained,
            encoders.encoder_state,
            *defined_in(zero_shot),
            encoders.ImageEncoder,
            encoders.ImageFeatures,
        ],
        "pretrain_vit": [
            *defined_in(vit),
            *constants(vit),
            *trained,
            encoders.encoder_state,
            encoders.ImageEncoder,
            encoders.ImageFeatures,
        ],
        "fine_tune": fine_tune,
        "multi_task": fine_tune,
        "merge": merging_code,
        "lam": [merges.lam_scan, *merging_code, *extract, current.current_eval],
        "features": extract,
        "predict": [f for module in (protocols, *files.values()) for f in defined_in(module)]
        + [types.Head, Study.pool, Study.draws, scores.seen_of, versions.POOL_SEED],
    }
    if "images" in versions.STEP_VERSIONS:
        from mergelib.tasks import hub_images, miniature_images, parquet
        from mergelib.tasks.build import build_task, cut, kept_images

        found["images"] = [
            *defined_in(hub_images),
            *defined_in(parquet),
            parquet.SUBSAMPLE_SEED,
            build_task,
            cut,
            kept_images,
            miniature_images,
        ]
    if "tsne" in versions.STEP_VERSIONS:
        from mergelib.study import clustering

        found["tsne"] = [clustering.tsne, Study.embedding]
    if "align" in versions.STEP_VERSIONS:
        from mergelib.study import aligned

        found["align"] = [*defined_in(ladder), aligned.aligned, aligned._fitted]
    if "dropout" in versions.STEP_VERSIONS:
        from mergelib.study.aligned import released_mode

        found["dropout"] = [*extract, *defined_in(files["ft_classifier"]), released_mode]
    if "match" in versions.STEP_VERSIONS:
        from mergelib.nonlocality.architectures import DATA
        from mergelib.nonlocality.settings import ONE_BATCH, Nonlocality

        matching, correcting = (
            [importlib.import_module(f"mergelib.nonlocality.{m}") for m in names]
            for names in (
                ("spec", "architectures", "permute", "matching"),
                ("sites", "statistics", "correction", "tact"),
            )
        )
        # No registries: their functions count by themselves, and their text holds addresses.
        found["match"], found["correct"] = (
            [
                f
                for module in modules
                for f in [
                    *defined_in(module),
                    *(c for c in constants(module) if not isinstance(c, dict)),
                ]
            ]
            for modules in (matching, correcting)
        )
        found["match"] += [Nonlocality.permutation, DATA]
        found["correct"] += [
            DATA,
            Nonlocality.correction,
            Nonlocality.corrected,
            Nonlocality.batches,
            Nonlocality.rows,
            ONE_BATCH,
            Study.pool,
            Study.draws,
            *tokens,
        ]
        found["statistics"], found["variance"] = (
            [*found["correct"], own] for own in (Nonlocality._statistics, Nonlocality.variance)
        )
    if "classifier" in versions.STEP_VERSIONS:
        from mergelib.lesson.demo import fine_tune_classifier

        found["classifier"] = [fine_tune_classifier, *trained]
    if "compare" in versions.STEP_VERSIONS:
        from mergelib.models import compare, heads, merging

        found["compare"] = [
            compare.Cells._made,
            compare.Cells._outputs,
            compare._rows,
            heads.features,
            heads.student_of,
            merging.Reader,
            *(f for module in families for f in defined_in(module)),
        ]
    return found


def measured():
    from mergelib.study.versions import STEP_VERSIONS

    digests = {
        step: digest(*sorted(function_digest(f) if callable(f) else repr(f) for f in functions))
        for step, functions in meaning().items()
    }
    return {
        step: {"version": version, "digest": digests[step]}
        for step, version in sorted(STEP_VERSIONS.items())
    }


def test_every_step_is_covered_by_functions_of_ours():
    from mergelib.study.versions import STEP_VERSIONS

    assert meaning().keys() == STEP_VERSIONS.keys() == json.loads(FILE.read_text())["steps"].keys()
    for functions in meaning().values():
        assert len(functions) > 1
        assert all(
            inspect.getmodule(f).__name__.startswith("mergelib") for f in functions if callable(f)
        )


@pytest.mark.skipif(
    json.loads(FILE.read_text())["python"] != PYTHON if FILE.exists() else True,
    reason="syntax trees differ between Python versions; the file was written by another one",
)
@pytest.mark.parametrize("step", json.loads(FILE.read_text())["steps"] if FILE.exists() else [])
def test_meaning_and_version_change_together(step):
    written, found = json.loads(FILE.read_text())["steps"][step], measured()[step]
    if found["digest"] != written["digest"] and found["version"] == written["version"]:
        pytest.fail(
            f"The code of step '{step}' changed and its version is still {found['version']}. If "
            f"any result changes, "
            "raise the version and run `python tests/test_step_versions.py --update`; if none "
            "does, "
            "`python tests/test_step_versions.py --update --same-meaning`."
        )
    assert found == written, f"step '{step}': run `python tests/test_step_versions.py --update`"


def test_an_update_refuses_to_keep_an_old_version(tmp_path):
    path = tmp_path / "steps.json"
    old = measured()
    old["merge"]["digest"] = "another"
    path.write_text(json.dumps({"python": PYTHON, "steps": old}))
    assert update(path, same_meaning=False) == ["merge"]
    assert json.loads(path.read_text())["steps"]["merge"]["digest"] == "another"
    assert update(path, same_meaning=True) == []
    assert json.loads(path.read_text())["steps"] == measured()


def update(path, *, same_meaning):
    """Write the file; returns the steps that forbid it: changed code under an unchanged version."""
    old = json.loads(path.read_text())["steps"] if path.exists() else {}
    new = measured()
    refused = [
        s
        for s, row in new.items()
        if s in old and row["digest"] != old[s]["digest"] and row["version"] == old[s]["version"]
    ]
    if refused and not same_meaning:
        return refused
    path.write_text(json.dumps({"python": PYTHON, "steps": new}, indent=1) + "\n")
    return []


if __name__ == "__main__":
    if "--update" not in sys.argv:
        sys.exit(__doc__)
    kept = update(FILE, same_meaning="--same-meaning" in sys.argv)
    if kept:
        sys.exit(
            f"Refused: the code of {', '.join(kept)} changed but not the version. Raise it, or "
            f"add --same-meaning "
            "if every result stays as it was."
        )
    print(f"wrote {FILE}")
