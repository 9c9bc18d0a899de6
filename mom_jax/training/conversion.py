"""Published models to runs and back."""

import dataclasses
import json
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh

from mom_jax.data.config import DataConfig
from mom_jax.data.tokenizers import check_rows, load_tokenizer
from mom_jax.errors import InputError
from mom_jax.interop.folders import check_empty, in_place_of
from mom_jax.interop.pretrained import load_pretrained, save_pretrained
from mom_jax.interop.published import read_config
from mom_jax.interop.tokenizer_files import files_of, find_tokenizer, put_tokenizer
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.upcycling import MixtureOptions, mixture_of
from mom_jax.paths import local_path
from mom_jax.training.checkpoint import NEWEST, Checkpoints, Choice, load_run
from mom_jax.training.config import CONFIG_FILE, TrainConfig

_TOKENIZER_FOLDER = "tokenizer"  # in the run's folder


def load_published(
    directory: str | Path, mesh: Mesh, tokenizer: str | None = None
) -> tuple[TrainConfig, MoMForCausalLM]:
    """A published model on ``mesh``, and a training config that names its tokenizer.

    Args:
        directory: ``config.json``, safetensors, and the tokenizer's files.
        mesh: where the parameters go.
        tokenizer: replaces the folder's own.

    Raises:
        InputError: no tokenizer, or one of another vocabulary; or as `load_pretrained`.
    """
    folder = local_path(directory, "directory")
    config = _train_config(read_config(folder)[0], folder, tokenizer)
    with jax.set_mesh(mesh):
        return config, load_pretrained(folder)


def _train_config(model: MoMConfig, folder: Path, tokenizer: str | None) -> TrainConfig:
    spec = tokenizer or find_tokenizer(folder)
    if spec is None:
        remedy = f"{folder} holds none; name it with --tokenizer (bytes, mistral, a file, a folder or a hub name)"
        raise InputError("tokenizer", "''", remedy)
    _check_tokenizer(spec, model)
    return TrainConfig(model=model, data=DataConfig(tokenizer=spec))


def _check_tokenizer(spec: str, model: MoMConfig) -> None:
    check_rows(spec, load_tokenizer(spec).vocab_size, model.vocab_size, "name the model's own with --tokenizer")


def published_to_run(source: str | Path, destination: str | Path, mesh: Mesh, tokenizer: str | None = None) -> None:
    """Writes a published model as a run whose checkpoint of step 0 holds its parameters.

    Raises:
        InputError: ``destination`` is not empty, or as `load_published`.
        OSError: the disk is full.
    """
    folder = local_path(destination, "destination").absolute()
    check_empty(folder, "dst")
    config, model = load_published(source, mesh, tokenizer)
    _write_run(config, model, folder)


def single_to_mixture(
    source: str | Path,
    destination: str | Path,
    mesh: Mesh,
    options: MixtureOptions,
    *,
    model_type: str | None = None,
    tokenizer: str | None = None,
) -> None:
    """Writes a mixture that begins as a published model of single memories does (`mixture_of`), as a run to train on.

    Raises:
        InputError: the model is of another type than ``model_type``, or as `published_to_run` and `mixture_of`.
    """
    folder = local_path(destination, "destination").absolute()
    check_empty(folder, "dst")
    found = read_config(local_path(source, "directory"))[1]
    if model_type not in (None, found):
        raise InputError("from", model_type, f"{source} holds a {found}; name that, or leave --from out")
    config, model = load_published(source, mesh, tokenizer)
    with jax.set_mesh(mesh):
        mixture = mixture_of(model, options)
    _write_run(dataclasses.replace(config, model=mixture.config), mixture, folder)


def _write_run(config: TrainConfig, model: MoMForCausalLM, folder: Path) -> None:
    """A run's folder with a checkpoint of step 0 that holds the model's parameters, and the tokenizer's files."""
    with in_place_of(folder) as temporary:
        spec = config.data.tokenizer
        if files_of(spec):
            (temporary / _TOKENIZER_FOLDER).mkdir()
            put_tokenizer(spec, temporary / _TOKENIZER_FOLDER)
            spec = str(folder / _TOKENIZER_FOLDER)
        config = TrainConfig(model=config.model, data=DataConfig(tokenizer=spec), run_dir=str(folder))
        (temporary / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        with Checkpoints(config, temporary) as checkpoints:
            checkpoints.save_weights(nnx.to_pure_dict(nnx.state(model)))


def run_to_published(
    source: str | Path,
    destination: str | Path,
    mesh: Mesh,
    *,
    dtype: str,
    max_shard_bytes: int,
    tokenizer: str | None = None,
    choice: Choice = NEWEST,
) -> None:
    """Writes a checkpoint of a run as a published model, its tokenizer (or another) beside it.

    Raises:
        InputError: as `load_run` and `save_pretrained`, or a tokenizer of more tokens than the model has rows.
    """
    folder = local_path(destination, "destination").absolute()
    check_empty(folder, "dst")
    config, model, _ = load_run(source, mesh, choice)
    named, tokenizer = tokenizer is not None, tokenizer or config.data.tokenizer
    files_of(tokenizer)  # complains before anything is written, as does what follows
    if named:
        _check_tokenizer(tokenizer, config.model)
    with in_place_of(folder) as temporary:
        save_pretrained(model, temporary, dtype=dtype, max_shard_bytes=max_shard_bytes)
        put_tokenizer(tokenizer, temporary)
