"""What a scale trains, written out: a config file for each language model, and the commands, for a pod or a cluster.

A sweep trains its models itself. But at the paper's scale each of them is a run of its own, started by a scheduler on
many machines (``launch/``). So a recipe puts each where the sweep looks for it: once it is trained, the sweep finds it
and only scores it.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from mom_jax.cli.config_file import as_yaml
from mom_jax.errors import InputError
from mom_jax.files import write_atomically
from mom_jax.paths import output_folder
from mom_jax.training.config import TrainConfig

from .common.text import run_folder
from .registry import Experiment, Point

SCRIPT = "recipe.sh"
_NAMED_BY = {"model": "", "architecture": "", "size": "", "seed": "seed "}  # fields of a point, and what says so


def write_recipe(experiment: Experiment, points: Sequence[Point], sweep: str, out: Path, folder: Path) -> list[Path]:
    """Writes the files into ``folder``, and returns their paths, the script's last.

    Args:
        experiment, points: whose language models.
        sweep: the command that scores them.
        out: the folder of sweeps.
        folder: the recipe's.

    Raises:
        InputError: the points train no language model, or nothing can be written there.
    """
    configs = _configs(experiment, points, out / "models")
    if not configs:
        raise InputError("recipe", folder, "these points train no language model; the experiment itself is the recipe")
    folder = output_folder(folder, "recipe")
    paths = [folder / f"{name}.yaml" for name in configs]
    for path, config in zip(paths, configs.values(), strict=True):
        write_atomically(path, as_yaml(config))
    head = [
        "#!/bin/sh",
        "# Trains the models one after the other, then scores them; the same line goes on where it was stopped.",
        "# On a cluster, start each line of training by a file of launch/ instead, and the last one when all are done.",
        "set -e",
    ]
    lines = [f"mom-jax train --config {shlex.quote(str(path))}" for path in paths]
    write_atomically(folder / SCRIPT, "\n".join([*head, *lines, sweep]) + "\n")
    return [*paths, folder / SCRIPT]


def _configs(experiment: Experiment, points: Sequence[Point], models: Path) -> dict[str, TrainConfig]:
    """By name; a model that several points score stands there once."""
    made: dict[str, TrainConfig] = {}
    for point in points:
        config = experiment.training(point)
        if config is not None:
            named = "-".join(f"{word}{point[field]}" for field, word in _NAMED_BY.items() if field in point)
            run = dataclasses.replace(config, run_dir=str(run_folder(config, models)))
            made[re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")] = run
    return made
