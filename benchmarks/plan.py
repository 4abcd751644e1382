"""``python -m benchmarks.plan [--profile paper --every-method --gpus 8]``: a study of many GPUs on
paper: jobs, hours, bytes, what it waits for.

Sizes come from the profile and from the jobs that Snakemake would run. Rates are **assumed**, and
printed as such: they are arguments, so that measured ones can take their place. A job costs its
start, the multiplications of the encoder's layers, what it reads and writes, and a flat time for
what is neither. Every input counts as its longest, as the released preprocessing pads it.
"""

from __future__ import annotations

import argparse
import heapq
import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergelib.core.errors import ConfigError
from mergelib.core.names import BASE, FINE_TUNED, MULTI_TASK
from mergelib.merging import get_method
from mergelib.profiles import Profile, load_profile
from mergelib.run import jobs as cluster_jobs
from mergelib.run.jobs import Job
from mergelib.run.parser import build_parser
from mergelib.tasks import miniature
from mergelib.tasks.hub_images import class_names


@dataclass(frozen=True)
class Shape:
    """An encoder's transformer; biases and norms are left out."""

    layers: int
    width: int
    feed: int
    vocabulary: int
    positions: int = 0

    @property
    def multiplied(self) -> int:
        """Weights that every token is multiplied with."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.feed)

    @property
    def parameters(self) -> int:
        return self.multiplied + (self.vocabulary + self.positions) * self.width

    def forward(self, tokens: int, length: int) -> float:
        """Floating-point operations of a forward pass: layers, and attention between ``length``
        positions."""
        return tokens * (2 * self.multiplied + 4 * self.layers * self.width * length)


SHAPES = {
    "bert-base-uncased": Shape(12, 768, 3072, 30522, 512),
    "google-t5/t5-base": Shape(12, 768, 3072, 32128),
    "google-t5/t5-large": Shape(24, 1024, 4096, 32128),
    "openai/clip-vit-base-patch32": Shape(12, 768, 3072, 0, 50),
    "openai/clip-vit-base-patch16": Shape(12, 768, 3072, 0, 197),
}


@dataclass(frozen=True)
class Rates:
    """What is assumed of one GPU and its disk; nothing here was measured."""

    forward_tflops: float = 30.0  # float32, a forward pass
    train_tflops: float = 100.0  # bf16, forward and backward
    disk_gb_s: float = 0.5  # the store, read or written
    start_s: float = 60.0  # from the queue to the first step: imports, model, data
    merge_s: float = 60.0  # arithmetic of one merge, or of all lambdas of one direction
    score_s: float = 120.0  # all fits and predictions of a study, or what a notebook adds


@dataclass(frozen=True)
class Cost:
    """What one job takes."""

    seconds: float
    read: float  # bytes
    written: float  # with checkpoints, which go when an expert is finished
    kept: float


def shape_of(profile: Profile) -> Shape:
    """Raises ``ConfigError`` for a base model whose shape is not known here."""
    settings = profile.encoder
    if settings.base in SHAPES:
        return SHAPES[settings.base]
    if settings.base or settings.kind not in ("bert", "t5"):
        raise ConfigError(
            f"The shape of {settings.base or settings.kind} is not known here; known: "
            f"{', '.join(SHAPES)} and miniature texts."
        )
    return Shape(settings.layers, settings.width, 4 * settings.width, 0)


def cost(job: Job, profile: Profile, rates: Rates) -> Cost:
    """Seconds and bytes of a job; ``profile`` is its study's, with every method where it
    belongs to that study."""
    if job.rule in ("notebook", "report"):
        return Cost(rates.start_s + rates.score_s * (job.rule == "notebook"), 0, 0, 0)
    shape, tasks = shape_of(profile), profile.tasks
    is_image = tasks.modality == "image"
    length, of_input = (
        (shape.positions, 3.0 * profile.encoder.image_size**2)
        if is_image
        else (profile.encoder.max_length, 0.0)
    )  # bytes that the store keeps
    model = 4.0 * shape.parameters
    classes = [len(class_names(t) if is_image else miniature.TEXT_TASKS[t]) for t in tasks.names]
    forward = train = busy = read = checkpoints = kept = 0.0
    if job.rule == "pretrain":
        read = model
    elif job.rule == "fine_tune":
        factor = len(tasks.names) if job.name == MULTI_TASK else 1
        train = 3 * shape.forward(
            profile.fine_tuning.steps * factor * profile.fine_tuning.batch_size * length, length
        )
        saves = (
            profile.fine_tuning.steps * factor // profile.fine_tuning.save_every
            if profile.fine_tuning.save_every
            else 0
        )
        read = model + of_input * tasks.n_train * factor
        kept, checkpoints = model, 3 * model * saves  # weights and two moments
    elif job.rule == "merge":
        found, options = get_method(job.name), profile.merging.options.get(job.name, {})
        defaults = {
            p.name: p.default for p in inspect.signature(found.function).parameters.values()
        } | options
        lams = (
            profile.merging.grids.get(job.name, profile.merging.lams)
            if found.has_lam and "lam" not in options
            else ()
        )
        merges = profile.merging.merge_seeds if found.is_random and "seed" not in options else 1
        rows = len(lams) * len(tasks.names) * tasks.n_validation
        forward = merges * shape.forward(rows * length, length)
        seen = (
            defaults["steps"] * defaults["batch_size"]
            if "steps" in defaults
            else defaults.get("n_examples", 0)
        )
        forward += (
            merges * 3 * shape.forward(len(tasks.names) * seen * length, length)
        )  # in float32, as ext01 computes it
        results = len(tasks.names) if found.gives != "one encoder" else 1
        busy, read, kept = (
            merges * rates.merge_s,
            merges * model * (len(tasks.names) + 1),
            merges * model * results,
        )
    elif job.rule == "extract":
        pools = 0 if job.name == MULTI_TASK else tasks.pool_per_class * sum(classes)
        found = None if job.name in (BASE, FINE_TUNED, MULTI_TASK) else get_method(job.name)
        merges = (
            profile.merging.merge_seeds
            if found and found.is_random and "seed" not in profile.merging.options.get(job.name, {})
            else 1
        )
        rows = merges * (len(tasks.names) * tasks.n_test + pools)
        forward, kept = shape.forward(rows * length, length), 4.0 * rows * shape.width
        models = (
            len(tasks.names)
            if job.name == FINE_TUNED or (found and found.gives != "one encoder")
            else 1
        )
        read = merges * model * models + of_input * rows
    elif job.rule == "score":
        busy = rates.score_s
    written = kept + checkpoints
    seconds = (
        rates.start_s
        + busy
        + forward / rates.forward_tflops / 1e12
        + train / rates.train_tflops / 1e12
        + (read + written) / rates.disk_gb_s / 1e9
    )
    return Cost(seconds, read, written, kept)


def longest_paths(made: Sequence[Job], seconds: Mapping[str, float]) -> dict[str, list[str]]:
    """Output -> the outputs of the slowest chain that ends with it."""
    chains: dict[str, list[str]] = {}
    length: dict[str, float] = {}
    for job in made:  # what a job needs stands before it
        before = max(job.needs, key=lambda n: length[n], default=None)
        length[job.output] = seconds[job.output] + (length[before] if before else 0)
        chains[job.output] = [*(chains[before] if before else []), job.output]
    return chains


def makespan(made: Sequence[Job], seconds: Mapping[str, float], gpus: int) -> float:
    """Seconds until all are done when each of ``gpus`` takes the ready job with the longest way
    behind it, as Snakemake might."""
    behind: dict[str, float] = defaultdict(float)
    for job in reversed(made):
        behind[job.output] += seconds[job.output]
        for need in job.needs:
            behind[need] = max(behind[need], behind[job.output])
    waits = {u.output: set(u.needs) for u in made}
    then, running, now = defaultdict(list), [], 0.0
    for job in made:
        for need in job.needs:
            then[need].append(job.output)
    ready = [(-behind[o], o) for o, needs in waits.items() if not needs]
    heapq.heapify(ready)
    while ready or running:
        while ready and len(running) < gpus:
            _, output = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[output], output))
        now, done = heapq.heappop(running)
        for output in then[done]:
            waits[output].discard(done)
            if not waits[output]:
                heapq.heappush(ready, (-behind[output], output))
    return now


def studies(wanted: argparse.Namespace, made: Sequence[Job]) -> dict[str, Profile]:
    """The profile of every study of the jobs."""
    overrides = cluster_jobs.given_overrides(wanted)
    found = {}
    for name in {u.study for u in made}:
        part = name.removeprefix(wanted.profile).removeprefix("-")
        loaded = load_profile(wanted.profile, overrides, "" if part == "every_method" else part)
        found[name] = loaded.of_every_method() if part == "every_method" else loaded
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--overrides", default="{}", metavar="JSON")
    parser.add_argument("--every-method", action="store_true", help="with every merging method")
    parser.add_argument("--gpus", type=int, default=8)
    for name, value in vars(Rates()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=value, help=f"assumed: {value:g}"
        )
    args = parser.parse_args(argv)
    rates = Rates(**{name: getattr(args, name) for name in vars(Rates())})
    wanted = build_parser().parse_args(["jobs"])  # its other options as they are by default
    names = ("profile", "only", "overrides", "every_method")
    vars(wanted).update({name: getattr(args, name) for name in names})
    made = cluster_jobs.listed(wanted)
    profiles = studies(wanted, made)
    costs = {u.output: cost(u, profiles[u.study], rates) for u in made}
    seconds = {o: c.seconds for o, c in costs.items()}
    print(
        f"profile {args.profile}{', every method' * args.every_method}, assumed per GPU: "
        f"{rates.forward_tflops:g} TFLOP/s forward in float32, {rates.train_tflops:g} "
        f"training in bf16; {rates.disk_gb_s:g} GB/s of disk;\nstart {rates.start_s:g} s a job, "
        f"merge {rates.merge_s:g} s, scores or notebook {rates.score_s:g} s"
    )
    print(
        f"{'study':<16}{'rule':<11}{'jobs':>5}{'GPU hours':>11}{'longest, min':>14}"
        f"{'read, GB':>10}{'written, GB':>13}{'kept, GB':>10}"
    )
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for job in made:
        groups[job.study, job.rule].append(job.output)
    for (study, rule), outputs in [*groups.items(), (("all", ""), list(seconds))]:
        total = [
            sum(getattr(costs[o], what) for o in outputs)
            for what in ("seconds", "read", "written", "kept")
        ]
        print(
            f"{study:<16}{rule:<11}{len(outputs):>5}{total[0] / 3600:>11.1f}"
            f"{max(seconds[o] for o in outputs) / 60:>14.1f}"
            f"{total[1] / 1e9:>10.1f}{total[2] / 1e9:>13.1f}{total[3] / 1e9:>10.1f}"
        )
    chain = max(longest_paths(made, seconds).values(), key=lambda c: sum(seconds[o] for o in c))
    took = makespan(made, seconds, args.gpus)
    starts = rates.start_s * len(made) / 3600
    print(
        f"on {args.gpus} GPUs: {took / 3600:.1f} h; "
        f"{100 * sum(seconds.values()) / args.gpus / took:.0f} % of them are busy; starts alone "
        f"take {starts:.1f} GPU hours"
    )
    print(
        f"slowest chain, {sum(seconds[o] for o in chain) / 3600:.1f} h, which no more GPUs shorten:"
    )
    for output in chain:
        print(f"  {seconds[output] / 60:7.1f} min  {output}")


if __name__ == "__main__":
    main()
