"""Causal softmax attention with rotary positions, for hybrid models and the Transformer++ baseline."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mom_jax.layers.cache import AttentionCache
from mom_jax.layers.devices import Devices
from mom_jax.layers.linear import Linear
from mom_jax.layers.mixer_output import MixerOutput
from mom_jax.layers.norm import RMSNorm
from mom_jax.ops.documents import DocumentRuns, count_documents
from mom_jax.ops.precision import widened
from mom_jax.ops.rotary import rotary
from mom_jax.typing import AnyArray, Array, Bool, Float, Int, Mask, Shaped

_QUERIES, _BLOCKS = 256, 8  # queries of a block at least, blocks at most


class Attention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245) over the tokens of a row's own document.

    Padding takes no position: a padded row gives the
    same outputs as its tokens without padding.

    Args:
        hidden: D.
        num_heads: query heads.
        num_kv_heads: key and value heads; divides ``num_heads``.
        qkv_bias: add a bias to the query, key and value projections.
        head_dim: channels of a head; D / num_heads if None.
        window: tokens that a query sees, itself included; None for all before it.
        rope_theta: base of the rotary frequencies.
        rotated: channels of a head that positions turn, the first ones; all if None.
        output_gate: multiply what is read by the sigmoid of a projection of the token (arXiv 2505.06708, G1).
        norm_eps: of a norm of each head's queries and keys; None for none.
        initializer_range: standard deviation of the initial weights.
    """

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        window: int | None = None,
        rope_theta: float = 10000.0,
        rotated: int | None = None,
        output_gate: bool = False,
        norm_eps: float | None = None,
        initializer_range: float = 0.02,
        rngs: nnx.Rngs,
    ):
        self.head_dim, self.num_kv_heads = head_dim or hidden // num_heads, num_kv_heads
        self.rotated = self.head_dim if rotated is None else rotated
        self.gated, self.normed = output_gate, norm_eps is not None
        self.window, self.rope_theta = window, rope_theta
        init = jax.nn.initializers.normal(initializer_range)
        sizes = (num_heads * self.head_dim, *2 * (num_kv_heads * self.head_dim,))
        self.q_proj, self.k_proj, self.v_proj = (
            Linear(hidden, size, split="column", init=init, bias=qkv_bias, rngs=rngs) for size in sizes
        )
        self.o_proj = Linear(num_heads * self.head_dim, hidden, split="row", init=init, rngs=rngs)
        if output_gate:
            self.g_proj = Linear(hidden, num_heads * self.head_dim, split="column", init=init, rngs=rngs)
        if norm_eps is not None:
            self.q_norm, self.k_norm = (RMSNorm(self.head_dim, norm_eps, rngs=rngs) for _ in range(2))

    def empty_cache(self, layers: int, batch: int, capacity: int, dtype: DTypeLike) -> AttentionCache:
        """Empty slots of ``layers`` layers like this one for ``capacity`` tokens, kept in ``dtype``."""
        return AttentionCache.zeros(layers, batch, capacity, self.num_kv_heads, self.head_dim, dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Mask | None = None,
        segment_ids: Shaped[AnyArray, "B T"] | DocumentRuns | None = None,
        cache: AttentionCache | None = None,
        layer: int | Array = 0,
    ) -> MixerOutput:
        """Mixes along time.

        Args:
            x: hidden states, float32 or bfloat16.
            attention_mask: 0 marks padding, anywhere in the row; its output is exactly 0.
            segment_ids: document numbers, or what `count_documents` made of them. Attention stays within a
                maximal run of one number along a row's tokens, across calls too: a number that recurs is a new
                document. None: all tokens have the number of the row's last token (0 in an empty cache).
            cache: keys and values of all layers, read and written at ``layer``.

        Returns:
            The output in ``x.dtype``, no router, and the new cache. Without a window, a call beyond the
            cache's capacity gives NaN, because the keys that its tokens should see are lost.
        """
        batch, time, _ = x.shape
        q, k, v = (p(x).reshape(batch, time, -1, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        keep = jnp.ones((batch, time), bool) if attention_mask is None else attention_mask != 0
        before = 0 if cache is None else cache.length[layer][:, None]
        position = before + jnp.cumsum(keep, 1, dtype=jnp.int32) - 1
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (self._turned(y, position) for y in (q, k))
        documents = count_documents(segment_ids, attention_mask, None if cache is None else cache.document[layer])
        devices = Devices.of(batch, time)
        spread = cache is None and devices is not None and bool(devices.time)
        if spread and devices is not None:  # each device's queries attend to keys and values that it gathers
            k, v = devices.whole_rows(k), devices.whole_rows(v)
        if cache is None and attention_mask is None and documents is None and not spread:
            o = _attend_in_order(q, k, v, window=self.window)
        else:
            new = _Keys(k, v, jnp.where(keep, position, -1), None if documents is None else documents.index)
            keys = new
            if cache is not None:
                cache, keys = _remember(cache, layer, new)
                if documents is not None:
                    cache = dataclasses.replace(cache, document=cache.document.at[layer].set(documents.number))
            attend = _attend_in_order if cache is None and not spread else _attend
            o = attend(q, keys.k, keys.v, mask=self._visible(position, new.document, keys))
        if cache is not None and self.window is None:
            o = jnp.where(jnp.any(position >= cache.keys.shape[2], 1)[:, None, None, None], jnp.nan, o)
        if self.gated:
            o = widened(o) * jax.nn.sigmoid(widened(self.g_proj(x))).reshape(o.shape)
        o = jnp.where(keep[..., None, None], o, 0).astype(x.dtype)
        return MixerOutput(self.o_proj(o.reshape(batch, time, -1)), None, cache)

    def _turned(self, y: Float[Array, "B T heads K"], position: Int[Array, "B T"]) -> Float[Array, "B T heads K"]:
        """With its first channels turned by the position."""
        if self.rotated == self.head_dim:
            return rotary(y, position, self.rope_theta)
        turned = rotary(y[..., : self.rotated], position, self.rope_theta)
        return jnp.concatenate([turned, y[..., self.rotated :]], -1)

    def _visible(
        self, position: Int[Array, "B T"], document: Int[Array, "B T"] | None, keys: "_Keys"
    ) -> Bool[Array, "B T S"]:
        distance = position[:, :, None] - keys.position[:, None]
        visible = (keys.position[:, None] >= 0) & (distance >= 0)
        if document is not None and keys.document is not None:
            visible &= document[:, :, None] == keys.document[:, None]
        return visible if self.window is None else visible & (distance < self.window)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Keys:
    """What queries attend to: the keys of each row that `_remember` returns."""

    k: Float[Array, "B _ heads K"]
    v: Float[Array, "B _ heads K"]
    position: Int[Array, "B _"]  # -1 where there is none
    document: Int[Array, "B _"] | None  # counted in this call; None: all of one


def _remember(cache: AttentionCache, layer: int | Array, new: _Keys) -> tuple[AttentionCache, _Keys]:
    """Writes the new keys into the ring of slots; returns the cache and all keys that queries may see."""
    capacity, time = cache.keys.shape[2], new.position.shape[1]
    going_on = None if new.document is None else jnp.zeros_like(cache.position[layer])
    old = _Keys(cache.keys[layer], cache.values[layer], cache.position[layer], going_on)
    stays = new.position >= 0
    length = cache.length[layer] + jnp.sum(stays, 1, dtype=jnp.int32)
    if new.document is not None:  # no key stays of a document that ends in this call
        last = new.document[:, -1:]
        stays &= new.document == last
        kept = jnp.where(last == 0, old.position, -1)
        cache = dataclasses.replace(cache, position=cache.position.at[layer].set(kept))
    # of two tokens for one slot, the later one stays
    stays &= new.position >= length[:, None] - capacity
    slot = jnp.where(stays, new.position % capacity, capacity)
    row = jnp.arange(slot.shape[0])[:, None]
    stored = {n: getattr(cache, n).at[layer, row, slot].set(y.astype(getattr(cache, n).dtype), mode="drop")
              for n, y in {"keys": new.k, "values": new.v, "position": new.position}.items()}  # fmt: skip
    cache = dataclasses.replace(cache, **stored, length=cache.length.at[layer].set(length))
    if time == 1:  # the token it overwrote lies outside its window, and what is left is of its own document
        return cache, _Keys(cache.keys[layer], cache.values[layer], cache.position[layer], None)
    return cache, jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], 1), old, new)


