"""Every recurrence as a test sees it: random inputs by name, and the rows that the primitive takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.ops.delta_product import delta_product
from mom_jax.ops.delta_rule import DELTA_RULE
from mom_jax.ops.erase_and_write import ERASE_AND_WRITE, as_rank_one, comba_rows, gated_deltanet2_rows, kda_rows
from mom_jax.ops.gated_slots import gated_slots
from mom_jax.ops.log_linear import log_linear
from mom_jax.ops.mesa import MESA
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.rank_one_decay import RANK_ONE_DECAY, RankOneDecayRows
from mom_jax.ops.scalar_decay import SCALAR_DECAY
from mom_jax.ops.sparse_delta import SparseDeltaRows, sparse_delta
from mom_jax.ops.titans import titans_linear
from mom_jax.ops.trapezoid import TrapezoidState, trapezoid
from mom_jax.ops.ttt import ttt_linear
from mom_jax.ops.vector_decay import VECTOR_DECAY

Rng = np.random.Generator
Inputs = dict[str, Any]
HEADS = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of one recurrence.

    ``rows`` and ``state`` draw what belongs to tokens and to segments, ``shared`` what belongs to all; ``made`` turns
    them into the primitive's rows, by name if None.
    """

    primitive: Primitive
    rows: dict[str, Callable[[Rng, int, int, int], np.ndarray]]  # (rng, tokens, K, V) -> [tokens, H, ...]
    state: Callable[[Rng, int, int, int], Any]
    shared: Callable[[Rng, int, int], Inputs] = lambda rng, keys, values: {}
    made: Callable[..., Any] | None = None
    gates: tuple[str, ...] = ()  # log gates among the rows

    def example(self, tokens: int, segments: int, sizes=(8, 12), seed: int = 0, **changes: Any) -> Inputs:
        """Float32 inputs: ``rows``, ``shared`` and ``state``; ``changes`` replace or map rows by name."""
        rng = np.random.default_rng(seed)
        rows = {name: draw(rng, tokens, *sizes) for name, draw in self.rows.items()}
        rows |= {name: change(rows[name]) for name, change in changes.items()}
        inputs = {"rows": rows, "shared": self.shared(rng, *sizes), "state": self.state(rng, segments, *sizes)}
        return jax.tree.map(lambda a: np.asarray(a, np.float32), inputs)

    def packed(self, rows: Inputs, shared: Inputs) -> Any:
        """The primitive's rows."""
        rows = rows | {"valid": rows["valid"] > 0} if "valid" in rows else rows
        return (self.made or self.primitive.rows)(**jax.tree.map(jnp.asarray, rows | shared))

    def run(self, rows, shared, table, state, valid=None, **options: Any) -> tuple[jax.Array, Any]:
        """The recurrence over packed rows, masked where ``valid`` says which are tokens."""
        packed = self.packed(rows, shared)
        packed = packed if valid is None else self.primitive.masked(packed, valid)
        return self.primitive(packed, table, _counted(state), **options)

    def by(self, primitive: Primitive, convert: Callable[[Any], Any]) -> "Case":
        """The same inputs as rows of another recurrence."""
        made = self.made or self.primitive.rows
        return dataclasses.replace(self, primitive=primitive, made=lambda **inputs: convert(made(**inputs)))

    def step(self, rows, shared, state) -> tuple[jax.Array, Any]:
        """One token for each state."""
        return self.primitive.step(self.packed(rows, shared), state, rows["q"].shape[-1] ** -0.5)


def _counted(state):
    """The number of tokens in a mini-batch has no gradient."""
    return (state[0], jax.lax.stop_gradient(state[1])) if isinstance(state, tuple) and state[1].ndim == 1 else state


def normal(channels: str):
    """Normal rows with K or V channels."""
    return lambda rng, n, keys, values: rng.normal(size=(n, HEADS, keys if channels == "K" else values))


def unit(rng, n, keys, values):
    """Keys of length 1."""
    k = rng.normal(size=(n, HEADS, keys))
    return k / np.linalg.norm(k, axis=-1, keepdims=True)


def head_gate(rng, n, keys, values):
    """A log gate for each head."""
    return -np.log1p(np.exp(rng.normal(size=(n, HEADS))))


def channel_gate(rng, n, keys, values):
    """A log gate for each key channel."""
    return -np.log1p(np.exp(rng.normal(size=(n, HEADS, keys))))


def matrix(rng, segments, keys, values):
    """States [S, H, K, V]."""
    return rng.normal(size=(segments, HEADS, keys, values))


