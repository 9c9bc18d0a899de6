"""What a token reads: the answers of its memories, mixed by weight."""

from mom_jax.ops.dispatch import Target, kernel_for, select
from mom_jax.ops.segments import Packing, unpack_mix
from mom_jax.typing import Array, Float

KERNELS = {"gpu": "pallas_kernels.gpu.mixing:mix"}


def mix(
    y: Float[Array, "N *rest"], weights: Float[Array, "B T A"], packing: Packing, *, impl: str = "auto"
) -> Float[Array, "B T *rest"]:
    """``sum_j weights[b, t, j] * y[row[b, t, j]]``; masked tokens read exactly 0.

    Args:
        y: packed rows.
        weights: of each token's assignments, in float32.
        packing: of the rows.
        impl: ``auto``, or ``gpu`` for the kernel; every other name is XLA.

    Returns:
        Sums in float32, rounded to ``y.dtype``.

    Raises:
        InputError: ``gpu`` cannot run here.
    """
    name = impl if impl in ("auto", "gpu") else "xla"
    return select(name, {"xla": unpack_mix}, {"gpu": _by_kernel})(y, weights, packing)


def _by_kernel(
    device: Target, y: Float[Array, "N *rest"], weights: Float[Array, "B T A"], packing: Packing
) -> Float[Array, "B T *rest"]:
    copies = weights.shape[-1]
    rows = y.reshape(y.shape[0], -1), weights.reshape(-1, copies), packing.row.reshape(-1, copies), packing.assignment
    return kernel_for(device, KERNELS)(*rows).reshape(*weights.shape[:2], *y.shape[1:])
