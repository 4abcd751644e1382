"""``python -m mergelib units`` and ``compute``: a study as small commands with files as results,
for an external engine (``cluster/Snakefile``).

Nothing here runs several commands: ``units`` lists them and what each waits for, ``compute`` runs
one of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.documents import user_path
from ..core.errors import ConfigError, UnknownNameError
from ..core.names import BASE, FINE_TUNED, MULTI_TASK
from ..models.folders import free_file, write_file
from ..profiles import load_profile, variant_names
from .runner import declared_parameters, refuse_lacking, select, why_left_out
from .torchrun import (
    add_study_options,
    asked_study,
    given_overrides,
    parse_overrides,
    stamp_place,
    study_options,
    write_stamp,
)

STEPS = ("merge", "extract", "score")
RULES = ("pretrain", "fine_tune", *STEPS, "notebook", "report")


@dataclass(frozen=True)
class Unit:
    """One command. ``output`` is the file that it leaves, below one common folder; ``needs`` are
    the outputs of the units before it.

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


@dataclass(frozen=True)
class Wanted:
    """The arguments of ``units``."""

    profile: str
    only: tuple[str, ...] = ()
    text_dir: str = ""
    image_dir: str = ""
    base: str = ""
    device: str = "auto"
    overrides: str = "{}"
    zoo: bool = False  # every method of the zoo, even where no notebook of the profile shows them


def units(wanted: Wanted) -> list[Unit]:
    """All units, in an order in which they could run one after another. Raises ``UnknownNameError``
    and ``ConfigError`` like a run."""
    items = select(wanted.only)
    if wanted.only:
        refuse_lacking(wanted.profile, items)
    else:
        items = [
            i
            for i in items
            if not why_left_out(
                i, wanted.profile, text_dir=wanted.text_dir, image_dir=wanted.image_dir
            )
        ]
    variants, made = variant_names(wanted.profile), {}
    before: dict[str, tuple[str, ...]] = {}

    def scored(variant: str, zoo: bool) -> str:
        ours = _study_units(wanted, variant, zoo)
        made.update((u.output, u) for u in ours)
        return ours[-1].output

    for item in (i for i in items if i.group != "report"):
        # Studies of several foundations are made by their notebook, which starts from the profile's
        # experts.
        before[item.id] = tuple(
            scored(*which)
            for which in dict.fromkeys(
                (need if need in variants else "", need == "zoo")
                for need in (item.needs if item.needs and "non_local" not in item.needs else ("",))
            )
        )
    if wanted.zoo:
        scored("", True)
    for item in items:
        reports = item.group == "report"
        needs = (
            tuple(_sidecar(wanted, i.id) for i in items if i.id in before)
            if reports
            else before[item.id]
        )
        made[_sidecar(wanted, item.id)] = Unit(
            "report" if reports else "notebook",
            item.id,
            wanted.profile,
            _sidecar(wanted, item.id),
            needs,
            _run_command(wanted, item),
            _identity(wanted, notebook=item.path),
        )
    return list(made.values())


def _sidecar(wanted: Wanted, notebook: str) -> str:
    return f"figures/{wanted.profile}/{notebook}.json"


def _study_units(wanted: Wanted, variant: str, zoo: bool) -> list[Unit]:
    """The units of one study, scores last. The zoo's f_b and experts are those of the profile
    without it."""
    loaded = load_profile(wanted.profile, given_overrides(wanted), variant)
    profile = loaded.of_zoo() if zoo else loaded
    trained, own = (
        "-".join(filter(None, (wanted.profile, variant))),
        "-".join(filter(None, (wanted.profile, variant, "zoo" * zoo))),
    )
    identity, made = _identity(wanted, variant), []

    def add(rule: str, name: str, needs: Sequence[str], *command: str) -> str:
        study = trained if rule in ("pretrain", "fine_tune") else own
        output = f"stamps/{study}/{rule}/{name}.json"
        made.append(
            Unit(
                rule,
                name,
                study,
                output,
                tuple(needs),
                (
                    *command,
                    *study_options(wanted, variant),
                    *(["--zoo"] if study == own and zoo else []),
                    "--stamp",
                    output,
                ),
                identity,
            )
        )
        return output

    base = add("pretrain", BASE, (), "train", "--only", BASE)
    experts = (
        [base]
        if profile.experts == "released"
        else [add("fine_tune", t, [base], "train", "--only", t) for t in profile.tasks.names]
    )
    extracted = [
        add("extract", name, needs, "compute", "extract", "--encoder", name)
        for name, needs in ((BASE, [base]), (FINE_TUNED, experts))
    ]
    if profile.multi_task == "trained" and not variant and not zoo:  # Table 2's
        trained_together = add("fine_tune", MULTI_TASK, [base], "train", "--only", MULTI_TASK)
        extracted.append(
            add(
                "extract",
                MULTI_TASK,
                [*experts, trained_together],
                "compute",
                "extract",
                "--encoder",
                MULTI_TASK,
            )
        )
    for method in profile.merging.methods:
        merged = add("merge", method, experts, "compute", "merge", "--encoder", method)
        extracted.append(
            add("extract", method, [merged], "compute", "extract", "--encoder", method)
        )
    add("score", "scores", extracted, "compute", "score")
    return made


