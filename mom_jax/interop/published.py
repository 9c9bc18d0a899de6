"""The published ``config.json``: from a folder to our configuration, and back."""

from pathlib import Path
from typing import Any

from mom_jax.errors import InputError
from mom_jax.files import read_json, write_json
from mom_jax.interop.publish import to_published
from mom_jax.interop.tensors import INDEX, SINGLE
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


def is_published(folder: Path) -> bool:
    """Whether the folder holds a model of the PyTorch library rather than a run of ours: weights, or such a config."""
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return True
    try:
        return "model_type" in read_json(folder / CONFIG_FILE, dict[str, Any], "")
    except InputError:
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
    fields = read_json(path, dict[str, Any], "get an undamaged copy of the model", "config")
    if "model_type" not in fields:
        raise InputError("config", path, "names no model_type; give the folder of a published model")
    try:
        config = MoMConfig.from_dict(fields)
    except InputError as error:
        raise InputError(error.field, error.value, f"{error.remedy} (in {path})") from error
    if config.has_router_bias:
        raise InputError("router_balance", config.router_balance, f"published models have no such bias; edit {path}")
    return config, fields["model_type"]


def published_fields(config: MoMConfig, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of a model whose parameters are stored in ``dtype``.

    Raises:
        InputError: the PyTorch library has no such model.
    """
    model_type, architecture, fields = to_published(config.to_dict())
    names = {"model_type": model_type, "architectures": [architecture], "dtype": dtype}
    return dict(sorted({**fields, **_CONSTANT, **names}.items()))


def write_config(config: MoMConfig, path: Path, dtype: str) -> None:
    """Writes `published_fields` as JSON."""
    write_json(path, published_fields(config, dtype), indent=2)
