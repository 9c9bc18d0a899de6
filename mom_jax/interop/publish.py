"""Our configuration in the words of published model types: what `model_types` reads, written."""

import math
from collections.abc import Callable
from typing import NamedTuple

from mom_jax.errors import InputError
from mom_jax.interop.model_types import Fields, renamed, without

_MIXTURE = ("num_memories", "topk", "shared_mem", "single_kv_proj", "aux_loss_scale")
_OURS = ("memory_rule", "mixture", "router_balance", "router_bias_rate", "reference_conv_leak", "compute_dtype", "impl")
_ROPE_THETA = 10000.0  # of attention layers in the reference's MoM, whatever its configuration says
_RULES_OWN = (
    "allow_neg_eigval",
    "feature_map",
    "norm_feature_map",
    "gate_logit_normalizer",
    "gate_low_rank_dim",
    "decay_low_rank_dim",
    "proj_low_rank_dim",
    "a_low_rank_dim",
    "num_slots",
    "mini_batch_size",
)
_CONV = ("use_short_conv", "conv_size")
_OPTIONAL = ("use_output_gate", *_CONV, *_RULES_OWN)
_MEMORY = ("num_heads", "head_dim", "expand_v", *_OPTIONAL)


def _ratio(*sizes: tuple[int, int]) -> float:
    """The least ratio that makes the second of every pair of the first as the PyTorch library does, by truncating."""
    whole, part = sizes[0]
    ratio = part / whole
    while any(int(whole * ratio) < part for whole, part in sizes):
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _channels(fields: Fields) -> tuple[int, int]:
    """Key and value channels of all heads."""
    keys = fields["num_heads"] * fields["head_dim"]
    return keys, round(keys * fields["expand_v"])


def _ratio_sizes(fields: Fields) -> Fields:
    """Head sizes as ratios of the hidden size."""
    hidden, (keys, values) = fields["hidden_size"], _channels(fields)
    return {"num_heads": fields["num_heads"], "expand_k": _ratio((hidden, keys)), "expand_v": _ratio((hidden, values))}


