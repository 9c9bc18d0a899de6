"""How the PyTorch library publishes a single memory of a rule: the record that a rule declares. No JAX here.

A table of tensors reads ``our parameter of a layer: (their name, how it lies there)``. Our parameters of a layer lie in
a stack with a leading layer axis, those of single memories behind it with a memory axis; theirs are one tensor for each
layer and memory.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mom_jax.errors import InputError

Fields = dict[str, Any]  # of a config.json
Shape = tuple[int, ...]
Index = tuple[slice, ...]


def without(fields: Fields, *names: str) -> Fields:
    """``fields`` but those of these ``names``."""
    return {name: value for name, value in fields.items() if name not in names}


def renamed(fields: Fields, names: dict[str, str]) -> Fields:
    """``fields`` under other ``names``."""
    return {names.get(name, name): value for name, value in fields.items()}


def check_only(fields: Fields, model_type: str, available: Fields) -> None:
    """Refuses options that would change what is computed and that this library does not have."""
    for field, value in available.items():
        if fields.get(field, value) != value:
            raise InputError(field, fields[field], f"not available in a {model_type} model; only {value!r} is")


@dataclasses.dataclass(frozen=True)
class Form:
    """How one of their tensors holds one of our matrices or vectors.

    Attributes:
        transposed: they store [out, in], we [in, out].
        taps: they store a convolution as [channels, 1, W], we as [channels, W].
        part: ``(first, rows)``: theirs has ``rows`` rows, several of ours on top of each other (before
            transposing), and this one begins at row ``first``.
        swapped: ``(a, b)``: their rows (before transposing) are b times a blocks, ours a times b.
    """

    transposed: bool = False
    taps: bool = False
    part: tuple[int, int] | None = None
    swapped: tuple[int, int] | None = None

    def stored_shape(self, shape: Shape) -> Shape:
        """The shape of their tensor for ours of ``shape``."""
        rows, *rest = reversed(shape) if self.transposed else shape
        return (rows if self.part is None else self.part[1], *([1] if self.taps else []), *rest)

    def stored_index(self, index: Index, shape: Shape) -> Index:
        """Where ``index`` of ours lies in theirs, which has ``shape`` in all; of swapped rows all."""
        rows, *others = self._bounds(index, shape)
        if self.swapped is not None:
            rows = slice(0, shape[-1] if self.transposed else shape[0])
        before = 0 if self.part is None else self.part[0]
        return (slice(before + rows.start, before + rows.stop), *([slice(0, 1)] if self.taps else []), *others)

    def ours(self, stored: np.ndarray, index: Index, shape: Shape) -> np.ndarray:
        """Our ``index`` of what was read at `stored_index`."""
        if self.taps:
            stored = stored[:, 0]
        if self.swapped is not None:
            first, second = self.swapped
            stored = _swapped(stored, (second, first))[self._bounds(index, shape)[0]]
        return stored.T if self.transposed else stored

    def stored(self, ours: np.ndarray) -> np.ndarray:
        """Their view of a whole matrix of ours; of a ``part``, its own rows."""
        ours = ours.T if self.transposed else ours
        if self.swapped is not None:
            ours = _swapped(ours, self.swapped)
        return ours[:, None] if self.taps else ours

    def _bounds(self, index: Index, shape: Shape) -> list[slice]:
        """Of ours, their rows first."""
        bounds = [slice(*cut.indices(size)[:2]) for cut, size in zip(index, shape, strict=True)]
        return bounds[::-1] if self.transposed else bounds


def _swapped(rows: np.ndarray, blocks: tuple[int, int]) -> np.ndarray:
    """Rows of a times b blocks as b times a blocks."""
    return rows.reshape(*blocks, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


SAME = Form()
MATRIX = Form(transposed=True)
TAPS = Form(taps=True)


class Row(NamedTuple):
    """A row of a table; ``{memory}`` in a name stands for the number of a routed memory."""

    name: str
    form: Form = SAME
    shared: str | None = None  # their name of the shared memory's (or the only) projection
    also: str | None = None  # another name it may have
    all_layers: bool = False  # one tensor of theirs, outside of the layers, holds those of all layers


def alone(name: str, form: Form = MATRIX) -> Row:
    """The row of a projection that each memory has for itself, where there is one memory."""
    return Row("", form, shared=name)


Table = dict[str, Row]

MODEL: Table = {
    "embeddings": Row("model.embeddings.weight"),
    "norm.weight": Row("model.norm.weight"),
    "lm_head": Row("lm_head.weight"),
}
BLOCK: Table = {
    "attn_norm.weight": Row("attn_norm.weight"),
    "mlp_norm.weight": Row("mlp_norm.weight"),
    "mlp.gate_proj.weight": Row("mlp.gate_proj.weight", MATRIX),
    "mlp.up_proj.weight": Row("mlp.up_proj.weight", MATRIX),
    "mlp.down_proj.weight": Row("mlp.down_proj.weight", MATRIX),
}
# A model of state spaces, which is made of mixers alone.
BACKBONE: Table = {
    "embeddings": Row("backbone.embeddings.weight"),
    "norm.weight": Row("backbone.norm_f.weight"),
    "lm_head": Row("lm_head.weight"),
}
# What most rules have; a single memory's projections have plain names.
QKV: Table = {
    "attn.rule.q_proj.weight": Row("attn.q_proj.weight", MATRIX),
    "attn.rule.k_proj": alone("attn.k_proj.weight"),
    "attn.rule.v_proj": alone("attn.v_proj.weight"),
    "attn.rule.q_conv1d": Row("attn.q_conv1d.weight", TAPS),
    "attn.rule.k_conv1d": Row("attn.k_conv1d.weight", TAPS),
    "attn.rule.v_conv1d": Row("attn.v_conv1d.weight", TAPS),
    "attn.output.g_proj.weight": Row("attn.g_proj.weight", MATRIX),
    "attn.output.o_proj.weight": Row("attn.o_proj.weight", MATRIX),
}
CONV = ("use_short_conv", "conv_size")  # options of what has short convolutions


class Layout(NamedTuple):
    """Where a model type keeps its tensors; a table may be a function of the `MoMConfig`."""

    memory: Table | Callable[[Any], Table]  # the mixer of a memory layer
    block: Table | Callable[[Any], Table] = BLOCK  # what surrounds a mixer
    model: Table = MODEL
    layer: str = "model.layers.{layer}."  # before the names of a layer


def ratio(*sizes: tuple[int, int]) -> float:
    """The least ratio that makes the second of every pair of the first as the PyTorch library does, by truncating."""
    whole, part = sizes[0]
    ratio = part / whole
    while any(int(whole * ratio) < part for whole, part in sizes):
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def channels(fields: Fields) -> tuple[int, int]:
    """Key and value channels of all heads, from fields of ours."""
    keys = fields["num_heads"] * fields["head_dim"]
    return keys, round(keys * fields["expand_v"])


class Sizes(NamedTuple):
    """How a model type tells the sizes of heads."""

    read: Callable[[Fields], Fields]  # from its fields to ours
    write: Callable[[Fields], Fields]


def _write_head_sizes(fields: Fields) -> Fields:
    heads, (keys, values) = fields["num_heads"], channels(fields)
    expand_v = ratio((keys, values), (keys // heads, values // heads))
    return {"num_heads": heads, "head_dim": fields["head_dim"], "expand_v": expand_v}


def _read_ratios(fields: Fields) -> Fields:
    hidden, heads = fields["hidden_size"], fields["num_heads"]
    totals = {name: int(hidden * fields[name]) for name in ("expand_k", "expand_v")}
    for name, total in totals.items():
        if total < 1 or total % heads:
            raise InputError(name, fields[name], f"times hidden_size ({hidden}) must divide by num_heads ({heads})")
    return {"head_dim": totals["expand_k"] // heads, "expand_v": totals["expand_v"] / totals["expand_k"]}


def _write_ratios(fields: Fields) -> Fields:
    hidden, (keys, values) = fields["hidden_size"], channels(fields)
    return {"num_heads": fields["num_heads"], "expand_k": ratio((hidden, keys)), "expand_v": ratio((hidden, values))}


def _read_state_sizes(fields: Fields) -> Fields:
    keys, values = fields["state_size"], fields["head_dim"]
    total = int(fields["expand"] * fields["hidden_size"])
    if total < 1 or total % values:
        remedy = f"times hidden_size ({fields['hidden_size']}) must divide by head_dim ({values})"
        raise InputError("expand", fields["expand"], remedy)
    return {"num_heads": total // values, "head_dim": keys, "expand_v": values / keys}


def _write_state_sizes(fields: Fields) -> Fields:
    heads, (_, values) = fields["num_heads"], channels(fields)
    expand = ratio((fields["hidden_size"], values))
    return {
        "state_size": fields["head_dim"],
        "head_dim": values // heads,
        "num_heads": heads,
        "expand": int(expand) if expand == int(expand) else expand,
        "n_groups": 1,
    }


HEAD_SIZES = Sizes(lambda fields: {}, _write_head_sizes)  # as ours, but for rounding
RATIOS = Sizes(_read_ratios, _write_ratios)  # all channels, as ratios of the hidden size
RATIO_DEFAULTS: Fields = {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 4, "hidden_size": 2048}
STATE_SIZES = Sizes(_read_state_sizes, _write_state_sizes)  # K as that of a state, V as that of a head
STATE_DEFAULTS: Fields = {
    "hidden_size": 2048,
    "state_size": 128,
    "head_dim": 64,
    "expand": 2,
    "norm_eps": 1e-5,
    "num_hidden_layers": 48,
    "pad_token_id": 0,
}


def check_hidden_channels(model_type: str, fields: Fields, size: int) -> None:
    """Refuses heads of ``size`` channels that do not add up to the hidden size."""
    if size * fields["num_heads"] != fields["hidden_size"]:
        remedy = f"the PyTorch library's {model_type} has as many channels in all heads as hidden_size"
        raise InputError("num_heads", fields["num_heads"], remedy)


@dataclasses.dataclass(frozen=True)
class Published:
    """A model type of the PyTorch library whose layers are a single memory of a rule.

    Attributes:
        model_type, architecture: its names in ``config.json``.
        tensors: where its parameters lie.
        sizes: of heads.
        options: our optional fields that it knows.
        rule_options: options of the rule that it knows and that are no fields of ours.
        names: its names of our fields, where they differ.
        defaults: of its own fields, where they differ from ours.
        only: its own fields that change what is computed, with the one value that this library has.
        fixed: our fields that have one value in its models, whatever the file says.
        written: our fields that have one value in what is written.
    """

    model_type: str
    architecture: str
    tensors: Layout
    sizes: Sizes = HEAD_SIZES
    options: tuple[str, ...] = ()
    rule_options: tuple[str, ...] = ()
    names: Fields = dataclasses.field(default_factory=dict)
    defaults: Fields = dataclasses.field(default_factory=dict)
    only: Fields = dataclasses.field(default_factory=dict)
    fixed: Fields = dataclasses.field(default_factory=dict)
    written: Fields = dataclasses.field(default_factory=dict)

    def read(self, fields: Fields) -> Fields:
        """Its fields under our names.

        Raises:
            InputError: an option that this library does not have, or sizes that do not fit together.
        """
        fields = self.defaults | fields
        for name in ("num_v_heads", "num_kv_heads"):
            if name in self.only and fields.get(name) == fields.get("num_heads"):
                fields = without(fields, name)
        check_only(fields, self.model_type, self.only)
        fields = renamed(without(fields, *self.only), {published: name for name, published in self.names.items()})
        fields |= self.sizes.read(fields) | self.fixed
        named = tuple(f"{name}={json.dumps(fields[name])}" for name in self.rule_options if name in fields)
        return without(fields, *self.rule_options) | ({"rule_options": named} if named else {})

    def check_writable(self, fields: Fields) -> None:
        """Refuses options of ours that it does not have."""
        for field, value in (self.fixed | self.written).items():
            if fields[field] != value:
                raise InputError(field, fields[field], f"the PyTorch library's {self.model_type} has {value!r} only")


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A model type whose memory is available as a rule, but whose published models are built from other parts."""

    model_type: str
    why: str

    def read(self, fields: Fields) -> Fields:
        """Refuses it."""
        remedy = f"cannot be converted: {self.why}; memory_rule={self.model_type} is its memory alone"
        raise InputError("model_type", self.model_type, remedy)
