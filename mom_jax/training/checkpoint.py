"""Checkpoints: written in the background, checked when read."""

import dataclasses
import errno
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from mom_jax.errors import InputError
from mom_jax.files import read_json
from mom_jax.locks import only_writer
from mom_jax.models.finite import check_finite
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.training import manifest, storage
from mom_jax.training.config import TrainConfig
from mom_jax.training.folders import checkpoint_folder, newest, set_aside, step_folders, whole_step
from mom_jax.training.processes import is_first, together
from mom_jax.training.program import Program
from mom_jax.training.state import TrainState

LOCK = "train"  # held by whoever writes checkpoints, see `locks.only_writer`


class Checkpoints:
    """The checkpoints of one run, in ``run_dir/checkpoints/<step>``. Use it as a context manager.

    Args:
        config: of the run; stored with each checkpoint.
        run_dir: the run's folder while it is not yet in its place; ``config.folder`` otherwise.
    """

    def __init__(self, config: TrainConfig, run_dir: str | Path | None = None):
        self.config, self.folder = config, checkpoint_folder(run_dir or config.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.checkpoint.keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._proved, self._started = False, list[int]()
        with ExitStack() as stack:
            plain = stack.enter_context(storage.plain_name(self.folder))
            self._manager = ocp.CheckpointManager(plain, options=options)
            stack.callback(self._manager.close)
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with storage.full_disk_as_oserror(self.folder):
            self._closing.close()

    def _seal(self) -> None:
        if is_first():
            for folder in self.folder.glob("*.orbax-checkpoint-tmp*"):
                manifest.write_manifest(folder, int(folder.name.partition(".")[0]))

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Starts writing a checkpoint in the background, after the one before it is done.

        The first one is waited for, and what describes its arrays is read back.

        Raises:
            OSError: the disk is full (of this write or of the one before).
            InputError: the first one cannot be read back.
        """
        with storage.full_disk_as_oserror(self.folder):
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                return  # nothing was trained since
            self._check_space(state)
            trees = {"params": state.params, "ema": state.ema, "state": _all_but_params(state)}
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{item: ocp.args.StandardSave(tree) for item, tree in trees.items() if tree is not None},
                    config=ocp.args.JsonSave(self.config.to_dict()),
                    data=ocp.args.JsonSave(data),
                ),
            )
        self._started.append(step)
        if not self._proved:
            self._prove(step, "params", "state")

    def save_weights(self, params: Any) -> None:
        """Writes a checkpoint of step 0 that holds parameters alone, as a model from elsewhere brings them.

        Raises:
            OSError: the disk is full.
            InputError: it cannot be read back.
        """
        with storage.full_disk_as_oserror(self.folder):
            self._check_space(params)
            items = ocp.args.Composite(
                params=ocp.args.PyTreeSave(params, ocdbt_target_data_file_size=storage.SMALL_FILE_BYTES),
                config=ocp.args.JsonSave(self.config.to_dict()),
            )
            self._manager.save(0, args=items)
        self._prove(0, "params")

    def finished(self) -> list[int]:
        """The steps whose checkpoints have become whole since this was asked last."""
        if not self._started or self._manager.is_saving_in_progress():
            return []
        done, self._started = self._started, []
        return [step for step in done if manifest.is_committed(self.folder / str(step))]

    def steps(self) -> list[int]:
        """The steps of all checkpoints that are whole, in order."""
        self.wait()
        return [int(path.name) for path in step_folders(self.folder) if manifest.is_committed(path)]

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def _prove(self, step: int, *items: str) -> None:
        self.wait()
        with together():
            for item in items if is_first() else ():
                storage.check_readable(self.folder / str(step) / item)
        self._proved = True

    def _check_space(self, tree: Any) -> None:
        # Asked before writing: background threads that meet a full disk half-way are noisy and leave torsos.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk.

        Raises:
            OSError: the disk is full.
        """
        with storage.full_disk_as_oserror(self.folder):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()


def latest_step(folder: Path) -> int | None:
    """The newest step whose checkpoint was written to its end, unchecked; None when there is none."""
    return max((int(path.name) for path in step_folders(folder) if manifest.is_committed(path)), default=None)


def _set_aside_if_free(checkpoint: Path) -> str:
    try:
        with only_writer(checkpoint.parent.parent, LOCK):
            return set_aside(checkpoint)
    except (InputError, OSError):  # somebody trains there, or the folder cannot be written
        return "it stays there"


def _all_but_params(state: TrainState) -> dict[str, Any]:
    # Parameters and their average are items of their own, so that evaluation need not read the optimiser's moments.
    names = (field.name for field in dataclasses.fields(state) if field.name not in ("params", "ema"))
    return {name: getattr(state, name) for name in names}


def _read_fields(item: Path) -> dict[str, Any]:
    return read_json(item / "metadata", dict[str, Any], f"set {item.parent} aside by renaming it", "checkpoint")


def read_config(folder: Path, step: int) -> TrainConfig:
    """The config that the checkpoint of ``step`` was written with."""
    return TrainConfig.from_dict(_read_fields(folder / str(step) / "config"))


def read_position(folder: Path, step: int) -> dict[str, Any]:
    """The position in the training data that the checkpoint of ``step`` was written at."""
    return _read_fields(folder / str(step) / "data")


def restore(folder: Path, step: int, program: Program) -> TrainState:
    """Reads a checkpoint that `newest` has found onto the program's mesh; any mesh will do.

    Raises:
        InputError: it cannot be read.
    """
    checkpoint, target = folder / str(step), program.abstract
    state = storage.read_tree(checkpoint / "state", _all_but_params(target))
    ema = None if target.ema is None else storage.read_tree(checkpoint / "ema", target.ema)
    return TrainState(params=storage.read_tree(checkpoint / "params", target.params), ema=ema, **state)


def restore_params(folder: Path, step: int, program: Program, *, ema: bool = False) -> dict[str, Any]:
    """The parameters of a checkpoint that `newest` has found, or their moving average, on the program's mesh.

    Raises:
        InputError: the checkpoint lacks a parameter of the model or the average, or cannot be read.
    """
    checkpoint = folder / str(step)
    if ema and not (checkpoint / "ema").is_dir():
        remedy = "keeps no moving average of the parameters; train with --optimizer.ema-decay 0.999, or leave this out"
        raise InputError("ema", checkpoint, remedy)
    return storage.read_leaves(checkpoint / ("ema" if ema else "params"), program.abstract_params)


def holds_weights_alone(folder: Path, step: int) -> bool:
    """Whether a checkpoint came from `Checkpoints.save_weights`: nothing to resume, but parameters to start from."""
    return not (folder / str(step) / "state").exists()


class Choice(NamedTuple):
    """Which parameters of a run: those after a step (None: the newest that is whole), and whether their average."""

    step: int | None = None
    ema: bool = False

    def refuse(self, folder: str | Path) -> None:
        """Raises `InputError` where a choice was made: of a published model there is none."""
        for field, value in self._asdict().items():
            if value != self._field_defaults[field]:
                remedy = f"is of runs; {folder} is a published model, which has its parameters alone"
                raise InputError(field, value, remedy)


NEWEST = Choice()


def load_run(run_dir: str | Path, mesh: Mesh, choice: Choice = NEWEST) -> tuple[TrainConfig, MoMForCausalLM, int]:
    """The model of a run's checkpoint, for evaluation and generation.

    Returns:
        (the run's config, the model with its parameters on ``mesh``, the step).

    Raises:
        InputError: no run or no such whole checkpoint there, or parameters that are not finite.
    """
    folder = checkpoint_folder(run_dir)
    if not folder.parent.is_dir():
        raise InputError("run", str(run_dir), "no such folder; give the run_dir of a training run")
    step = newest(folder, _set_aside_if_free)[0] if choice.step is None else whole_step(folder, choice.step)
    if step is None:
        raise InputError("run", str(run_dir), "holds no checkpoint; train it first, with --run-dir set to this folder")
    program = Program(read_config(folder, step), mesh)
    params = restore_params(folder, step, program, ema=choice.ema)
    check_run_is_finite(params, folder / str(step))
    return program.config, program.parts.merge(params), step


def check_run_is_finite(params: Any, checkpoint: Path) -> None:
    """Raises `InputError` where a run has diverged: its parameters hold NaN or infinity."""
    check_finite(params, "checkpoint", checkpoint, "the run diverged: rename this folder to use the one before")
