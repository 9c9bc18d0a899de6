"""Which tensor of the PyTorch library holds which of our parameters: one table for each layout.

A row reads ``our name: (their name, how it lies there)``. Our parameters of a layer lie in a stack
with a leading layer axis, those of single memories behind it with a memory axis (the shared
memory last); theirs are one tensor for each layer and memory.

A new layout is a table of its rows and an entry in ``_LAYOUTS``.
"""

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from mom_jax.models.config import MoMConfig

Shape = tuple[int, ...]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """How one of their tensors holds one of our matrices or vectors.

    Attributes:
        transposed: they store [out, in], we [in, out].
        taps: they store a convolution as [channels, 1, W], we as [channels, W].
        part: ``(first, rows)``: theirs has ``rows`` rows, several of ours on top of each other (before
            transposing), and this one begins at row ``first``.
    """

    transposed: bool = False
    taps: bool = False
    part: tuple[int, int] | None = None

    def stored_shape(self, shape: Shape) -> Shape:
        """The shape of their tensor for ours of ``shape``."""
        rows, *rest = reversed(shape) if self.transposed else shape
        return (rows if self.part is None else self.part[1], *([1] if self.taps else []), *rest)

    def stored_index(self, index: Index, shape: Shape) -> Index:
        """Where their tensor holds ``index`` of ours, which has ``shape`` in all."""
        bounds = [slice(*cut.indices(size)[:2]) for cut, size in zip(index, shape, strict=True)]
        if self.transposed:
            bounds = bounds[::-1]
        before = 0 if self.part is None else self.part[0]
        rows = slice(before + bounds[0].start, before + bounds[0].stop)
        return (rows, *([slice(0, 1)] if self.taps else []), *bounds[1:])

    def ours(self, stored: np.ndarray) -> np.ndarray:
        """Our view of what was read at `stored_index`."""
        if self.taps:
            return stored[:, 0]
        return stored.T if self.transposed else stored

    def stored(self, ours: np.ndarray) -> np.ndarray:
        """Their view of a whole matrix of ours; of a ``part``, its own rows."""
        if self.taps:
            return ours[:, None]
        return ours.T if self.transposed else ours


SAME = Form()
MATRIX = Form(transposed=True)
TAPS = Form(taps=True)


class Row(NamedTuple):
    """A row of the table; ``{memory}`` in a name stands for the number of a routed memory."""

    name: str
    form: Form
    shared: str | None = None  # their name of the shared memory's (or the only) projection
    also: str | None = None  # another name it may have
    all_layers: bool = False  # one tensor of theirs, outside of the layers, holds those of all layers


Table = dict[str, Row]

