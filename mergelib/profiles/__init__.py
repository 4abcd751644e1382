"""Profiles: every number that a notebook does not name itself, as a validated YAML file."""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ..core.documents import check_folder_name, own_yaml
from ..core.errors import ConfigError, UnknownNameError, check_name, shortened
from ..training.config import TrainConfig, resolve_precision

FOLDER = Path(__file__).parent
OTHER_BASE = "masked_lm"  # the variant whose f_b is no sentence encoder
NAMES: dict[str, tuple[str, ...]] = {
    kind: tuple(names) for kind, names in own_yaml(__file__, "_names.yaml").items()
}
TASK_NAMES, IMAGE_TASK_NAMES = NAMES["texts"], NAMES["images"]
IMAGE_KINDS = ("clip", "vit")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _quiet(default: Any, **limits: Any) -> Any:
    """A field that dumps leave out where it has its default, so that a figure's sidecar names only
    what shaped it."""
    return Field(default, exclude_if=lambda value: value == default, **limits)


def _once(values: tuple) -> tuple:
    if not values or len(set(values)) != len(values):
        raise ValueError("at least one, each once")
    return values


def _ascending(values: tuple) -> tuple:
    if list(values) != sorted(values):
        raise ValueError("ascending")
    return _once(values)


Names = Annotated[tuple[str, ...], AfterValidator(_once)]
Lams = Annotated[tuple[float, ...], Field(min_length=1)]
Ks = Annotated[tuple[PositiveInt, ...], AfterValidator(_ascending)]
Percents = Annotated[tuple[Annotated[float, Field(gt=0, le=100)], ...], AfterValidator(_ascending)]
Seeds = Annotated[tuple[int, ...], AfterValidator(_once)]


class TaskSettings(_Section):
    """Where tasks come from and how many rows each split has."""

    # hub_sample: only as many rows are downloaded, mergelib/core/hub/sample.py; released: the
    # authors' own CSV files, mergelib/tasks/released.py
    source: Literal["miniature", "local", "hub", "hub_sample", "released"]
    names: Names = TASK_NAMES
    n_train: int = Field(gt=0)
    n_validation: int = Field(gt=0)
    n_test: int = Field(gt=0)
    pool_per_class: int = Field(
        100, gt=0
    )  # few-shot draws come from a random pool of this many train rows times C
    text_dir: str = ""
    text_column: int | None = None
    # Absent from dumps where they say nothing, so that a figure's sidecar names only what shaped
    # it.
    modality: Literal["text", "image"] = _quiet("text")
    image_dir: str = _quiet("")

    @property
    def sample(self) -> tuple[int, int] | None:
        """Rows of train and test to download of a data set; None: all of them."""
        rows = self.n_train + self.n_validation, self.n_test
        return rows if self.source == "hub_sample" else None

    @model_validator(mode="after")
    def _names(self):
        for name in self.names:
            check_folder_name(name)  # it becomes one below text_dir, and part of tables
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"names: '{name}' may hold letters, digits, - and _ only")
            known = TASK_NAMES if self.modality == "text" else IMAGE_TASK_NAMES
            if self.source != "local" and name not in known:
                raise ValueError(str(UnknownNameError("task", name, known)))
        return self


