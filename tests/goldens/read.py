"""Reads a stored file, and puts the reference's parameters into our modules."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM

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


def mixer_parameters(entries: Arrays, memories: int, shared: bool, single: bool) -> dict[str, np.ndarray]:
    """Our names of one mixer's parameters, and their values: matrices are stored transposed there."""

    def per_memory(letter: str) -> np.ndarray:
        names = [] if single else [f"{letter}_proj.{m}.weight" for m in range(memories)]
        names += [f"shared_{letter}.weight"] if shared or single else []
        return np.stack([entries[name].T for name in names])

    ours = {
        "router.weight": entries["gate.weight"].T,
        "rule.q_proj.weight": entries["q_proj.weight"].T,
        "rule.A_log": entries["A_log"],
        "rule.dt_bias": entries["dt_bias"],
        "output.norm": entries["o_norm.weight"],
        "output.o_proj.weight": entries["o_proj.weight"].T,
    }
    if "g_proj.weight" in entries:  # no output gate otherwise
        ours["output.g_proj.weight"] = entries["g_proj.weight"].T
    ours |= {f"rule.{letter}_proj": per_memory(letter) for letter in "kvba"}
    return ours | {f"rule.{letter}_conv1d": entries[f"{letter}_conv1d.weight"][:, 0] for letter in "qkv"}


def model_parameters(config: MoMConfig, entries: Arrays) -> dict[str, np.ndarray]:
    """Our names and values of a whole model; blocks are stacked along a leading axis."""
    blocks: dict[str, list[Arrays]] = {"layers": [], "attention_layers": []}
    for i, kind in enumerate(config.layer_kinds):
        inside = {key.removeprefix(f"model.layers.{i}."): a for key, a in entries.items() if f"layers.{i}." in key}
        attn = {key.removeprefix("attn."): a for key, a in inside.items() if key.startswith("attn.")}
        if kind == "attention":
            mixer = {key: a.T for key, a in attn.items()}
        else:
            mixer = mixer_parameters(attn, config.num_memories, config.shared_mem, config.single_kv_proj)
        block = {f"attn.{key}": a for key, a in mixer.items()}
        block |= {f"{name}_norm.weight": inside[f"{name}_norm.weight"] for name in ("attn", "mlp")}
        block |= {f"mlp.{name}_proj.weight": inside[f"mlp.{name}_proj.weight"].T for name in ("gate", "up", "down")}
        blocks["layers" if kind == "memory" else "attention_layers"].append(block)
    ours = {f"{stack}.{key}": np.stack([block[key] for block in stacked])
            for stack, stacked in blocks.items() if stacked for key in stacked[0]}  # fmt: skip
    ours |= {"embeddings": entries["model.embeddings.weight"], "norm.weight": entries["model.norm.weight"]}
    if not config.tie_word_embeddings:
        ours["lm_head"] = entries["lm_head.weight"]
    return ours


def parameters_by_name(params: Any) -> dict[str, Any]:
    """Arrays of an nnx state by dotted name."""
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(params)}


def assign(module: nnx.Module, values: dict[str, np.ndarray]) -> None:
    """Overwrites every parameter of ``module``; names and shapes must agree exactly."""
    flat = dict(nnx.to_flat_state(nnx.state(module)))
    ours = {".".join(map(str, path)): leaf for path, leaf in flat.items()}
    assert set(ours) == set(values), set(ours) ^ set(values)
    for name, leaf in ours.items():
        assert leaf[...].shape == values[name].shape, name
        leaf[...] = values[name]
    nnx.update(module, nnx.from_flat_state(flat))


def model_of(arrays: Arrays, parameters_from: Arrays | None = None, **options: Any) -> MoMForCausalLM:
    """The file's model, with its own or another file's parameters; options replace fields of its configuration."""
    config = dataclasses.replace(config_of(arrays), **options)
    model = MoMForCausalLM(config, rngs=nnx.Rngs(0))
    assign(model, model_parameters(config, under(parameters_from or arrays, "sd")))
    return model
