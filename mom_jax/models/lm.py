"""The MoM language model: embedding, scanned blocks, tied or separate output."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from mom_jax.errors import InputError
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.mlp import SwiGLU
from mom_jax.layers.mom import MoM
from mom_jax.layers.norm import RMSNorm
from mom_jax.models.config import MoMConfig
from mom_jax.typing import Array, Float, Int

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class CausalLMOutput(NamedTuple):
    """What a forward pass returns."""

    logits: Float[Array, "B T vocab"]  # float32
    router_logits: tuple[Float[Array, "B T M"], ...]  # float32, one for each MoM layer
    cache: MemoryCache | None


class Block(nnx.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: MoMConfig, *, rngs: nnx.Rngs):
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps, rngs=rngs)
        self.attn = MoM(
            config.hidden_size,
            config.num_heads,
            config.head_dim,
            config.head_v_dim,
            num_memories=config.num_memories,
            top_k=config.topk,
            shared=config.shared_mem,
            single_projection=config.single_kv_proj,
            output_gate=config.use_output_gate,
            conv_size=config.conv_size if config.use_short_conv else None,
            norm_eps=config.norm_eps,
            rngs=rngs,
        )
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, rngs=rngs)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_dim, config.initializer_range, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Int[Array, "B T"] | None,
        segment_ids: Int[Array, "B T"] | None,
        cache: MemoryCache | None,
        layer: int | Array,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T M"], MemoryCache | None]:
        """Returns hidden states, router logits and the new cache."""
        mixed, router_logits, cache = self.attn(self.attn_norm(x), attention_mask, segment_ids, cache, layer)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), router_logits, cache


class MoMForCausalLM(nnx.Module):
    """Causal language model with Mixture-of-Memories layers.

    The module holds float32 parameters and nothing else; the parameters of all blocks are
    stacked along a leading axis and scanned, so compile time does not grow with depth.

    Args:
        config: sizes and options.
        rngs: a `flax.nnx.Rngs` with a ``params`` (or default) stream.
    """

    def __init__(self, config: MoMConfig, *, rngs: nnx.Rngs):
        self.config = config
        init = jax.nn.initializers.normal(config.initializer_range)
        table = (config.vocab_size, config.hidden_size)
        self.embeddings = param(rngs, init, table, ("tensor", "fsdp"))
        self.layers = _stack(config, rngs)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = param(rngs, init, table, ("tensor", "fsdp"))

    def __call__(
        self,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B >=T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: MemoryCache | None = None,
    ) -> CausalLMOutput:
        """Logits of the next token at every position.

        One call serves training, prefill, chunked prefill and single steps: pass the cache of
        the call before to continue it, with any number of tokens.

        Args:
            input_ids: token ids.
            attention_mask: 1 for tokens, 0 for padding, left, right or anywhere; columns of
                earlier calls may precede, the last T count.
            segment_ids: document of each token in a packed row; memories never cross documents.
            cache: from `init_cache` or from the call before.

        Raises:
            InputError: a token id outside the vocabulary (outside of ``jit``), or a mask of
                another shape.
        """
        hidden, router_logits, cache = self.hidden_states(input_ids, attention_mask, segment_ids, cache)
        weight = self.output_embedding().astype(hidden.dtype)
        logits = jnp.einsum("btd,vd->btv", hidden, weight, preferred_element_type=jnp.float32)
        return CausalLMOutput(logits, router_logits, cache)

    def hidden_states(
        self,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B >=T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: MemoryCache | None = None,
        remat: str = "none",
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T M"], ...], MemoryCache | None]:
        """As `__call__`, up to the final norm; ``remat`` is what a block keeps for its backward pass.

        ``none`` keeps everything, ``dots`` the results of dense matmuls, ``full`` only the
        block's input.
        """
        self._check_ids(input_ids)
        attention_mask = _current_columns("attention_mask", attention_mask, input_ids.shape, at_least=True)
        segment_ids = _current_columns("segment_ids", segment_ids, input_ids.shape, at_least=False)
        x = _replicated(self.embeddings[...].astype(self.config.compute_dtype))[input_ids]
        graph, blocks = nnx.split(self.layers)

        def body(carry, xs):
            x, cache = carry
            block, layer = xs
            x, router_logits, cache = nnx.merge(graph, block)(x, attention_mask, segment_ids, cache, layer)
            return (x, cache), router_logits

        if remat not in REMAT_POLICIES:
            raise InputError("remat", remat, f"choose one of {', '.join(REMAT_POLICIES)}")
        if remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
        (x, cache), router_logits = jax.lax.scan(body, (x, cache), (blocks, jnp.arange(self.config.num_hidden_layers)))
        return self.norm(x), tuple(router_logits), cache

    def output_embedding(self) -> Float[Array, "vocab D"]:
        """The matrix that turns hidden states into logits: the embedding when tied."""
        return self.embeddings[...] if self.config.tie_word_embeddings else self.lm_head[...]

    def init_cache(self, batch_size: int) -> MemoryCache:
        """Empty memories for ``batch_size`` rows; their size never changes."""
        c = self.config
        channels = {"q": c.key_dim, "k": c.key_dim, "v": c.value_dim} if c.use_short_conv else {}
        return MemoryCache.zeros(
            c.num_hidden_layers,
            c.num_memories + c.shared_mem,
            batch_size,
            state=(c.num_heads, c.head_dim, c.head_v_dim),
            conv={name: (c.conv_size - 1, size) for name, size in channels.items()},
            dtype=jnp.dtype(c.compute_dtype),
        )

    def _check_ids(self, input_ids):
        if isinstance(input_ids, Tracer):
            return
        ids = np.asarray(input_ids)
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if wrong.size:
            raise InputError("input_ids", int(wrong[0]), f"token ids must lie in [0, {self.config.vocab_size})")


def _replicated(table):
    """Gathers a sharded table, so that a look-up by split rows needs no further exchange."""
    mesh = jax.sharding.get_abstract_mesh()
    return table if mesh.empty else jax.lax.with_sharding_constraint(table, jax.sharding.PartitionSpec())


def _stack(config, rngs):
    @nnx.split_rngs(splits=config.num_hidden_layers)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
    def blocks(rngs):
        return Block(config, rngs=rngs)

    return blocks(rngs)


def _current_columns(name, values, shape, at_least):
    if values is None:
        return None
    fits = values.shape[0] == shape[0] and (values.shape[1] >= shape[1] if at_least else values.shape[1] == shape[1])
    if not fits:
        raise InputError(f"{name}.shape", values.shape, f"expected {shape}, as input_ids")
    return jnp.asarray(values)[:, -shape[1] :]
