"""Every recurrence as a test sees it: random inputs by name, the operator, and its step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mom_jax.ops.gated_slots import gated_slots, gated_slots_step
from mom_jax.ops.rank_one_decay import kda, kda_step, rank_one_decay, rank_one_decay_step
from mom_jax.ops.scalar_decay import scalar_decay, scalar_decay_step
from mom_jax.ops.titans import titans_linear, titans_linear_step
from mom_jax.ops.ttt import ttt_linear, ttt_linear_step
from mom_jax.ops.vector_decay import vector_decay, vector_decay_step

Rng = np.random.Generator
Inputs = dict[str, Any]
HEADS = 2


@dataclasses.dataclass(frozen=True)
class Primitive:
    """One recurrence.

    ``run`` takes rows by name, what all tokens share, a chunk table, a state and an implementation;
    ``step`` rows, shared values and a state; ``state`` draws the states of some segments.
    """

    rows: dict[str, Callable[[Rng, int, int, int], np.ndarray]]  # (rng, tokens, K, V) -> [tokens, H, ...]
    run: Callable[..., tuple[jax.Array, Any]]
    step: Callable[..., tuple[jax.Array, Any]]
    state: Callable[[Rng, int, int, int], Any]
    shared: Callable[[Rng, int, int], Inputs] = lambda rng, keys, values: {}
    gates: tuple[str, ...] = ()  # log gates among the rows

    def example(self, tokens: int, segments: int, sizes=(8, 12), seed: int = 0, **changes: Any) -> Inputs:
        """Float32 inputs: ``rows``, ``shared`` and ``state``; ``changes`` replace or map rows by name."""
        rng = np.random.default_rng(seed)
        rows = {name: draw(rng, tokens, *sizes) for name, draw in self.rows.items()}
        rows |= {name: change(rows[name]) for name, change in changes.items()}
        inputs = {"rows": rows, "shared": self.shared(rng, *sizes), "state": self.state(rng, segments, *sizes)}
        return jax.tree.map(lambda a: np.asarray(a, np.float32), inputs)


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


def scale_of(x: Inputs) -> float:
    """K^-0.5."""
    return x["q"].shape[-1] ** -0.5


def _scalar(x, shared, table, state, impl):
    return scalar_decay(x["q"], x["k"], x["v"], x.get("g"), table, state, impl=impl)


def _scalar_step(x, shared, state):
    return scalar_decay_step(x["q"], x["k"], x["v"], x.get("g"), state, scale_of(x))


def _vector(x, shared, table, state, impl):
    return vector_decay(x["q"], x["k"], x["v"], x["g"], table, state, bonus=shared.get("u"), impl=impl)


def _vector_step(x, shared, state):
    return vector_decay_step(x["q"], x["k"], x["v"], x["g"], shared.get("u"), state, scale_of(x))


def strength(rng, n, keys, values):
    """A write strength in (0, 1) for each head."""
    return 1 / (1 + np.exp(-rng.normal(size=(n, HEADS))))


def _generalised(x):
    """RWKV7's a and b: minus the unit key, and the unit key times a rate."""
    return x["q"], x["k"], x["v"], -x["kk"], x["kk"] * x["rate"][..., None], x["g"]


def _rwkv7(x, shared, table, state, impl):
    return rank_one_decay(*_generalised(x), table, state, impl=impl)


def _rwkv7_step(x, shared, state):
    return rank_one_decay_step(*_generalised(x), state, scale_of(x))


def _kda(x, shared, table, state, impl):
    return kda(x["q"], x["k"], x["v"], x["g"], x["beta"], table, state, impl=impl)


def _kda_step(x, shared, state):
    return kda_step(x["q"], x["k"], x["v"], x["g"], x["beta"], state, scale_of(x))


SLOTS = 6


def slots(draw):
    """A row of `draw` over slots instead of channels."""
    return lambda rng, n, keys, values: draw(rng, n, SLOTS, SLOTS)


def _slots(x, shared, table, state, impl):
    return gated_slots(x["q"], x["k"], x["v"], x["s"], x["g"], table, state, impl=impl)


def _slots_step(x, shared, state):
    return gated_slots_step(x["q"], x["k"], x["v"], x["s"], x["g"], state, scale_of(x))


def _slot_state(rng, segments, keys, values):
    return matrix(rng, segments, keys, SLOTS), matrix(rng, segments, SLOTS, values)


