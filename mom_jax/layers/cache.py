"""The state that decoding carries from call to call."""

import dataclasses
import typing
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mom_jax.errors import InputError
from mom_jax.fields import StateDtype
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryCache:
    """The memories of all memory layers: G memories (the shared one last) for each of B rows.

    Its size does not depend on the number of tokens read. Layers index it in place, so a step
    touches only the memories that it writes.
    """

    recurrent: Any  # [L, G, B, *state] in the rule's own shape or shapes, e.g. [L, G, B, H, K, V]; see `zeros`
    conv: dict[str, Float[Array, "L G B _ _"]]  # [..., W-1, channels]: last inputs of each convolution, oldest first
    document: Int[Array, "L B"]  # segment id of each row's last token; memories hold its document only
    length: Int[Array, "L B"]  # tokens read so far, of each row

    @classmethod
    def zeros(
        cls,
        layers: int,
        memories: int,
        batch: int,
        state: Any,
        conv: dict[str, tuple[int, int]],
        dtype: DTypeLike,
        state_dtype: str = "float32",
    ) -> Self:
        """Empty memories.

        Args:
            state: one `jax.ShapeDtypeStruct` or a tuple of them: the state of one memory of one row.
            conv: (W-1, channels) of each short convolution.
            dtype: of the convolution inputs; states are wider where it is.
            state_dtype: ``bfloat16`` keeps matrices [H, K, V] of states in it: they are computed with in float32, and
                rounded where a call leaves them. What else a rule keeps (angles, counts, last rows) stays as it is.

        Raises:
            InputError: a dtype that states are not kept in.
        """
        lead = (layers, memories, batch)
        if state_dtype not in typing.get_args(StateDtype):
            raise InputError("state_dtype", state_dtype, f"choose one of {', '.join(typing.get_args(StateDtype))}")

        def empty(shape: jax.ShapeDtypeStruct) -> Array:
            narrow = state_dtype == "bfloat16" and len(shape.shape) >= 3
            return jnp.zeros((*lead, *shape.shape), jnp.bfloat16 if narrow else jnp.promote_types(shape.dtype, dtype))

        return cls(
            recurrent=jax.tree.map(empty, state),
            conv={name: jnp.zeros((*lead, *shape), dtype) for name, shape in conv.items()},
            document=jnp.zeros((layers, batch), jnp.int32),
            length=jnp.zeros((layers, batch), jnp.int32),
        )

    def with_rows(self, rows: Int[Array, " J"], other: Self) -> Self:
        """The same, with all that ``other``, a cache of J rows, holds in the places of ``rows``."""

        def put(states: Float[Array, "L G B *rest"], new: Float[Array, "L G J *rest"]) -> Float[Array, "L G B *rest"]:
            return states.at[:, :, rows].set(new)

        return type(self)(
            recurrent=jax.tree.map(put, self.recurrent, other.recurrent),
            conv=jax.tree.map(put, self.conv, other.conv),
            document=self.document.at[:, rows].set(other.document),
            length=self.length.at[:, rows].set(other.length),
        )


def states_before(
    states: Float[Array, "L G B *state"], layer: int | Array, table: ChunkTable
) -> Float[Array, "N *state"]:
    """What each row of a single token finds: its segment's state, or 0 where a document begins.

    Indexed where it lies: were the states of all layers reshaped, XLA would copy them at every step.
    """
    return forgotten(states.at[place(states, layer, table)].get(mode="clip"), table)


def states_after(
    states: Float[Array, "L G B *state"], layer: int | Array, table: ChunkTable, own: Float[Array, "N *state"]
) -> Float[Array, "L G B *state"]:
    """The states with those that rows of a single token leave; the others are not touched."""
    return states.at[place(states, layer, table)].set(own.astype(states.dtype), mode="drop")


def place(states: Array, layer: int | Array, table: ChunkTable) -> tuple[int | Array, Array, Array]:
    """Layer, memory and row of the state of each row of a single token; there is no such memory where it has none."""
    return layer, *jnp.divmod(table.segment, states.shape[2])


def forgotten(state: Float[Array, "N *state"], table: ChunkTable) -> Float[Array, "N *state"]:
    """What comes from before a row, 0 where a document begins."""
    if table.reset is None:
        return state
    return jnp.where(table.reset.reshape(-1, *[1] * (state.ndim - 1)), 0, state)


def state_number(layer: int | Array, table: ChunkTable) -> Int[Array, " N"]:
    """Which of all L x G x B states belongs to each row of a single token, as kernels take it; -1 for none."""
    known = table.segment < table.num_segments
    return jnp.where(known, layer * table.num_segments + table.segment, -1).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionCache:
    """Keys and values of all A attention layers, in a ring of ``capacity`` slots for each of B rows.

    A token at position p sits in slot ``p % capacity``; padding takes no slot, and a document that ended leaves
    its slots empty.
    """

    keys: Float[Array, "A B capacity heads K"]
    values: Float[Array, "A B capacity heads K"]
    position: Int[Array, "A B capacity"]  # of the token in each slot; -1 where it is empty
    document: Int[Array, "A B"]  # segment id of each row's last token
    length: Int[Array, "A B"]  # tokens read so far

    @classmethod
    def zeros(cls, layers: int, batch: int, capacity: int, heads: int, head_dim: int, dtype: DTypeLike) -> Self:
        """Empty slots; keys and values are stored in ``dtype``."""
        slots = (layers, batch, capacity)
        return cls(
            keys=jnp.zeros((*slots, heads, head_dim), dtype),
            values=jnp.zeros((*slots, heads, head_dim), dtype),
            position=jnp.full(slots, -1, jnp.int32),
            document=jnp.zeros((layers, batch), jnp.int32),
            length=jnp.zeros((layers, batch), jnp.int32),
        )

    def with_rows(self, rows: Int[Array, " J"], other: Self) -> Self:
        """The same, with all that ``other``, a cache of J rows, holds in the places of ``rows``."""
        return jax.tree.map(lambda own, new: own.at[:, rows].set(new), self, other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The state of a whole model, by kind of layer."""

    kinds: dict[str, MemoryCache | AttentionCache]
    place: Int[Array, " B"] | None = None  # tokens read of each row's document, where memories are chosen by it

    @property
    def memory(self) -> Any:
        """Of memory layers (`MemoryCache`); None without any."""
        return self.kinds.get("memory")

    @property
    def attention(self) -> Any:
        """Of the attention layers of the first settings (`AttentionCache`); None without any."""
        return self.kinds.get("attention")

    def with_kind(self, kind: str, cache: MemoryCache | AttentionCache) -> Self:
        """The same with another state of one kind of layers."""
        return dataclasses.replace(self, kinds=self.kinds | {kind: cache})

    def with_rows(self, rows: Int[Array, " J"], other: Self) -> Self:
        """The same, with all that ``other``, a cache of J rows, holds in the places of ``rows``; the others stay."""
        kinds = {kind: cache.with_rows(rows, other.kinds[kind]) for kind, cache in self.kinds.items()}  # type: ignore[arg-type]
        place = None if self.place is None else self.place.at[rows].set(other.place)
        return type(self)(kinds, place)

    @property
    def document(self) -> Int[Array, " B"]:
        """Segment id of each row's last token, which all layers saw alike; 0 before the first."""
        return next(iter(self.kinds.values())).document[0]
