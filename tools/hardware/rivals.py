"""Other libraries beside ours, taking turns in one process: flash-linear-attention and jax-linear-attention.

They are imported where they are asked for, and their absence is reported like every other failure.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools.hardware.session import Session
from tools.hardware.timing import Call, medians, rotating

LENGTH, HEADS, SIZE = 2048, 4, 256
SEGMENTS = 24  # of `LENGTH` rows: as many as a layer has with top-2 and a shared memory at batch 8


def comparisons(session: Session) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """Each as a name and a function that gives median seconds by candidate."""
    for way in ("forward", "training"):
        yield f"layer {way}", lambda way=way: _layer(session, way)
        yield f"operator {way}", lambda way=way: _operator(session, way)
        yield f"jax-linear-attention {way}", lambda way=way: _jax_linear_attention(session, way)


def _ours(session: Session, *names: str) -> dict[str, Call]:
    entries = [session.folder.entries[name] for name in names if name in session.folder.entries]
    session.prepare(entries)
    calls = {f"ours {entry.name}": rotating(session, entry) for entry in entries}
    # PyTorch's calls wait for the device each time, so ours do too.
    return {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}


def _layer(session: Session, way: str) -> dict[str, float]:
    calls = _ours(session, f"layer published {way} gpu")
    speed = import_module("mom_jax.evals.reference.speed")
    calls["MomAttention"] = speed.layer(8, LENGTH, HEADS * SIZE, HEADS, SIZE)[way]
    return medians(calls)


def _operator(session: Session, way: str) -> dict[str, float]:
    """The segments of the published layer."""
    calls = _ours(session, f"delta_rule 256 bfloat16 {way}")
    speed = import_module("mom_jax.evals.reference.speed")
    lengths = [int(n) for n in session.folder.arrays["published lengths"]]
    calls["chunk_gated_delta_rule"] = speed.operator(lengths, HEADS, SIZE)[way]
    calls["chunk_gated_delta_rule, segments alike"] = speed.operator([LENGTH] * SEGMENTS, HEADS, SIZE)[way]
    return medians(calls)


def _jax_linear_attention(session: Session, way: str) -> dict[str, float]:
    """As many rows in segments of one length, which are batch rows there."""
    calls = _ours(session, f"delta_rule 256 bfloat16 {way}")
    operator = import_module("jla.ops.mosaic_gpu.gated_delta_rule").gated_delta_rule
    random = np.random.default_rng(0)
    shape = (SEGMENTS, LENGTH, HEADS, SIZE)
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
    q, k = (x / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True).astype(x.dtype) for x in (q, k))
    g = jnp.asarray(-random.random(shape[:3]), jnp.float32)
    beta = jnp.asarray(random.random(shape[:3]), jnp.float32)

    def forward(*rows: Any) -> jax.Array:
        return operator(*rows)[0]

    def training(*rows: Any) -> Any:
        o, pull = jax.vjp(forward, *rows)
        return o, pull(v)

    run = jax.jit(forward if way == "forward" else training)
    calls["gated_delta_rule"] = lambda: jax.block_until_ready(run(q, k, v, g, beta))
    return medians(calls)
