"""Weights & Biases and MLflow, which a run logs to when its config says so; both also work without a network.

``WANDB_MODE=offline`` and ``MLFLOW_TRACKING_URI`` are theirs to read.
"""

import hashlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mom_jax.data.remote import is_address
from mom_jax.errors import InputError, in_a_line, install, is_installed
from mom_jax.training.board import scalars
from mom_jax.training.config import TrainConfig, flat
from mom_jax.training.extensions import Logger


def check_installed(config: TrainConfig) -> None:
    """Raises `InputError` where a package is missing that the config names."""
    for name in config.log:
        if not is_installed(name):
            raise InputError("log", name, f"the package is missing: {install(name)}")


def open_loggers(config: TrainConfig, run_dir: Path, step: int) -> list[Logger]:
    """The loggers that the config names.

    Args:
        config: of the run, which they keep.
        run_dir: the run's folder; its name is the run's name there.
        step: the sitting goes on from here.

    Raises:
        InputError: a package will not start.
    """
    return [_opened(name, config, run_dir, step) for name in dict.fromkeys(config.log)]


def _opened(name: str, config: TrainConfig, run_dir: Path, step: int) -> Logger:
    try:
        return _KINDS[name](importlib.import_module(name), config, run_dir, step)
    except Exception as error:
        raise InputError("log", name, f"does not start ({in_a_line(error)}); leave it out, or set it up") from error


class WandbLogger:
    """A run of Weights & Biases; a run that is resumed goes on there too."""

    def __init__(self, wandb: Any, config: TrainConfig, run_dir: Path, step: int):
        place = config.run_dir if is_address(config.run_dir) else str(run_dir)
        self._run = wandb.init(
            project="mom-jax",
            name=run_dir.name,
            id=hashlib.sha256(place.encode()).hexdigest()[:16],
            resume="allow",
            dir=str(run_dir),
            config=flat(config.to_dict()),
        )

    def log(self, step: int, metrics: dict[str, Any], group: str) -> None:
        """As `Logger.log`."""
        self._run.log(scalars(metrics, group), step=step)

    def close(self) -> None:
        """As `Logger.close`."""
        self._run.finish()


class MlflowLogger:
    """A run of MLflow in the experiment mom-jax; a sitting is a run of its own name.

    It goes where ``MLFLOW_TRACKING_URI`` says, or else into files in the run's folder: MLflow's own default is a data
    base, for which its small package brings no driver.
    """

    def __init__(self, mlflow: Any, config: TrainConfig, run_dir: Path, step: int):
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((run_dir / "mlflow").absolute().as_uri())
        mlflow.set_experiment("mom-jax")
        self._mlflow, self._run = mlflow, mlflow.start_run(run_name=f"{run_dir.name} from step {step}")
        mlflow.log_params({name: str(value)[:500] for name, value in flat(config.to_dict()).items()})

    def log(self, step: int, metrics: dict[str, Any], group: str) -> None:
        """As `Logger.log`."""
        self._mlflow.log_metrics(scalars(metrics, group), step=step)

    def close(self) -> None:
        """As `Logger.close`."""
        self._mlflow.end_run()


_KINDS: dict[str, Callable[[Any, TrainConfig, Path, int], Logger]] = {"wandb": WandbLogger, "mlflow": MlflowLogger}
