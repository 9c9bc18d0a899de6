"""Published configurations of several model types, in the words of ours.

Each translation takes the fields of a ``config.json`` and returns them under our names, with the
defaults of that model type written out; unknown fields stay for the caller to drop.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mom_jax.errors import InputError

Fields = dict[str, Any]

_SINGLE_MEMORY: Fields = {"mixture": False}
_ANY_STEP = (0.0, math.inf)
# Model types whose memory is available as a rule, but whose published models are built from other parts.
_RESISTING = {
    "rwkv6": "its blocks have layer norms with biases and a channel mixing that carries a token from call to call",
    "rwkv7": "its layers add the first layer's values to their own, and its channel mixing carries a token from call "
    "to call",
}


def _renamed(fields: Fields, defaults: Fields, names: dict[str, str]) -> Fields:
    return {names.get(name, name): value for name, value in (defaults | fields).items()}


def _only(fields: Fields, **wanted: Any) -> None:
    """Refuses options that would change what is computed and that this library does not have."""
    for field, value in wanted.items():
        if fields.get(field, value) != value:
            raise InputError(
                field, fields[field], f"not available in a {fields['model_type']} model; only {value!r} is"
            )


def _mom(fields: Fields) -> Fields:
    return fields


def _mom_gated_deltanet(fields: Fields) -> Fields:
    """The older layout of MoM; memories were called experts at first."""
    defaults = {"expand_v": 2, "num_heads": 6, "num_hidden_layers": 21, "num_memories": 8, "shared_mem": False}
    names = {"num_experts": "num_memories", "single_expert": "single_kv_proj", "use_gate": "use_output_gate"}
    renamed = {names.get(name, name): value for name, value in fields.items()}
    return defaults | renamed


def _gated_deltanet(fields: Fields) -> Fields:
    _only(fields, num_v_heads=None, output_gate_activation="swish")
    defaults = {"expand_v": 2.0, "num_heads": 6, "num_hidden_layers": 21, "use_gate": True}
    return _renamed(fields, defaults, {"use_gate": "use_output_gate"}) | _SINGLE_MEMORY


def _delta_net(fields: Fields) -> Fields:
    _only(fields, use_beta=True, qk_norm="l2", qk_activation="silu")
    defaults = {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 16, "hidden_size": 2048, "use_gate": False}
    ours = _renamed(fields, defaults, {"use_gate": "use_output_gate"})
    return ours | _head_sizes(ours) | _SINGLE_MEMORY | {"memory_rule": "deltanet"}


def _linear_attn(fields: Fields) -> Fields:
    fields = {"feature_map": "elementwise_product"} | fields
    if fields["feature_map"] not in ("identity", "elu", "relu"):
        raise InputError("feature_map", fields["feature_map"], "has parameters; identity, elu and relu are available")
    _only(fields, num_kv_heads=None, norm_q=False, norm_k=False, elementwise_affine=True)
    ours = {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 4, "hidden_size": 2048} | fields
    fixed = {"memory_rule": "linear_attention", "use_short_conv": False, "use_output_gate": False}
    return ours | _head_sizes(ours) | _SINGLE_MEMORY | fixed


def _retnet(fields: Fields) -> Fields:
    _only(fields, num_kv_heads=None, feature_map=None, elementwise_affine=True)
    defaults = {"expand_k": 1.0, "expand_v": 2.0, "num_heads": 8, "hidden_size": 2048, "hidden_ratio": 2}
    ours = defaults | _without(fields, "feature_map")
    # its model does not hand use_short_conv on to its layers
    return ours | _head_sizes(ours) | _SINGLE_MEMORY | {"memory_rule": "retnet", "use_short_conv": False}


def _gla(fields: Fields) -> Fields:
    _only(
        fields, num_kv_heads=None, feature_map=None, clamp_min=None, use_gk=True, use_gv=False, elementwise_affine=True
    )
    ours = {"expand_k": 0.5, "expand_v": 1.0, "num_heads": 4, "hidden_size": 2048, "use_short_conv": False}
    ours |= _without(fields, "feature_map")
    return ours | _head_sizes(ours) | _SINGLE_MEMORY | {"memory_rule": "gla"}


def _hgrn2(fields: Fields) -> Fields:
    _only(fields, use_lower_bound=True, attn=None, elementwise_affine=True)
    ours = {"hidden_size": 2048, "use_short_conv": False, "expand_ratio": 128} | fields
    ratio = ours["expand_ratio"] or ours["hidden_size"] // ours["num_heads"]
    sizes = {"head_dim": ratio, "num_heads": ours["hidden_size"] // ratio, "expand_v": 1.0}
    return ours | sizes | _SINGLE_MEMORY | {"memory_rule": "hgrn2"}


def _gsa(fields: Fields) -> Fields:
    _only(fields, num_kv_heads=None, feature_map="swish", elementwise_affine=True)
    defaults = {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 4, "hidden_size": 2048, "use_short_conv": False}
    ours = defaults | {"num_slots": 64, "gate_logit_normalizer": 8} | _without(fields, "feature_map")
    sizes = _head_sizes(ours)
    own = {"memory_rule": "gsa", "num_slots": ours["num_slots"] or sizes["head_dim"]}
    return ours | sizes | _SINGLE_MEMORY | own


def _kda(fields: Fields) -> Fields:
    ours = {"hidden_size": 2048, "head_dim": 128, "num_heads": 16, "expand_v": 1.0} | fields
    if fields.get("num_v_heads") == ours["num_heads"]:
        fields = _without(fields, "num_v_heads")
    _only(fields, num_v_heads=None, safe_gate=False, lower_bound=None)
    return ours | _SINGLE_MEMORY | {"memory_rule": "kda"}


def _mamba2(fields: Fields) -> Fields:
    _only(fields, n_groups=1, use_bias=False, use_conv_bias=True, D_has_hdim=False, rmsnorm=True)
    _only(fields, norm_before_gate=False, attn=None)
    limit = tuple(_float(value) for value in fields.get("dt_limit", _ANY_STEP))
    if limit != _ANY_STEP:
        raise InputError("dt_limit", fields["dt_limit"], f"not available in a mamba2 model; only {_ANY_STEP} is")
    theirs = {"hidden_size": 2048, "state_size": 128, "head_dim": 64, "expand": 2, "conv_kernel": 4} | fields
    keys, values = theirs["state_size"], theirs["head_dim"]
    sizes = {"num_heads": int(theirs["expand"] * theirs["hidden_size"] / values), "head_dim": keys}
    sizes |= {"expand_v": values / keys, "conv_size": theirs["conv_kernel"], "intermediate_size": 0}
    defaults = {"norm_eps": 1e-5, "num_hidden_layers": 48, "pad_token_id": 0}
    return defaults | theirs | sizes | _SINGLE_MEMORY | {"memory_rule": "mamba2"}


def _float(value: Any) -> float:
    """A number of a ``config.json``; the transformers library writes infinity as an object."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def _transformer(fields: Fields) -> Fields:
    _only(fields, qk_norm=False, elementwise_affine=True)
    fields = {"num_hidden_layers": 24, "num_heads": 32, "num_kv_heads": None, "qkv_bias": False} | fields
    names = ("num_heads", "num_kv_heads", "qkv_bias", "window_size", "rope_theta")
    attn = {"layers": tuple(range(fields["num_hidden_layers"])), **{n: fields[n] for n in names if n in fields}}
    return {name: value for name, value in fields.items() if name not in names} | {"attn": attn}


