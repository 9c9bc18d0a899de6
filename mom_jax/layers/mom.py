"""The Mixture-of-Memories layer (arXiv 2502.13685, section 3)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.layers.rules.gated_deltanet import GatedDeltaNet
from mom_jax.ops.norm import gated_rms_norm, rms_norm
from mom_jax.ops.routing import route
from mom_jax.ops.segments import plan_packing, unpack_mix
from mom_jax.typing import Array, Float, Int


class MoM(nnx.Module):
    """Routes each token to its top-k memories and the shared one, and mixes what it reads there.

    Memories that a token does not choose are not touched by it. Under a mesh that is set with
    `jax.set_mesh`, rows are split over the axes ``data`` and ``fsdp`` and heads over ``tensor``.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        num_memories, top_k: M and k.
        shared: add the memory that sees every token.
        single_projection: one key/value/gate projection for all memories.
        output_gate: gate the normalised output with ``silu(g_proj(x))``.
        conv_size: taps of the short convolutions, None for none.
        norm_eps: of the output norm.
        reference_conv_leak: let the convolutions of the routed memories read across rows and from
            the future wherever no cache is given, as the PyTorch reference does in training.
    """

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        num_memories: int,
        top_k: int,
        shared: bool = True,
        single_projection: bool = False,
        output_gate: bool = True,
        conv_size: int | None = 4,
        norm_eps: float = 1e-5,
        reference_conv_leak: bool = False,
        rngs: nnx.Rngs,
    ):
        self.num_memories, self.top_k, self.shared = num_memories, top_k, shared
        self.value_dim, self.norm_eps = value_dim, norm_eps
        init = mixer_init
        self.router = Linear(hidden, num_memories, split="replicated", init=init, rngs=rngs)
        self.rule = GatedDeltaNet(
            hidden,
            num_heads,
            key_dim,
            value_dim,
            memories=1 if single_projection else num_memories + shared,
            conv_size=conv_size,
            leaking_memories=num_memories if reference_conv_leak else 0,
            rngs=rngs,
        )
        if output_gate:
            self.g_proj = Linear(hidden, num_heads * value_dim, split="column", init=init, rngs=rngs)
        self.output_gate = output_gate
        self.o_norm = param(rngs, jax.nn.initializers.ones, (value_dim,), (None,))
        self.o_proj = Linear(num_heads * value_dim, hidden, split="row", init=init, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: MemoryCache | None = None,
        layer: int | Array = 0,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T M"], MemoryCache | None]:
        """Mixes along time.

        Args:
            x: hidden states, float32 or bfloat16.
            attention_mask: 0 marks padding, anywhere in the row: it goes to no memory and its
                output is exactly 0.
            segment_ids: document numbers; memories and convolutions forget at a change.
            cache: memories of all layers, read and written at ``layer``.

        Returns:
            The output in ``x.dtype``, the router logits in float32, and the new cache.
        """
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return self._mix(x, attention_mask, segment_ids, cache, layer)
        return self._mix_sharded(mesh, x, attention_mask, segment_ids, cache, layer)

    def _mix(self, x, attention_mask, segment_ids, cache, layer, tensor_axis=None):
        logits = self.router(x.astype(jnp.float32))
        routing = route(logits, self.top_k)
        batch, time, _ = x.shape
        documents = None if cache is None or segment_ids is None else cache.document[layer].reshape(-1)
        packing = plan_packing(
            routing.memories,
            self.num_memories,
            shared=self.shared,
            chunk_size=self.rule.chunk_rows(time),
            attention_mask=attention_mask,
            segment_ids=segment_ids,
            last_document=documents,
        )
        o, cache = self.rule(x, packing, cache, layer)
        if documents is not None:
            cache = _note_documents(cache, layer, documents, packing, segment_ids)
        ones = jnp.ones((batch, time, 1 if self.shared else 0), jnp.float32)
        o = unpack_mix(o, jnp.concatenate([routing.weights, ones], -1), packing)
        if self.output_gate:
            o = gated_rms_norm(o, self.g_proj(x).reshape(o.shape), self.o_norm[...], self.norm_eps)
        else:
            o = rms_norm(o, self.o_norm[...], self.norm_eps)
        y = self.o_proj(o.reshape(batch, time, -1))
        return (y if tensor_axis is None else jax.lax.psum(y, tensor_axis)), logits, cache

    def _mix_sharded(self, mesh, x, attention_mask, segment_ids, cache, layer):
        """The same on every device's own rows and heads, with one sum over the tensor axis."""
        graph, params = nnx.split(self)
        rows = _batch_axes(mesh, x.shape[0])
        of_params = jax.tree.map(_local_spec, params, nnx.get_partition_spec(params))
        of_cache = None if cache is None else _cache_specs(cache, rows)

        def local(params, x, attention_mask, segment_ids, cache, layer):
            return nnx.merge(graph, params)._mix(x, attention_mask, segment_ids, cache, layer, tensor_axis="tensor")

        specs = (of_params, P(rows), P(rows), P(rows), of_cache, P())
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(rows), P(rows), of_cache), check_vma=False)
        return run(params, x, attention_mask, segment_ids, cache, jnp.asarray(layer))


def _batch_axes(mesh, batch):
    """The axes that split the rows; none if they do not divide the batch, as for a single prompt."""
    axes = tuple(a for a in ("data", "fsdp") if a in mesh.axis_names)
    parts = 1
    for axis in axes:
        parts *= mesh.shape[axis]
    return axes if batch % parts == 0 else None


def _local_spec(value, spec):
    """The spec inside the mixer: split over tensor, gathered over fsdp; scanned slices lost their layer axis."""
    return P(*(axis if axis == "tensor" else None for axis in tuple(spec)[len(spec) - value.ndim :]))


def _cache_specs(cache, rows):
    specs = {
        "recurrent": P(None, None, rows, "tensor"),
        "conv": {name: P(None, None, rows, None, "tensor") for name in cache.conv},
        "document": P(None, None, rows),
    }
    return dataclasses.replace(cache, **specs)


def _note_documents(cache, layer, documents, packing, segment_ids):
    """Remembers which document each memory holds now."""
    last = packing.assignment.at[packing.start + packing.length - 1].get(mode="clip") // packing.row.shape[-1]
    current = segment_ids.reshape(-1).at[last].get(mode="clip")
    current = jnp.where(packing.length > 0, current, documents).reshape(cache.document.shape[1:])
    return dataclasses.replace(cache, document=cache.document.at[layer].set(current))
