"""Published configurations of several model types, in the words of ours.

Each translation takes the fields of a ``config.json`` and returns them under our names, with the
defaults of that model type written out; unknown fields stay for the caller to drop.

This module knows dictionaries alone and stands below the rest of its package: `MoMConfig.from_dict` uses it.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

from mom_jax.errors import InputError
from mom_jax.fields import Range, checked

Fields = dict[str, Any]

_SINGLE_MEMORY: Fields = {"mixture": False}
_ANY_STEP = (0.0, math.inf)
_Size = Annotated[int, Range(least=1, most=2**24)]
_SizeOrNone = Annotated[int | None, Range(least=1, most=2**24)]
_Ratio = Annotated[float, Range(above=0, most=2**14)]
# Numbers that sizes of ours are computed from; all others are checked by MoMConfig.
_NUMBERS = {
    "hidden_size": _Size,
    "num_hidden_layers": Annotated[int, Range(least=1, most=2**14)],
    "num_heads": _Size,
    "head_dim": _Size,
    "state_size": _Size,
    "conv_kernel": _Size,
    "expand_ratio": _SizeOrNone,
    "num_slots": _SizeOrNone,
    "expand": _Ratio,
    "expand_k": _Ratio,
    "expand_v": _Ratio,
}
# Model types whose memory is available as a rule, but whose published models are built from other parts.
_RESISTING = {
    "rwkv6": "its blocks have layer norms with biases and a channel mixing that carries a token from call to call",
    "rwkv7": "its layers add the first layer's values to their own, and its channel mixing carries a token from call "
    "to call",
}


def renamed(fields: Fields, defaults: Fields, names: dict[str, str]) -> Fields:
    """``fields`` over ``defaults``, under other ``names``."""
    return {names.get(name, name): value for name, value in (defaults | fields).items()}


def _only(fields: Fields, **available: Any) -> None:
    """Refuses options that would change what is computed and that this library does not have."""
    for field, value in available.items():
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
    return renamed(fields, defaults, {"use_gate": "use_output_gate"}) | _SINGLE_MEMORY


def _delta_net(fields: Fields) -> Fields:
    _only(fields, use_beta=True, qk_norm="l2", qk_activation="silu")
    defaults = {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 16, "hidden_size": 2048, "use_gate": False}
    ours = renamed(fields, defaults, {"use_gate": "use_output_gate"})
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
    ours = defaults | without(fields, "feature_map")
    # its model does not hand use_short_conv on to its layers
    return ours | _head_sizes(ours) | _SINGLE_MEMORY | {"memory_rule": "retnet", "use_short_conv": False}


def _gla(fields: Fields) -> Fields:
    _only(
        fields, num_kv_heads=None, feature_map=None, clamp_min=None, use_gk=True, use_gv=False, elementwise_affine=True
    )
    ours = {"expand_k": 0.5, "expand_v": 1.0, "num_heads": 4, "hidden_size": 2048, "use_short_conv": False}
    ours |= without(fields, "feature_map")
    return ours | _head_sizes(ours) | _SINGLE_MEMORY | {"memory_rule": "gla"}


def _hgrn2(fields: Fields) -> Fields:
    _only(fields, use_lower_bound=True, attn=None, elementwise_affine=True)
    ours = {"hidden_size": 2048, "use_short_conv": False, "expand_ratio": 128} | fields
    hidden, keys = ours["hidden_size"], ours["expand_ratio"]
    if keys is None:
        keys = hidden // checked("num_heads", ours.get("num_heads"), _Size)
    if keys < 1 or hidden % keys:
        raise InputError("expand_ratio", keys, f"must divide hidden_size ({hidden})")
    sizes = {"head_dim": keys, "num_heads": hidden // keys, "expand_v": 1.0}
    return ours | sizes | _SINGLE_MEMORY | {"memory_rule": "hgrn2"}


def _gsa(fields: Fields) -> Fields:
    _only(fields, num_kv_heads=None, feature_map="swish", elementwise_affine=True)
    defaults = {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 4, "hidden_size": 2048, "use_short_conv": False}
    ours = defaults | {"num_slots": 64, "gate_logit_normalizer": 8} | without(fields, "feature_map")
    sizes = _head_sizes(ours)
    rule_options = {"memory_rule": "gsa", "num_slots": ours["num_slots"] or sizes["head_dim"]}
    return ours | sizes | _SINGLE_MEMORY | rule_options


def _kda(fields: Fields) -> Fields:
    ours = {"hidden_size": 2048, "head_dim": 128, "num_heads": 16, "expand_v": 1.0} | fields
    if fields.get("num_v_heads") == ours["num_heads"]:
        fields = without(fields, "num_v_heads")
    _only(fields, num_v_heads=None, safe_gate=False, lower_bound=None)
    return ours | _SINGLE_MEMORY | {"memory_rule": "kda"}


def _mamba2(fields: Fields) -> Fields:
    _only(fields, n_groups=1, use_bias=False, use_conv_bias=True, D_has_hdim=False, rmsnorm=True)
    _only(fields, norm_before_gate=False, attn=None)
    limit = fields.get("dt_limit", _ANY_STEP)
    if not isinstance(limit, list | tuple) or tuple(map(_number, limit)) != _ANY_STEP:
        raise InputError("dt_limit", limit, f"not available in a mamba2 model; only {_ANY_STEP} is")
    published = {"hidden_size": 2048, "state_size": 128, "head_dim": 64, "expand": 2, "conv_kernel": 4} | fields
    keys, values = published["state_size"], published["head_dim"]
    channels = int(published["expand"] * published["hidden_size"])
    if channels < 1 or channels % values:
        remedy = f"times hidden_size ({published['hidden_size']}) must divide by head_dim ({values})"
        raise InputError("expand", published["expand"], remedy)
    sizes = {"num_heads": channels // values, "head_dim": keys, "expand_v": values / keys}
    sizes |= {"conv_size": published["conv_kernel"], "intermediate_size": 0}
    defaults = {"norm_eps": 1e-5, "num_hidden_layers": 48, "pad_token_id": 0}
    return defaults | published | sizes | _SINGLE_MEMORY | {"memory_rule": "mamba2"}


def _number(value: Any) -> Any:
    """A number of a ``config.json``; the transformers library writes infinity as an object."""
    return math.inf if value == {"__float__": "Infinity"} else value


def _transformer(fields: Fields) -> Fields:
    _only(fields, qk_norm=False, elementwise_affine=True)
    fields = {"num_hidden_layers": 24, "num_heads": 32, "num_kv_heads": None, "qkv_bias": False} | fields
    names = ("num_heads", "num_kv_heads", "qkv_bias", "window_size", "rope_theta")
    attn = {"layers": tuple(range(fields["num_hidden_layers"])), **{n: fields[n] for n in names if n in fields}}
    return {name: value for name, value in fields.items() if name not in names} | {"attn": attn}


def _head_sizes(fields: Fields) -> Fields:
    """Head sizes from the ratios ``expand_k`` and ``expand_v`` of the hidden size, truncated as there."""
    hidden, heads = fields["hidden_size"], fields["num_heads"]
    channels = {ratio: int(hidden * fields[ratio]) for ratio in ("expand_k", "expand_v")}
    for ratio, total in channels.items():
        if total < 1 or total % heads:
            remedy = f"times hidden_size ({hidden}) must divide by num_heads ({heads})"
            raise InputError(ratio, fields[ratio], remedy)
    return {"head_dim": channels["expand_k"] // heads, "expand_v": channels["expand_v"] / channels["expand_k"]}


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
    model_type = checked("model_type", fields.get("model_type", "mom"), str)
    if model_type in _RESISTING:
        remedy = f"cannot be converted: {_RESISTING[model_type]}; memory_rule={model_type} is its memory alone"
        raise InputError("model_type", model_type, remedy)
    if model_type not in _TRANSLATIONS:
        raise InputError("model_type", model_type, f"expected one of {', '.join(_TRANSLATIONS)}")
    fields = without(fields, "num_heads") if fields.get("num_heads", 0) is None else fields
    numbers = {name: checked(name, fields[name], hint) for name, hint in _NUMBERS.items() if name in fields}
    return _TRANSLATIONS[model_type](fields | numbers)


def without(fields: Fields, *names: str) -> Fields:
    """``fields`` but those of these ``names``."""
    return {name: value for name, value in fields.items() if name not in names}
