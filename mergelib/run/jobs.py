"""``python -m mergelib jobs`` and ``compute``: a study as small commands with files as results,
for an external engine (``cluster/Snakefile``).

Nothing here runs several commands: ``jobs`` lists them and what each waits for, ``compute`` runs
one of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, UnknownNameError
from ..core.manifest import Item
from ..core.names import BASE, FINE_TUNED, MULTI_TASK
from ..core.types import digest
from ..models.folders import free_file, write_file
from ..profiles import load_profile, variant_names
from ..study.versions import STEP_VERSIONS
from ..tables import ranking, unlabelled
from .options import (
    asked_study,
    given_overrides,
    parse_overrides,
    stamp_place,
    study_options,
    write_stamp,
)
from .parser import STEPS
from .runner import PLACES, REPORT, chosen, declared_parameters, given_places, refuse_lacking

RULES = ("pretrain", "fine_tune", *STEPS, "notebook", "report")


@dataclass(frozen=True)
class Job:
    """One command. ``output`` is the file that it leaves, below one common folder; ``needs`` are
    the outputs of the jobs before it.

    ``identity`` changes with everything that could change the result: profile, versions of the
    steps, a notebook's code.
    """

    rule: str
    name: str
    study: str
    output: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    identity: str


def listed(args: argparse.Namespace) -> list[Job]:
    """All jobs, in an order in which they could run one after another, of what the options of
    ``jobs`` ask for. Raises ``UnknownNameError`` and ``ConfigError`` like a run."""
    items, _ = chosen(args)
    refuse_lacking(args.profile, items)
    variants, jobs = variant_names(args.profile), {}

    def add(*made: Job) -> str:
        jobs.update({job.output: job for job in made})
        return made[-1].output

    for item in items:
        # Studies of several foundations are made by their notebook, which starts from the profile's
        # experts.
        names = item.needs if item.needs and "non_local" not in item.needs else ("",)
        studies = dict.fromkeys((n if n in variants else "", n == "every_method") for n in names)
        if item.group == REPORT:  # the last, which reads what the others wrote
            rule, needs = "report", [job.output for job in jobs.values() if job.rule == "notebook"]
        else:
            rule, needs = "notebook", [add(*_study_jobs(args, *study)) for study in studies]
        output, identity = (
            f"figures/{args.profile}/{item.id}.json",
            _identity(args, notebook=item.path),
        )
        command = _run_command(args, item)
        add(Job(rule, item.id, args.profile, output, tuple(needs), command, identity))
    if args.every_method:
        add(*_study_jobs(args, "", True))
    return list(jobs.values())


def _study_jobs(args: argparse.Namespace, variant: str, every_method: bool) -> list[Job]:
    """The jobs of one study, scores last. With every method, f_b and experts are those of the
    profile without it."""
    loaded = load_profile(args.profile, given_overrides(args), variant)
    profile = loaded.of_every_method() if every_method else loaded
    options, identity, jobs = study_options(args, variant), _identity(args, variant), []

    def add(rule: str, name: str, *needs: str) -> str:
        study = "-".join(filter(None, (args.profile, variant)))
        if rule in ("pretrain", "fine_tune"):
            command = ["train", "--only", name, *options]
        else:
            encoder = [] if rule == "score" else ["--encoder", name]
            command = ["compute", rule, *encoder, *options, *["--every-method"] * every_method]
            study += "-every_method" * every_method
        output = f"stamps/{study}/{rule}/{name}.json"
        command += ["--stamp", output]
        jobs.append(Job(rule, name, study, output, needs, tuple(command), identity))
        return output

    base = add("pretrain", BASE)
    experts = [base]
    if profile.experts == "trained":
        experts = [add("fine_tune", task, base) for task in profile.tasks.names]
    extracted = [add("extract", BASE, base), add("extract", FINE_TUNED, *experts)]
    if profile.multi_task == "trained" and not variant and not every_method:  # Table 2's
        together = add("fine_tune", MULTI_TASK, base)
        extracted.append(add("extract", MULTI_TASK, *experts, together))
    for method in profile.merging.methods:
        extracted.append(add("extract", method, add("merge", method, *experts)))
    add("score", "scores", *extracted)
    return jobs


def _run_command(args: argparse.Namespace, item: Item) -> tuple[str, ...]:
    """``mergelib run`` for one notebook, with those options that it declares."""
    given = {name: getattr(args, name) for name in PLACES}
    given["device"] = args.device.removeprefix("auto")
    given["overrides"] = parse_overrides(args.overrides)
    command = ["run", "--profile", args.profile, "--only", item.id]
    for name in declared_parameters(item.path):
        if given.get(name):
            command += ["-p", f"{name}={given[name]}"]
    return tuple(command)


def _identity(args: argparse.Namespace, variant: str = "", notebook: Path | None = None) -> str:
    """Changes with the profile, the steps' versions and a notebook's code, not with its outputs."""
    cells = json.loads(notebook.read_text())["cells"] if notebook else []
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    profile = load_profile(args.profile, given_overrides(args), variant).model_dump(mode="json")
    return digest(json.dumps([profile, STEP_VERSIONS, code], sort_keys=True))[:16]


# ---- one job ------------------------------------------------------------------------------------


def compute(study: Any, step: str, encoder: str = "", *, every_method: bool = False) -> None:
    """Compute one step's artifacts into the store: those of one encoder, or all scores that tables
    and figures start from."""
    known = (BASE, FINE_TUNED, *study.baselines, *study.methods)
    if step != "score" and encoder not in known:
        raise UnknownNameError("encoder", encoder, known)
    if step == "merge":
        if encoder not in study.methods:
            raise ConfigError(f"{encoder} is not a merge; give one of {', '.join(study.methods)}.")
        for name in study.merges(encoder):
            study.merged_state(name)
    elif step == "extract":
        for name in study.merges(encoder):
            for task in study.tasks:
                for split in ("test",) if encoder == MULTI_TASK else ("test", "pool"):
                    study.features(name, task, split)
    elif every_method:
        ranking.scores(study, [BASE, FINE_TUNED, *study.methods])
    elif study.profile.tasks.modality == "image":
        unlabelled.scores(study, [FINE_TUNED, *study.methods], ["current"])
        unlabelled.scores(study, study.methods, ["knn", "ft_classifier"])
    else:
        study.scores([FINE_TUNED, *study.baselines], ["current"])
        study.scores([BASE, *study.methods], ["current", "knn", "ft_classifier"])


def command_compute(args: argparse.Namespace) -> int:
    """Run the subcommand ``compute`` and return its exit status."""
    stamp_place(args.stamp)  # refused before any work
    study = asked_study(args, every_method=args.every_method)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*lies on the edge of the grid.*"
        )  # the notebook that shows it warns
        compute(study, args.step, args.encoder, every_method=args.every_method)
    write_stamp(args.stamp, study.store)
    print(f"{args.step} {args.encoder}: {len(study.store.asked)} artifacts in {study.store.root}")
    return 0


def command_jobs(args: argparse.Namespace) -> int:
    """Run the subcommand ``jobs`` and return its exit status."""
    vars(args).update(given_places(args))
    target = args.out and free_file(args.out, True, (args.text_dir, args.image_dir))
    jobs = listed(args)
    text = json.dumps([asdict(u) for u in jobs], indent=1)
    if not target:
        print(text)
        return 0
    write_file(target, f"{text}\n")
    counts = Counter(job.rule for job in jobs)
    said = ", ".join(f"{counts[rule]} {rule}" for rule in RULES if counts[rule])
    print(f"{len(jobs)} jobs: {said}", file=sys.stderr)
    return 0
