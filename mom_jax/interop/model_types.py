"""Published configurations of other model types under our names; unknown fields stay for the caller to drop.

A rule declares how its single memory is published; mixtures and Transformers are here.
This module knows dictionaries alone and stands below the rest of its package: `MoMConfig.from_dict` uses it.
"""

from collections.abc import Callable, Mapping
from typing import Annotated

from mom_jax.errors import InputError
from mom_jax.fields import Range, checked
from mom_jax.layers.rules.published import Fields, Published, Unreadable, check_only, renamed, without

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


def _mom_gated_deltanet(fields: Fields) -> Fields:
    """The older layout of MoM; memories were called experts at first."""
    defaults = {"expand_v": 2, "num_heads": 6, "num_hidden_layers": 21, "num_memories": 8, "shared_mem": False}
    names = {"num_experts": "num_memories", "single_expert": "single_kv_proj", "use_gate": "use_output_gate"}
    return defaults | renamed(fields, names)


def _transformer(fields: Fields) -> Fields:
    check_only(fields, "transformer", {"qk_norm": False, "elementwise_affine": True})
    fields = {"num_hidden_layers": 24, "num_heads": 32, "num_kv_heads": None, "qkv_bias": False} | fields
    names = ("num_heads", "num_kv_heads", "qkv_bias", "window_size", "rope_theta")
    attn = {"layers": tuple(range(fields["num_hidden_layers"])), **{n: fields[n] for n in names if n in fields}}
    return {name: value for name, value in fields.items() if name not in names} | {"attn": attn}


_TRANSLATIONS: dict[str, Callable[[Fields], Fields]] = {
    "mom": lambda fields: fields,
    "mom_gated_deltanet": _mom_gated_deltanet,
    "transformer": _transformer,
}


def in_our_words(fields: Fields, published: Callable[[], Mapping[str, Published | Unreadable]]) -> Fields:
    """The fields of a published configuration under our names.

    Args:
        fields: of a ``config.json``.
        published: the published forms of rules by their names; called for a single memory alone, since rules load JAX.

    Raises:
        InputError: another model type, or an option that this library does not have.
    """
    model_type = checked("model_type", fields.get("model_type", "mom"), str)
    fields = without(fields, "num_heads") if fields.get("num_heads", 0) is None else fields
    fields = fields | {name: checked(name, fields[name], hint) for name, hint in _NUMBERS.items() if name in fields}
    if model_type in _TRANSLATIONS:
        return _TRANSLATIONS[model_type](fields)
    for rule, form in (rules := published()).items():
        if form.model_type == model_type:
            return form.read(fields) | {"memory_rule": rule, "mixture": False}
    known = [*_TRANSLATIONS, *(form.model_type for form in rules.values() if isinstance(form, Published))]
    raise InputError("model_type", model_type, f"expected one of {', '.join(known)}")
