"""Recurrences along the chunks of a segment on Hopper, in Pallas for Mosaic GPU: what their kernels have in common.

A program is a producer warpgroup, which copies chunks to shared memory by TMA, and two consumer warpgroups, each
with a state of K key and 64 value channels of its own. A consumer keeps its state transposed in registers, as
K / 64 float32 blocks [64 values, 64 keys]: accumulators of the products that write to it, and left operands, once
rounded, of those that read it. Everything with value channels is transposed in registers, and lies as usual in memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.arguments import Limits
from pallas_kernels.chunks import Chunks, Unsupported
from pallas_kernels.gpu.calls import Call
from pallas_kernels.gpu.launch import MOST_PROGRAMS

TILE = 64  # rows of a chunk, value channels of a consumer, key channels of a block
STAGES = 2  # chunks in shared memory
CONSUMERS = 2
# Registers of a thread, of 168 that all have at first: 2 * 240 + 24 = 3 * 168.
CONSUMER, PRODUCER = 240, 24
_LIMITS = Limits("Mosaic GPU", (128, 256), (128, 256, 512), (TILE,), ("bfloat16",), ("sm_90",))
FIRST_JAX = (0, 11)  # whose Mosaic GPU has what the kernels need
State = tuple[jax.Array, ...]


def check(call: Call, chunks: Chunks) -> None:
    """Raises `Unsupported` for what the kernels are not made for."""
    _LIMITS.check(K=call.keys, V=call.values, chunk=call.rows, dtype=call.dtype, device=call.device)
    for name, programs in (("heads", call.heads), ("segments", chunks.runs.shape[0])):
        if programs > MOST_PROGRAMS[-1]:
            raise Unsupported(f"{name}={programs}: the GPU kernels run {MOST_PROGRAMS[-1]} at most")
    if jax.__version_info__[:2] < FIRST_JAX:
        raise Unsupported(f"jax {jax.__version__}: kernels by Mosaic GPU need {'.'.join(map(str, FIRST_JAX))}")


def turned(ref: Any) -> Any:
    """The reference to a matrix as that to its transpose."""
    return ref.transpose((1, 0))


@dataclasses.dataclass(frozen=True)
class Consumer:
    """What a consumer warpgroup works with."""

    held: Mapping[str, Any]  # shared memory by name: [STAGES, 64, channels], "own" ones [STAGES, consumers, 64, 64]
    own: Sequence[str]
    gates: Any  # [STAGES, number, 64]
    staging: Any  # [consumers, 2, 64, 64]: what goes to memory
    operand: Any  # in the interpreter, where a left operand has to lie in shared memory
    full: Any
    empty: Any
    group: Any
    head: Any
    segment: Any
    first: Any
    chunks: Any
    column: Any  # the consumer's first value channel
    blocks: int  # of a state
    dtype: Any  # of rows
    backwards: bool

    def along(self, chunk: Callable[[Any, Any, State], Sequence[jax.Array]], state: State) -> State:
        """Runs ``(n, slot, state) -> state`` for all chunks, the n-th of the segment in stage ``slot``."""

        def step(passed, state):
            slot = lax.rem(passed, STAGES)
            plgpu.barrier_wait(self.full.at[slot])
            state = chunk(_nth(passed, self.chunks, self.backwards), slot, state)
            plgpu.barrier_arrive(self.empty.at[slot])
            return tuple(state)

        return lax.fori_loop(0, self.chunks, step, tuple(state))

    def rows(self, n: Any) -> Any:
        """The rows of the n-th chunk."""
        return pl.ds(pl.multiple_of((self.first + n) * TILE, TILE), TILE)

    def part(self, x: Any, n: Any) -> Any:
        """Of rows [N, H, V], the reference to those of the n-th chunk, in the consumer's channels."""
        return x.at[self.rows(n), self.head, pl.ds(self.column, TILE)]

    def tile(self, name: str, slot: Any, block: int = 0) -> Any:
        """64 channels of a chunk in shared memory, [64, 64]."""
        at = self.held[name].at[slot]
        return at.at[self.group] if name in self.own else at.at[:, pl.ds(block * TILE, TILE)]

    def values(self, name: str, slot: Any) -> jax.Array:
        """The consumer's value channels of a chunk, transposed: [64 values, 64 rows] float32."""
        x = plgpu.load(turned(self.tile(name, slot)), layout=plgpu.Layout.WGMMA_TRANSPOSED)
        return plgpu.layout_cast(x, plgpu.Layout.WGMMA).astype(jnp.float32)

    def gate(self, slot: Any, number: int) -> jax.Array:
        """A gate of each row, to be multiplied by what is transposed."""
        x = plgpu.load(self.gates.at[slot, number], layout=plgpu.Layout.WGMMA.reduce(0))
        return lax.broadcast_in_dim(x, (TILE, TILE), [1])

    def product(self, accumulator: Any, left: Any, right: Any) -> None:
        """Starts to add ``left @ right`` to an accumulator; ``right``, and ``left`` unless it is an array, are
        references."""
        if self.operand is not None and isinstance(left, jax.Array):
            self.operand.at[self.group][...] = left
            left = self.operand.at[self.group]
        plgpu.wgmma(accumulator, left, right)

    def added(self, start: Callable[..., None], *onto: jax.Array) -> Sequence[jax.Array]:
        """The arrays ``onto``, to each of which ``start`` adds products, once these are there."""
        acc: Any = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
        if self.operand is None:
            made = pl.run_state(lambda accumulators: start(*accumulators))(tuple(map(acc.init, onto)))
            # or LLVM would move arithmetic on a result to before the wait for it
            return lax.optimization_barrier(made)

        def alone(*accumulators):
            start(*accumulators)
            return [x[...] for x in accumulators]

        made = pl.run_scoped(alone, *[acc(x.shape, x.dtype) for x in onto])
        return [x + y for x, y in zip(onto, made, strict=True)]

    def put(self, x: jax.Array, ref: Any, count: Any) -> None:
        """Writes the transpose of ``x`` to memory; ``count`` tells what this call is the how manieth of."""
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
        tile = self.staging.at[self.group, lax.rem(count, 2)]
        turned(tile)[...] = x.astype(self.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(tile, ref)

    def state_block(self, states: Any, slot: Any, block: int) -> Any:
        """Of states [slots, H, K, V], the reference to a block [64 keys, 64 values]."""
        return states.at[slot, self.head, pl.ds(block * TILE, TILE), pl.ds(self.column, TILE)]

    def zero(self) -> jax.Array:
        """[64, 64] float32, as accumulators lie."""
        return plgpu.layout_cast(jnp.zeros((TILE, TILE), jnp.float32), plgpu.Layout.WGMMA)


def _nth(passed, chunks, backwards):
    return chunks - 1 - passed if backwards else passed


def along(
    body: Callable[..., None],
    call: Call,
    runs: jax.Array,
    whole: Mapping[str, jax.Array],
    own: Mapping[str, jax.Array],
    gates: jax.Array,
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    *,
    states: jax.Array | None = None,
    fill: str | None = None,
    backwards: bool = False,
) -> dict[str, jax.Array]:
    """Runs ``body(consumer, states, **outputs)`` in every consumer, for its segment and value channels.

    Args:
        runs: of the chunks' table; its last run is of unused chunks.
        whole: rows [N, H, channels] that consumers hold whole.
        own: rows [N, H, V] of which each holds its own channels.
        gates: [H, number, N] float32.
        outputs: shapes and dtypes by name.
        states: [S, H, K, V] float32 that begin segments.
        fill: the output [N, H, V] that is 0 in unused chunks.
        backwards: from the last chunk of a segment to the first.
    """
    arrays = {**whole, **own, "gates": gates, "runs": runs, **({} if states is None else {"states": states})}
    dtype = jnp.dtype(call.dtype)
    scratch = {
        "held": {name: _tiles((STAGES, TILE, x.shape[-1]), dtype) for name, x in whole.items()}
        | {name: _tiles((STAGES, CONSUMERS, TILE, TILE), dtype) for name in own},
        "gates": plgpu.SMEM((STAGES, gates.shape[1], TILE), jnp.float32),
        "staging": _tiles((CONSUMERS, 2, TILE, TILE), dtype),
        "full": plgpu.Barrier(num_arrivals=len(whole) + CONSUMERS * len(own) + 1, num_barriers=STAGES),
        "empty": plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=STAGES),
    }
    if call.interpret:
        scratch["operand"] = plgpu.SMEM((CONSUMERS, TILE, TILE), dtype)

    def program(*refs):
        *refs, scratch = refs
        _program(body, dict(zip((*arrays, *outputs), refs, strict=True)), tuple(whole), tuple(own), tuple(outputs),
                 scratch, fill, call, backwards)  # fmt: skip

    program.__name__ = body.__name__.strip("_")
    options: dict[str, Any] = {"interpret": plgpu.InterpretGPUParams(detect_races=True)} if call.interpret else {}
    made = plgpu.kernel(
        program,
        out_type=list(outputs.values()),
        scratch_types=[scratch],
        # the last is CUDA's first: programs that read the same rows start together, and the longest runs first
        grid=(runs.shape[0] - (fill is None), call.heads, call.values // (TILE * CONSUMERS)),
        grid_names=("run", "head", "block"),
        num_threads=CONSUMERS + 1,
        thread_name="group",
        # The staging tiles are the only memory that a consumer writes, and it does not read them.
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        **options,
    )(*arrays.values())
    # as of Triton's kernels: a result that is also stored in a loop's array would be computed twice
    return dict(zip(outputs, jax.lax.optimization_barrier(made), strict=True))


def _tiles(shape, dtype):
    tiling: Any = plgpu.TilingTransform  # abstract, say their annotations
    swizzle: Any = plgpu.SwizzleTransform
    return plgpu.SMEM(shape, dtype, transforms=(tiling((8, TILE)), swizzle(128)))


def _program(body, memory, whole, own, outputs, scratch, fill, call, backwards):
    group, run, runs = lax.axis_index("group"), lax.axis_index("run"), memory["runs"]
    consumer = Consumer(
        own=own, group=group, head=lax.axis_index("head"), segment=runs[run, 0], first=runs[run, 1],
        chunks=runs[run, 2], column=(lax.axis_index("block") * CONSUMERS + group) * TILE, blocks=call.keys // TILE,
        dtype=jnp.dtype(call.dtype), backwards=backwards, **{"operand": None, **scratch},
    )  # fmt: skip
    used = True if fill is None else run < lax.axis_size("run") - 1

    @pl.when(jnp.logical_and(group == CONSUMERS, used))
    def _():
        plgpu.set_max_registers(PRODUCER, action="decrease")
        _produce(consumer, memory, whole)

    @pl.when(jnp.logical_and(group < CONSUMERS, used))
    def _():
        plgpu.set_max_registers(CONSUMER, action="increase")
        body(consumer, memory.get("states"), **{name: memory[name] for name in outputs})
        plgpu.wait_smem_to_gmem(0)

    if fill is not None:
        pl.when(jnp.logical_and(group < CONSUMERS, jnp.logical_not(used)))(lambda: _fill(consumer, memory[fill]))


def _produce(consumer, memory, whole):
    """Copies the chunks of a segment to shared memory, as stages become free."""

    @pl.loop(0, consumer.chunks)
    def _(passed):
        slot = lax.rem(passed, STAGES)
        rows = consumer.rows(_nth(passed, consumer.chunks, consumer.backwards))

        @pl.when(passed >= STAGES)
        def _():
            plgpu.barrier_wait(consumer.empty.at[slot])

        copy = functools.partial(plgpu.copy_gmem_to_smem, barrier=consumer.full.at[slot])
        copy(memory["gates"].at[consumer.head, :, rows], consumer.gates.at[slot])
        for name in whole:
            copy(memory[name].at[rows, consumer.head], consumer.held[name].at[slot])
        for name in consumer.own:
            for c in range(CONSUMERS):
                columns = pl.ds(consumer.column + (c - CONSUMERS) * TILE, TILE)
                copy(memory[name].at[rows, consumer.head, columns], consumer.held[name].at[slot, c])

    @pl.loop(jnp.maximum(consumer.chunks - STAGES, 0), consumer.chunks)
    def _(passed):
        plgpu.barrier_wait(consumer.empty.at[lax.rem(passed, STAGES)])


def _fill(consumer, output):
    """0 in unused chunks."""
    tile = consumer.staging.at[consumer.group, 0]
    tile[...] = jnp.zeros(tile.shape, tile.dtype)
    plgpu.commit_smem()

    @pl.loop(0, consumer.chunks)
    def _(n):
        plgpu.copy_smem_to_gmem(tile, consumer.part(output, n))

    plgpu.wait_smem_to_gmem(0)
