"""What a training run is made of: frozen dataclasses that are both the JSON on disk and the command line.

Importing this module imports neither JAX nor Optax.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from mom_jax.data.config import DataConfig
from mom_jax.errors import InputError
from mom_jax.models.config import PRESETS, AttentionConfig, MoMConfig, get_preset
from mom_jax.paths import check_local

CONFIG_FILE = "config.json"  # in the run's folder


def _at_least(config: object, minimum: float, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if value is not None and not value >= minimum:
            raise InputError(field, value, f"must be at least {minimum}")


def _one_of(config: object, field: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, field)
    if value not in choices:
        raise InputError(field, value, f"choose one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up and a decaying learning rate."""

    learning_rate: float = 3e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: a cosine to the minimum, or wsd (warm-up, stable, then a linear decay)."""
    warmup_steps: int = 1024
    """Steps of linear warm-up from zero."""
    min_learning_rate_ratio: float = 0.1
    """Final learning rate as a share of the peak."""
    decay_fraction: float = 0.2
    """Share of all steps that the decay of wsd takes."""
    beta1: float = 0.9
    """Decay of the gradient's mean."""
    beta2: float = 0.95
    """Decay of the gradient's second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay; not applied to norms, A_log, dt_bias, D and the router's bias."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self):
        _at_least(self, 0, "warmup_steps", "weight_decay")
        _one_of(self, "schedule", ("cosine", "wsd"))
        for field in ("learning_rate", "eps", "clip_norm"):
            if not getattr(self, field) > 0:
                raise InputError(field, getattr(self, field), "must be greater than 0")
        for field in ("min_learning_rate_ratio", "decay_fraction"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(field, getattr(self, field), "must lie between 0 and 1")
        for field in ("beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many ways the devices are split; at most one axis may be -1, which takes the devices left over."""

    data: int = -1
    """Copies of the model, each with its own rows of the batch."""
    fsdp: int = 1
    """Ways each parameter is split over its hidden size; also splits the batch."""
    tensor: int = 1
    """Ways the heads and the MLP are split."""

    def __post_init__(self):
        for field in ("data", "fsdp", "tensor"):
            if getattr(self, field) < 1 and getattr(self, field) != -1:
                raise InputError(
                    f"mesh.{field}", getattr(self, field), "must be at least 1, or -1 for the devices left over"
                )
        if (self.data, self.fsdp, self.tensor).count(-1) > 1:
            raise InputError("mesh", dataclasses.astuple(self), "only one of data, fsdp and tensor may be -1")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often checkpoints are written and how many stay."""

    every: int = 1000
    """Steps between checkpoints; one more is always written at the end."""
    keep: int = 3
    """Newest checkpoints that are kept."""

    def __post_init__(self):
        _at_least(self, 1, "every", "keep")


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """Several processes that train one model together, as on a pod; each runs the same command on its own machine."""

    coordinator: str | None = None
    """auto, where Slurm, Open MPI, Kubernetes or a TPU pod tells each process its place; else HOST:PORT of process 0.
    Without it this process trains alone."""
    count: int | None = None
    """Number of processes; goes with HOST:PORT."""
    index: int | None = None
    """Number of this process, from 0; goes with HOST:PORT."""

    def __post_init__(self):
        by_hand = self.coordinator is not None and self.coordinator != "auto"
        if by_hand and not re.fullmatch(r".+:\d+", str(self.coordinator)):
            raise InputError("processes.coordinator", self.coordinator, "is written HOST:PORT, or auto")
        for field in ("count", "index"):
            value = getattr(self, field)
            if by_hand and value is None:
                raise InputError(f"processes.{field}", value, "is needed with a coordinator that is not auto")
            if not by_hand and value is not None:
                raise InputError(f"processes.{field}", value, "goes with --processes.coordinator HOST:PORT")
        if self.count is not None and self.count < 1:
            raise InputError("processes.count", self.count, "must be at least 1")
        if self.count is not None and self.index is not None and not 0 <= self.index < self.count:
            raise InputError("processes.index", self.index, f"must lie between 0 and {self.count - 1}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run, completely: the same config and seed give the same run."""

    model: MoMConfig = dataclasses.field(default_factory=MoMConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    run_dir: str = "runs/mom"
    """Folder of this run; when it holds a checkpoint of the same config, the run resumes."""
    steps: int = 1000
    """Optimiser steps; the learning-rate schedule spans them. May be raised when resuming."""
    seed: int = 0
    """Seed of the initial parameters."""
    gradient_accumulation: int = 1
    """Micro-batches that one step splits its batch into, to save memory."""
    remat: Literal["none", "full", "dots"] = "none"
    """Recompute in the backward pass: nothing, each whole block, or all but matrix products."""
    max_bad_steps: int = 10
    """Steps in a row with a non-finite loss or gradient before the run stops."""
    max_minutes: float | None = None
    """Stop with a checkpoint after this many minutes; run again to continue."""
    log_every: int = 10
    """Steps between two lines of metrics (each the mean over its steps)."""
    eval_every: int = 500
    """Steps between two held-out evaluations; one more is always made at the end."""
    eval_windows: int = 64
    """Held-out windows of each evaluation during training."""

    def __post_init__(self):
        _at_least(self, 1, "steps", "gradient_accumulation", "max_bad_steps", "log_every", "eval_every", "eval_windows")
        _at_least(self, 0, "max_minutes", "seed")
        _one_of(self, "remat", ("none", "full", "dots"))
        if self.data.batch_size % self.gradient_accumulation:
            raise InputError(
                "gradient_accumulation",
                self.gradient_accumulation,
                f"must divide data.batch_size ({self.data.batch_size})",
            )
        check_local(self.run_dir, "run_dir")

    def anchored(self) -> Self:
        """The same run with paths of its data that mean the same from every folder."""
        return dataclasses.replace(self, data=self.data.anchored())

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
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                "run_dir", str(Path(path).parent), f"no readable {Path(path).name} there; give the folder of a run"
            ) from error
        except ValueError as error:
            raise InputError("config", str(path), "is not valid JSON; restore it or train again") from error
        return cls.from_dict(fields)


