"""What a token reads: the answers of its memories, mixed by weight."""

from mom_jax.ops.assignment import with_shared
from mom_jax.ops.dispatch import Target, kernel_for, on_gpu, select
from mom_jax.ops.segments import Packing, unpack_mix
from mom_jax.typing import Array, Float

KERNELS = {"gpu": "pallas_kernels.gpu.mixing:mix"}


def mix(
    y: Float[Array, "N *rest"], weights: Float[Array, "B T places *heads"], packing: Packing, *, impl: str = "auto"
) -> Float[Array, "B T *rest"]:
    """``sum_j weights[b, t, j] * y[row[b, t, j]]``, and the shared memory's row; masked tokens read exactly 0.

    Args:
        y: packed rows.
        weights: of a token's routed assignments, in float32, or of the heads of each; the shared memory counts whole.
        packing: of the rows.
        impl: ``auto``, or ``gpu`` for the kernel, which takes one weight for all heads; every other name is XLA.

    Returns:
        Sums in float32, rounded to ``y.dtype``.

    Raises:
        InputError: ``gpu`` cannot run here.
    """
    name = impl if on_gpu(impl) and weights.ndim == 3 else "xla"
    return select(name, {"xla": _by_xla}, {"gpu": _by_kernel})(y, weights, packing)


def _by_xla(
    y: Float[Array, "N *rest"], weights: Float[Array, "B T places *heads"], packing: Packing
) -> Float[Array, "B T *rest"]:
    return unpack_mix(y, with_shared(weights, packing), packing)


def _by_kernel(
    device: Target, y: Float[Array, "N *rest"], weights: Float[Array, "B T k"], packing: Packing
) -> Float[Array, "B T *rest"]:
    weight, row = (x.reshape(-1, x.shape[-1]) for x in (weights, packing.row))
    rows = y.reshape(y.shape[0], -1), weight, row, packing.assignment
    return kernel_for(device, KERNELS)(*rows).reshape(*weights.shape[:2], *y.shape[1:])