MINI_BATCH = 6  # no divisor of a chunk


def _counted(state):
    """The number of tokens in a mini-batch has no gradient."""
    return None if state is None else (state[0], jax.lax.stop_gradient(state[1]))


def _ttt(x, shared, table, state, impl):
    return ttt_linear(
        x["q"], x["k"], x["v"], x["rate"], shared["norm"], x["valid"][:, 0] > 0, table, _counted(state),
        position_rate=x["place"], start=shared["start"], mini_batch=MINI_BATCH, impl=impl,
    )  # fmt: skip


def _ttt_step(x, shared, state):
    rows = (x[name] for name in ("q", "k", "v", "rate", "place"))
    return ttt_linear_step(*rows, shared["norm"], shared["start"], state, scale_of(x), MINI_BATCH)


def _ttt_state(rng, segments, keys, values):
    return 0.3 * rng.normal(size=(segments, HEADS, 2, keys + 1, keys)), np.arange(segments) % MINI_BATCH


def _inner_norm(rng, keys, values):
    return {"norm": (1 + 0.1 * rng.normal(size=(HEADS, keys)), 0.1 * rng.normal(size=(HEADS, keys)))}


def _ttt_shared(rng, keys, values):
    return _inner_norm(rng, keys, values) | {"start": 0.3 * rng.normal(size=(HEADS, keys + 1, keys))}


def _titans(x, shared, table, state, impl):
    rows = (x[name] for name in ("q", "k", "v", "theta", "alpha", "eta"))
    norm, valid = shared.get("norm"), x["valid"][:, 0] > 0
    return titans_linear(*rows, valid, table, _counted(state), norm=norm, mini_batch=MINI_BATCH, impl=impl)


def _titans_step(x, shared, state):
    rows = (x[name] for name in ("q", "k", "v", "theta", "alpha", "eta"))
    return titans_linear_step(*rows, shared.get("norm"), state, scale_of(x), MINI_BATCH)


def _titans_state(rng, segments, keys, values):
    return 0.3 * rng.normal(size=(segments, HEADS, 3, keys, values)), np.arange(segments) % MINI_BATCH


def _titans_square(rng, segments, keys, values):
    return _titans_state(rng, segments, keys, keys)


def small(limit):
    """A rate below ``limit`` for each head."""
    return lambda rng, n, keys, values: limit * rng.uniform(0.1, 1, size=(n, HEADS))


def ones(rng, n, keys, values):
    """1 for every token, 0 on padding rows."""
    return np.ones((n, HEADS))


def _bonus(rng, keys, values):
    return {"u": rng.normal(size=(HEADS, keys))}


PRIMITIVES = {
    "scalar decay": Primitive(QKV | {"g": head_gate}, _scalar, _scalar_step, matrix, gates=("g",)),
    "no decay": Primitive(QKV, _scalar, _scalar_step, matrix),
    "vector decay": Primitive(QKV | {"g": channel_gate}, _vector, _vector_step, matrix, gates=("g",)),
    "vector decay, bonus": Primitive(
        QKV | {"g": channel_gate}, _vector, _vector_step, matrix, shared=_bonus, gates=("g",)
    ),
    "rwkv7": Primitive(
        QKV | {"g": channel_gate, "kk": unit, "rate": strength}, _rwkv7, _rwkv7_step, matrix, gates=("g",)
    ),
    "kda": Primitive(QKV | {"k": unit, "g": channel_gate, "beta": strength}, _kda, _kda_step, matrix, gates=("g",)),
    "slots": Primitive(
        QKV | {"s": slots(normal("K")), "g": slots(channel_gate)}, _slots, _slots_step, _slot_state, gates=("g",)
    ),
    "ttt": Primitive(
        {"q": normal("K"), "k": unit, "v": normal("K"), "rate": small(0.1), "place": small(1.0), "valid": ones},
        _ttt, _ttt_step, _ttt_state, shared=_ttt_shared,
    ),
    "titans": Primitive(
        QKV | {"k": unit, "theta": small(0.1), "alpha": small(0.1), "eta": small(0.9), "valid": ones},
        _titans, _titans_step, _titans_state,
    ),
    "titans, norm": Primitive(
        {"q": normal("K"), "k": unit, "v": normal("K"), "theta": small(0.02), "alpha": small(0.1), "eta": small(0.9),
         "valid": ones},
        _titans, _titans_step, _titans_square, shared=_inner_norm,
    ),
}
