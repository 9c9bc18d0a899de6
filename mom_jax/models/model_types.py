"""Published configurations of several model types, in the words of ours.

Each translation takes the fields of a ``config.json`` and returns them under our names, with the
defaults of that model type written out; unknown fields stay for the caller to drop.
"""

from collections.abc import Callable
from typing import Any

from mom_jax.errors import InputError

Fields = dict[str, Any]


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
    return _renamed(fields, defaults, {"use_gate": "use_output_gate"}) | {"mixture": False}


def _delta_net(fields: Fields) -> Fields:
    _only(fields, use_beta=True, qk_norm="l2", qk_activation="silu")
    defaults = {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 16, "hidden_size": 2048, "use_gate": False}
    ours = _renamed(fields, defaults, {"use_gate": "use_output_gate"})
    return ours | _head_sizes(ours) | {"mixture": False, "memory_rule": "deltanet"}


def _linear_attn(fields: Fields) -> Fields:
    fields = {"feature_map": "elementwise_product"} | fields
    if fields["feature_map"] not in ("identity", "elu", "relu"):
        raise InputError("feature_map", fields["feature_map"], "has parameters; identity, elu and relu are available")
    _only(fields, num_kv_heads=None, norm_q=False, norm_k=False, elementwise_affine=True)
    ours = {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 4, "hidden_size": 2048} | fields
    fixed = {"mixture": False, "memory_rule": "linear_attention", "use_short_conv": False, "use_output_gate": False}
    return ours | _head_sizes(ours) | fixed


def _retnet(fields: Fields) -> Fields:
    _only(fields, num_kv_heads=None, feature_map=None, elementwise_affine=True)
    defaults = {"expand_k": 1.0, "expand_v": 2.0, "num_heads": 8, "hidden_size": 2048, "hidden_ratio": 2}
    ours = defaults | _without(fields, "feature_map")
    # its model does not hand use_short_conv on to its layers
    return ours | _head_sizes(ours) | {"mixture": False, "memory_rule": "retnet", "use_short_conv": False}


def _gla(fields: Fields) -> Fields:
    _only(
        fields, num_kv_heads=None, feature_map=None, clamp_min=None, use_gk=True, use_gv=False, elementwise_affine=True
    )
    ours = {"expand_k": 0.5, "expand_v": 1.0, "num_heads": 4, "hidden_size": 2048, "use_short_conv": False}
    ours |= _without(fields, "feature_map")
    return ours | _head_sizes(ours) | {"mixture": False, "memory_rule": "gla"}


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
    "transformer": _transformer,
}


def in_our_words(fields: Fields) -> Fields:
    """The fields of a published configuration under our names.

    Raises:
        InputError: another model type, or an option that this library does not have.
    """
    model_type = fields.get("model_type", "mom")
    if model_type not in _TRANSLATIONS:
        raise InputError("model_type", model_type, f"expected one of {', '.join(_TRANSLATIONS)}")
    return _TRANSLATIONS[model_type](fields)


_MIXTURE = ("num_memories", "topk", "shared_mem", "single_kv_proj", "aux_loss_scale")
_OURS = ("memory_rule", "mixture", "reference_conv_leak", "compute_dtype")
_ROPE_THETA = 10000.0  # of attention layers in the reference's MoM, whatever its configuration says
_RULES_OWN = ("allow_neg_eigval", "feature_map", "norm_feature_map", "gate_logit_normalizer", "gate_low_rank_dim")
_MEMORY = ("num_heads", "head_dim", "expand_v", "use_output_gate", "use_short_conv", "conv_size", *_RULES_OWN)
# memory_rule: (model type of a single memory, names that differ there, our fields that it does not know)
_SINGLE: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "gated_deltanet": ("gated_deltanet", {"use_output_gate": "use_gate"}, _RULES_OWN[1:]),
    "deltanet": ("delta_net", {"use_output_gate": "use_gate"}, _RULES_OWN[1:]),
    "linear_attention": (
        "linear_attn",
        {},
        (*_RULES_OWN[:1], *_RULES_OWN[3:], "use_output_gate", "use_short_conv", "conv_size"),
    ),
    "retnet": ("retnet", {}, _RULES_OWN),
    "gla": ("gla", {}, _RULES_OWN),
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
        if rule != "gated_deltanet" or fields["allow_neg_eigval"]:
            remedy = "the PyTorch library has mixtures of plain gated_deltanet memories only"
            raise InputError("memory_rule", rule, remedy)
        if attn is not None and (attn["qkv_bias"] or attn["rope_theta"] != _ROPE_THETA):
            remedy = f"the PyTorch library's MoM has attention without biases and with a base of {_ROPE_THETA:g} only"
            raise InputError("attn", {name: attn[name] for name in ("qkv_bias", "rope_theta")}, remedy)
        constant = {"attn_mode": "chunk", "mom_backend": "gated_deltanet", "capacity": 1.0}
        return "mom", _without(fields, *_OURS, *_RULES_OWN) | constant | {"use_layer_wise_balance": True}
    if rule not in _SINGLE:
        raise InputError("memory_rule", rule, f"the PyTorch library has {', '.join(_SINGLE)} as single memories")
    model_type, names, unknown = _SINGLE[rule]
    _check_rule(rule, fields)
    theirs = _renamed(_without(fields, *_MIXTURE, *_OURS, *unknown), {}, names)
    if model_type != "gated_deltanet":  # the others tell head sizes as ratios of the hidden size
        ratio = fields["head_dim"] * fields["num_heads"] / fields["hidden_size"]
        theirs = _without(theirs, "head_dim") | {"expand_k": ratio, "expand_v": ratio * fields["expand_v"]}
    return model_type, theirs


def _check_rule(rule: str, fields: Fields) -> None:
    """Refuses options that the PyTorch library fixes."""
    fixed = {
        "linear_attention": {"use_short_conv": False, "use_output_gate": False},
        "retnet": {"use_short_conv": False, "use_output_gate": True},
        "gla": {"use_output_gate": True, "gate_logit_normalizer": 16, "gate_low_rank_dim": 16},
    }
    for field, value in fixed.get(rule, {}).items():
        if fields[field] != value:
            raise InputError(field, fields[field], f"the PyTorch library's {rule} has {value!r} only")


def _without(fields: Fields, *names: str) -> Fields:
    return {name: value for name, value in fields.items() if name not in names}
