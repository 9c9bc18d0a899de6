"""Matrix products of contiguous row groups on a TPU, each group with its own weights: ``y[n] = x[n] @ w[g]``.

Rows are cut into tiles where they lie, whatever the groups' sizes, and a kernel visits every pair of a tile and a group
that meet: a tile in which groups meet is visited once for each and keeps, each time, only the rows of that group. The
table of visits is computed from the sizes and prefetched; visits follow the rows, so a group's weights stay in VMEM
from its first tile to its last. All weights are multiplied in one launch, which reads x once. The gradient of x is one
sum over the weights; the weights' gradients are summed in VMEM over the visits of their group. Weights that do not fit
into VMEM together have a launch each, which goes through the rows once for each block of columns that does. Where two
cores share a program, each takes half the columns of the weights that are wide enough.

Products of float32 rows are exact to float32; of bfloat16 rows, sums are float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.arguments import TPU
from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import Config, Entry, find
from pallas_kernels.tpu import calls
from pallas_kernels.tpu.calls import LANES, Interpret, Operand, tile_bytes
from pallas_kernels.tpu.grouped_matmul_kernels import Visit, product, row_gradient, visits, weight_gradients

_EACH = [Entry(Config(block_m=512), itemsize=2), Entry(Config(block_m=256))]
CONFIGS = {"product": [*_EACH], "row_gradient": [*_EACH], "weight_gradient": [*_EACH]}

Arrays = Sequence[jax.Array]


def grouped_matmul(
    x: jax.Array, weights: tuple[jax.Array, ...], group_sizes: jax.Array, tile: int, *, interpret: Interpret = False
) -> tuple[jax.Array, ...]:
    """``y[n] = x[n] @ w[g]`` for every ``w`` in ``weights`` and the group g that row n falls into, with gradients.

    Args:
        x: [N, D] rows, float32 or bfloat16.
        weights: [G, D, F] each, of the same dtype.
        group_sizes: [G] int32 rows of each group, perhaps 0. Groups follow each other from row 0; rows behind the last
            one give 0.
        tile: alignment of groups in rows, of which this needs none.
        interpret: run on the host, without a TPU.

    Returns:
        [N, F] in ``x.dtype`` for each weight.

    Raises:
        Unsupported: a size or dtype that the kernels do not take.
        ValueError: arrays that do not fit each other.
    """
    TPU.check(dtype=x.dtype.name)
    for weight in weights:
        if weight.dtype != x.dtype:
            raise Unsupported(f"weight is {weight.dtype}: the TPU kernels take {x.dtype} here, as x is")
        if x.ndim != 2 or weight.ndim != 3 or weight.shape[:2] != (*group_sizes.shape, x.shape[1]):
            raise ValueError(f"weight {weight.shape} does not fit {group_sizes.shape} groups of x {x.shape}: [G, D, F]")
    products: dict[int, jax.Array] = {}
    launches = _launches(x, weights)
    for some in launches:
        for name in CONFIGS:
            _Plan.make(name, x, [weights[i] for i in some])
    for some in launches:
        chosen = tuple(weights[i] for i in some)
        products.update(zip(some, _grouped_matmul(x, chosen, group_sizes, interpret), strict=True))
    return tuple(products[i] for i in range(len(weights)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped_matmul(x, weights, group_sizes, interpret):
    plan = _Plan.make("product", x, weights)
    shapes = [jax.ShapeDtypeStruct((x.shape[0], w.shape[2]), x.dtype) for w in weights]
    operands = [plan.rows(x), *(plan.weights(w, 2) for w in weights)]
    return plan.launch(product, group_sizes, operands, [plan.rows(y, blocked=True) for y in shapes], [], interpret)


def _forward(x, weights, group_sizes, interpret):
    return _grouped_matmul(x, weights, group_sizes, interpret), (x, weights, group_sizes)


def _backward(interpret, residuals, dys):
    x, weights, group_sizes = residuals
    plan, like = _Plan.make("row_gradient", x, weights), jax.ShapeDtypeStruct(x.shape, x.dtype)
    operands = [*(plan.rows(dy) for dy in dys), *(plan.weights(w, 1) for w in weights)]
    (dx,) = plan.launch(row_gradient, group_sizes, operands, [plan.rows(like, blocked=True)], [], interpret)
    plan = _Plan.make("weight_gradient", x, weights)
    operands = [plan.rows(x), *(plan.rows(dy, blocked=True) for dy in dys)]
    outputs = [plan.weights(jax.ShapeDtypeStruct(w.shape, w.dtype), 2) for w in weights]
    blocks: list[Any] = [y.spec.block_shape for y in outputs]
    sums = [block[1:] for block in blocks]
    return dx, plan.launch(weight_gradients, group_sizes, operands, outputs, sums, interpret), None


_grouped_matmul.defvjp(_forward, _backward)


class _Plan(NamedTuple):
    """How a launch cuts its operands."""

    name: str
    height: int  # rows of a tile
    blocks: int  # of columns
    vmem: int  # bytes
    flops: int

    @classmethod
    def make(cls, name: str, x: jax.Array, weights: Arrays) -> "_Plan":
        """As few blocks of columns as fit into VMEM and keep every core busy."""
        (rows, inputs), columns = x.shape, [w.shape[2] for w in weights]
        cut, cores = [inputs] if name == "row_gradient" else columns, calls.device().cores
        blocks = cores if _divide(cut, cores) else 1
        while (need := _vmem(name, x, weights, blocks)) > _most_vmem():
            blocks *= 2
            if not _divide(cut, blocks):
                raise Unsupported(f"weights {inputs} x {columns[0]} need {need / 2**20:.0f} MiB of VMEM")
        vmem = min(need * 5 // 4, calls.device().vmem)  # compilers differ
        return cls(name, _height(name, x), blocks, vmem, 2 * rows * inputs * sum(columns))

    def rows(self, array: Any, blocked: bool = False) -> Operand:
        """[N, columns] by tiles; ``blocked``: and by columns."""
        blocks = self.blocks if blocked else 1
        spec = pl.BlockSpec(
            (self.height, array.shape[1] // blocks), lambda b, v, table: (table[1, v], b if blocked else 0)
        )
        return Operand(array, spec)

    def weights(self, array: Any, axis: int) -> Operand:
        """[G, D, F] by groups, and by columns along ``axis``; the rows behind the last group have the last one's."""
        block, last = [None, *array.shape[1:]], array.shape[0] - 1
        block[axis] //= self.blocks

        def index(b, v, table):
            place = [jnp.minimum(table[0, v], last), 0, 0]
            place[axis] = b
            return tuple(place)

        return Operand(array, pl.BlockSpec(tuple(block), index))

    def launch(
        self,
        body: Callable[..., None],
        group_sizes: jax.Array,
        inputs: Sequence[Operand],
        outputs: Sequence[Operand],
        sums: Sequence[tuple[int, ...]],
        interpret: Interpret,
    ) -> tuple[jax.Array, ...]:
        """Runs ``body(visit, *inputs, *outputs, *sums)`` for all visits of each block of columns."""
        rows = next(x.array.shape[0] for x in (*inputs, *outputs) if x.array.ndim == 2)
        table = visits(group_sizes, rows, self.height)

        def visited(table, **refs):
            v = pl.program_id(1)
            tile, begin, end, flags = (table[i, v] for i in range(1, 5))
            top = tile * self.height
            meets, is_group = (begin < end) & (end > top), table[0, v] < group_sizes.shape[0]
            is_first, is_last = is_group & (flags % 2 == 1), is_group & (flags >= 2)
            has_rows, is_behind = meets & is_group, meets & jnp.logical_not(is_group)
            body(Visit(tile, begin, end, has_rows, is_behind, is_first, is_last), *refs.values())

        results = calls.launch(
            visited,
            table,
            {f"input{i}": x for i, x in enumerate(inputs)},
            {f"output{i}": x for i, x in enumerate(outputs)},
            grid=(self.blocks, table.shape[1]),
            scratch={f"sum{i}": shape for i, shape in enumerate(sums)},
            vmem=self.vmem,
            flops=self.flops,
            interpret=interpret,
        )
        return tuple(results.values())


