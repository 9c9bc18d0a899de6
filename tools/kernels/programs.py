"""Whole programs, compiled for an H100 and a TPU v5e that are not here: what they launch, move and hold.

    layer      the published layer: 8 x 2048 tokens, hidden size 1024, 4 heads of 256, top-2 of 4 and a shared memory
    decoding   mom-340m token by token, 64 tokens in one program; numbers are for each token
    step       a training step of mom-340m, 8 x 2048 tokens

All in bfloat16 with float32 parameters. ``counts.json`` holds what was counted last, and a test compares.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mom_jax.decoding import slots
from mom_jax.decoding.sampling import sampling
from mom_jax.models.config import MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.models.presets import get_preset
from mom_jax.models.structure import build_model
from mom_jax.planning.hlo import read
from mom_jax.planning.launches import Launch, launches
from mom_jax.planning.step import sized, traced_step
from mom_jax.planning.targets import compile_lowered, compiled, mesh
from mom_jax.training.config import get_train_preset
from mom_jax.training.program import Program
from mom_jax.training.sharding import AXES

RECORD = Path(__file__).parent / "counts.json"
BATCH, LENGTH, TOKENS = 8, 2048, 64
_ONE = dict.fromkeys(AXES, 1)
DEVICES: dict[str, Callable[[], Mesh]] = {
    "H100": lambda: mesh("h100:1", **_ONE),
    "v5e": lambda: mesh("v5e:2x2", **_ONE),
}
Counts = dict[str, float]  # by what is counted; gigabytes are 1e9 bytes


def published() -> MoMConfig:
    """mom-340m as it is trained."""
    return dataclasses.replace(get_preset("mom-340m"), compute_dtype="bfloat16")


def layer(mesh: Mesh, backward: bool) -> Any:
    """The layer by itself, forward or also backward: gradients of its input and all parameters."""
    config = published()
    graph, params = nnx.split(nnx.eval_shape(lambda: make_mixer(config, "memory", nnx.Rngs(0))))
    x: Any = jax.ShapeDtypeStruct((BATCH, LENGTH, config.hidden_size), config.compute_dtype)

    def forward(params, x):
        return nnx.merge(graph, params)(x).y

    def both(params, x, dy):
        y, pull = jax.vjp(forward, params, x)
        return y, pull(dy)

    return compiled(mesh, both, params, x, x) if backward else compiled(mesh, forward, params, x)


def decode(mesh: Mesh, batch: int, state_dtype: str = "float32") -> Any:
    """`TOKENS` tokens for each of ``batch`` rows."""
    graph, params = nnx.split(nnx.eval_shape(lambda: build_model(published(), 0).rounded()))
    cache = jax.eval_shape(lambda: nnx.merge(graph, params).init_cache(batch, None, state_dtype))
    logits: Any = jax.ShapeDtypeStruct((batch, published().vocab_size), jnp.float32)
    taken: Any = jax.ShapeDtypeStruct((batch,), bool)
    state = slots._Decoding(cache, logits, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)))
    greedy = sampling(0.0, None, None, published().vocab_size)

    def run(params, state, taken):
        how, knobs = greedy
        return slots._decode(graph, how, TOKENS, params, state, taken, None, knobs)

    return compiled(mesh, run, params, state, taken, donate=(1,))


def training_step(mesh: Mesh) -> Any:
    """The preset's own step."""
    config = sized(get_train_preset("mom-340m"), BATCH, LENGTH)
    return compile_lowered(mesh, traced_step(Program(config, mesh)).lower())


class Whole(NamedTuple):
    """A program: what compiles it, how many runs it stands for, and the devices that it is for."""

    make: Callable[[Mesh], Any]
    runs: int = 1
    devices: tuple[str, ...] = tuple(DEVICES)


PROGRAMS = {
    "layer, forward": Whole(lambda mesh: layer(mesh, backward=False)),
    "layer, forward and backward": Whole(lambda mesh: layer(mesh, backward=True)),
    "decoding, batch 1": Whole(lambda mesh: decode(mesh, 1), TOKENS),
    "decoding, batch 32": Whole(lambda mesh: decode(mesh, 32), TOKENS),
    "decoding, batch 256": Whole(lambda mesh: decode(mesh, 256), TOKENS, ("H100",)),
    **{
        f"decoding, batch {batch}, bfloat16 states": Whole(
            functools.partial(decode, batch=batch, state_dtype="bfloat16"), TOKENS, ("H100",)
        )
        for batch in (1, 32, 256)
    },
    "training step": Whole(training_step, devices=("H100",)),  # of v5e, one does not hold it
}


def counted(program: str, device: str) -> Counts:
    """Compiles a program of `PROGRAMS` for a device of `DEVICES` and counts."""
    make, runs, _ = PROGRAMS[program]
    made = make(DEVICES[device]())
    launched, held = launches(read(made.as_text())), made.memory_analysis().temp_size_in_bytes
    if device == "H100":
        moved = sum(x.times * x.bytes for x in launched) / runs
        numbers = {"launches": sum(x.times for x in launched) / runs, "GB moved": moved / 1e9}
    else:
        cycles = sum(x.times * x.cycles for x in launched if not _is_kernel(x)) / runs
        relayouts = sum(x.times for x in launched if x.kind in ("copy", "slice")) / runs
        numbers = {"copies and slices": relayouts, "million cycles": cycles / 1e6}
    return {name: float(f"{x:.4g}") for name, x in (numbers | {"GB held": held / 1e9}).items()}


def _is_kernel(launch: Launch) -> bool:
    return launch.kind == "tpu_custom_call" or "ragged_dot" in launch.source


def lines(record: dict[str, dict[str, Counts]]) -> Iterator[str]:
    """The table of a record, by program and device."""
    names = [(device, name) for device, counts in next(iter(record.values())).items() for name in counts]
    yield f"| program | {' | '.join(f'{device}: {name}' for device, name in names)} |"
    yield "|---" * (1 + len(names)) + "|"
    for program, of in record.items():
        cells = (f"{of[device][name]:,g}" if device in of else "-" for device, name in names)
        yield f"| {program} | {' | '.join(cells)} |"