_MODEL: Table = {
    "embeddings": Row("model.embeddings.weight", SAME),
    "norm.weight": Row("model.norm.weight", SAME),
    "lm_head": Row("lm_head.weight", SAME),
}
_BLOCK: Table = {
    "attn_norm.weight": Row("attn_norm.weight", SAME),
    "mlp_norm.weight": Row("mlp_norm.weight", SAME),
    "mlp.gate_proj.weight": Row("mlp.gate_proj.weight", MATRIX),
    "mlp.up_proj.weight": Row("mlp.up_proj.weight", MATRIX),
    "mlp.down_proj.weight": Row("mlp.down_proj.weight", MATRIX),
}
_MEMORY: Table = {
    "attn.router.weight": Row("attn.gate.weight", MATRIX),
    "attn.rule.q_proj.weight": Row("attn.q_proj.weight", MATRIX),
    "attn.rule.k_proj": Row("attn.k_proj.{memory}.weight", MATRIX, shared="attn.shared_k.weight"),
    "attn.rule.v_proj": Row("attn.v_proj.{memory}.weight", MATRIX, shared="attn.shared_v.weight"),
    "attn.rule.b_proj": Row("attn.b_proj.{memory}.weight", MATRIX, shared="attn.shared_b.weight"),
    "attn.rule.a_proj": Row("attn.a_proj.{memory}.weight", MATRIX, shared="attn.shared_a.weight"),
    "attn.rule.A_log": Row("attn.A_log", SAME),
    "attn.rule.dt_bias": Row("attn.dt_bias", SAME),
    "attn.rule.q_conv1d": Row("attn.q_conv1d.weight", TAPS),
    "attn.rule.k_conv1d": Row("attn.k_conv1d.weight", TAPS),
    "attn.rule.v_conv1d": Row("attn.v_conv1d.weight", TAPS),
    "attn.output.g_proj.weight": Row("attn.g_proj.weight", MATRIX),
    "attn.output.norm": Row("attn.o_norm.weight", SAME),
    "attn.output.o_proj.weight": Row("attn.o_proj.weight", MATRIX),
}
# A single memory has its projections under plain names.
_SINGLE: Table = {
    "attn.rule.q_proj.weight": Row("attn.q_proj.weight", MATRIX),
    "attn.rule.k_proj": Row("", MATRIX, shared="attn.k_proj.weight"),
    "attn.rule.v_proj": Row("", MATRIX, shared="attn.v_proj.weight"),
    "attn.rule.q_conv1d": Row("attn.q_conv1d.weight", TAPS),
    "attn.rule.k_conv1d": Row("attn.k_conv1d.weight", TAPS),
    "attn.rule.v_conv1d": Row("attn.v_conv1d.weight", TAPS),
    "attn.output.g_proj.weight": Row("attn.g_proj.weight", MATRIX),
    "attn.output.o_proj.weight": Row("attn.o_proj.weight", MATRIX),
}
_DELTA_NET: Table = _SINGLE | {
    "attn.rule.b_proj": Row("", MATRIX, shared="attn.b_proj.weight"),
    "attn.output.norm": Row("attn.o_norm.weight", SAME),
}
_GATED_DELTANET: Table = _DELTA_NET | {
    "attn.rule.a_proj": Row("", MATRIX, shared="attn.a_proj.weight"),
    "attn.rule.A_log": Row("attn.A_log", SAME),
    "attn.rule.dt_bias": Row("attn.dt_bias", SAME),
}
_LINEAR_ATTN: Table = _SINGLE | {"attn.output.norm": Row("attn.norm.weight", SAME)}
_RETNET: Table = _SINGLE | {
    "attn.output.norm": Row("attn.g_norm_swish_gate.weight", SAME, also="attn.g_norm.weight"),
}
_GLA: Table = _RETNET | {
    "attn.rule.gk_down": Row("", MATRIX, shared="attn.gk_proj.0.weight"),
    "attn.rule.gk_up": Row("", MATRIX, shared="attn.gk_proj.1.weight"),
    "attn.rule.gk_bias": Row("", SAME, shared="attn.gk_proj.1.bias"),
}
_ATTENTION: Table = {
    "attn.q_proj.weight": Row("attn.q_proj.weight", MATRIX),
    "attn.k_proj.weight": Row("attn.k_proj.weight", MATRIX),
    "attn.v_proj.weight": Row("attn.v_proj.weight", MATRIX),
    "attn.o_proj.weight": Row("attn.o_proj.weight", MATRIX),
    "attn.q_proj.bias": Row("attn.q_proj.bias", SAME),
    "attn.k_proj.bias": Row("attn.k_proj.bias", SAME),
    "attn.v_proj.bias": Row("attn.v_proj.bias", SAME),
}
_HGRN2: Table = _SINGLE | {
    "attn.rule.k_proj": Row("", MATRIX, shared="attn.f_proj.weight"),
    "attn.rule.v_proj": Row("", MATRIX, shared="attn.i_proj.weight"),
    "attn.rule.k_conv1d": Row("attn.f_conv1d.weight", TAPS),
    "attn.rule.v_conv1d": Row("attn.i_conv1d.weight", TAPS),
    "attn.rule.lower_bound": Row("model.lower_bounds", SAME, all_layers=True),
    "attn.output.norm": Row("attn.g_norm.weight", SAME),
}
_GSA: Table = _SINGLE | {
    "attn.rule.f_proj": Row("", MATRIX, shared="attn.f_proj.weight"),
    "attn.output.norm": Row("attn.g_norm.weight", SAME),
}
_KDA: Table = _GATED_DELTANET | {
    "attn.rule.f_down": Row("", MATRIX, shared="attn.f_proj.0.weight"),
    "attn.rule.f_up": Row("", MATRIX, shared="attn.f_proj.1.weight"),
    "attn.output.g_down.weight": Row("attn.g_proj.0.weight", MATRIX),
    "attn.output.g_up.weight": Row("attn.g_proj.1.weight", MATRIX),
    "attn.output.g_up.bias": Row("attn.g_proj.1.bias", SAME),
}


def _old_block(config: MoMConfig) -> Table:
    """The older layout fuses gate and up projection, gate first, and may keep the norm inside the MLP."""
    wide = config.mlp_dim
    return _BLOCK | {
        "mlp_norm.weight": Row("mlp_norm.weight", SAME, also="mlp.norm.weight"),
        "mlp.gate_proj.weight": Row("mlp.gate_proj.weight", Form(transposed=True, part=(0, 2 * wide))),
        "mlp.up_proj.weight": Row("mlp.gate_proj.weight", Form(transposed=True, part=(wide, 2 * wide))),
    }


