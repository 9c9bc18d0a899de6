"""The published ``config.json``: from a folder to our configuration, and back."""

import json
from pathlib import Path
from typing import Any

from mom_jax.errors import InputError
from mom_jax.interop.publish import in_their_words
from mom_jax.models.config import MoMConfig

CONFIG_FILE = "config.json"
# What the reference's configurations have besides our fields; nothing here changes what a model computes.
_CONSTANT = {
    "hidden_act": "swish",
    "use_cache": True,
    "fuse_norm": True,
    "fuse_swiglu": True,
    "fuse_cross_entropy": True,
}
_ARCHITECTURES = {
    "mom": "MomForCausalLM",
    "gated_deltanet": "GatedDeltaNetForCausalLM",
    "delta_net": "DeltaNetForCausalLM",
    "linear_attn": "LinearAttentionForCausalLM",
    "retnet": "RetNetForCausalLM",
    "gla": "GLAForCausalLM",
    "hgrn2": "HGRN2ForCausalLM",
    "gsa": "GSAForCausalLM",
    "kda": "KDAForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "transformer": "TransformerForCausalLM",
}


def is_published(folder: Path) -> bool:
    """Whether the folder holds a model of the PyTorch library rather than a run of ours."""
    try:
        return "model_type" in json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_config(folder: Path) -> tuple[MoMConfig, str]:
    """Configuration and layout (the model type) of a published model.

    Raises:
        InputError: no such folder, no ``config.json`` in it, or one of another model.
    """
    if not folder.is_dir():
        raise InputError("directory", str(folder), "no such folder")
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError("directory", str(folder), f"holds no {CONFIG_FILE}; give the folder of a published model")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("config", str(path), f"is not JSON ({error})") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise InputError("config", str(path), "names no model_type; give the folder of a published model")
    try:
        config = MoMConfig.from_dict(fields)
    except TypeError as error:
        raise InputError("config", str(path), f"has a value of the wrong type ({error})") from error
    if config.has_router_bias:
        raise InputError("router_balance", config.router_balance, f"published models have no such bias; edit {path}")
    return config, fields["model_type"]


def published_fields(config: MoMConfig, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of a model whose parameters are stored in ``dtype``.

    Raises:
        InputError: the PyTorch library has no such model.
    """
    model_type, fields = in_their_words(config.to_dict())
    architecture = {"model_type": model_type, "architectures": [_ARCHITECTURES[model_type]], "dtype": dtype}
    return dict(sorted({**fields, **_CONSTANT, **architecture}.items()))


def write_config(config: MoMConfig, path: Path, dtype: str) -> None:
    """Writes `published_fields` as JSON."""
    path.write_text(json.dumps(published_fields(config, dtype), indent=2) + "\n", encoding="utf-8")
