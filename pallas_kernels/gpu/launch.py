"""Calls a Triton kernel from JAX: on a GPU through jax-triton, or on the host in Triton's interpreter.

Both are one function, so that the wrappers around the kernels, their custom VJPs included, are
the same code with and without a GPU. The interpreter runs the kernels of a process that was
started with ``TRITON_INTERPRET=1``; it works on NumPy arrays and needs no PyTorch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.chunks import Unsupported
from pallas_kernels.gpu.assembler import ptx_version
from pallas_kernels.gpu.interpreter import as_on_a_gpu

Grid = Mapping[str, int]  # programs along x, then y and z, by what they are one of
MOST_PROGRAMS = (2**31 - 1, 2**16 - 1, 2**16 - 1)  # along x, y and z, of CUDA


def launch(
    kernel: Any,
    *inputs: jax.Array | None,
    grid: Grid,
    outputs: Sequence[jax.ShapeDtypeStruct | None],
    interpret: bool,
    device: str,
    num_warps: int,
    num_stages: int,
    flops: int,
    moved: int | None = None,
    aliases: Mapping[int, int] | None = None,
    **scalars: Any,
) -> list[Any]:
    """Runs ``kernel(*inputs, *outputs, **scalars)`` on ``grid`` and returns the outputs.

    In the place of an input or output that is None the kernel gets a pointer that it must not touch; such an output is
    returned as None.

    Args:
        kernel: a ``triton.jit`` function: pointers to inputs, pointers to outputs, integers, ``constexpr`` arguments.
        inputs: contiguous arrays, or None.
        grid: programs along up to three axes, by names for messages.
        outputs: shapes and dtypes, or None; every element must be written by the kernel.
        interpret: run in Triton's interpreter on the host.
        device: what the kernel is compiled for: ``sm_`` and NVIDIA's compute capability, or ``gfx`` and AMD's number.
        num_warps, num_stages: Triton's launch parameters, without meaning in the interpreter.
        aliases: inputs that are changed in place, and which outputs they are, by number; one pointer for both.
        flops: the kernel's work, for profilers.
        moved: its bytes, for them too; those of inputs and outputs if not given.
        scalars: integers and ``constexpr`` arguments by name. Another integer needs no other program, unless it
            becomes or ceases to be 1 or a multiple of 16.

    Raises:
        Unsupported: more programs along an axis than a GPU can run.
        ModuleNotFoundError: jax-triton is missing.
    """
    for (name, programs), most in zip(grid.items(), MOST_PROGRAMS, strict=False):
        if programs > most:
            raise Unsupported(f"{name}={programs}: the GPU kernels run {most} at most")
    aliases = dict(aliases or {})
    blocks: Any = tuple(grid.values())
    # not one that is changed in place, which XLA would copy for it
    least = min((x for i, x in enumerate(inputs) if x is not None and i not in aliases), key=lambda x: x.size)
    arrays = [least if x is None else x for x in inputs]
    shapes = [jax.ShapeDtypeStruct((1,), jnp.float32) if x is None else x for x in outputs]
    if interpret:
        run = _Interpreted(kernel, blocks, shapes, aliases, scalars)
        results = jax.pure_callback(run, shapes, *arrays, vmap_method="sequential")
    else:
        import jax_triton

        nvidia = device.startswith("sm_")
        if moved is None:
            moved = sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs) if x is not None)
        cost: Any = {"flops": flops, "bytes_accessed": moved}
        results = jax_triton.triton_call(
            *arrays,
            kernel=kernel,
            out_type=shapes,
            grid=blocks,
            num_warps=num_warps,
            num_stages=num_stages,
            compute_capability=int(device.removeprefix("sm_")) if nvidia else None,
            backend_options={"enable_fp_fusion": True, **({"ptx_version": ptx_version()} if nvidia else {})},
            input_output_aliases=aliases,
            cost_estimate=cost,
            **scalars,
        )
        # A result that is used and also stored in a loop's array would be computed for each of the two, by two calls.
        results = results if aliases else jax.lax.optimization_barrier(results)
    return [None if wanted is None else x for wanted, x in zip(outputs, results, strict=True)]


def float32_precision(device: str) -> str:
    """How `tl.dot` multiplies float32: three products of tf32 where there are such, else float32 as it is."""
    return "ieee" if device.startswith("gfx") else "tf32x3"


class _Interpreted:
    """One launch in the interpreter; outputs begin as NaN, or the least integer, to show what is not written."""

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        outputs: Sequence[jax.ShapeDtypeStruct],
        aliases: Mapping[int, int],
        scalars: dict[str, Any],
    ):
        self.kernel, self.grid, self.outputs, self.aliases, self.scalars = kernel, grid, outputs, aliases, scalars

    def __call__(self, *inputs: Any) -> list[np.ndarray]:
        read = [np.array(x) if i in self.aliases else np.ascontiguousarray(x) for i, x in enumerate(inputs)]
        changed = {output: read[i] for i, output in self.aliases.items()}
        written = [changed[i] if i in changed else _unwritten(x) for i, x in enumerate(self.outputs)]
        pointers = read + [x for i, x in enumerate(written) if i not in changed]
        with as_on_a_gpu():
            self.kernel[self.grid](*map(_Pointer, pointers), **self.scalars)
        return written


def _unwritten(x: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.full(x.shape, jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.iinfo(x.dtype).min, x.dtype)


class _Pointer:
    """As much of a PyTorch tensor as Triton's interpreter asks for."""

    def __init__(self, array: np.ndarray):
        self.array, self.dtype = array, array.dtype

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> "_Pointer":
        return self

    def cpu(self) -> "_Pointer":
        return self

    def new_empty(self, size: int, device: str) -> "_Pointer":
        return self

    def set_(self, *view: Any) -> "_Pointer":
        return self

    def copy_(self, other: "_Pointer") -> "_Pointer":
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return self.array.strides
