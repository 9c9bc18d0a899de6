"""A recurrence as one object: what it reads, one step, its chunk-parallel form, its kernels, its state and its cost.

A memory rule makes rows of its tokens and hands them to a primitive. Suites, benchmarks and tools iterate over
`mom_jax.ops.primitives.PRIMITIVES`, so what they do for one recurrence they do for all.

Every form is ``(rows, table, state, scale) -> (o, state)``: packed rows [N, ...] ordered by a `ChunkTable`, the state
of every segment [S, ...] or None to start from 0 and keep none, and outputs [N, H, V].
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import final_states, initial_carry, load, store
from mom_jax.ops.dispatch import Kernel, Target, kernel_for, select
from mom_jax.ops.segment_rows import opens_segment
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float, Shaped

Rows = Any  # a NamedTuple of arrays [N, ...], q, k and v among them; None for what is optional
State = Any  # an array or a tuple of them: [S, ...] of all segments, [N, ...] of rows that are segments of their own
Form = Callable[[Rows, ChunkTable, State, float], tuple[Array, State]]
Place = tuple[Any, ...]  # whole numbers, or arrays [N] of them: where states lie in the leading axes of many


class Transition(NamedTuple):
    """One token of a recurrence whose state is a matrix S for each head; a and b are None where nothing is of rank one.

    u = S^T a;   o = scale * (S^T r + (q.b) u + (q.k) v);   S' = diag(kept) S + b u^T + k v^T
    """

    r: Float[Array, "N H K"]
    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]
    v: Float[Array, "N H V"]
    kept: Float[Array, "N H K"]
    a: Float[Array, "N H K"] | None = None
    b: Float[Array, "N H K"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Primitive:
    """A recurrence over packed rows.

    Attributes:
        name: the field's name for it.
        rows: the NamedTuple of its inputs, in the order of the kernels' arguments.
        state: ``(H, K, V)`` to one memory's state, a `jax.ShapeDtypeStruct` or a tuple of them.
        step: ``(rows, state, scale) -> (o, state)``, one token for each of N states: the definition, and decoding.
        flops: ``(C, K, V)`` to the FLOPs of the matrix products of ``chunked`` for one row and head: forward, backward.
        inert: fields that must be 0 on padding rows, which then neither write nor decay.
        chunked: the chunk-parallel form; None runs the steps one after the other.
        kernels: by platform, ``module:function`` on plain arrays (`mom_jax.ops.dispatch`).
        shared: fields that hold one value for all rows.
        transition: one token, as the kernels take it that change states in place; None: there is no such kernel.
        step_in_place: ``(rows, states, place, scale) -> (o, states)``: a step for N of many states [..., H, ...], where
            it touches less than the whole of them; a ``place`` outside of the axes is of no state.
        handover: ``(primitive, rows, table, scale, impl)`` to a `mom_jax.ops.handover.Handover`, by which rows that
            are spread over devices go on from each other's states; None: they cannot.
        split: its GPU kernel runs through the chunks of a segment one after the other, so that few, long segments are
            better cut in pieces (`mom_jax.ops.split`); needs ``handover``.
        beside: ``(rows, read) -> (rows, reads)``, for states that begin documents (`mom_jax.ops.beginnings`): ``read``
            gives what a query [N, H, K] reads of a state before its row decays it. The rows come back without what
            they erase there, and with what they read. None: there is no such form.
        skips: a row whose ``inert`` numbers are 0 leaves the state as it is anywhere, not only after a segment's end.
    """

    name: str
    rows: Callable[..., Rows]
    state: Callable[[int, int, int], Any]
    step: Callable[[Rows, State, float], tuple[Array, State]]
    flops: Callable[[int, int, int], tuple[float, float]]
    inert: tuple[str, ...]
    chunked: Form | None = None
    kernels: Mapping[str, Kernel] = dataclasses.field(default_factory=dict)
    shared: tuple[str, ...] = ()
    transition: Callable[[Rows], Transition] | None = None
    step_in_place: Callable[[Rows, State, Place, float], tuple[Array, State]] | None = None
    handover: Callable[["Primitive", Rows, ChunkTable, float, str], Any] | None = None
    split: bool = False
    beside: Callable[[Rows, Callable[[Array], Array]], tuple[Rows, Array]] | None = None
    skips: bool = True

    def __call__(
        self, rows: Rows, table: ChunkTable, state: State = None, *, scale: float | None = None, impl: str = "auto"
    ) -> tuple[Float[Array, "N H V"], State]:
        """Runs the recurrence over packed rows.

        Args:
            rows: inputs in float32 or bfloat16; the fields in ``inert`` are 0 on padding rows.
            table: segments and documents of the rows.
            state: float32, of every segment; None starts from 0 and returns no state.
            scale: of the output, K^-0.5 if None.
            impl: ``auto``, ``reference`` (token by token), ``xla`` (chunk-parallel), or the kernels of ``tpu`` or
                ``gpu`` (`mom_jax.ops.dispatch`).

        Returns:
            Outputs in ``v.dtype``, and the state of every segment after its last row (an empty segment keeps its
            own), or None without a state.

        Raises:
            InputError: ``impl`` is unknown or cannot run here.
        """
        forms = {"reference": self.scan, "xla": self.chunked or self.scan}
        return select(impl, forms, self.kernels)(rows, table, state, default_scale(rows, scale))

    def scan(self, rows: Rows, table: ChunkTable, state: State, scale: float) -> tuple[Float[Array, "N H V"], State]:
        """The recurrence exactly as written: its ``step``, one row after the other."""
        fields = rows._asdict()
        per_row = {name: x for name, x in fields.items() if name not in self.shared}
        common = {name: fields[name] for name in self.shared}
        begins = opens_segment(table)
        segment = jnp.repeat(table.segment, table.chunk_size)
        forget = jnp.zeros_like(begins) if table.reset is None else table.reset

        def body(carried, xs):
            running, stored = carried
            row, begins_t, segment_t, forget_t = xs
            running = load(stored, running, segment_t, begins_t)
            running = jax.tree.map(lambda a: jnp.where(forget_t, 0, a)[None], running)
            row = jax.tree.map(lambda x: x[None], row)
            o, running = self.step(self.rows(**row, **common), running, scale)
            running = jax.tree.map(lambda a: a[0], running)
            return (running, store(stored, running, segment_t, True)), o[0]

        carry = initial_carry(state, self.state_of(rows))
        (_, stored), o = jax.lax.scan(body, carry, (per_row, begins, segment, forget))
        return o, final_states(stored)

    def state_of(self, rows: Rows) -> Any:
        """Shapes and dtypes of one state for such rows; float64 where the rows are."""
        shapes = self.state(rows.v.shape[1], rows.k.shape[-1], rows.v.shape[-1])
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.promote_types(s.dtype, rows.v.dtype)), shapes)

    def masked(self, rows: Rows, valid: Bool[Array, " N"]) -> Rows:
        """The rows, with the fields in ``inert`` set to 0 on padding rows."""
        fields = rows._asdict()
        inert = {name: fields[name] for name in self.inert if fields[name] is not None}
        return rows._replace(**{name: _zeroed(x, valid) for name, x in inert.items()})

    def scaled(self, rows: Rows, by: Float[Array, "N *heads"]) -> Rows:
        """The rows, with what they do to the state times ``by``, in [0, 1], of each row or of each of its heads."""
        fields = rows._asdict()
        inert = {name: fields[name] for name in self.inert if fields[name] is not None}
        floats = {name: x for name, x in inert.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        return rows._replace(**{name: _times(x, by) for name, x in floats.items()})


def _times(x: Float[Array, "N *rest"], by: Float[Array, "N *heads"]) -> Float[Array, "N *rest"]:
    return (x * by.reshape(by.shape + (1,) * (x.ndim - by.ndim))).astype(x.dtype)


def _zeroed(x: Shaped[Array, "N *rest"], keep: Bool[Array, " N"]) -> Shaped[Array, "N *rest"]:
    return jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def default_scale(rows: Rows, scale: float | None) -> float:
    """``scale``, or K^-0.5 if None."""
    return rows.k.shape[-1] ** -0.5 if scale is None else scale


def float32(*shape: int) -> Any:
    """An array of a state, by its shape."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def matrix(heads: int, keys: int, values: int) -> jax.ShapeDtypeStruct:
    """The state of most recurrences: [H, K, V] in float32."""
    return float32(heads, keys, values)