class TrainSettings(_Section):
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    lr: float = Field(gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    # auto: bf16 where the device has it, else float32
    precision: Literal["float32", "bf16", "auto"] = "float32"
    save_every: int = Field(0, ge=0)


class FineTuneSettings(TrainSettings):
    # A batch too large for memory goes through in so many pieces, whose gradients are added.
    pieces: int = _quiet(1, gt=0)
    # "fitted": each head is fitted to f_b's features first and kept, as a CLIP keeps its zero-shot
    # heads.
    head: Literal["trained", "fitted"] = _quiet("trained")


class PretrainSettings(TrainSettings):
    documents: int | None = Field(
        None, gt=0
    )  # of a generated corpus; a vit takes the tasks' training images
    mask_rate: float = Field(0.15, gt=0, lt=1)
    # A sentence encoder to distil a text encoder from: a shipped one's name, a hub id or a folder.
    teacher: str = _quiet("")
    seed: int | None = _quiet(None)  # of this foundation alone; the profile's where it is absent
    # Masked language modelling goes on from ``encoder.base``, else from a shipped BERT, ``start``;
    # so many of its upper layers start anew.
    fresh_layers: int | None = _quiet(None, ge=0)
    start: str = _quiet("")


class EncoderSettings(_Section):
    """``base`` is a hub id or folder; without it a miniature encoder of the given kind and shape is
    pre-trained here."""

    kind: Literal["bert", "t5", "clip", "vit"] = _quiet("bert")
    base: str = ""
    revision: str | None = None
    # released: as the authors' code reads texts, mergelib/encoders/released.py. Absent from dumps
    # where it says nothing.
    preprocessing: Literal["default", "released"] = _quiet("default")
    # of features; auto as in training
    precision: Literal["float32", "bf16", "bf16_weights", "auto"] = _quiet("float32")
    # Linearised in its weights at f_b, mergelib/encoders/tangent.py.
    tangent: bool = _quiet(False)
    max_length: int = Field(gt=2)
    layers: int = Field(4, gt=0)
    width: int = Field(128, gt=0)
    heads: int = Field(4, gt=0)
    image_size: int = _quiet(0, ge=0)  # pixels a side; 0 for texts
    patch_size: int = _quiet(0, ge=0)
    projection: int = _quiet(0, ge=0)  # d of a clip
    pretraining: PretrainSettings | None = None
    batch_size: int = Field(128, gt=0)  # inputs per forward pass when features are extracted

    @property
    def goes_on(self) -> bool:
        """Whether f_b is ``base`` after further pre-training."""
        return self.pretraining is not None and self.pretraining.fresh_layers is not None

    @model_validator(mode="after")
    def _whole(self):
        own = self.pretraining and not self.goes_on
        if self.kind != "vit" and own and self.pretraining.documents is None:
            raise ValueError("pretraining.documents: say how many documents the corpus has")
        if self.goes_on and not (self.kind == "bert" and (self.base or self.pretraining.start)):
            raise ValueError("pretraining.fresh_layers: give the BERT that has the others, as base")
        if self.preprocessing == "released" and (self.kind != "bert" or self.max_length < 4):
            raise ValueError("preprocessing: the released one is a bert's, and needs 4 positions")
        if self.kind in IMAGE_KINDS and not (self.image_size and (self.base or self.patch_size)):
            raise ValueError(f"image_size, patch_size: a {self.kind} needs both")
        return self


class MergingSettings(_Section):
    methods: tuple[str, ...] = ("weight_averaging", "task_arithmetic", "ties")
    lams: Lams = tuple(round(0.1 * i, 1) for i in range(1, 11))
    options: dict[str, dict[str, Any]] = {}
    # Absent from dumps where they say nothing, so that a figure's sidecar names only what shaped
    # it.
    grids: dict[str, Lams] = _quiet({})  # method -> its own lams
    # merges of a random method; draw s is scored with merge s mod this
    merge_seeds: int = _quiet(1, gt=0)


class EveryMethodSettings(MergingSettings):
    """The methods of ``ext01_method_zoo``, those named by the paper first, and the shots per class
    of its fits."""

    methods: tuple[str, ...] = NAMES["every_method"]
    k: int = Field(5, gt=0)


class NonLocalSettings(MergingSettings):
    """The methods of ``ext03_nonlocal``, how its second foundation differs from f_b, and its
    numbers of inputs. These are small, because it scores dozens of encoders that no other notebook
    uses."""

    methods: tuple[str, ...] = NAMES["non_local"]
    # of pre-training, from f_b's own start; of both foundations where f_b comes from elsewhere
    semi_local_steps: int = Field(gt=0)
    non_local_seed: int  # seed of pre-training, which gives another start and other batches
    n_validation: int = Field(gt=0)  # the first rows of a task's split; lambda is chosen on them
    n_test: int = Field(gt=0)
    pool_per_class: int = Field(
        gt=0
    )  # times C: a task's unlabelled inputs for every correction and alignment
    ks: Ks  # of the fits with k * C of those inputs
    seeds: Seeds = (0, 1, 2)

    @model_validator(mode="after")
    def _fits(self):
        if max(self.ks) > self.pool_per_class:
            raise ValueError("ks: none above pool_per_class")
        return self


SHARES = (0.5, 1.0, 2.5, 5.0, 10.0)  # percent of the test set, as in the paper's Figure 11


class ProtocolSettings(_Section):
    ks: Ks = (1, 2, 5, 10, 20, 50)
    shares: Percents = _quiet(SHARES)
    seeds: Seeds = (0, 1, 2, 3, 4)
    ft_preset: Literal["default", "clip", "released"] = "default"


class Profile(_Section):
    name: str
    backbone: str  # how tables name f_b
    seed: int = Field(0, ge=-(2**63), lt=2**63)  # what torch takes
    threads: int = Field(2, gt=0)
    # processes that fine-tune together under torchrun; part of the store's key
    processes: int = _quiet(1, gt=0)
    # False for quick, which prints its claims without a verdict: it is too small to mean anything
    judged: bool = True
    resamples: int = Field(10_000, gt=0)  # of the bootstrap
    # Published checkpoints instead of fine-tuning here; the one encoder for all tasks was never
    # published. Absent from dumps by default.
    experts: Literal["trained", "released"] = _quiet("trained")
    multi_task: Literal["trained", "paper only"] = _quiet("trained")
    # <task>/{train,test}.csv and checkpoints/<task>.pth; from the hub where it is empty
    released_dir: str = _quiet("")
    note: str = _quiet("")  # a caveat that readers of its numbers must know
    # Another profile, of which this one changes a single thing: the report shows the two alone.
    compared_with: str = _quiet("")
    tasks: TaskSettings
    encoder: EncoderSettings
    fine_tuning: FineTuneSettings
    merging: MergingSettings = MergingSettings()
    every_method: EveryMethodSettings | None = _quiet(None)
    non_local: NonLocalSettings | None = _quiet(None)
    protocols: ProtocolSettings = ProtocolSettings()

    @model_validator(mode="after")
    def _one_modality(self):
        if (self.tasks.modality == "image") != (self.encoder.kind in IMAGE_KINDS):
            raise ValueError(
                f"tasks.modality, encoder.kind: a {self.encoder.kind} "
                f"does not encode {self.tasks.modality}s"
            )
        return self

    @model_validator(mode="after")
    def _published(self):
        if self.experts == "released" and (self.encoder.kind != "bert" or not self.encoder.base):
            raise ValueError(
                "experts: the released ones are BERTs and need encoder.base, "
                "the model that they were fine-tuned from"
            )
        return self

    def of_every_method(self) -> Profile:
        """The same profile with the methods, grids and shots of ``every_method``. Raises
        ``ConfigError`` if there is none."""
        section = self._section("every_method")
        return self._with(section, {}, {"ks": (section.k,)}).model_copy(update={"non_local": None})

    def of_non_local(self) -> Profile:
        """The same profile with methods, grids, sizes and shots of ``non_local``, which it keeps.
        Raises ``ConfigError`` if there is none."""
        section = self._section("non_local")
        tasks = section.model_dump(include={"n_validation", "n_test", "pool_per_class"})
        return self._with(section, tasks, section.model_dump(include={"ks", "seeds"}))

    def _section(self, name: str) -> Any:
        if section := getattr(self, name):
            return section
        raise ConfigError(f"Profile '{self.name}' has no section {name}.")

    def _with(self, section: MergingSettings, tasks: dict, protocols: dict) -> Profile:
        """The profile with a section's methods, and these values of tasks and protocols."""
        merging = section.model_dump(include=set(MergingSettings.model_fields))
        return self.model_copy(
            update={
                "merging": MergingSettings(**merging),
                "tasks": self.tasks.model_copy(update=tasks),
                "protocols": self.protocols.model_copy(update=protocols),
                "every_method": None,
            }
        )

    def train_config(
        self, settings: TrainSettings, device: Any, *, steps_factor: int = 1
    ) -> TrainConfig:
        """``settings`` as one run on ``device``: with its precision resolved, so that it is part of
        a result's identity."""
        numbers = settings.model_dump(include={f.name for f in fields(TrainConfig)})
        numbers["steps"] *= steps_factor
        numbers["precision"] = resolve_precision(settings.precision, device)
        return TrainConfig(**{"seed": self.seed, "threads": self.threads} | numbers)


def with_shortcuts(
    overrides: dict[str, Any], text_dir: str, base: str, image_dir: str
) -> dict[str, Any]:
    """``overrides`` plus those that the notebook parameters ``text_dir``, ``base`` and
    ``image_dir`` mean, unless empty. Raises ``ConfigError`` if they are not a mapping."""
    if not isinstance(overrides, dict):
        raise ConfigError(
            f"overrides: got {shortened(repr(overrides))}; give a dict such as "
            '{"tasks.n_test": 200}.'
        )
    overrides = dict(overrides)
    if text_dir:
        overrides |= {"tasks.text_dir": text_dir, "tasks.source": "local"}
    if image_dir:
        overrides |= {"tasks.image_dir": image_dir, "tasks.source": "local"}
    if base:
        overrides["encoder.base"] = base
    return overrides


def profile_names() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("[a-z]*.yaml"))


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` merged over ``below``, section by section."""
    merged = {
        k: _merged(below[k], v) if isinstance(v, dict) and isinstance(below.get(k), dict) else v
        for k, v in above.items()
    }
    return below | merged


def _raw(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The profile's document and its variants."""
    check_name("profile", name, profile_names())
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    return raw, raw.pop("variants", {})


def variant_names(name: str) -> list[str]:
    """A profile's variants: partial profiles that override the rest of it. Raises
    ``UnknownNameError``."""
    return sorted(_raw(name)[1])


def load_profile(name: str, overrides: dict[str, Any] | None = None, variant: str = "") -> Profile:
    """The named profile, validated, with a variant and overrides applied.

    Args:
        name: One of ``profile_names()``.
        overrides: Dotted key -> value, such as ``{"fine_tuning.steps": 100}``. If they set
            ``tasks.source`` to "local", the profile's section ``local`` applies before them.
        variant: One of ``variant_names(name)``; empty for none.

    Raises:
        UnknownNameError: An unknown profile, variant or key (naming the nearest).
        ConfigError: A bad value.
    """
    raw, variants = _raw(name)
    if variant:
        check_name(f"variant of profile '{name}'", variant, variants)
        raw = _merged(raw, variants[variant])
    local = raw.pop("local", {})
    if (overrides or {}).get("tasks.source") == "local":
        raw = _merged(raw, local)
    for dotted, value in (overrides or {}).items():
        if not isinstance(dotted, str):
            raise ConfigError(
                f"overrides: {shortened(dotted)} is not a key; "
                "write texts such as 'fine_tuning.steps'."
            )
        *path, last = dotted.split(".")
        section = raw
        for part in path:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ConfigError(
                    f"overrides: '{dotted}' lies in '{part}', which is the value "
                    f"{shortened(section)}, not a section."
                )
        section[last] = copy.deepcopy(value)  # a later key may reach into it
    return parse_profile(raw, f"profile '{name}'")


def parse_profile(raw: Any, what: str) -> Profile:
    """Validate a parsed YAML document. Raises ``UnknownNameError`` or ``ConfigError`` naming the
    key and the remedy."""
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            model: type[BaseModel] = Profile
            for part in first["loc"][:-1]:
                kind = model.model_fields[part].annotation  # a section's, or that or None
                model = next(k for k in get_args(kind) or (kind,) if issubclass(k, BaseModel))
            raise UnknownNameError(
                f"key '{key}' in {what}:", first["loc"][-1], model.model_fields
            ) from error
        raise ConfigError(
            f"{what}, {key or 'document'}: {shortened(first['msg'], 300)} (given: "
            f"{shortened(first.get('input'))!r})."
        ) from error
