"""Matrix products of contiguous row groups on a TPU, each group with its own weights: ``y[n] = x[n] @ w[g]``.

Rows are cut into tiles where they lie, whatever the groups' sizes, and a kernel visits every pair of a tile and a group
that meet: a tile in which groups meet is visited once for each and keeps, each time, only the rows of that group. The
table of visits is computed from the sizes and prefetched; visits follow the rows, so a group's weights stay in VMEM
from its first tile to its last. All weights are multiplied in one launch, which reads x once. The gradient of x is one
sum over the weights; the weights' gradients are summed in VMEM over the visits of their group. Weights that do not fit
into VMEM together have a launch each, which goes through the rows once for each block of columns that does.

Products of float32 rows are exact to float32; of bfloat16 rows, sums are float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.arguments import TPU
from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import Config, Entry, find
from pallas_kernels.tpu import calls
from pallas_kernels.tpu.calls import DEFAULT_SCOPE, LANES, Interpret, tile_bytes

_EACH = [Entry(Config(block_m=512), itemsize=2), Entry(Config(block_m=256))]
CONFIGS = {"product": [*_EACH], "row_gradient": [*_EACH], "weight_gradient": [*_EACH]}

Ref = Any
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
    together = max(_vmem(name, x, weights, 1) for name in CONFIGS) <= _most_vmem()
    launches = [weights] if together else [(w,) for w in weights]
    for some in launches:
        for name in CONFIGS:
            _Plan.make(name, x, some)
    return tuple(y for some in launches for y in _grouped_matmul(x, tuple(some), group_sizes, interpret))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped_matmul(x, weights, group_sizes, interpret):
    plan = _Plan.make("product", x, weights)
    shapes = [jax.ShapeDtypeStruct((x.shape[0], w.shape[2]), x.dtype) for w in weights]
    operands = [plan.rows(x), *(plan.weights(w, 2) for w in weights)]
    return plan.launch(_product, group_sizes, operands, [plan.rows(y, blocked=True) for y in shapes], [], interpret)


def _forward(x, weights, group_sizes, interpret):
    return _grouped_matmul(x, weights, group_sizes, interpret), (x, weights, group_sizes)


def _backward(interpret, residuals, dys):
    x, weights, group_sizes = residuals
    plan, like = _Plan.make("row_gradient", x, weights), jax.ShapeDtypeStruct(x.shape, x.dtype)
    operands = [*(plan.rows(dy) for dy in dys), *(plan.weights(w, 1) for w in weights)]
    (dx,) = plan.launch(_row_gradient, group_sizes, operands, [plan.rows(like, blocked=True)], [], interpret)
    plan = _Plan.make("weight_gradient", x, weights)
    operands = [plan.rows(x), *(plan.rows(dy, blocked=True) for dy in dys)]
    outputs = [plan.weights(jax.ShapeDtypeStruct(w.shape, w.dtype), 2) for w in weights]
    sums = [pltpu.VMEM(y.spec.block_shape[1:], jnp.float32) for y in outputs]
    return dx, plan.launch(_weight_gradients, group_sizes, operands, outputs, sums, interpret), None


_grouped_matmul.defvjp(_forward, _backward)


def _product(visit, x, *refs):
    weights, ys = refs[: len(refs) // 2], refs[len(refs) // 2 :]

    @pl.when(visit.has_rows)
    def _():
        for w, y in zip(weights, ys, strict=True):
            visit.put(y, _dot(x[...], w[...], "nn"))

    visit.clear(*ys)


def _row_gradient(visit, *refs):
    *operands, dx = refs
    dys, weights = operands[: len(operands) // 2], operands[len(operands) // 2 :]

    @pl.when(visit.has_rows)
    def _():
        total = functools.reduce(jnp.add, (_dot(dy[...], w[...], "nt") for dy, w in zip(dys, weights, strict=True)))
        visit.put(dx, total)

    visit.clear(dx)


def _weight_gradients(visit, x, *refs):
    each = len(refs) // 3
    for dy, dw, total in zip(refs[:each], refs[each : 2 * each], refs[2 * each :], strict=True):

        @pl.when(visit.is_first)
        def _(total=total):
            total[...] = jnp.zeros_like(total)

        @pl.when(visit.has_rows)
        def _(dy=dy, total=total):  # what lies behind the last row may be anything
            rows = (jnp.where(visit.inside(a), a[...], jnp.zeros_like(a)) for a in (x, dy))
            total[...] += _dot(*rows, "tn")

        @pl.when(visit.is_last)
        def _(dw=dw, total=total):
            dw[...] = total[...].astype(dw.dtype)


_AXES = {"nn": (1, 0), "nt": (1, 1), "tn": (0, 0)}  # summed over, of a and of b


def _dot(a: jax.Array, b: jax.Array, form: str) -> jax.Array:
    """``a b``, ``a b^T`` or ``a^T b`` in float32."""
    left, right = _AXES[form]
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = ((left,), (right,)), ((), ())
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


class _Visit(NamedTuple):
    """A grid step."""

    tile: jax.Array
    begin: jax.Array  # the group's first row
    end: jax.Array  # the one behind its last
    has_rows: jax.Array  # whether the group has any in the tile
    is_behind: jax.Array  # whether rows behind the last group are in the tile
    is_first: jax.Array  # whether it is the group's first visit
    is_last: jax.Array

    def inside(self, rows: Ref) -> jax.Array:
        """Which rows of a tile are the group's, bool of the tile's shape."""
        row = self.tile * rows.shape[0] + jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
        return (row >= self.begin) & (row < self.end)

    def put(self, target: Ref, rows: jax.Array) -> None:
        """Stores the group's rows of a tile, and leaves the others."""
        target[...] = jnp.where(self.inside(target), rows.astype(target.dtype), target[...])

    def clear(self, *targets: Ref) -> None:
        """Stores 0 in the rows behind the last group."""

        @pl.when(self.is_behind)
        def _():
            for target in targets:
                self.put(target, jnp.zeros_like(target))


