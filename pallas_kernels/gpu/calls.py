"""A call of a recurrence on a GPU: its sizes, and how each of its kernels is launched with them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.arguments import GPU, Expected, check
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import Config, Configs, find
from pallas_kernels.gpu.launch import Grid, float32_precision, launch


class Call(NamedTuple):
    """Everything besides the arrays that a recurrence's kernels depend on."""

    heads: int
    keys: int  # K
    values: int  # V
    chunks: int
    rows: int  # C, of a chunk
    dtype: str  # of the rows
    documents: bool
    scale: float
    device: str
    interpret: bool

    @property
    def cuts(self) -> int:
        """How often a chunk can be halved."""
        return self.rows.bit_length() - 1

    def config(self, configs: Configs, name: str) -> Config:
        """Of a kernel, its blocks no larger than K and V."""
        config = find(configs[name], self.device, jnp.dtype(self.dtype).itemsize, max(self.keys, self.values))
        block_k, block_v = min(config.block_k or self.keys, self.keys), min(config.block_v or self.values, self.values)
        return config._replace(block_k=block_k, block_v=block_v)

    def run(
        self,
        kernel: Any,
        config: Config,
        *inputs: jax.Array | None,
        grid: Grid,
        outputs: Sequence[jax.ShapeDtypeStruct | None],
        flops: int,
        **scalars: Any,
    ) -> list[Any]:
        """Launches a kernel, with those of a call's constants that it has parameters for."""
        constants = {
            "SCALE": self.scale, "DOCUMENTS": self.documents, "HEADS": self.heads, "K": self.keys, "V": self.values,
            "C": self.rows, "BK": config.block_k, "BV": config.block_v, "cuts": self.cuts,
            "PRECISION": float32_precision(self.device),
        }  # fmt: skip
        constants = {name: x for name, x in constants.items() if name in kernel.arg_names}
        return launch(
            kernel, *inputs, grid=grid, outputs=outputs, interpret=self.interpret, device=self.device,
            num_warps=config.num_warps, num_stages=config.num_stages, flops=flops, **constants, **scalars,
        )  # fmt: skip


def checked_call(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gates: Mapping[str, Expected],
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    device: str,
    interpret: bool,
) -> Call:
    """The call, once `pallas_kernels.arguments.check` has found that its arguments fit; all rows have one dtype."""
    GPU.check(device=device)
    rows = (q.dtype.name,)
    alike = {"k": (k, q.shape, rows), "v": (v, (*q.shape[:2], v.shape[-1]), rows)}
    size = check(GPU, q, v, chunks, initial_state, alike | dict(gates))
    documents, number = chunks.document is not None, chunks.segment.shape[0]
    heads, keys = q.shape[1:]
    return Call(heads, keys, v.shape[-1], number, size, q.dtype.name, documents, float(scale), device, interpret)