def _head_sizes(fields: Fields) -> Fields:
    """Head sizes from the ratios ``expand_k`` and ``expand_v`` of the hidden size."""
    keys = fields["hidden_size"] * fields["expand_k"] / fields["num_heads"]
    if keys != int(keys):
        remedy = f"hidden_size ({fields['hidden_size']}) * expand_k must divide by num_heads ({fields['num_heads']})"
        raise InputError("expand_k", fields["expand_k"], remedy)
    return {"head_dim": int(keys), "expand_v": fields["expand_v"] / fields["expand_k"]}


_TRANSLATIONS: dict[str, Callable[[Fields], Fields]] = {
    "mom": _mom,
    "mom_gated_deltanet": _mom_gated_deltanet,
    "gated_deltanet": _gated_deltanet,
    "delta_net": _delta_net,
    "linear_attn": _linear_attn,
    "retnet": _retnet,
    "gla": _gla,
    "hgrn2": _hgrn2,
    "gsa": _gsa,
    "kda": _kda,
    "mamba2": _mamba2,
    "transformer": _transformer,
}


def in_our_words(fields: Fields) -> Fields:
    """The fields of a published configuration under our names.

    Raises:
        InputError: another model type, or an option that this library does not have.
    """
    model_type = fields.get("model_type", "mom")
    if model_type in _RESISTING:
        remedy = f"cannot be converted: {_RESISTING[model_type]}; memory_rule={model_type} is its memory alone"
        raise InputError("model_type", model_type, remedy)
    if model_type not in _TRANSLATIONS:
        raise InputError("model_type", model_type, f"expected one of {', '.join(_TRANSLATIONS)}")
    return _TRANSLATIONS[model_type](fields)


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