def _visits(group_sizes: jax.Array, rows: int, height: int) -> jax.Array:
    """The table of visits: group, tile, first row, end, and 1 for a group's first and 2 for its last; [5, visits].

    Rows behind the last group are one more. A group without rows is visited as well, for its gradient. Steps that are
    left over visit the last tile for no rows.
    """
    groups, tiles = group_sizes.shape[0], -(-rows // height)
    end = jnp.concatenate([jnp.cumsum(group_sizes), jnp.full((1,), rows)]).astype(jnp.int32)
    begin = jnp.concatenate([jnp.zeros((1,), jnp.int32), end[:-1]])
    first = jnp.minimum(begin // height, tiles - 1)
    count = jnp.where(end > begin, (end - 1) // height - first + 1, 1)
    behind = jnp.cumsum(count)
    step = jnp.arange(tiles + 2 * groups + 1, dtype=jnp.int32)
    group = jnp.sum(step[:, None] >= behind, -1, dtype=jnp.int32)
    left_over = group > groups
    group = jnp.minimum(group, groups)
    number = step - (behind - count)[group]
    flags = (number == 0) + 2 * (number == count[group] - 1)
    tile = jnp.where(left_over, tiles - 1, first[group] + number)
    row = jnp.where(left_over, 0, jnp.stack([begin[group], end[group], flags]))
    return jnp.concatenate([jnp.stack([group, tile]), row])


class _Operand(NamedTuple):
    """An input or output in memory, and its blocks."""

    array: jax.Array | jax.ShapeDtypeStruct
    spec: pl.BlockSpec


class _Plan(NamedTuple):
    """How a launch cuts its operands."""

    name: str
    height: int  # rows of a tile
    blocks: int  # of columns
    vmem: int  # bytes
    flops: int

    @classmethod
    def make(cls, name: str, x: jax.Array, weights: Arrays) -> "_Plan":
        """As few blocks of columns as fit into VMEM; several of them only for a single weight."""
        (rows, inputs), columns = x.shape, [w.shape[2] for w in weights]
        cut, blocks = inputs if name == "row_gradient" else columns[0], 1
        while (need := _vmem(name, x, weights, blocks)) > _most_vmem():
            blocks *= 2
            if len(columns) > 1 or cut % (blocks * LANES):
                raise Unsupported(f"weights {inputs} x {columns[0]} need {need / 2**20:.0f} MiB of VMEM")
        vmem = min(max(need * 5 // 4, DEFAULT_SCOPE), calls.device().vmem)  # compilers differ
        return cls(name, _height(name, x), blocks, vmem, 2 * rows * inputs * sum(columns))

    def rows(self, array: Any, blocked: bool = False) -> _Operand:
        """[N, columns] by tiles; ``blocked``: and by columns."""
        blocks = self.blocks if blocked else 1
        spec = pl.BlockSpec(
            (self.height, array.shape[1] // blocks), lambda b, v, table: (table[1, v], b if blocked else 0)
        )
        return _Operand(array, spec)

    def weights(self, array: Any, axis: int) -> _Operand:
        """[G, D, F] by groups, and by columns along ``axis``; the rows behind the last group have the last one's."""
        block, last = [None, *array.shape[1:]], array.shape[0] - 1
        block[axis] //= self.blocks

        def index(b, v, table):
            place = [jnp.minimum(table[0, v], last), 0, 0]
            place[axis] = b
            return tuple(place)

        return _Operand(array, pl.BlockSpec(tuple(block), index))

    def launch(
        self,
        body: Callable[..., None],
        group_sizes: jax.Array,
        inputs: Sequence[_Operand],
        outputs: Sequence[_Operand],
        sums: Sequence[Any],
        interpret: Interpret,
    ) -> tuple[jax.Array, ...]:
        """Runs ``body(visit, *inputs, *outputs, *sums)`` for all visits of each block of columns."""
        rows = next(x.array.shape[0] for x in (*inputs, *outputs) if x.array.ndim == 2)
        table = _visits(group_sizes, rows, self.height)

        def kernel(table, *refs):
            v = pl.program_id(1)
            tile, begin, end, flags = (table[i, v] for i in range(1, 5))
            top = tile * self.height
            meets, is_group = (begin < end) & (end > top), table[0, v] < group_sizes.shape[0]
            is_first, is_last = is_group & (flags % 2 == 1), is_group & (flags >= 2)
            has_rows, is_behind = meets & is_group, meets & jnp.logical_not(is_group)
            body(_Visit(tile, begin, end, has_rows, is_behind, is_first, is_last), *refs)

        operands = [x.array for x in inputs]
        results = pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(self.blocks, table.shape[1]),
                in_specs=[x.spec for x in inputs],
                out_specs=[x.spec for x in outputs],
                scratch_shapes=list(sums),
            ),
            out_shape=[x.array for x in outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=self.vmem
            ),
            cost_estimate=pl.CostEstimate(
                flops=self.flops,
                transcendentals=0,
                bytes_accessed=sum(x.array.size * x.array.dtype.itemsize for x in (*inputs, *outputs)),
            ),
            interpret=interpret,
        )(table, *operands)
        return tuple(results)


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