def _mamba2(config: MoMConfig) -> Table:
    """One projection to gate, value, key, query and time step; one convolution over value, key and query."""
    values, keys = config.value_dim, config.head_dim
    total = 2 * values + 2 * keys + config.num_heads
    convolved = {"v": 0, "k": values, "q": values + keys}  # first rows
    table: Table = {
        "attn.output.g_proj.weight": Row("mixer.in_proj.weight", Form(transposed=True, part=(0, total))),
        "attn.rule.A_log": Row("mixer.A_log", SAME),
        "attn.rule.dt_bias": Row("mixer.dt_bias", SAME),
        "attn.rule.D": Row("mixer.D", SAME),
        "attn.output.norm": Row("mixer.norm.weight", SAME),
        "attn.output.o_proj.weight": Row("mixer.out_proj.weight", MATRIX),
        "attn_norm.weight": Row("norm.weight", SAME),
    }
    for name, first in convolved.items():
        form = Form(transposed=True, part=(values + first, total))
        row = Row("mixer.in_proj.weight", form) if name == "q" else Row("", form, shared="mixer.in_proj.weight")
        table["attn.rule.q_proj.weight" if name == "q" else f"attn.rule.{name}_proj"] = row
        part = (first, values + 2 * keys)
        table[f"attn.rule.{name}_conv1d"] = Row("mixer.conv1d.weight", Form(taps=True, part=part))
        table[f"attn.rule.{name}_conv1d_bias"] = Row("mixer.conv1d.bias", Form(part=part))
    steps = Form(transposed=True, part=(total - config.num_heads, total))
    return table | {"attn.rule.dt_proj": Row("", steps, shared="mixer.in_proj.weight")}


_KINDS = {"layers": "memory", "attention_layers": "attention"}  # our stack: the kind of its layers


class Layout(NamedTuple):
    """Where a published model type keeps its tensors; a table may be a function of the configuration."""

    memory: Table | Callable[[MoMConfig], Table]  # the mixer of a memory layer
    block: Table | Callable[[MoMConfig], Table] = _BLOCK  # what surrounds a mixer
    model: Table = _MODEL
    layer: str = "model.layers.{layer}."  # before the names of a layer


_BACKBONE: Table = {
    "embeddings": Row("backbone.embeddings.weight", SAME),
    "norm.weight": Row("backbone.norm_f.weight", SAME),
    "lm_head": Row("lm_head.weight", SAME),
}
_LAYOUTS: dict[str, Layout] = {
    "mom": Layout(_MEMORY),
    "mom_gated_deltanet": Layout(_MEMORY, _old_block),
    "gated_deltanet": Layout(_GATED_DELTANET),
    "delta_net": Layout(_DELTA_NET),
    "linear_attn": Layout(_LINEAR_ATTN),
    "retnet": Layout(_RETNET),
    "gla": Layout(_GLA),
    "hgrn2": Layout(_HGRN2),
    "gsa": Layout(_GSA),
    "kda": Layout(_KDA),
    "mamba2": Layout(_mamba2, {}, _BACKBONE, "backbone.layers.{layer}."),
    "transformer": Layout({}),
}
# Stored here and there, but without effect on what a model computes.
_WITHOUT_EFFECT = re.compile(r"model\.layers\.\d+\.attn\.(D|rotary\.inv_freq)")


class Piece(NamedTuple):
    """One of their tensors and the place of what it holds inside one of our parameters."""

    where: tuple[int, ...]  # () or (layer,) or (layer, memory): leading index into ours
    name: str
    form: Form


def pieces(config: MoMConfig, layout: str, ours: str, shape: Shape, stored: Collection[str] = ()) -> list[Piece]:
    """Their tensors that make up one of our parameters.

    Args:
        config: of the model.
        layout: a published model type.
        ours: dotted name of our parameter.
        shape: its shape, the layer and memory axes included.
        stored: names in the file, which choose between the names that a tensor may have.
    """
    scheme = _LAYOUTS[layout]
    if ours in scheme.model:
        row = scheme.model[ours]
        return [Piece((), row.name, row.form)]
    stack, _, inside = ours.partition(".")
    row = (_table(scheme.block, config) | (_table(scheme.memory, config) if stack == "layers" else _ATTENTION))[inside]
    if row.all_layers:
        return [Piece((), row.name, row.form)]
    numbers = [i for i, kind in enumerate(config.layer_kinds) if kind == _KINDS[stack]]
    all_pieces = []
    for rank, number in enumerate(numbers):
        prefix = scheme.layer.format(layer=number)
        if row.shared is None:
            name = prefix + row.name
            if row.also is not None and name not in stored and prefix + row.also in stored:
                name = prefix + row.also
            all_pieces.append(Piece((rank,), name, row.form))
        else:
            names = _memory_names(row, config, shape[1])
            all_pieces += [Piece((rank, memory), prefix + name, row.form) for memory, name in enumerate(names)]
    return all_pieces


def model_tensor(layout: str, ours: str) -> str:
    """Their name of a tensor outside of the layers, such as ``embeddings``."""
    return _LAYOUTS[layout].model[ours].name


def _table(table: Table | Callable[[MoMConfig], Table], config: MoMConfig) -> Table:
    return table(config) if callable(table) else table


def _memory_names(row: Row, config: MoMConfig, memories: int) -> list[str]:
    assert row.shared is not None
    routed = 0 if config.single_kv_proj or not config.mixture else config.num_memories
    names = [row.name.format(memory=memory) for memory in range(routed)]
    return names + [row.shared] * (memories - routed)


def without_effect(config: MoMConfig, name: str) -> bool:
    """Whether a stored tensor may be left aside: the reference stores it but never reads it."""
    return _WITHOUT_EFFECT.fullmatch(name) is not None or (config.tie_word_embeddings and name == "lm_head.weight")