def _plain_sizes(fields: Fields) -> Fields:
    heads, (keys, values) = fields["num_heads"], _channels(fields)
    ratio = _ratio((keys, values), (keys // heads, values // heads))
    return {"num_heads": heads, "head_dim": fields["head_dim"], "expand_v": ratio}


def _hgrn2_sizes(fields: Fields) -> Fields:
    return {"num_heads": fields["num_heads"], "expand_ratio": fields["head_dim"]}


def _mamba2_sizes(fields: Fields) -> Fields:
    heads, (_, values) = fields["num_heads"], _channels(fields)
    expand = _ratio((fields["hidden_size"], values))
    return {
        "state_size": fields["head_dim"],
        "head_dim": values // heads,
        "num_heads": heads,
        "expand": int(expand) if expand == int(expand) else expand,
        "conv_kernel": fields["conv_size"],
        "n_groups": 1,
    }


class SingleMemory(NamedTuple):
    """How the PyTorch library tells a single memory of one rule."""

    model_type: str
    sizes: Callable[[Fields], Fields]
    known: tuple[str, ...]  # our optional fields that it knows
    fixed: Fields  # fields with one value there
    names: dict[str, str] = {}  # noqa: RUF012 (never written) where its names differ


_GATE = {"use_output_gate": "use_gate"}
SINGLE_MEMORIES: dict[str, SingleMemory] = {
    "gated_deltanet": SingleMemory(
        "gated_deltanet", _plain_sizes, ("use_output_gate", *_CONV, "allow_neg_eigval"), {}, _GATE
    ),
    "deltanet": SingleMemory("delta_net", _ratio_sizes, ("use_output_gate", *_CONV, "allow_neg_eigval"), {}, _GATE),
    "kda": SingleMemory("kda", _plain_sizes, (*_CONV, "allow_neg_eigval"), {}),
    "linear_attention": SingleMemory(
        "linear_attn",
        _ratio_sizes,
        ("feature_map", "norm_feature_map"),
        {"use_short_conv": False, "use_output_gate": False},
    ),
    "retnet": SingleMemory(
        "retnet", _ratio_sizes, ("use_output_gate", *_CONV), {"use_short_conv": False, "use_output_gate": True}
    ),
    "gla": SingleMemory(
        "gla",
        _ratio_sizes,
        ("use_output_gate", *_CONV),
        {"use_output_gate": True, "gate_logit_normalizer": 16, "gate_low_rank_dim": 16},
    ),
    "hgrn2": SingleMemory("hgrn2", _hgrn2_sizes, _CONV, {"attn": None, "expand_v": 1.0}),
    "gsa": SingleMemory("gsa", _ratio_sizes, (*_CONV, "num_slots", "gate_logit_normalizer"), {}),
    "mamba2": SingleMemory(
        "mamba2",
        _mamba2_sizes,
        (),
        {"attn": None, "intermediate_size": 0, "use_output_gate": True, "use_short_conv": True},
    ),
}


def to_published(fields: Fields) -> tuple[str, Fields]:
    """The published model type of our configuration, and its fields for that type.

    Raises:
        InputError: the PyTorch library has no such model.
    """
    attn, rule = fields["attn"], fields["memory_rule"]
    if attn is not None and len(attn["layers"]) == fields["num_hidden_layers"]:
        renamed_fields = without(fields, *_MIXTURE, *_OURS, *_MEMORY, "attn")
        return "transformer", renamed_fields | {n: v for n, v in attn.items() if n != "layers"}
    if fields["mixture"]:
        if fields["router_balance"] == "loss_free":
            remedy = "the PyTorch library's router has no bias; models trained with auxiliary or none can be published"
            raise InputError("router_balance", "loss_free", remedy)
        if rule != "gated_deltanet" or fields["allow_neg_eigval"]:
            remedy = "the PyTorch library only has mixtures of plain gated_deltanet memories"
            raise InputError("memory_rule", rule, remedy)
        if attn is not None and (attn["qkv_bias"] or attn["rope_theta"] != _ROPE_THETA):
            remedy = f"the PyTorch library's MoM has attention without biases and with a base of {_ROPE_THETA:g} only"
            raise InputError("attn", {name: attn[name] for name in ("qkv_bias", "rope_theta")}, remedy)
        constant = {"attn_mode": "chunk", "mom_backend": "gated_deltanet", "capacity": 1.0}
        sizes = _plain_sizes(fields) | {"use_layer_wise_balance": True}
        return "mom", without(fields, *_OURS, *_RULES_OWN) | constant | sizes
    if rule not in SINGLE_MEMORIES:
        raise InputError("memory_rule", rule, f"published single memories are {', '.join(SINGLE_MEMORIES)}")
    published = SINGLE_MEMORIES[rule]
    _check_rule(rule, published, fields)
    sizes = published.sizes(fields)
    unknown = [name for name in _MEMORY if name not in published.known]
    renamed_fields = renamed(without(fields, *_MIXTURE, *_OURS, *unknown), {}, published.names)
    return published.model_type, renamed_fields | sizes


def _check_rule(rule: str, published: SingleMemory, fields: Fields) -> None:
    """Refuses options that the PyTorch library fixes."""
    for field, value in published.fixed.items():
        if fields[field] != value:
            raise InputError(field, fields[field], f"the PyTorch library's {rule} has {value!r} only")
    sizes = {"hgrn2": fields["head_dim"], "gsa": round(fields["head_dim"] * fields["expand_v"])}
    if rule in sizes and sizes[rule] * fields["num_heads"] != fields["hidden_size"]:
        remedy = f"the PyTorch library's {rule} has as many channels in all heads as hidden_size"
        raise InputError("num_heads", fields["num_heads"], remedy)
