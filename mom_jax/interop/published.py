"""The published ``config.json``: from a folder to our configuration, and back."""

import json
from pathlib import Path
from typing import Any

from mom_jax.errors import InputError
from mom_jax.models.config import MoMConfig

CONFIG_FILE = "config.json"
# What the reference's configuration has besides our fields; nothing here changes what a model computes.
_CONSTANT = {
    "architectures": ["MomForCausalLM"],
    "attn_mode": "chunk",
    "hidden_act": "swish",
    "mom_backend": "gated_deltanet",
    "capacity": 1.0,
    "use_layer_wise_balance": True,
    "use_cache": True,
    "fuse_norm": True,
    "fuse_swiglu": True,
    "fuse_cross_entropy": True,
}
# Our fields that the reference does not know and that say how to run, not what the weights are.
_OURS = ("memory_rule", "reference_conv_leak")


def is_published(folder: Path) -> bool:
    """Whether the folder holds a model of the PyTorch library rather than a run of ours."""
    try:
        return "model_type" in json.loads((folder / CONFIG_FILE).read_text())
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
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise InputError("config", str(path), f"is not JSON ({error})") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise InputError("config", str(path), "names no model_type; give the folder of a published model")
    return MoMConfig.from_dict(fields), fields["model_type"]


def published_fields(config: MoMConfig, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of a model whose parameters are stored in ``dtype``.

    Raises:
        InputError: the PyTorch library has no such model.
    """
    if config.memory_rule != "gated_deltanet":
        raise InputError("memory_rule", config.memory_rule, "the PyTorch library has gated_deltanet only")
    fields = {name: value for name, value in config.to_dict().items() if name not in _OURS}
    return dict(sorted({**fields, **_CONSTANT, "dtype": dtype}.items()))


def write_config(config: MoMConfig, path: Path, dtype: str) -> None:
    """Writes `published_fields` as JSON."""
    path.write_text(json.dumps(published_fields(config, dtype), indent=2) + "\n")