_SECTIONS = {
    "model": MoMConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "checkpoint": CheckpointConfig,
    "model.attn": AttentionConfig,
}

# Changing these between two sittings of one run changes where and how it runs, not what it computes.
_MAY_CHANGE = (
    "run_dir",
    "max_bad_steps",
    "max_minutes",
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
    if not isinstance(fields, dict):
        raise InputError(prefix.rstrip(".") or "config", fields, "expected a JSON object")
    known = {f.name for f in dataclasses.fields(cls)}
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known) or sorted(known)
            raise InputError(prefix + name, fields[name], f"unknown field; did you mean {' or '.join(close)}?")
    return cls(
        **{
            name: _build(_SECTIONS[prefix + name], value, f"{prefix}{name}.") if prefix + name in _SECTIONS else value
            for name, value in fields.items()
        }
    )


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`TrainConfig.to_dict`'s form without nesting, by dotted names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return found


def check_same_run(saved: TrainConfig, wanted: TrainConfig) -> None:
    """Checks that ``wanted`` may continue a run of ``saved``.

    ``steps`` may grow (the schedule then spans the new number); fields that do not change
    what is computed (mesh, intervals, rematerialisation, ...) may differ.

    Raises:
        InputError: names every field that differs, with both values.
    """
    old, new = flat(saved.anchored().to_dict()), flat(wanted.anchored().to_dict())
    differing = [
        name
        for name in new
        if old[name] != new[name]
        and name not in _MAY_CHANGE
        and name.split(".")[0] not in _MAY_CHANGE
        and not (name == "steps" and new[name] > old[name])
    ]
    if differing:
        changes = ", ".join(f"{name} (there {old[name]!r}, now {new[name]!r})" for name in differing)
        raise InputError(
            "run_dir",
            wanted.run_dir,
            f"holds a run of another config: {changes}; use another run_dir or the same values",
        )


def _tiny(name: str) -> TrainConfig:
    return TrainConfig(
        model=get_preset(name),
        data=DataConfig(sequence_length=256, batch_size=8),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=30),
        checkpoint=CheckpointConfig(every=200, keep=2),
        run_dir=f"runs/{name}",
        steps=400,
        eval_every=100,
    )


def _published(name: str, batch_size: int, steps: int, remat: Literal["none", "full", "dots"]) -> TrainConfig:
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
    "mom-340m": lambda name: _published(name, 256, 30720, "dots"),
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
