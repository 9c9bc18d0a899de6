"""The base class of memory rules: what a rule declares, and what the layers call."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mom_jax.errors import InputError
from mom_jax.fields import Epsilon, ImplName, check_fields
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.output import Output
from mom_jax.layers.projections import of_memories
from mom_jax.layers.rules.published import Published, Unreadable
from mom_jax.ops.chunks import chunk_rows
from mom_jax.ops.precision import wide
from mom_jax.ops.primitive import Primitive, Rows
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class Paper(NamedTuple):
    """Where a rule comes from."""

    arxiv: str  # its number there, or the address of a paper that is elsewhere
    place: str  # section or equation

    @property
    def address(self) -> str:
        """Where it can be read."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv[0].isdigit() else f"https://{self.arxiv}"


@dataclasses.dataclass(frozen=True)
class RuleSizes:
    """The sizes of a memory layer.

    Attributes:
        hidden_size: D.
        num_heads, head_k_dim, head_v_dim: H, and K and V of each head.
        projections: the number of memories with projections of their own: G, the shared one included, or 1 if all
            memories share theirs.
        routed: memories that the router chooses from, M.
        layers: memory layers of the model.
    """

    hidden_size: int
    num_heads: int
    head_k_dim: int
    head_v_dim: int
    projections: int = 1
    routed: int = 1
    layers: int = 1

    @property
    def key_dim(self) -> int:
        """H * K."""
        return self.num_heads * self.head_k_dim

    @property
    def value_dim(self) -> int:
        """H * V."""
        return self.num_heads * self.head_v_dim


@dataclasses.dataclass(frozen=True)
class RuleOptions:
    """The options that every rule has; a rule adds its own in its class ``Options``.

    Options with the name of a `MoMConfig` field take their value from it, the others from its ``rule_options``.
    """

    use_output_gate: bool = True  # gate what is read
    norm_eps: Epsilon = 1e-6  # of the norm of what is read
    impl: ImplName = "auto"  # of the recurrence (`mom_jax.ops.dispatch`)
    has_own_gate: ClassVar[bool] = False  # the rule gates what is read by itself: there is no choice
    taps: ClassVar[int | None] = None  # of short convolutions, W; None: there are none

    def __post_init__(self):
        check_fields(self)
        if self.has_own_gate and not self.use_output_gate:
            raise InputError("use_output_gate", False, "is not available: the memory rule has its own gate")


class MemoryRule(nnx.Module):
    """How memories are written, forget and are read: G of them at once, over packed rows.

    A rule is declared completely in one module. It holds the projections that make rows out of tokens (`rows`), and
    names the recurrence that runs over them. It overrides ``finished``, what happens to a row's read, and
    ``make_output``, what follows after reads are mixed, where they differ from the ones here.

    Attributes:
        Options: its options, checked when they are made.
        paper: where it comes from.
        published: how the PyTorch library publishes a single memory of it.
        primitive: its recurrence.
        scale: of the recurrence's outputs, K^-0.5 if None.
        per_memory: parameters with a leading axis of memories, one slice for each; all memories share the others.
        per_row: shared parameters that are applied once for each memory that a token goes to.
        whole_history: convolutions whose inputs belong to no head.
        heads_axis: the mesh axis that heads are split over, where the mixer runs on each device's own.
        paces: its log decays pass `paced`.
        pace: logarithm of what each memory's log decays are multiplied by, [G], if memories are told apart by it.

    Args:
        sizes: of the layer.
        options: an instance of ``Options``.
        rngs: for the initial values of parameters.
    """

    Options: ClassVar[type[RuleOptions]] = RuleOptions
    paper: ClassVar[Paper | None] = None
    published: ClassVar[Published | Unreadable | None] = None
    primitive: Primitive
    scale: ClassVar[float | None] = None
    per_memory: ClassVar[tuple[str, ...]] = ()
    per_row: ClassVar[tuple[str, ...]] = ()
    whole_history: ClassVar[tuple[str, ...]] = ()
    heads_axis: str | None = None
    paces: bool = False
    pace: nnx.Param | None = None

    def __init__(self, sizes: RuleSizes, options: RuleOptions, *, rngs: nnx.Rngs):
        self.sizes, self.options = sizes, options

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: RuleOptions, rngs: nnx.Rngs) -> Output:
        """What follows the mixing of reads: norm within heads, gate and projection, as MoM has it."""
        shape = (sizes.hidden_size, sizes.num_heads, sizes.head_v_dim)
        return Output(*shape, gate=options.use_output_gate, norm_eps=options.norm_eps, rngs=rngs)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Rows, Any, MemoryCache | None]:
        """Packed rows of the primitive, what `finished` needs of them besides, and the cache."""
        raise NotImplementedError

    def finished(self, o: Float[Array, "N H V"], rest: Any, packing: Packing) -> Float[Array, "N H V"]:
        """What is done to a row's read before reads are mixed; finite on padding rows."""
        return o

    def chunk_rows(self, time: int) -> int:
        """Alignment of packed segments for rows of ``time`` tokens; 1 for a single step."""
        return chunk_rows(time, self.sizes.head_k_dim, self.options.impl, self.primitive.kernels)

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return self.primitive.flops(chunk, self.sizes.head_k_dim, self.sizes.head_v_dim)

    def slices_and_rows(self, parameter: str, chosen: int) -> tuple[int, int]:
        """The number of memories that a parameter has slices for, and of a token's rows that it is applied to.

        Args:
            parameter: a name in this rule.
            chosen: memories that the token goes to. With one projection for all it is projected once.
        """
        slices = self.sizes.projections if parameter in self.per_memory else 1
        return slices, chosen if slices > 1 or parameter in self.per_row else 1

    def state_shapes(self) -> Any:
        """Shape of the state of one memory, or a tuple of them in a `jax.ShapeDtypeStruct` each."""
        return self.primitive.state(self.sizes.num_heads, self.sizes.head_k_dim, self.sizes.head_v_dim)

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """Inputs that convolutions remember: (tokens, channels) by name."""
        return {}

    def paced(self, g: Float[Array, "N *rest"], packing: Packing) -> Float[Array, "N *rest"]:
        """Log decays at the pace of each memory; a rule with decays passes them through here."""
        if self.pace is None:
            return g
        return g * of_memories(jnp.exp(self.pace[...]), packing).reshape(-1, *[1] * (g.ndim - 1))

    def couple_layers(self) -> None:
        """Computes parameters that depend on other layers, in place, from the stacked ones; the model calls it."""

    def head_numbers(self, local: int, dtype: DTypeLike) -> Float[Array, "{local}"]:
        """Numbers of the ``local`` heads that this device holds, from 0 to H - 1, in float32 or wider."""
        first = 0 if self.heads_axis is None else local * jax.lax.axis_index(self.heads_axis)
        return jnp.arange(local, dtype=wide(dtype)) + first


def named_options(rule: type[MemoryRule], values: Mapping[str, Any]) -> RuleOptions:
    """The options of a rule from values by name.

    Raises:
        InputError: a name that the rule does not know, or a value that it refuses.
    """
    known = [field.name for field in dataclasses.fields(rule.Options)]
    for name, value in values.items():
        if name not in known:
            raise InputError(name, value, f"is not an option of {rule.__name__}, which has {', '.join(known)}")
    return rule.Options(**values)


def heads(y: Float[Array, "*rows F"], size: int) -> Float[Array, "*rows H {size}"]:
    """Channels of a row, cut into heads of ``size`` channels."""
    return y.reshape(*y.shape[:-1], -1, size)
