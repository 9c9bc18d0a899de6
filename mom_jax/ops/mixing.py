"""What a token reads: the answers of its memories, mixed by weight, and what becomes of each head of them."""

import dataclasses
from collections.abc import Callable

import jax

from mom_jax.ops.assignment import with_shared
from mom_jax.ops.dispatch import Target, kernel_for, on_gpu, select
from mom_jax.ops.norm import norm_and_gate
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing, unpack_mix
from mom_jax.typing import Array, Float
from pallas_kernels.chunks import Unsupported

KERNELS = {"gpu": "pallas_kernels.gpu.mixing:mixing"}
_KNOWN = {None: None, jax.nn.silu: "silu", jax.nn.sigmoid: "sigmoid"}  # what the kernels call activations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reads:
    """What memories answer to tokens, before it is mixed."""

    rows: Float[Array, "N H V"]  # packed
    weights: Float[Array, "B T places"] | Float[Array, "B T places H"]  # of rows, or of their heads; float32 or wider
    packing: Packing
    impl: str = dataclasses.field(default="auto", metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Ending:
    """What becomes of each head of the mixed reads: ``rms_norm(before(o)) * activation(gate)``; by itself nothing."""

    before: Callable[[Array], Array] | None = None  # of the norm
    scale: Float[Array, " V"] | None = None  # of the norm; None: there is none
    gate: Float[Array, "B T F"] | None = None  # heads behind each other
    activation: Callable[[Array], Array] = jax.nn.silu  # of the gate
    eps: float = 0.0  # of the norm


def mix(reads: Reads, ending: Ending = Ending()) -> Float[Array, "B T H V"]:
    """``sum_j weights[b, t, j] * rows[row[b, t, j]]``, the shared memory's row counting whole, and its ending.

    Masked tokens read exactly 0.

    Args:
        reads: ``impl`` is ``auto``, or ``gpu`` for the kernel; every other name is XLA.
        ending: of each head.

    Returns:
        The dtype of the rows; sums and norms are in float32 or wider.

    Raises:
        InputError: ``gpu`` cannot run here.
    """
    name = reads.impl if on_gpu(reads.impl) else "xla"
    return select(name, {"xla": _by_xla}, {"gpu": _by_kernel})(reads, ending)


def _by_xla(reads: Reads, ending: Ending) -> Float[Array, "B T H V"]:
    o = unpack_mix(reads.rows, with_shared(reads.weights, reads.packing), reads.packing)
    gate = None if ending.gate is None else ending.gate.reshape(o.shape)
    return norm_and_gate(o, ending.before, ending.scale, gate, ending.activation, ending.eps)


def _by_kernel(device: Target, reads: Reads, ending: Ending) -> Float[Array, "B T H V"]:
    if not {ending.before, ending.activation} <= _KNOWN.keys():
        raise Unsupported("an activation of your own: the GPU kernels take SiLU and sigmoid")
    weights, row = (x.reshape(-1, *x.shape[2:]) for x in (reads.weights, reads.packing.row))
    gate = None if ending.gate is None else ending.gate.reshape(-1, *reads.rows.shape[1:])
    scale = None if ending.scale is None else widened(ending.scale)
    options = _KNOWN[ending.before], _KNOWN[ending.activation], ending.eps
    o = kernel_for(device, KERNELS)(reads.rows, weights, scale, gate, row, reads.packing.assignment, *options)
    return o.reshape(*reads.weights.shape[:2], *o.shape[1:])
