"""Linear attention memories (arXiv 2006.16236, equations 16-20), without and with a fixed decay.

`LinearAttention` never forgets. `RetNet` (arXiv 2307.08621, equations 5-8) and `Lightning` (Lightning
Attention-2, arXiv 2401.04658) forget at a rate that is fixed for each head. In all three the key
and value projections are each memory's own and the query projection is shared; there are no
other parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.rules.parts import recur, token_positions
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.ops.flops import scalar_decay_flops
from mom_jax.ops.rotary import rotary
from mom_jax.ops.scalar_decay import scalar_decay, scalar_decay_step
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float

FEATURE_MAPS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "elu": lambda x: jax.nn.elu(x) + 1,
    "relu": jax.nn.relu,
}


class _FixedDecay(QueryKeyValueRule):
    """What the three have in common: queries and keys are mapped, then the scalar-decay recurrence runs."""

    def _recur(self, q, k, v, g, packing, cache, layer):
        k = jnp.where(packing.valid[:, None, None], k, 0)
        if g is not None:
            g = jnp.where(packing.valid[:, None], g, 0)
        return recur(
            lambda state: scalar_decay(q, k, v, g, packing.table, state, impl=self.impl),
            lambda state: scalar_decay_step(q, k, v, g, state, self.key_dim**-0.5),
            packing,
            cache,
            layer,
        )

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return scalar_decay_flops(chunk, self.key_dim, self.value_dim)


class LinearAttention(_FixedDecay):
    """Linear attention (arXiv 2006.16236) with a feature map on queries and keys.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        feature_map: ``identity``, ``elu`` (elu + 1) or ``relu``.
        normalise: divide each read by the sum of its weights; the state has one more value channel for it.
        options: of `QueryKeyValueRule`.
    """

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        feature_map: str = "identity",
        normalise: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(hidden, num_heads, key_dim, value_dim, rngs=rngs, **options)
        self.feature_map, self.normalise = feature_map, normalise

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, _, cache = self.rows(x, packing, cache, layer)
        q, k = (FEATURE_MAPS[self.feature_map](y) for y in (q, k))
        if not self.normalise:
            return self._recur(q, k, v, None, packing, cache, layer)
        v = jnp.concatenate([v.astype(jnp.float32), jnp.ones((*v.shape[:2], 1))], -1)
        o, cache = self._recur(q, k, v, None, packing, cache, layer)
        o = o[..., :-1] / (o[..., -1:] + 1e-10)
        return jnp.where(packing.valid[:, None, None], o, 0).astype(x.dtype), cache

    def state_shapes(self) -> Any:
        """[H, K, V], or [H, K, V + 1] with the normaliser in the last column."""
        return jax.ShapeDtypeStruct((self.num_heads, self.key_dim, self.value_dim + self.normalise), jnp.float32)


class RetNet(_FixedDecay):
    """Retention (arXiv 2307.08621): head h decays by ``1 - 2^(-5-h)`` for each token that its memory sees.

    Queries and keys are rotated by positions that count the tokens of the row, not those of the
    memory: a read knows how long ago something was written, however many tokens the memory has
    seen since.
    """

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, _, cache = self.rows(x, packing, cache, layer)
        position = token_positions(packing, cache, layer)
        q, k = (rotary(y[None], position[None], 10000.0)[0] for y in (q, k))
        decay = jnp.log1p(-(2.0 ** (-5.0 - self.head_numbers(q.shape[1]))))
        return self._recur(q, k, v, jnp.broadcast_to(decay, q.shape[:2]), packing, cache, layer)


class Lightning(_FixedDecay):
    """Lightning attention (arXiv 2401.04658): head h of layer l of L decays by ``exp(-8 h / H * (1 - l / L))``.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        layers: L, the number of memory layers.
        options: of `QueryKeyValueRule`.
    """

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        layers: int,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(hidden, num_heads, key_dim, value_dim, activate=True, rngs=rngs, **options)
        self.layers = layers

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, _, cache = self.rows(x, packing, cache, layer)
        decay = -8.0 * self.head_numbers(q.shape[1]) / self.num_heads * (1.0 - jnp.asarray(layer) / self.layers)
        return self._recur(q, k, v, jnp.broadcast_to(decay, q.shape[:2]), packing, cache, layer)
