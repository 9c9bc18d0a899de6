"""What a training run is made of: frozen dataclasses that are both the JSON on disk and the command line.

Importing this module imports neither JAX nor Optax.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from mom_jax.data.config import DataConfig
from mom_jax.data.remote import is_address
from mom_jax.errors import InputError
from mom_jax.fields import Count, Name, Range, Seed, check_fields, checked, field_types
from mom_jax.files import read_json
from mom_jax.models.config import MoMConfig
from mom_jax.models.presets import PRESETS, get_preset
from mom_jax.paths import absolute, local_path
from mom_jax.training.optimizers import AdamW, Optimizer, optimizer_named, with_name
from mom_jax.training.run_places import check_run, stand_in
from mom_jax.training.sections import CheckpointConfig, ProfileConfig, SpikesConfig

CONFIG_FILE = "config.json"  # in the run's folder

OptimizerConfig = AdamW  # the default's name
Remat = Literal["none", "full", "dots", "recurrence", "mixer"]
Ways = Annotated[int, Range(least=1, most=2**20, also=(-1,))]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many ways the devices are split; at most one axis may be -1, which takes the devices left over."""

    data: Ways = -1
    """Copies of the model, each with its own rows of the batch."""
    fsdp: Ways = 1
    """Ways each parameter is split over its hidden size; also splits the batch."""
    tensor: Ways = 1
    """Ways the heads and the MLP are split."""
    sequence: Ways = 1
    """Ways the tokens of each row are split, for rows that one device cannot hold; also splits each parameter."""

    def __post_init__(self):
        check_fields(self, "mesh.")
        if dataclasses.astuple(self).count(-1) > 1:
            remedy = "only one of data, fsdp, tensor and sequence may be -1"
            raise InputError("mesh", dataclasses.astuple(self), remedy)


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """Several processes that train one model together, as on a pod; each runs the same command on its own machine."""

    coordinator: Name | None = None
    """auto, where Slurm, Open MPI, Kubernetes or a TPU pod tells each process its place; else HOST:PORT of process 0.
    Without it this process trains alone."""
    count: Count | None = None
    """Number of processes; goes with HOST:PORT."""
    index: Annotated[int, Range(least=0, below=2**31)] | None = None
    """Number of this process, from 0; goes with HOST:PORT."""

    def __post_init__(self):
        check_fields(self, "processes.")
        by_hand = self.coordinator is not None and self.coordinator != "auto"
        if by_hand and not re.fullmatch(r".+:[0-9]{1,5}", str(self.coordinator)):
            raise InputError("processes.coordinator", self.coordinator, "is written HOST:PORT, or auto")
        for field in ("count", "index"):
            value = getattr(self, field)
            if by_hand and value is None:
                raise InputError(f"processes.{field}", value, "is needed with a coordinator that is not auto")
            if not by_hand and value is not None:
                raise InputError(f"processes.{field}", value, "goes with --processes.coordinator HOST:PORT")
        if self.count is not None and self.index is not None and self.index >= self.count:
            raise InputError("processes.index", self.index, f"must lie between 0 and {self.count - 1}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run, completely: the same config and seed give the same run."""

    model: MoMConfig = dataclasses.field(default_factory=MoMConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: Optimizer = dataclasses.field(default_factory=AdamW)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    spikes: SpikesConfig = dataclasses.field(default_factory=SpikesConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    run_dir: Name = "runs/mom"
    """Folder of this run, or its address (gs://, s3://); when it holds a checkpoint of the same config, the run
    resumes."""
    init_from: Name | None = None
    """A run or a published model whose weights a new run starts with."""
    steps: Count = 1000
    """Optimiser steps; the learning-rate schedule spans them. May be raised when resuming."""
    seed: Seed = 0
    """Seed of the initial parameters."""
    gradient_accumulation: Count = 1
    """Micro-batches that one step splits its batch into, to save memory."""
    z_loss_scale: Annotated[float, Range(least=0, most=1e4)] = 0.0
    """Weight of the loss on the size of the output logits (arXiv 2204.02311, there 1e-4)."""
    remat: Remat = "none"
    """Recompute in the backward pass: nothing, each whole block, all but matrix products, all but what the recurrences
    computed, or (mixer) all but that and the projections before them."""
    max_bad_steps: Count = 10
    """Skipped steps in a row (a loss or gradient that is not finite, or a spike), or rewinds in a sitting, before the
    run stops."""
    watchdog_minutes: Annotated[float, Range(above=0, most=1e5)] | None = None
    """End with the stack of every thread when no step was finished for so long."""
    max_minutes: Annotated[float, Range(least=0, most=1e7)] | None = None
    """Stop with a checkpoint after this many minutes and at least one step; run again to continue."""
    log_every: Count = 10
    """Steps between two lines of metrics (each the mean over its steps)."""
    log: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Where the metrics go besides metrics.jsonl and TensorBoard files."""
    eval_every: Count = 500
    """Steps between two held-out evaluations; one more is always made at the end."""
    eval_windows: Count = 64
    """Held-out windows of each evaluation during training."""

    def __post_init__(self):
        check_fields(self)
        if self.data.batch_size % self.gradient_accumulation:
            raise InputError(
                "gradient_accumulation",
                self.gradient_accumulation,
                f"must divide data.batch_size ({self.data.batch_size})",
            )
        check_run(self.run_dir, "run_dir")
        if self.init_from is not None:
            check_run(self.init_from, "init_from")

    @property
    def folder(self) -> Path:
        """Where this machine keeps the run: ``run_dir``, or what stands for an address, below ``data.cache_dir``."""
        place = self.run_dir
        return local_path(stand_in(place, self.data.cache_dir) if is_address(place) else place, "run_dir")

    def anchored(self) -> Self:
        """The same run with paths of its data that mean the same from every folder."""
        source = self.init_from
        if source is not None and not is_address(source):
            source = absolute(source, "init_from")
        return dataclasses.replace(self, data=self.data.anchored(), init_from=source)

    def to_dict(self) -> dict[str, Any]:
        """The config as a JSON-ready dictionary; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Reads `to_dict`'s form.

        Raises:
            InputError: a field this version does not know, or a bad value.
        """
        return _build(cls, fields, "")

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Reads a run's ``config.json``.

        Raises:
            InputError: no such file, not JSON, or not a training config.
        """
        path = Path(path)
        copies = sorted(path.parent.glob("checkpoints/*/config/metadata"), key=lambda copy: copy.stat().st_mtime)
        remedy = f"copy {copies[-1]} in its place" if copies else "restore it or train again"
        if not path.is_file():
            why = f"holds no {path.name}; {remedy if copies else 'give the folder of a run'}"
            raise InputError("run_dir", path.parent, why)
        fields = read_json(path, dict[str, Any], remedy, "config")
        try:
            return cls.from_dict(fields)
        except InputError as error:
            raise InputError(error.field, error.value, f"{error.remedy} (in {path}; {remedy})") from error


def with_fields(config: TrainConfig, fields: dict[str, Any]) -> TrainConfig:
    """``config`` with the values of ``fields``, section by section, in `TrainConfig.to_dict`'s form.

    Raises:
        InputError: a field that is not known, or a bad value.
    """
    optimizer = fields.get("optimizer")
    if isinstance(optimizer, dict) and "name" in optimizer:
        config = dataclasses.replace(config, optimizer=with_name(config.optimizer, optimizer["name"]))
    return TrainConfig.from_dict(_overlaid(config.to_dict(), fields))


def _overlaid(base: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    nested = {
        name: _overlaid(base[name], value)
        for name, value in fields.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return {**base, **fields, **nested}


# What may differ between two sittings of one run.
_MAY_CHANGE = (
    # What a person chooses anew, often after a divergence.
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.min_learning_rate_ratio",
    "optimizer.decay_fraction",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.rates",
    # Where the same text and tokenizer lie, and how it is found there.
    "data.path",
    "data.mixture",
    "data.held_out_path",
    "data.held_out_fraction",
    "data.text_field",
    "data.exclude",
    "data.on_error",
    "data.tokenizer",
    # Where and how it runs, not what it computes.
    "run_dir",
    "max_bad_steps",
    "max_minutes",
    "watchdog_minutes",
    "spikes.skip",
    "spikes.rewind",
    "spikes.factor",
    "profile",
    "log",
    "log_every",
    "eval_every",
    "eval_windows",
    "remat",
    "mesh",
    "model.impl",
    "checkpoint",
    "data.cache_dir",
    "data.shard_bytes",
)


def _build(cls: type, fields: Any, prefix: str) -> Any:
    fields = checked(prefix.rstrip(".") or "config", fields, dict)
    if cls is Optimizer:
        cls = optimizer_named(fields.get("name", AdamW.name))
    known = field_types(cls)
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(str(name), known) or sorted(known)
            raise InputError(f"{prefix}{name}", fields[name], f"unknown field; did you mean {' or '.join(close)}?")
    return cls(
        **{
            name: _build(known[name], value, f"{prefix}{name}.") if dataclasses.is_dataclass(known[name]) else value
            for name, value in fields.items()
        }
    )


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`TrainConfig.to_dict`'s form without nesting, by dotted names."""
    options: dict[str, Any] = {}
    for name, value in fields.items():
        options.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return options


def changes_between(saved: TrainConfig, new_config: TrainConfig) -> list[str]:
    """What is changed when ``new_config`` continues a run of ``saved``, in words: ``steps 100 -> 200``.

    ``steps`` may grow (the schedule then spans the new number). What decides neither the model nor its data may
    differ, likewise what is chosen anew on purpose (see ``_MAY_CHANGE``). Where text and tokenizer lie may differ, but
    not what they hold: that the loader checks.

    Raises:
        InputError: names every field that may not differ and does, with both values.
    """
    old, new = flat(saved.anchored().to_dict()), flat(new_config.anchored().to_dict())
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]  # sections may be None
    refused = [
        name
        for name in changed
        if name not in _MAY_CHANGE
        and name.split(".")[0] not in _MAY_CHANGE
        and not (name == "steps" and new[name] > old[name])
    ]
    if refused:
        listed = ", ".join(f"{name} (was {old.get(name)!r}, now {new.get(name)!r})" for name in refused)
        remedy = f"holds a run of another config: {listed}; use another run_dir or the same values"
        raise InputError("run_dir", new_config.run_dir, remedy)
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in changed if name != "run_dir"]


def _tiny(name: str) -> TrainConfig:
    return TrainConfig(
        model=get_preset(name),
        data=DataConfig(sequence_length=256, batch_size=8),
        optimizer=AdamW(learning_rate=3e-3, warmup_steps=30),
        checkpoint=CheckpointConfig(every=200, keep=2),
        run_dir=f"runs/{name}",
        steps=400,
        eval_every=100,
    )


def _published(name: str, batch_size: int, steps: int, remat: Remat) -> TrainConfig:
    model = dataclasses.replace(get_preset(name), compute_dtype="bfloat16")
    return TrainConfig(
        model=model,
        data=DataConfig(tokenizer="mistral", sequence_length=2048, batch_size=batch_size),
        run_dir=f"runs/{name}",
        steps=steps,
        remat=remat,
    )


# The published recipe: 30,720 steps of 0.52M tokens (15B) for the small model, and 2.1M tokens a step up to
# 100B for the large one; learning rate 3e-4 with 1,024 warm-up steps and a cosine, context 2,048.
_RUNS: dict[str, Callable[[str], TrainConfig]] = {
    "mom-tiny": _tiny,
    "mom-340m": lambda name: _published(name, 256, 30720, "recurrence"),
    "mom-1.3b": lambda name: _published(name, 1024, 47684, "full"),
}
TRAIN_PRESETS: dict[str, Callable[[], TrainConfig]] = {
    name: functools.partial(run, name) for name in PRESETS for size, run in _RUNS.items() if name.startswith(size)
}


def get_train_preset(name: str) -> TrainConfig:
    """The training run of a model preset; `InputError` with the closest names for an unknown one."""
    if name not in TRAIN_PRESETS:
        get_preset(name)
    return TRAIN_PRESETS[name]()
