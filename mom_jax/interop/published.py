"""The published ``config.json``: from a folder to our configuration, and back (what `model_types` reads, written)."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from mom_jax.errors import InputError
from mom_jax.files import read_json, write_json
from mom_jax.interop.tensors import INDEX, SINGLE
from mom_jax.layers.rules import RULES
from mom_jax.layers.rules.published import CONV, HEAD_SIZES, Fields, Published, renamed, without
from mom_jax.layers.rules.qkv import ConvOptions
from mom_jax.layers.rules.registry import find_rule, published_rules
from mom_jax.models.attention_config import AttentionConfig
from mom_jax.models.config import MoMConfig
from mom_jax.models.router_config import OF_THE_REFERENCE, RouterConfig

CONFIG_FILE = "config.json"
# What the reference's configurations have besides our fields; nothing here changes what a model computes.
_CONSTANT = {
    "hidden_act": "swish",
    "use_cache": True,
    "fuse_norm": True,
    "fuse_swiglu": True,
    "fuse_cross_entropy": True,
}
_MIXTURE = ("num_memories", "topk", "shared_mem", "single_kv_proj", "aux_loss_scale")
_OF_OUR_MEMORIES = {"projection_rank": None, "decay_spread": 1.0, "learned_initial_state": False}
_OURS = (
    *("memory_rule", "mixture", "reference_conv_leak", "compute_dtype", "impl", *_OF_OUR_MEMORIES),
    *(field.name for field in dataclasses.fields(RouterConfig) if field.name != "aux_loss_scale"),
)
_OUR_ATTENTION = ("head_dim", "output_gate", "qk_norm", "rotary_fraction")
_ROPE_THETA = 10000.0  # of attention layers in the reference's MoM, whatever its configuration says


@functools.cache
def _rule_options() -> frozenset[str]:
    """Options that some rules have and others do not."""
    names = (field.name for rule in RULES for field in dataclasses.fields(find_rule(rule).Options))
    return frozenset(names) - {field.name for field in dataclasses.fields(ConvOptions)}


def _memory_fields() -> tuple[str, ...]:
    """Our fields of memories, which a model type may know or not."""
    return ("num_heads", "head_dim", "expand_v", "use_output_gate", *CONV, *_rule_options())


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


def to_published(fields: Fields) -> tuple[str, str, Fields]:
    """The published model type of our configuration, the name of its class there, and its fields.

    Raises:
        InputError: the PyTorch library has no such model.
    """
    attn, rule = _plain_attention(fields["attn"]), fields["memory_rule"]
    fields = without(fields, "layer_pattern") | {"attn": attn}
    if attn is not None and len(attn["layers"]) == fields["num_hidden_layers"]:
        fields = without(fields, *_MIXTURE, *_OURS, *_memory_fields(), "attn") | without(attn, "layers")
        return "transformer", "TransformerForCausalLM", fields
    if fields["mixture"]:
        if fields["router_balance"] == "loss_free":
            remedy = "the PyTorch library's router has no bias; models trained with auxiliary or none can be published"
            raise InputError("router_balance", "loss_free", remedy)
        for name, value in {**OF_THE_REFERENCE, **_OF_OUR_MEMORIES}.items():
            if fields[name] != value:
                raise InputError(name, fields[name], f"the PyTorch library's mixtures have {value!r} only")
        if rule != "gated_deltanet" or fields["allow_neg_eigval"]:
            remedy = "the PyTorch library only has mixtures of plain gated_deltanet memories"
            raise InputError("memory_rule", rule, remedy)
        if attn is not None and (attn["qkv_bias"] or attn["rope_theta"] != _ROPE_THETA):
            remedy = f"the PyTorch library's MoM has attention without biases and with a base of {_ROPE_THETA:g} only"
            raise InputError("attn", {name: attn[name] for name in ("qkv_bias", "rope_theta")}, remedy)
        constant = {"attn_mode": "chunk", "mom_backend": "gated_deltanet", "capacity": 1.0}
        fields = _with_rule_options(fields, "mom", ())
        sizes = HEAD_SIZES.write(fields) | {"use_layer_wise_balance": True}
        return "mom", "MomForCausalLM", without(fields, *_OURS, *_rule_options()) | constant | sizes
    published = find_rule(rule).published
    if not isinstance(published, Published):
        names = (name for name, form in published_rules().items() if isinstance(form, Published))
        raise InputError("memory_rule", rule, f"published single memories are {', '.join(names)}")
    fields = _with_rule_options(fields, published.model_type, published.rule_options)
    published.check_writable(fields)
    sizes = published.sizes.write(fields)
    unknown = [name for name in _memory_fields() if name not in (*published.options, *published.rule_options)]
    fields = renamed(without(fields, *_MIXTURE, *_OURS, *unknown), published.names)
    return published.model_type, published.architecture, fields | sizes


def _with_rule_options(fields: Fields, model_type: str, known: tuple[str, ...]) -> Fields:
    """The fields with those options of the rule that have no field of ours, under their own names.

    Raises:
        InputError: an option that the model type does not know is not at its default.
    """
    named = {name: json.loads(value) for name, _, value in (text.partition("=") for text in fields["rule_options"])}
    options = dataclasses.fields(find_rule(fields["memory_rule"]).Options)
    defaults = {option.name: fields.get(option.name, option.default) for option in options}
    for name, value in named.items():
        if name not in known and value != defaults[name]:
            remedy = f"the PyTorch library's {model_type} has no such option; only {defaults[name]!r} can be saved"
            if name == "norm_eps":  # `mom_jax.models.upcycling` sets it
                remedy += "; make the mixture with convert --to mom --no-shared-mem, which leaves it as it is"
            raise InputError("rule_options", f"{name}={value!r}", remedy)
    return without(fields, "rule_options") | {name: (defaults | named)[name] for name in known}


def _plain_attention(attn: Any) -> Fields | None:
    """The attention of our configuration, without what the PyTorch library does not have."""
    if attn is None:
        return None
    if isinstance(attn, list):
        raise InputError("attn", f"{len(attn)} settings", "the PyTorch library has one for all attention layers")
    plain = dataclasses.asdict(AttentionConfig())
    for name in _OUR_ATTENTION:
        if attn[name] != plain[name]:
            raise InputError(f"attn.{name}", attn[name], f"the PyTorch library's attention has {plain[name]!r} only")
    return without(attn, *_OUR_ATTENTION)


def published_fields(config: MoMConfig, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of a model whose parameters are stored in ``dtype``.

    Raises:
        InputError: the PyTorch library has no such model.
    """
    model_type, architecture, fields = to_published(config.spelt_out().to_dict())
    names = {"model_type": model_type, "architectures": [architecture], "dtype": dtype}
    return dict(sorted({**fields, **_CONSTANT, **names}.items()))


def write_config(config: MoMConfig, path: Path, dtype: str) -> None:
    """Writes `published_fields` as JSON."""
    write_json(path, published_fields(config, dtype), indent=2)
