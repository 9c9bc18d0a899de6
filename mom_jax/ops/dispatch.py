"""Chooses an implementation of a primitive: by name, or by the device that a computation is compiled for.

``auto`` uses the kernels of `pallas_kernels` on TPUs and GPUs. It uses XLA on CPUs, on GPUs without kernels, for
primitives without a kernel, and for shapes that a kernel refuses. A named implementation that cannot run raises
an error that says why.
"""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.errors import InputError, install
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Int
from pallas_kernels.chunks import Chunks, Unsupported

KERNELS = ("tpu", "gpu")
GPU = ("gpu", "mosaic")  # with ``mosaic``, kernels by Mosaic GPU in place of Triton's where there are some
# ``module:function``, imported when first used and called with plain arrays (`plain`); or a function with the
# signature of the other implementations, for what puts several together.
Kernel = str | Callable
# Names of GPUs by generation, for programs that are compiled where there is none.
_GENERATIONS = {
    "sm_80": ("A100", "A30"),
    "sm_90": ("H100", "H200", "GH200"),
    "sm_100": ("B200", "GB200"),
    "gfx942": ("MI300", "MI325"),
}


class Target(NamedTuple):
    """What a computation is compiled for."""

    platform: str  # cpu, gpu or tpu
    kind: str  # as JAX names the device
    generation: str | None = None  # of a GPU: sm_90, gfx942, ...
    mosaic: bool = False  # whether kernels by Mosaic GPU were asked for

    @property
    def has_kernels(self) -> bool:
        """Whether `pallas_kernels` has any for it."""
        return self.platform in KERNELS and (self.platform != "gpu" or self.generation in _GENERATIONS)


def target() -> Target:
    """The device of the mesh that is set (`jax.set_mesh`, also an abstract one), or else JAX's first."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    if device.platform != "gpu":
        return Target(device.platform, device.device_kind)
    return Target("gpu", device.device_kind, _generation(device))


def _generation(device: Any) -> str | None:
    capability = getattr(device, "compute_capability", None)  # abstract devices have none
    if capability is not None:
        return capability if str(capability).startswith("gfx") else f"sm_{str(capability).replace('.', '')}"
    words = device.device_kind.replace("-", " ").split()
    return next((name for name, kinds in _GENERATIONS.items() if any(w.startswith(kinds) for w in words)), None)


def on_gpu(impl: str) -> bool:
    """Whether what is called ``impl`` may be kernels for GPUs."""
    return impl in ("auto", *GPU)


def may_be_kernels(impl: str) -> bool:
    """Whether what is called ``impl`` may be kernels for any device."""
    return impl in ("auto", *KERNELS, *GPU)


def uses_kernels(impl: str) -> bool:
    """Whether rows are to be laid out for kernels."""
    return impl in (*KERNELS, *GPU) or (impl == "auto" and target().has_kernels)


def select(impl: str, implementations: Mapping[str, Callable], kernels: Mapping[str, Kernel]) -> Callable:
    """The implementation called ``impl`` of an operator.

    Args:
        impl: ``auto``, a name in ``implementations``, or, where there are kernels, ``tpu``, ``gpu`` or ``mosaic``.
        implementations: by name; ``xla`` is among them, and works everywhere.
        kernels: by platform; under ``mosaic`` those for Hopper by Mosaic GPU.

    Raises:
        InputError: an unknown name, with those that exist, or a kernel for another platform. Kernels
            that are called by name raise it for shapes they refuse, and where jax-triton is missing.
    """
    if impl in implementations:
        return implementations[impl]
    known = ("auto", *implementations, *((*KERNELS, "mosaic") if kernels else ()))
    if impl not in known:
        raise InputError("impl", impl, f"choose one of {', '.join(known)}")
    device = target()
    if not kernels or (impl == "auto" and not device.has_kernels):
        if kernels and device.platform == "gpu":
            _warn_of_gpu(device.kind)
        return implementations["xla"]
    platform = "gpu" if impl in GPU else impl
    if platform not in ("auto", device.platform):
        remedy = f"needs a {platform.upper()}, and this is compiled for {device.kind}; use auto or xla"
        raise InputError("impl", impl, remedy)
    fallback = implementations["xla"] if impl == "auto" else None
    device = device._replace(mosaic=impl == "mosaic")
    return functools.partial(_run_kernel, device, kernels, fallback)


def _run_kernel(device: Target, kernels: Mapping[str, Kernel], fallback: Callable | None, *arguments: Any) -> Any:
    try:
        return kernel_for(device, kernels)(*arguments)
    except Unsupported as reason:
        if fallback is None:
            raise InputError(
                "impl", "mosaic" if device.mosaic else device.platform, f"{reason}; use auto or xla"
            ) from reason
    return fallback(*arguments)


def kernel_for(device: Target, kernels: Mapping[str, Kernel]) -> Callable:
    """The kernel for a device, with the signature of the other implementations.

    Raises:
        Unsupported: there is none.
        InputError: a GPU without kernels, or without jax-triton.
    """
    if device.platform == "gpu":
        _check_gpu(device)
    if device.platform not in kernels:
        raise Unsupported(f"there is no such kernel for a {device.platform.upper()}")
    kernel = kernels["mosaic" if device.mosaic and "mosaic" in kernels else device.platform]
    if not isinstance(kernel, str):
        return functools.partial(kernel, device)
    module, _, function = kernel.partition(":")
    run = getattr(importlib.import_module(module), function)
    options = {"device": device.generation} if device.platform == "gpu" else {}
    return lambda *arguments: run(*plain(arguments), **options)


def _check_gpu(device: Target) -> None:
    if importlib.util.find_spec("jax_triton") is None:
        remedy = f"needs jax-triton: {install('gpu')} (Python 3.12 or later), or choose impl=xla"
        raise InputError("impl", "gpu", remedy)
    if not device.has_kernels:
        known = ", ".join(_GENERATIONS)
        raise InputError("impl", "gpu", f"has kernels for {known}, not for {device.kind}; use auto or xla")


@functools.cache  # once for each kind
def _warn_of_gpu(kind: str) -> None:
    known = ", ".join(_GENERATIONS)
    warnings.warn(f"impl=auto: the GPU kernels are made for {known}, not for {kind}; XLA runs instead", stacklevel=3)


def plain(arguments: tuple[Any, ...]) -> Iterator[Any]:
    """Arguments as kernels take them: rows one by one, and tables as `Chunks`."""
    for argument in arguments:
        if isinstance(argument, ChunkTable):
            yield as_chunks(argument)
        elif hasattr(argument, "_fields"):
            yield from argument
        else:
            yield argument


def as_chunks(table: ChunkTable) -> Chunks:
    """The table as kernels take it: documents numbered inside each chunk."""
    document = None
    if table.reset is not None:
        document = jnp.cumsum(table.reset.reshape(-1, table.chunk_size), -1, dtype=jnp.int32).reshape(-1)
    return Chunks(table.segment, table.first, table.last, _longest_first(table), document)


def _longest_first(table: ChunkTable) -> Int[Array, "S+1 3"]:
    """`Chunks.runs`: programs that begin with the longest run end at about the same time."""
    chunks, segments, end = table.segment.shape[0], table.num_segments, jnp.cumsum(table.count)
    keys = (-table.count, jnp.arange(segments, dtype=jnp.int32), end - table.count, table.count)
    _, *runs = jax.lax.sort(keys, num_keys=1)
    unused = jnp.stack([jnp.int32(segments), end[-1], chunks - end[-1]])
    return jnp.concatenate([jnp.stack(runs, 1), unused[None]])
