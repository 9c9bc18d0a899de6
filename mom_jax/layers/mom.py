"""The Mixture-of-Memories layer (arXiv 2502.13685, section 3), and the single memory it generalises."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import Linear, mixer_init
from mom_jax.layers.output import Output
from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.ops.documents import DocumentRuns, count_documents
from mom_jax.ops.routing import Routing, route
from mom_jax.ops.segments import Packing, plan_packing, unpack_mix
from mom_jax.typing import Array, Float, Int


class MoM(nnx.Module):
    """Routes each token to its top-k memories and the shared one, and mixes what it reads there.

    Memories that a token does not choose are not touched by it. With ``num_memories=None`` there is
    one memory that every token is written to, and no router: the rule as it was published. Under a
    mesh that is set with `jax.set_mesh`, rows are split over the axes ``data`` and ``fsdp`` and
    heads over ``tensor``.

    Args:
        hidden: D.
        rule: how the memories are written and read; holds ``num_memories + shared`` of them.
        output: from mixed reads to the layer's output.
        num_memories, top_k: M and k.
        shared: the last memory sees every token.
        biased: the router has a bias, 0 at first, that counts for the choice alone (`mom_jax.ops.routing.route`); it
            has no gradient and is moved by `mom_jax.ops.routing.balanced_bias`.
    """

    def __init__(
        self,
        hidden: int,
        rule: MemoryRule,
        output: Output,
        *,
        num_memories: int | None,
        top_k: int = 1,
        shared: bool = False,
        biased: bool = False,
        rngs: nnx.Rngs,
    ):
        self.num_memories, self.top_k, self.shared, self.biased = num_memories, top_k, shared, biased
        if num_memories is not None:
            self.router = Linear(hidden, num_memories, split="replicated", init=mixer_init, rngs=rngs)
            if biased:  # no draw from rngs: with and without it, the other parameters start the same
                self.router_bias = nnx.Param(jnp.zeros(num_memories), out_sharding=(None,), eager_sharding=False)
        self.rule, self.output = rule, output

    @property
    def memories(self) -> int:
        """G: all memories, the shared one included."""
        return (self.num_memories or 1) + self.shared

    def empty_cache(self, layers: int, batch: int, dtype: DTypeLike) -> MemoryCache:
        """Empty memories of ``layers`` layers like this one; convolutions remember inputs of ``dtype``."""
        state, history = self.rule.state_shapes(), self.rule.conv_history()
        return MemoryCache.zeros(layers, self.memories, batch, state, history, dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | DocumentRuns | None = None,
        cache: MemoryCache | None = None,
        layer: int | Array = 0,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T M"] | None, MemoryCache | None]:
        """Mixes along time.

        Args:
            x: hidden states, float32 or bfloat16.
            attention_mask: 0 marks padding, anywhere in the row: it goes to no memory and its
                output is exactly 0.
            segment_ids: document numbers, or what `count_documents` made of them. Memories, convolutions and
                token shift forget wherever the number of a row's tokens changes, also from the call before to this
                one; a number that comes back is a new document. None: all tokens have the number of the row's
                last token (0 in an empty cache).
            cache: memories of all layers, read and written at ``layer``.

        Returns:
            The output in ``x.dtype``, the router logits in float32 (None without a router), and the
            new cache.
        """
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return self._mix(x, attention_mask, segment_ids, cache, layer)
        return self._mix_sharded(mesh, x, attention_mask, segment_ids, cache, layer)

    def read(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | DocumentRuns | None = None,
        cache: MemoryCache | None = None,
        layer: int | Array = 0,
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B T M"] | None, MemoryCache | None]:
        """As `__call__`, up to the mixed reads that the output module takes; on one device."""
        batch, time, _ = x.shape
        routing, logits = self._route(x)
        last = None if cache is None else cache.document[layer]
        documents = count_documents(segment_ids, attention_mask, last)
        packing = plan_packing(
            routing.memories,
            self.num_memories or 1,
            shared=self.shared,
            chunk_size=self.rule.chunk_rows(time),
            attention_mask=attention_mask,
            documents=documents,
        )
        o, cache = self.rule(x, packing, cache, layer)
        if cache is not None:
            cache = _note_tokens(cache, layer, attention_mask, time)
            if documents is not None:
                cache = _forget_earlier_documents(cache, layer, packing, documents)
        ones = jnp.ones((batch, time, 1 if self.shared else 0), jnp.float32)
        return unpack_mix(o, jnp.concatenate([routing.weights, ones], -1), packing), logits, cache

    def _mix(self, x, attention_mask, segment_ids, cache, layer, tensor_axis=None):
        o, logits, cache = self.read(x, attention_mask, segment_ids, cache, layer)
        y = self.output(o, x)
        return (y if tensor_axis is None else jax.lax.psum(y, tensor_axis)), logits, cache

    def _route(self, x):
        """Choices and router logits; without a router every token chooses the one memory."""
        if self.num_memories is None:
            shape = (*x.shape[:2], 1)
            return Routing(jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.int32)), None
        logits = self.router(x.astype(jnp.float32))
        return route(logits, self.top_k, self.router_bias[...] if self.biased else None), logits

    def _mix_sharded(self, mesh, x, attention_mask, segment_ids, cache, layer):
        """The same on every device's own rows and heads, with one sum over the tensor axis."""
        graph, params = nnx.split(self)
        rows = _batch_axes(mesh, x.shape[0])
        of_params = jax.tree.map(_local_spec, params, nnx.get_partition_spec(params))
        of_cache = None if cache is None else _cache_specs(cache, rows, self.rule.whole_history)

        def local(params, x, attention_mask, segment_ids, cache, layer):
            return nnx.merge(graph, params)._mix(x, attention_mask, segment_ids, cache, layer, tensor_axis="tensor")

        specs = (of_params, P(rows), P(rows), P(rows), of_cache, P())
        outs = (P(rows), None if self.num_memories is None else P(rows), of_cache)
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False)
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


def _cache_specs(cache, rows, whole):
    specs = {
        "recurrent": jax.tree.map(
            lambda state: P(None, None, rows, *["tensor"] * (state.ndim > 3)), cache.recurrent
        ),
        "conv": {name: P(None, None, rows, None, None if name in whole else "tensor") for name in cache.conv},
        "document": P(None, rows),
        "length": P(None, rows),
    }
    return dataclasses.replace(cache, **specs)


def _note_tokens(cache, layer, attention_mask, time):
    """Counts the tokens that were read."""
    read = time if attention_mask is None else jnp.sum(attention_mask != 0, 1)
    return dataclasses.replace(cache, length=cache.length.at[layer].add(read))


def _forget_earlier_documents(
    cache: MemoryCache, layer: int | Array, packing: Packing, documents: DocumentRuns
) -> MemoryCache:
    """Empties the memories that the row's last document did not write, so that the next call finds no other."""
    written = packing.assignment.at[packing.start + packing.length - 1].get(mode="clip") // packing.row.shape[-1]
    written = documents.index.reshape(-1).at[written].get(mode="clip")
    written = jnp.where(packing.length > 0, written, 0).reshape(-1, documents.index.shape[0])
    current = written == documents.index[:, -1]

    def kept(states):
        mask = current.reshape(current.shape + (1,) * (states.ndim - 3))
        return states.at[layer].set(jnp.where(mask, states[layer], 0))

    return dataclasses.replace(
        cache,
        recurrent=jax.tree.map(kept, cache.recurrent),
        conv=jax.tree.map(kept, cache.conv),
        document=cache.document.at[layer].set(documents.number),
    )