def _attend_in_order(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T heads K"],
    v: Float[Array, "B T heads K"],
    mask: Bool[Array, "#B T T"] | None = None,
    window: int | None = None,
) -> Float[Array, "B T H K"]:
    """`_attend` of tokens to each other, none to a later one: little more than half of the square of T.

    A block of queries attends to the keys up to its own end. The flash kernel leaves out the rest by itself.
    """
    time = q.shape[1]
    blocks = min(_BLOCKS, time // _QUERIES)
    if blocks < 2 or _by_flash(q, mask):
        return _attend(q, k, v, mask, window)
    mask = _causal(time, time, window) if mask is None else mask
    ends = itertools.pairwise(time * i // blocks for i in range(blocks + 1))
    return jnp.concatenate([_attend(q[:, a:b], k[:, :b], v[:, :b], mask[:, a:b, :b]) for a, b in ends], 1)


def _by_flash(q: Float[Array, "B T H K"], mask: Bool[Array, "#B T S"] | None) -> bool:
    return q.dtype in (jnp.bfloat16, jnp.float16) and mask is None and jax.default_backend() == "gpu"


def _causal(queries: int, keys: int, window: int | None) -> Bool[Array, "1 T S"]:
    distance = jnp.arange(queries)[:, None] - jnp.arange(keys)
    return ((distance >= 0) & (distance < (window or keys)))[None]


def _attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S heads K"],
    v: Float[Array, "B S heads K"],
    mask: Bool[Array, "#B T S"] | None = None,
    window: int | None = None,
) -> Float[Array, "B T H K"]:
    """Attention in the dtype of q; cuDNN's flash kernel where it can run, otherwise XLA."""
    if q.dtype == jnp.float64:  # JAX's own takes every softmax in float32
        return _attend_in_float64(q, k, v, mask, window)
    return jax.nn.dot_product_attention(
        q,
        k.astype(q.dtype),
        v.astype(q.dtype),
        mask=None if mask is None else mask[:, None],
        is_causal=mask is None,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn" if _by_flash(q, mask) else "xla",
    )


def _attend_in_float64(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S heads K"],
    v: Float[Array, "B S heads K"],
    mask: Bool[Array, "#B T S"] | None,
    window: int | None,
) -> Float[Array, "B T H K"]:
    """`_attend`, for gradients that are checked by differences."""
    mask = _causal(q.shape[1], k.shape[1], window) if mask is None else mask
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    scores = jnp.einsum("bthgk,bshk->bhgts", grouped, k) * q.shape[3] ** -0.5
    shares = jax.nn.softmax(jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min), -1)
    return jnp.einsum("bhgts,bshk->bthgk", shares, v).reshape(q.shape)