def _ratio_sizes(fields: Fields) -> Fields:
    """Head sizes as ratios of the hidden size."""
    ratio = fields["head_dim"] * fields["num_heads"] / fields["hidden_size"]
    return {"num_heads": fields["num_heads"], "expand_k": ratio, "expand_v": ratio * fields["expand_v"]}


def _plain_sizes(fields: Fields) -> Fields:
    return {name: fields[name] for name in ("num_heads", "head_dim", "expand_v")}


def _hgrn2_sizes(fields: Fields) -> Fields:
    return {"num_heads": fields["num_heads"], "expand_ratio": fields["head_dim"]}


def _mamba2_sizes(fields: Fields) -> Fields:
    values = round(fields["head_dim"] * fields["expand_v"])
    expand = fields["num_heads"] * values / fields["hidden_size"]
    return {
        "state_size": fields["head_dim"],
        "head_dim": values,
        "num_heads": fields["num_heads"],
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


def in_their_words(fields: Fields) -> tuple[str, Fields]:
    """The published model type of our configuration, and its fields for that type.

    Raises:
        InputError: the PyTorch library has no such model.
    """
    attn, rule = fields["attn"], fields["memory_rule"]
    if attn is not None and len(attn["layers"]) == fields["num_hidden_layers"]:
        theirs = _without(fields, *_MIXTURE, *_OURS, *_MEMORY, "attn")
        return "transformer", theirs | {n: v for n, v in attn.items() if n != "layers"}
    if fields["mixture"]:
        if fields["router_balance"] == "loss_free":
            remedy = "the PyTorch library's router has no bias; models trained with auxiliary or none can be published"
            raise InputError("router_balance", "loss_free", remedy)
        if rule != "gated_deltanet" or fields["allow_neg_eigval"]:
            remedy = "the PyTorch library has mixtures of plain gated_deltanet memories only"
            raise InputError("memory_rule", rule, remedy)
        if attn is not None and (attn["qkv_bias"] or attn["rope_theta"] != _ROPE_THETA):
            remedy = f"the PyTorch library's MoM has attention without biases and with a base of {_ROPE_THETA:g} only"
            raise InputError("attn", {name: attn[name] for name in ("qkv_bias", "rope_theta")}, remedy)
        constant = {"attn_mode": "chunk", "mom_backend": "gated_deltanet", "capacity": 1.0}
        return "mom", _without(fields, *_OURS, *_RULES_OWN) | constant | {"use_layer_wise_balance": True}
    if rule not in SINGLE_MEMORIES:
        raise InputError("memory_rule", rule, f"published single memories are {', '.join(SINGLE_MEMORIES)}")
    there = SINGLE_MEMORIES[rule]
    _check_rule(rule, there, fields)
    sizes = there.sizes(fields)
    unknown = [name for name in _MEMORY if name not in there.known]
    theirs = _renamed(_without(fields, *_MIXTURE, *_OURS, *unknown), {}, there.names)
    return there.model_type, theirs | sizes


def _check_rule(rule: str, there: SingleMemory, fields: Fields) -> None:
    """Refuses options that the PyTorch library fixes."""
    for field, value in there.fixed.items():
        if fields[field] != value:
            raise InputError(field, fields[field], f"the PyTorch library's {rule} has {value!r} only")
    sizes = {"hgrn2": fields["head_dim"], "gsa": fields["head_dim"] * fields["expand_v"]}
    if rule in sizes and sizes[rule] * fields["num_heads"] != fields["hidden_size"]:
        remedy = f"the PyTorch library's {rule} has as many channels in all heads as hidden_size"
        raise InputError("num_heads", fields["num_heads"], remedy)


def _without(fields: Fields, *names: str) -> Fields:
    return {name: value for name, value in fields.items() if name not in names}
