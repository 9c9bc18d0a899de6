"""Checkpoints: written in the background, checked when read."""

import dataclasses
import errno
import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from mom_jax.errors import InputError
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.parts import dotted, model_parts
from mom_jax.training import manifest
from mom_jax.training.config import TrainConfig
from mom_jax.training.processes import is_first
from mom_jax.training.state import TrainState, abstract_state

# Files are filled in memory before they are written; small ones bound what a large model takes besides itself.
_SMALL_FILE_BYTES = 2**23


@contextmanager
def _full_disk_as_oserror(folder: Path) -> Iterator[None]:
    # A background write to a full disk surfaces as one of several exception types, known by its text alone.
    try:
        yield
    except Exception as error:
        if "No space left" not in str(error):
            raise
        for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)  # the torso only takes up room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _step_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()), key=lambda path: int(path.name)
    )


def latest_step(folder: Path) -> int | None:
    """The newest step whose checkpoint was written to its end; None when there is no checkpoint at all.

    Raises:
        InputError: there are step folders, but each is half written.
    """
    steps = _step_folders(folder)
    for path in reversed(steps):
        if manifest.is_committed(path):
            return int(path.name)
    if steps:
        raise InputError(
            "checkpoint", str(steps[-1]), f"is half written and there is no other; delete {folder} and start again"
        )
    return None


class Checkpoints:
    """The checkpoints of one run, in ``run_dir/checkpoints/<step>``. Use it as a context manager.

    Args:
        config: of the run; stored with each checkpoint.
        run_dir: the run's folder while it is not yet in its place; ``config.run_dir`` otherwise.
    """

    def __init__(self, config: TrainConfig, run_dir: str | Path | None = None):
        self.config, self.folder = config, checkpoint_folder(run_dir or config.run_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.checkpoint.keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._set_aside_half_written()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with _full_disk_as_oserror(self.folder):
            self._manager.close()

    def _seal(self) -> None:
        if is_first():
            for folder in self.folder.glob("*.orbax-checkpoint-tmp*"):
                manifest.write_manifest(folder)

    def _set_aside_half_written(self) -> None:
        # Saving onto an existing folder would silently do nothing.
        if is_first():
            for path in _step_folders(self.folder):
                if not manifest.is_committed(path):
                    path.rename(path.with_name(f"half-written-{path.name}-{os.getpid()}"))

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Starts writing a checkpoint in the background, after the one before it is done.

        Raises:
            OSError: the disk is full (of this write or of the one before).
        """
        with _full_disk_as_oserror(self.folder):
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                return  # nothing was trained since
            self._check_space(state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    state=ocp.args.StandardSave(_all_but_params(state)),
                    config=ocp.args.JsonSave(self.config.to_dict()),
                    data=ocp.args.JsonSave(data),
                ),
            )

    def save_weights(self, params: Any) -> None:
        """Writes a checkpoint of step 0 that holds parameters alone, as a model from elsewhere brings them.

        Raises:
            OSError: the disk is full.
        """
        with _full_disk_as_oserror(self.folder):
            self._check_space(params)
            items = ocp.args.Composite(
                params=ocp.args.PyTreeSave(params, ocdbt_target_data_file_size=_SMALL_FILE_BYTES),
                config=ocp.args.JsonSave(self.config.to_dict()),
            )
            self._manager.save(0, args=items)
        self.wait()

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
        with _full_disk_as_oserror(self.folder):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()


def checkpoint_folder(run_dir: str | Path) -> Path:
    """Where a run keeps its checkpoints, absolute."""
    return Path(run_dir).expanduser().absolute() / "checkpoints"


def _all_but_params(state: TrainState) -> dict[str, Any]:
    # The parameters are an item of their own, so that evaluation need not read the optimiser's moments.
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}


def _reading(folder: Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True, create=False))


def _read(folder: Path, step: int, **items: Any) -> Any:
    with _reading(folder) as manager:
        return manager.restore(step, args=ocp.args.Composite(**items))


def read_config(folder: Path, step: int) -> TrainConfig:
    """Verifies the checkpoint of ``step`` and reads the config it was written with.

    Raises:
        InputError: see `manifest.verify`.
    """
    manifest.verify(folder / str(step))
    return TrainConfig.from_dict(_read(folder, step, config=ocp.args.JsonRestore())["config"])


def restore(folder: Path, step: int, config: TrainConfig, mesh: Mesh) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint, whose files `read_config` has verified, onto ``mesh``; any mesh will do.

    Returns:
        (the training state, the position in the training data).
    """
    target = abstract_state(config, mesh)
    found = _read(
        folder,
        step,
        params=ocp.args.StandardRestore(target.params),
        state=ocp.args.StandardRestore(_all_but_params(target)),
        data=ocp.args.JsonRestore(),
    )
    return TrainState(params=found["params"], **found["state"]), found["data"]


def restore_params(folder: Path, step: int, config: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """The parameters of a checkpoint, whose files `read_config` has verified, on ``mesh``.

    Raises:
        InputError: the checkpoint lacks a parameter of the model.
    """
    target, tree = jax.tree_util.tree_flatten_with_path(abstract_state(config, mesh).params)
    found: dict[int, jax.Array] = {}
    with _reading(folder) as manager:
        # One by one, large ones first: what is in the air besides them then never adds to the whole model.
        for i, (path, leaf) in sorted(enumerate(target), key=lambda item: -item[1][1].size):
            part = functools.reduce(lambda inner, key: {key.key: inner}, reversed(path), leaf)
            arguments = ocp.checkpoint_utils.construct_restore_args(part)
            item = ocp.args.PyTreeRestore(part, restore_args=arguments, partial_restore=True)
            (found[i],) = jax.tree.leaves(manager.restore(step, args=ocp.args.Composite(params=item))["params"])
            if not isinstance(found[i], jax.Array):  # what is not stored comes back as it was asked for
                remedy = "lacks a parameter of the model; use the version of mom-jax that wrote it"
                raise InputError("checkpoint", str(folder / str(step)), f"{remedy}: {dotted(path)}")
    return jax.tree.unflatten(tree, [found[i] for i in range(len(target))])


def holds_weights_alone(folder: Path, step: int) -> bool:
    """Whether a checkpoint came from `Checkpoints.save_weights`: nothing to resume, but parameters to start from."""
    return not (folder / str(step) / "state").exists()


def load_run(run_dir: str | Path, mesh: Mesh) -> tuple[TrainConfig, MoMForCausalLM, int]:
    """The model of a run's newest checkpoint, for evaluation and generation.

    Returns:
        (the run's config, the model with its parameters on ``mesh``, the step).

    Raises:
        InputError: no run or no checkpoint there, or one that fails its checks.
    """
    folder = checkpoint_folder(run_dir)
    if not Path(run_dir).expanduser().is_dir():
        raise InputError("run", str(run_dir), "no such folder; give the run_dir of a training run")
    step = latest_step(folder)
    if step is None:
        raise InputError("run", str(run_dir), "holds no checkpoint; train it first, with --run-dir set to this folder")
    config = read_config(folder, step)
    params = restore_params(folder, step, config, mesh)
    return config, model_parts(config.model).merge(params), step