def _launches(x: jax.Array, weights: Arrays) -> list[list[int]]:
    """Which weights are multiplied together, by their places."""
    cores, places = calls.device().cores, range(len(weights))
    wide = [i for i in places if _divide([weights[i].shape[2]], cores)]
    parts = [wide, [i for i in places if i not in wide]] if cores > 1 else [list(places)]

    def fit(some: list[int]) -> bool:
        return max(_vmem(name, x, [weights[i] for i in some], 1) for name in CONFIGS) <= _most_vmem()

    return [launch for some in parts if some for launch in ([some] if fit(some) else [[i] for i in some])]


def _divide(columns: Sequence[int], blocks: int) -> bool:
    """Whether all columns are so many blocks of whole lanes."""
    return all(n % (blocks * LANES) == 0 for n in columns)


def _height(name: str, x: jax.Array) -> int:
    """Rows of a tile."""
    config = find(CONFIGS[name], calls.device().generation, x.dtype.itemsize, x.shape[1])
    return min(x.shape[0], config.block_m or x.shape[0])


def _most_vmem() -> int:
    """Bytes that a launch may be counted to need."""
    return calls.device().vmem * 3 // 4


def _vmem(name: str, x: jax.Array, weights: Arrays, blocks: int) -> int:
    """Bytes of VMEM of a launch: two blocks of each operand, sums, and products before they are rounded."""
    height, inputs, columns = _height(name, x), x.shape[1], [w.shape[2] for w in weights]
    if name == "row_gradient":
        inputs //= blocks
        float32 = [(height, inputs)] * 2
    else:
        columns = [n // blocks for n in columns]
        float32 = [(height if name == "product" else inputs, n) for n in columns]
        float32 *= 1 if name == "product" else 2
    operands = [(height, inputs), *((rows, n) for n in columns for rows in (height, inputs))]
    return 2 * sum(tile_bytes(a, x.dtype) for a in operands) + sum(tile_bytes(a, jnp.float32) for a in float32)