QKV = {"q": normal("K"), "k": normal("K"), "v": normal("V")}


def strength(rng, n, keys, values):
    """A write strength in (0, 1) for each head."""
    return 1 / (1 + np.exp(-rng.normal(size=(n, HEADS))))


def shares(channels: str):
    """Numbers in (0, 1) for K or V channels."""
    return lambda *sizes: 1 / (1 + np.exp(-normal(channels)(*sizes)))


def steps(draw):
    """A row of `draw` for each of three steps of a token."""
    return lambda rng, *sizes: np.stack([draw(rng, *sizes) for _ in range(3)], 2)


def _rwkv7_rows(q, k, v, g, kk, rate):
    """RWKV7's a and b: minus the unit key, and the unit key times a rate."""
    return RankOneDecayRows(q, k, v, g, a=-kk, b=kk * rate[..., None])


SLOTS = 6
FEW = 3
PAIRS = 3
LEVELS = 6
MINI_BATCH = 6  # no divisor of a chunk


def slots(draw):
    """A row of `draw` over slots instead of channels."""
    return lambda rng, n, keys, values: draw(rng, n, SLOTS, SLOTS)


def _slot_state(rng, segments, keys, values):
    return matrix(rng, segments, keys, SLOTS), matrix(rng, segments, SLOTS, values)


def _ttt_state(rng, segments, keys, values):
    return 0.3 * rng.normal(size=(segments, HEADS, 2, keys + 1, keys)), np.arange(segments) % MINI_BATCH


def _inner_norm(rng, keys, values):
    weight, bias = 1 + 0.1 * rng.normal(size=(HEADS, keys)), 0.1 * rng.normal(size=(HEADS, keys))
    return {"norm_weight": weight, "norm_bias": bias}


def _ttt_shared(rng, keys, values):
    return _inner_norm(rng, keys, values) | {"start": 0.3 * rng.normal(size=(HEADS, keys + 1, keys))}


def _titans_state(rng, segments, keys, values):
    return 0.3 * rng.normal(size=(segments, HEADS, 3, keys, values)), np.arange(segments) % MINI_BATCH


def _titans_square(rng, segments, keys, values):
    return _titans_state(rng, segments, keys, keys)


def _levels_state(rng, segments, keys, values):
    """A level holds what the tokens before say that it can."""
    count = np.arange(segments) % 7
    last, level = count[:, None] - 1, np.arange(LEVELS)
    holds = ((last >> np.maximum(level - 1, 0)) % 2 == 1) | (level == 0)
    levels = rng.normal(size=(segments, HEADS, LEVELS, keys, values))
    return levels * (holds & (last >= 0))[:, None, :, None, None], count


def level_weights(rng, n, keys, values):
    """Positive weights of levels."""
    return np.exp(rng.normal(size=(n, HEADS, LEVELS)))


def _mesa_state(rng, segments, keys, values):
    drawn = rng.normal(size=(segments, HEADS, keys, keys))
    return drawn @ drawn.swapaxes(-1, -2) / keys, matrix(rng, segments, keys, values)


def _ridge(rng, keys, values):
    return {"ridge": rng.uniform(0.5, 2, size=(HEADS, keys))}


def names(rng, n, keys, values):
    """Different slots for each token and head."""
    return np.stack([rng.permutation(SLOTS)[:FEW] for _ in range(n * HEADS)]).reshape(n, HEADS, FEW)


def weights(rng, n, keys, values):
    """Of few slots, which sum to 1."""
    drawn = rng.uniform(0.1, 1, size=(n, HEADS, FEW))
    return drawn / drawn.sum(-1, keepdims=True)


def _table(rng, segments, keys, values):
    return rng.normal(size=(segments, HEADS, SLOTS, values))


def _sparse_rows(reads, writes, **rows):
    """Numbers of slots are whole."""
    return SparseDeltaRows(**rows, reads=reads.astype(int), writes=writes.astype(int))


def _trapezoid_state(rng, segments, keys, values):
    drawn = (rng.normal(size=(segments, HEADS, *shape)) for shape in ((keys, values), (PAIRS,), (keys,), (values,)))
    return TrapezoidState(*drawn)


def angles(rng, n, keys, values):
    """Angles for some pairs of channels."""
    return rng.normal(size=(n, HEADS, PAIRS))


def small(limit):
    """A rate below ``limit`` for each head."""
    return lambda rng, n, keys, values: limit * rng.uniform(0.1, 1, size=(n, HEADS))