def _run_command(wanted: Wanted, item: Any) -> tuple[str, ...]:
    """``mergelib run`` for one notebook, with those options that it declares."""
    declared, command = (
        declared_parameters(item.path),
        ["run", "--profile", wanted.profile, "--only", item.id],
    )
    for name in ("text_dir", "image_dir", "base"):
        if name in declared and getattr(wanted, name):
            command += [f"--{name.replace('_', '-')}", getattr(wanted, name)]
    overrides = parse_overrides(wanted.overrides)
    for name, value, default in (
        ("device", wanted.device, "auto"),
        ("overrides", repr(overrides), "{}"),
    ):
        if name in declared and value != default:
            command += ["-p", f"{name}={value}"]
    return tuple(command)


def _identity(wanted: Wanted, variant: str = "", notebook: Path | None = None) -> str:
    from ..core.types import digest
    from ..study.study import STEP_VERSIONS

    cells = []
    if notebook is not None:  # only its code: saving a notebook with outputs changes nothing
        cells = [
            c["source"]
            for c in json.loads(notebook.read_text())["cells"]
            if c["cell_type"] == "code"
        ]
    profile = load_profile(wanted.profile, given_overrides(wanted), variant).model_dump(mode="json")
    return digest(json.dumps([profile, STEP_VERSIONS, cells], sort_keys=True))[:16]


# ---- one unit ------------------------------------------------------------------------------------


def compute(study: Any, step: str, encoder: str = "", *, zoo: bool = False) -> None:
    """Compute one step's artifacts into the store: those of one encoder, or all scores that tables
    and figures start from."""
    from ..tables import ranking, unlabelled

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
    elif zoo:
        ranking.scores(study, [BASE, FINE_TUNED, *study.methods])
    elif study.profile.tasks.modality == "image":
        unlabelled.scores(study, [FINE_TUNED, *study.methods], ["current"])
        unlabelled.scores(study, study.methods, ["knn", "ft_classifier"])
    else:
        study.scores([FINE_TUNED, *study.baselines], ["current"])
        study.scores([BASE, *study.methods], ["current", "knn", "ft_classifier"])


def command_compute(args: argparse.Namespace) -> int:
    import warnings

    stamp_place(args.stamp)  # refused before any work
    study = asked_study(args, zoo=args.zoo)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*lies on the edge of the grid.*"
        )  # the notebook that shows it warns
        compute(study, args.step, args.encoder, zoo=args.zoo)
    write_stamp(args.stamp, study.store)
    print(f"{args.step} {args.encoder}: {len(study.store.asked)} artifacts in {study.store.root}")
    return 0


def command_units(args: argparse.Namespace) -> int:
    wanted = Wanted(
        args.profile,
        tuple(args.only),
        *(str(user_path(p).resolve()) if p else "" for p in (args.text_dir, args.image_dir)),
        _place(args.base),
        args.device,
        args.overrides,
        args.zoo,
    )
    target = args.out and free_file(args.out, True, (args.text_dir, args.image_dir))
    made = units(wanted)
    text = json.dumps([asdict(u) for u in made], indent=1)
    if target:
        write_file(target, f"{text}\n")
        counts = {rule: sum(u.rule == rule for u in made) for rule in RULES}
        print(
            f"{len(made)} units: {', '.join(f'{n} {rule}' for rule, n in counts.items() if n)}",
            file=sys.stderr,
        )
    else:
        print(text)
    return 0


def _place(base: str) -> str:
    """A folder as an absolute path; a hub id unchanged."""
    return str(user_path(base).resolve()) if base and user_path(base).exists() else base


def register(commands: Any) -> None:
    """Add both subcommands to the parser of ``mergelib.run.cli``."""
    listing = commands.add_parser(
        "units",
        help="list a profile's commands and their files, as JSON; cluster/Snakefile runs them",
    )
    add_study_options(listing, one=False)
    listing.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="notebooks or groups, as for run"
    )
    listing.add_argument(
        "--zoo",
        action="store_true",
        help="also merge and score every method of the zoo where no notebook of the profile "
        "shows them",
    )
    listing.add_argument(
        "--out", default="", metavar="FILE", help="where to write them; the terminal by default"
    )
    listing.set_defaults(function=command_units)
    one = commands.add_parser(
        "compute", help="one unit: a merge, an encoder's features, or the scores, into the store"
    )
    one.add_argument("step", choices=STEPS, help="what to compute")
    add_study_options(one)
    one.add_argument(
        "--encoder", default="", metavar="NAME", help="f_b, f_t, multi_task or a merging method"
    )
    one.add_argument(
        "--zoo", action="store_true", help="take methods and grids from the profile's section zoo"
    )
    one.set_defaults(function=command_compute)
