"""The reference's recurrences, token by token: values, states and gradients of `tests/goldens/op_naive_*.npz`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from goldens.read import load, under

from mom_jax.ops.delta_product import DeltaProductRows, delta_product
from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows
from mom_jax.ops.erase_and_write import ERASE_AND_WRITE, comba_rows, gated_deltanet2_rows, kda_rows
from mom_jax.ops.gated_slots import GatedSlotsRows, gated_slots
from mom_jax.ops.log_linear import LogLinearRows, log_linear
from mom_jax.ops.mesa import MESA, MesaRows
from mom_jax.ops.norm import layer_norm
from mom_jax.ops.rank_one_decay import RANK_ONE_DECAY, RankOneDecayRows
from mom_jax.ops.scalar_decay import SCALAR_DECAY, ScalarDecayRows
from mom_jax.ops.titans import TitansRows, titans_linear
from mom_jax.ops.ttt import TTTRows, ttt_linear
from mom_jax.ops.vector_decay import VECTOR_DECAY, VectorDecayRows
from support.packed import Layout

HEADS = 2


def fixed(gates):
    """A gate for each head, the same for all tokens."""

    def rule(x, table, impl, **options):
        g = jnp.broadcast_to(jnp.asarray(gates, jnp.float32), (x["q"].shape[0], HEADS)) * x["valid"]
        return scalar(x | {"g": g}, table, impl, **options)

    return rule


def scalar(x, table, impl, **options):
    """No gate, or one for each token and head."""
    rows = ScalarDecayRows(x["q"], x["k"], x["v"], x.get("g"))
    return SCALAR_DECAY(rows, table, x["initial_state"], impl=impl, **options)


def normalised(x, table, impl):
    """A column of ones beside v sums the keys; the reference adds 1e-10 to the sum."""
    v = jnp.concatenate([x["v"], jnp.broadcast_to(x["valid"][..., None], (*x["v"].shape[:-1], 1))], -1)
    state = jnp.zeros((1, HEADS, x["k"].shape[-1], v.shape[-1]))
    o, state = SCALAR_DECAY(ScalarDecayRows(x["q"], x["k"], v), table, state, impl=impl)
    return o[..., :-1] / (o[..., -1:] + 1e-10), (state[..., :-1], state[..., -1][None])


def by(primitive, made, **names):
    """A recurrence whose rows are made of q, k, v and, by their arguments, of the inputs of these names."""
    names = {"q": "q", "k": "k", "v": "v"} | names

    def rule(x, table, impl):
        rows = made(**{argument: x[name] for argument, name in names.items()})
        return primitive(rows, table, x["initial_state"], impl=impl)

    return rule


gla = by(VECTOR_DECAY, VectorDecayRows, g="gk")


def hgrn2(x, table, impl):
    """Keys are what the gate forgets."""
    return gla(x | {"k": (1 - jnp.exp(x["gk"])) * x["valid"][..., None]}, table, impl)


def delta(x, table, impl):
    """Without a gate it never forgets."""
    rows = DeltaRuleRows(x["q"], x["k"], x["v"], x.get("g", jnp.zeros_like(x["beta"])), x["beta"])
    return DELTA_RULE(rows, table, x["initial_state"], impl=impl)


def gated_deltaproduct(x, table, impl):
    """Several steps of the delta rule, up to twice as strong."""
    rows = DeltaProductRows(**{name: x[name] for name in ("q", "k", "v", "g", "beta")})
    return delta_product(x["k"].shape[2])(rows, table, x["initial_state"], impl=impl)


def mesanet(x, table, impl):
    """Solved exactly."""
    rows = MesaRows(**{name: x[name] for name in ("q", "k", "v", "g", "beta")}, ridge=x["lamb"])
    return MESA(rows, table, (x["h_kk_init"], x["h_kv_init"]), scale=1.0, impl=impl)


def by_levels(x, table, impl):
    """Scalar decay in a hierarchy of levels; there is no state there."""
    rows = LogLinearRows(x["q"], x["k"], x["v"], x["level_scales"], x["valid"][:, 0] > 0, x["g"])
    return log_linear(x["level_scales"].shape[-1])(rows, table, scale=1.0, impl=impl)[0], ()


def gsa(x, table, impl):
    """Two passes over slots."""
    rows = GatedSlotsRows(**{name: x[name] for name in "qkvgs"})
    return gated_slots(x["s"].shape[-1])(rows, table, (x["hk0"], x["hv0"]), impl=impl)


def normalised_sum(o, x):
    """What the reference returns: the memory's answer plus its layer norm."""
    return o + layer_norm(o, x["norm_weight"], x["norm_bias"], 1e-6)


def norm_of(x):
    """The inner norm, by name."""
    return {name: x[name] for name in ("norm_weight", "norm_bias")}


def ttt(x, table, impl):
    """One rate for all gradients that a token reads; the bias is the last row of the memory."""
    base = jnp.concatenate([x["initial_state"], x["initial_state_bias"]], -2)
    state = jnp.stack([base, jnp.zeros_like(base)], 2), jnp.zeros(1)
    valid, place = x["valid"][:, 0] > 0, x["eta"][..., 0]
    rows = TTTRows(x["q"], x["k"], x["v"], jnp.ones_like(x["valid"]), valid, position_rate=place, **norm_of(x))
    o, (state, _) = ttt_linear(8)(rows, table, state, impl=impl)
    return normalised_sum(o, x), (state[:, :, 0, :-1], state[:, :, 0, -1:])


