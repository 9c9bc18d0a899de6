"""Reads a stored file, and puts the reference's parameters into our modules."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from support.parameters import random_model

from mom_jax.interop.keys import pieces
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.structure import dotted, model_parts

HERE = Path(__file__).resolve().parent
Arrays = dict[str, np.ndarray]


def load(name: str) -> Arrays:
    """All entries of ``<name>.npz``."""
    with np.load(HERE / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def under(arrays: Arrays, prefix: str) -> Arrays:
    """Entries below ``prefix/`` without it, as float32."""
    return {key[len(prefix) + 1 :]: a.astype(np.float32) for key, a in arrays.items() if key.startswith(prefix + "/")}


def config_of(arrays: Arrays) -> MoMConfig:
    """The file's configuration."""
    return MoMConfig.from_dict(json.loads(str(arrays["config"])))


def ours(config: MoMConfig, entries: Arrays, shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """The reference's arrays as ours, by our names and shapes, through the table that checkpoints are read with."""
    found = {}
    for name, shape in shapes.items():
        found[name] = np.empty(shape, np.float32)
        for where, theirs, form in pieces(config, "mom", name, shape):
            own = shape[len(where) :]
            found[name][where] = form.ours(entries[theirs], (slice(None),) * len(own), own)
    return found


def model_parameters(config: MoMConfig, entries: Arrays) -> Arrays:
    """Our names and values of a whole model; blocks are stacked along a leading axis."""
    abstract = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(model_parts(config).abstract))[0]
    return ours(config, entries, {dotted(path): leaf.shape for path, leaf in abstract})


def mixer_parameters(layer: nnx.Module, config: MoMConfig, entries: Arrays) -> Arrays:
    """The same of a mixer by itself: the only layer of a model of ``config``."""
    within = {f"model.layers.0.attn.{name}": values for name, values in entries.items()}
    shapes = {f"layers.attn.{name}": (1, *p.shape) for name, p in parameters_by_name(nnx.state(layer)).items()}
    found = ours(config, within, shapes)
    return {name.removeprefix("layers.attn."): values[0] for name, values in found.items()}


def parameters_by_name(params: Any) -> dict[str, Any]:
    """Arrays of an nnx state by dotted name."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(params)}


def assign(module: nnx.Module, values: dict[str, np.ndarray]) -> None:
    """Overwrites every parameter of ``module``; names and shapes must agree exactly."""
    ours = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(nnx.state(module))}
    assert set(ours) == set(values), set(ours) ^ set(values)
    shapes = {name: leaf.get_value().shape for name, (_, leaf) in ours.items()}
    assert shapes == {name: x.shape for name, x in values.items()}
    flat = {path: leaf.replace(jnp.asarray(values[name])) for name, (path, leaf) in ours.items()}
    nnx.update(module, nnx.from_flat_state(flat))


def model_of(arrays: Arrays, parameters_from: Arrays | None = None, **options: Any) -> MoMForCausalLM:
    """The file's model, with its own or another file's parameters; options replace fields of its configuration."""
    config = dataclasses.replace(config_of(arrays), **options)
    model = random_model(config)
    assign(model, model_parameters(config, under(parameters_from or arrays, "sd")))
    return model