def ones(rng, n, keys, values):
    """1 for every token, 0 on padding rows."""
    return np.ones(n)


def _bonus(rng, keys, values):
    return {"bonus": rng.normal(size=(HEADS, keys))}


SPARSE = {"q": weights, "k": weights, "v": normal("V"), "g": head_gate, "beta": strength}
SPARSE |= {"reads": names, "writes": names}
_TITANS = {"theta": small(0.1), "alpha": small(0.1), "eta": small(0.9), "valid": ones}
PRIMITIVES = {
    "delta rule": Case(DELTA_RULE, QKV | {"k": unit, "g": head_gate, "beta": strength}, matrix, gates=("g",)),
    "delta product": Case(
        delta_product(3),
        {"q": normal("K"), "k": steps(unit), "v": steps(normal("V")), "g": head_gate, "beta": steps(strength)},
        matrix,
        gates=("g",),
    ),
    "scalar decay": Case(SCALAR_DECAY, QKV | {"g": head_gate}, matrix, gates=("g",)),
    "no decay": Case(SCALAR_DECAY, QKV, matrix),
    "vector decay": Case(VECTOR_DECAY, QKV | {"g": channel_gate}, matrix, gates=("g",)),
    "vector decay, bonus": Case(VECTOR_DECAY, QKV | {"g": channel_gate}, matrix, shared=_bonus, gates=("g",)),
    "rwkv7": Case(
        RANK_ONE_DECAY, QKV | {"g": channel_gate, "kk": unit, "rate": strength}, matrix, made=_rwkv7_rows, gates=("g",)
    ),
    "kda": Case(
        ERASE_AND_WRITE, QKV | {"k": unit, "g": channel_gate, "beta": strength}, matrix, made=kda_rows, gates=("g",)
    ),
    "trapezoid": Case(
        trapezoid(PAIRS),
        QKV | {"g": head_gate, "now": strength, "before": strength, "turn": angles, "valid": ones},
        _trapezoid_state,
        gates=("g",),
    ),
    "log linear": Case(
        log_linear(LEVELS),
        QKV | {"g": head_gate, "weights": level_weights, "valid": ones},
        _levels_state,
        gates=("g",),
    ),
    "mesa": Case(
        MESA,
        {"q": unit, "k": unit, "v": normal("V"), "g": head_gate, "beta": strength},
        _mesa_state,
        shared=_ridge,
        gates=("g",),
    ),
    "sparse delta": Case(sparse_delta(SLOTS), SPARSE, _table, made=_sparse_rows, gates=("g",)),
    "slots": Case(
        gated_slots(SLOTS), QKV | {"s": slots(normal("K")), "g": slots(channel_gate)}, _slot_state, gates=("g",)
    ),
    "ttt": Case(
        ttt_linear(MINI_BATCH),
        {"q": normal("K"), "k": unit, "v": normal("K"), "rate": small(0.1), "position_rate": small(1.0), "valid": ones},
        _ttt_state,
        shared=_ttt_shared,
    ),
    "titans": Case(titans_linear(MINI_BATCH), QKV | {"k": unit} | _TITANS, _titans_state),
    "titans, norm": Case(
        titans_linear(MINI_BATCH),
        {"q": normal("K"), "k": unit, "v": normal("K")} | _TITANS | {"theta": small(0.02)},
        _titans_square,
        shared=_inner_norm,
    ),
}
# As kernels run them: keys of one direction, which they get by rows of Kimi delta attention.
OF_KERNELS = PRIMITIVES | {
    "kda": PRIMITIVES["kda"].by(RANK_ONE_DECAY, as_rank_one),
}
# Other rows for recurrences above, for the tests of values, states and gradients alone.
VARIANTS = {
    "gated deltanet-2": Case(
        ERASE_AND_WRITE,
        QKV | {"k": unit, "g": channel_gate, "erase": shares("K"), "write": shares("V")},
        matrix,
        made=gated_deltanet2_rows,
        gates=("g",),
    ),
    "comba": Case(
        ERASE_AND_WRITE,
        QKV | {"k": unit, "p": unit, "g": head_gate, "beta": strength},
        matrix,
        made=comba_rows,
        gates=("g",),
    ),
    "sparse delta, local": Case(sparse_delta(SLOTS, "local"), SPARSE, _table, made=_sparse_rows, gates=("g",)),
    "log linear, channels": Case(
        log_linear(LEVELS),
        QKV | {"g": channel_gate, "weights": level_weights, "valid": ones},
        _levels_state,
        gates=("g",),
    ),
}
