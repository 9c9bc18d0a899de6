"""Which tensor of the PyTorch library holds which of our parameters: those of mixtures and attention layers.

A rule declares where its single memory lies. The tables are those of `mom_jax.layers.rules.published`; in a mixture the
shared memory comes last.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from mom_jax.layers.rules.gated_deltanet import GATED_TENSORS
from mom_jax.layers.rules.published import BLOCK, MATRIX, Form, Layout, Published, Row, Shape, Table
from mom_jax.layers.rules.registry import find_rule
from mom_jax.models.config import MoMConfig

_MEMORY: Table = GATED_TENSORS | {
    "attn.router.weight": Row("attn.gate.weight", MATRIX),
    "attn.rule.k_proj": Row("attn.k_proj.{memory}.weight", MATRIX, shared="attn.shared_k.weight"),
    "attn.rule.v_proj": Row("attn.v_proj.{memory}.weight", MATRIX, shared="attn.shared_v.weight"),
    "attn.rule.b_proj": Row("attn.b_proj.{memory}.weight", MATRIX, shared="attn.shared_b.weight"),
    "attn.rule.a_proj": Row("attn.a_proj.{memory}.weight", MATRIX, shared="attn.shared_a.weight"),
}
_ATTENTION: Table = {
    "attn.q_proj.weight": Row("attn.q_proj.weight", MATRIX),
    "attn.k_proj.weight": Row("attn.k_proj.weight", MATRIX),
    "attn.v_proj.weight": Row("attn.v_proj.weight", MATRIX),
    "attn.o_proj.weight": Row("attn.o_proj.weight", MATRIX),
    "attn.q_proj.bias": Row("attn.q_proj.bias"),
    "attn.k_proj.bias": Row("attn.k_proj.bias"),
    "attn.v_proj.bias": Row("attn.v_proj.bias"),
}


def _old_block(config: MoMConfig) -> Table:
    """The older layout fuses gate and up projection, gate first, and may keep the norm inside the MLP."""
    wide = config.mlp_dim
    return BLOCK | {
        "mlp_norm.weight": Row("mlp_norm.weight", also="mlp.norm.weight"),
        "mlp.gate_proj.weight": Row("mlp.gate_proj.weight", Form(transposed=True, part=(0, 2 * wide))),
        "mlp.up_proj.weight": Row("mlp.gate_proj.weight", Form(transposed=True, part=(wide, 2 * wide))),
    }


_KINDS = {"layers": "memory", "attention_layers": "attention"}  # our stack: the kind of its layers
_LAYOUTS = {
    "mom": Layout(_MEMORY),
    "mom_gated_deltanet": Layout(_MEMORY, _old_block),
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
    scheme = _layout(config, layout)
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


def model_tensor(config: MoMConfig, layout: str, ours: str) -> str:
    """Their name of a tensor outside of the layers, such as ``embeddings``."""
    return _layout(config, layout).model[ours].name


def _layout(config: MoMConfig, layout: str) -> Layout:
    if layout in _LAYOUTS:
        return _LAYOUTS[layout]
    published = find_rule(config.memory_rule).published
    assert isinstance(published, Published) and published.model_type == layout
    return published.tensors


def _table(table: Table | Callable[[Any], Table], config: MoMConfig) -> Table:
    return table(config) if callable(table) else table


def _memory_names(row: Row, config: MoMConfig, memories: int) -> list[str]:
    assert row.shared is not None
    routed = 0 if config.single_kv_proj or not config.mixture else config.num_memories
    names = [row.name.format(memory=memory) for memory in range(routed)]
    return names + [row.shared] * (memories - routed)


def without_effect(config: MoMConfig, name: str) -> bool:
    """Whether a stored tensor may be left aside: the reference stores it but never reads it."""
    return _WITHOUT_EFFECT.fullmatch(name) is not None or (config.tie_word_embeddings and name == "lm_head.weight")