def misplaced_division(prediction, target, weight, bias, eps=1e-6):
    """The reference's gradient: the first of three terms is not divided by the standard deviation."""
    mean, size = prediction.mean(-1, keepdims=True), prediction.shape[-1]
    deviation = jnp.sqrt(((prediction - mean) ** 2).mean(-1, keepdims=True) + eps)
    unit = (prediction - mean) / deviation
    slope = (unit * weight + bias - target) * weight
    rest = slope.sum(-1, keepdims=True) + unit * (slope * unit).sum(-1, keepdims=True)
    return size * slope - rest / (deviation * size)


def titans(x, table, impl):
    """With the reference's gradient, which is not that of its loss; it does not scale."""
    rates = {name: x[name][..., 0] for name in ("theta", "alpha", "eta")}
    start = jnp.zeros_like(x["initial_state"])
    state = jnp.stack([x["initial_state"], start, x["initial_state"]], 2), jnp.zeros(1)
    rows = TitansRows(x["q"], x["k"], x["v"], **rates, valid=x["valid"][:, 0] > 0, **norm_of(x))
    o, (state, _) = titans_linear(8, misplaced_division)(rows, table, state, scale=1.0, impl=impl)
    return normalised_sum(o, x), state[:, :, 0]


RULES = {
    "delta_rule": delta,
    "gated_delta_rule": delta,
    "linear_attn": scalar,
    "linear_attn_norm": normalised,
    "retention": fixed([np.log(1 - 2.0 ** (-5 - h)) for h in range(HEADS)]),
    "lightning": fixed([-(8 / HEADS * (1 - 1 / 4)) * h for h in range(HEADS)]),
    "simple_gla": scalar,
    "mamba2": functools.partial(scalar, scale=1.0),
    "gla": gla,
    "hgrn2": hgrn2,
    "rwkv6": by(VECTOR_DECAY, VectorDecayRows, g="w", bonus="u"),
    "rwkv7": by(RANK_ONE_DECAY, RankOneDecayRows, q="r", g="w", a="a", b="b"),
    "kda": by(ERASE_AND_WRITE, kda_rows, g="g", beta="beta"),
    "gated_deltanet2": by(ERASE_AND_WRITE, gated_deltanet2_rows, g="g", erase="b", write="w"),
    "gated_deltaproduct": gated_deltaproduct,
    "comba": by(ERASE_AND_WRITE, comba_rows, p="p", g="g", beta="beta"),
    "mesanet": mesanet,
    "log_linear": by_levels,
    "gsa": gsa,
    "ttt": ttt,
    "titans": titans,
}


def is_row(name):
    """Whether an input has one value for each token, [1, T, H, ...]."""
    return name not in ("u", "norm_weight", "norm_bias", "initial_state", "initial_state_bias", "hk0", "hv0",
                        "lamb", "h_kk_init", "h_kv_init")  # fmt: skip


def renamed(name, inputs):
    """``w`` is a decay in one rule and a layer norm's weight in others."""
    names = {"w": "norm_weight", "b": "norm_bias"} if name in ("ttt", "titans") else {}
    return {names.get(n, n): x for n, x in inputs.items()}


def differentiated(rule, inputs, cotangents):
    """Outputs and final states, and the gradients of all inputs."""

    @jax.jit
    def run(inputs, cotangents):
        values, pull = jax.vjp(rule, inputs)
        return values, pull(cotangents)[0]

    return run(inputs, cotangents)


def run_stored(name: str, impl: str):
    """What we compute of a stored recurrence and what is stored: (outputs, states, gradients) each."""
    stored = load(f"op_naive_{name}")
    everything = renamed(name, under(stored, "in"))
    inputs = {n: x[0] if is_row(n) else x for n, x in everything.items() if n != "do" and not n.startswith("dstate")}
    if "in/dstate0" in stored:
        inputs.setdefault("initial_state", np.zeros_like(stored["in/dstate0"]))
    layout = Layout((stored["in/do"].shape[1],), 16)

    def rule(inputs):
        x = {n: layout.pack(a) if is_row(n) else a for n, a in inputs.items()}
        x["valid"] = layout.pack(jnp.ones((sum(layout.lengths), HEADS)))
        o, states = RULES[name](x, layout.table(), impl)
        return o[layout.index], states if isinstance(states, tuple) else (states,)

    dstates = tuple(stored[key] for key in ("in/dstate0", "in/dstate1") if key in stored)
    states = tuple(stored[key] for key in ("out/state0", "out/state1") if key in stored)
    (o, final), gradients = differentiated(rule, inputs, (stored["in/do"][0], dstates))
    want = {n: x[0] if is_row(n) else x for n, x in renamed(name, under(stored, "grad")).items()}
    return (o, final, {n: gradients[n] for n in want}), (stored["out/o"][0], states, want)
