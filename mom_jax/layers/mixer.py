"""The Mixture-of-Memories layer (arXiv 2502.13685, section 3), and the single memory it generalises."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mom_jax.errors import InputError
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.devices import SEQUENCE, Devices
from mom_jax.layers.mixer_output import MixerOutput
from mom_jax.layers.recurrence import recur
from mom_jax.layers.router import Router, RouterOptions
from mom_jax.layers.rules.registry import find_rule
from mom_jax.layers.rules.rule import MemoryRule, RuleSizes, named_options
from mom_jax.ops.documents import DocumentRuns, count_documents
from mom_jax.ops.mixing import mix
from mom_jax.ops.pieces import documents_of_piece
from mom_jax.ops.routing import RouterOutput
from mom_jax.ops.segments import Packing, ends_in_last_document, plan_packing
from mom_jax.typing import AnyArray, Array, Float, Int, Mask, Shaped
from pallas_kernels.remat import keep


class MemoryMixer(nnx.Module):
    """Routes each token to its top-k memories and the shared one, and mixes what it reads there.

    A token does not touch the memories that it does not choose. With ``num_memories=None`` there is
    one memory, to which every token is written, and no router: the rule as it was published. The layer can be used
    in any model:

        mixer = MemoryMixer(512, rule="gated_deltanet", num_heads=4, num_memories=4, top_k=2, rngs=nnx.Rngs(0))
        y, router, _ = mixer(x)  # [B, T, 512]

    Under a mesh that is set with `jax.set_mesh`, rows are split over the axes ``data`` and ``fsdp``,
    heads over ``tensor`` and, without a cache, tokens over ``sequence``: then states are handed from device to device.

    Attributes:
        sequence_axis: the mesh axis that tokens are split over, where the mixer runs on each device's own.

    Args:
        hidden_size: D.
        rule: how memories are written and read: a name, ``package.module:Class``, or a class.
        num_heads: H.
        head_k_dim, head_v_dim: K and V of each head; D / H, and K, if None.
        num_memories, top_k: M and k.
        shared: one more memory sees every token.
        single_projection: one projection to keys, values and gates for all memories.
        router_bias: the router has a bias, 0 at first, that counts for the choice alone (`mom_jax.ops.routing.route`);
            it has no gradient and is moved by `mom_jax.ops.routing.balanced_bias`.
        layers: memory layers of the model, which some rules depend on.
        options: of the rule, by name (its class ``Options``); defaults if None.
        router: further options of the router (`mom_jax.layers.router.RouterOptions`).

    Raises:
        InputError: a rule or option that does not exist, or sizes that do not fit.
    """

    sequence_axis: str | None = None

    def __init__(
        self,
        hidden_size: int,
        *,
        rule: str | type[MemoryRule] = "gated_deltanet",
        num_heads: int = 4,
        head_k_dim: int | None = None,
        head_v_dim: int | None = None,
        num_memories: int | None = 4,
        top_k: int = 2,
        shared: bool = True,
        single_projection: bool = False,
        router_bias: bool = False,
        layers: int = 1,
        options: Mapping[str, Any] | None = None,
        rngs: nnx.Rngs,
        **router: Any,
    ):
        if num_memories is not None and not 1 <= top_k <= num_memories:
            raise InputError("top_k", top_k, f"must lie between 1 and num_memories ({num_memories})")
        self.num_memories, self.biased = num_memories, router_bias
        self.top_k, self.shared = (1, False) if num_memories is None else (top_k, shared)
        made = find_rule(rule) if isinstance(rule, str) else rule
        keys = head_k_dim or _head_dim(hidden_size, num_heads)
        sizes = RuleSizes(
            hidden_size,
            num_heads,
            keys,
            head_v_dim or keys,
            projections=1 if single_projection else self.memories,
            routed=num_memories or 1,
            layers=layers,
        )
        chosen = named_options(made, options or {})
        self.rule = made(sizes, chosen, rngs=rngs)
        self.output = made.make_output(sizes, chosen, rngs)
        if num_memories is not None:
            self.router = Router(hidden_size, num_memories, RouterOptions(top_k, **router), rngs=rngs)
            if router_bias:  # no draw from rngs: with and without it, the other parameters start the same
                zeros = jnp.zeros(num_memories)
                self.router_bias = nnx.Param(zeros, out_sharding=(None,), eager_sharding=False, decays=False)

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
        attention_mask: Mask | None = None,
        segment_ids: Shaped[AnyArray, "B T"] | DocumentRuns | None = None,
        cache: MemoryCache | None = None,
        layer: int | Array = 0,
    ) -> MixerOutput:
        """Mixes along time.

        Args:
            x: hidden states, float32 or bfloat16.
            attention_mask: 0 marks padding, anywhere in the row: it goes to no memory and its
                output is exactly 0.
            segment_ids: document numbers, or what `count_documents` made of them. Memories, convolutions and
                token shift forget wherever the number changes along a row's tokens, also between two calls; a number
                that recurs is a new document. None: all tokens have the number of the row's
                last token (0 in an empty cache).
            cache: memories of all layers, read and written at ``layer``.

        Returns:
            The output in ``x.dtype``, the router's decisions, and the new cache.

        Raises:
            InputError: heads do not divide over the mesh, or its ``sequence`` axis is more than the rule can do.
        """
        devices = Devices.of(*x.shape[:2])
        if devices is not None:
            return self._on_devices(devices, x, attention_mask, segment_ids, cache, layer)
        o, router, cache = self.read(x, attention_mask, segment_ids, cache, layer)
        return MixerOutput(self.output(o, x), router, cache)

    def read(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Mask | None = None,
        segment_ids: Shaped[AnyArray, "B T"] | DocumentRuns | None = None,
        cache: MemoryCache | None = None,
        layer: int | Array = 0,
    ) -> tuple[Float[Array, "B T H V"], RouterOutput | None, MemoryCache | None]:
        """As `__call__`, on one device, up to the mixed reads, the input of the output module."""
        logits, weights, memory_ids = self._route(x)
        last = None if cache is None else cache.document[layer]
        documents = documents_of_piece(count_documents(segment_ids, attention_mask, last), self.sequence_axis)
        packing = keep(
            plan_packing(
                memory_ids,
                self.num_memories or 1,
                shared=self.shared,
                chunk_size=self.rule.chunk_rows(x.shape[1]),
                attention_mask=attention_mask,
                documents=documents,
                axis=self.sequence_axis,
            )
        )
        rows, rest, cache = self.rule.rows(x, packing, cache, layer)
        primitive, impl = self.rule.primitive, self.rule.options.impl
        o, cache = recur(primitive, rows, packing, cache, layer, scale=self.rule.scale, impl=impl)
        o = self.rule.finished(o, rest, packing).astype(x.dtype)
        if cache is not None:
            cache = _note_tokens(cache, layer, attention_mask, x.shape[1])
            if documents is not None:
                cache = _forget_earlier_documents(cache, layer, packing, documents)
        reads = mix(o, weights, packing, impl=impl)
        if logits is None:
            return reads, None, cache
        load = packing.length.reshape(-1, x.shape[0])[: self.num_memories].T
        if self.sequence_axis is not None:
            load = jax.lax.psum(load, self.sequence_axis)
        return reads, RouterOutput(logits, weights, memory_ids, load), cache

    def _route(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T M"] | None, Float[Array, "B T k"], Int[Array, "B T k"]]:
        """Router logits, weights and choices; without a router, every token chooses the only memory."""
        if self.num_memories is None:
            shape = (*x.shape[:2], 1)
            return None, jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.int32)
        return keep(self.router.decide(x, self.router_bias[...] if self.biased else None))

    def _on_devices(
        self,
        devices: Devices,
        x: Float[Array, "B T D"],
        attention_mask: Mask | None,
        segment_ids: Shaped[AnyArray, "B T"] | DocumentRuns | None,
        cache: MemoryCache | None,
        layer: int | Array,
    ) -> MixerOutput:
        """The same, on each device for its own tokens and heads, with one sum over the tensor axis."""
        devices.check_heads(self.rule.sizes.num_heads)
        if cache is not None:  # it is of whole rows
            devices = dataclasses.replace(devices, time=())
        documents = count_documents(segment_ids, attention_mask, None if cache is None else cache.document[layer])

        def local(mixer: Self, x, *others) -> MixerOutput:
            mixer.rule.heads_axis = mixer.output.heads_axis = devices.tensor
            mixer.sequence_axis = SEQUENCE if devices.time else None
            out = mixer(x, *others)
            return out._replace(y=devices.summed(out.y))

        tokens, rows = devices.tokens, P(devices.rows)
        of_documents = None if documents is None else DocumentRuns(tokens, rows)
        of_cache = None if cache is None else _cache_specs(cache, devices, self.rule.whole_history)
        router = None if self.num_memories is None else RouterOutput(tokens, tokens, tokens, load=rows)
        return devices.run(
            self,
            local,
            (x, attention_mask, documents, cache, jnp.asarray(layer)),
            (tokens, tokens, of_documents, of_cache, P()),
            MixerOutput(tokens, router, of_cache),
            x.dtype,
        )


def _head_dim(hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise InputError("num_heads", num_heads, f"does not divide hidden_size ({hidden_size}); set head_k_dim")
    return hidden_size // num_heads


def _cache_specs(cache: MemoryCache, devices: Devices, whole: tuple[str, ...]) -> Any:
    """The mesh axes that split the arrays of a `MemoryCache`."""
    rows, tensor = devices.rows, devices.tensor
    specs = {
        "recurrent": jax.tree.map(lambda state: P(None, None, rows, *[tensor] * (state.ndim > 3)), cache.recurrent),
        "conv": {name: P(None, None, rows, None, None if name in whole else tensor) for name in cache.conv},
        "document": P(None, rows),
        "length": P(None, rows),
    }
    return dataclasses.replace(cache, **specs)


def _note_tokens(cache: MemoryCache, layer: int | Array, attention_mask: Mask | None, time: int) -> MemoryCache:
    """Counts the tokens that were read."""
    read = time if attention_mask is None else jnp.sum(attention_mask != 0, 1, dtype=cache.length.dtype)
    return dataclasses.replace(cache, length=cache.length.at[layer].add(read, mode="promise_in_bounds"))


def _forget_earlier_documents(
    cache: MemoryCache, layer: int | Array, packing: Packing, documents: DocumentRuns
) -> MemoryCache:
    """Empties memories that the row's last document did not write, so that the next call finds no earlier document."""
    current = ends_in_last_document(packing, documents)

    def kept(states: Float[Array, "L G B *rest"]) -> Float[Array, "L G B *rest"]:
        mask = current.reshape(current.shape + (1,) * (states.ndim - 3))
        return states.at[layer].set(jnp.where(mask, states[layer], 0))

    return dataclasses.replace(
        cache,
        recurrent=jax.tree.map(kept, cache.recurrent),
        conv=jax.tree.map(kept, cache.conv),
        document=cache.document.at[layer].set(documents.number),
    )