def kernels_over(below: Primitive, around: Callable[..., tuple[Array, State]]) -> dict[str, Kernel]:
    """Kernels of a recurrence that is ``around(form, rows, table, state, scale)`` of any form of the one ``below``."""

    def run(device: Target, *arguments: Any) -> tuple[Array, State]:
        return around(kernel_for(device, below.kernels), *arguments)

    return dict.fromkeys(below.kernels, run)


def step_by(transition: Callable[[Any], Transition]) -> Callable[[Rows, Array, float], tuple[Array, Array]]:
    """The step of a recurrence, by what one token does to its states: outputs (``v.dtype``) and new states.

    Everything that is read is read of the old state, in one pass: a step is bound by the bytes of its memories.
    """

    def step(
        rows: Rows, state: Float[Array, "N H K V"], scale: float
    ) -> tuple[Float[Array, "N H V"], Float[Array, "N H K V"]]:
        token = transition(rows)
        read, *others = read_all(state, token.r, *([] if token.a is None else [token.a]))
        o = read + overlap(token.q, token.k) * token.v
        state = token.kept[..., None] * state + token.k[..., None] * token.v[..., None, :]
        if token.b is not None:
            (u,) = others
            o, state = o + overlap(token.q, token.b) * u, state + token.b[..., None] * u[..., None, :]
        return (scale * o).astype(rows.v.dtype), state

    return step


def read_all(state: Float[Array, "N H K V"], *queries: Float[Array, "N H K"]) -> list[Float[Array, "N H V"]]:
    """What each of several queries reads from N states, ``S^T q``, in one pass over them."""
    reads = jnp.einsum("nhik,nhkv->nihv", jnp.stack(queries, 2), state)
    return [reads[:, i] for i in range(len(queries))]


def overlap(q: Float[Array, "*batch K"], k: Float[Array, "*batch K"]) -> Float[Array, "*batch 1"]:
    """``q.k``: how much of what k writes q reads."""
    return jnp.sum(q * k, -1, keepdims=True)
