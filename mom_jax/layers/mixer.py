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
from mom_jax.layers.memory_differences import (
    check_split,
    check_whole_rows,
    initial_states,
    share_projections,
    spread_paces,
)
from mom_jax.layers.mixer_cache import cache_specs, forget_earlier_documents, note_tokens
from mom_jax.layers.mixer_output import MixerOutput
from mom_jax.layers.recurrence import recur
from mom_jax.layers.router import BY_TOKENS_ALONE, Router, RouterInputs, RouterTraining
from mom_jax.layers.router_options import RouterOptions
from mom_jax.layers.rules.registry import find_rule
from mom_jax.layers.rules.rule import MemoryRule, RuleSizes, named_options
from mom_jax.ops.assignment import Assignment, by_row, read_energy
from mom_jax.ops.documents import DocumentRuns, count_documents
from mom_jax.ops.mixing import Reads
from mom_jax.ops.pieces import documents_of_piece
from mom_jax.ops.precision import wide
from mom_jax.ops.routing import RouterOutput
from mom_jax.ops.segments import plan_packing
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
        projection_rank: memories' projections differ by matrices of this rank; they are each memory's own if None.
        decay_spread: how many times faster than the slowest routed memory the fastest one forgets, at first.
        learned_initial_state: memories begin documents with a learned state, 0 at first.
        router_bias: the router has a bias, 0 at first, that counts for the choice alone (`mom_jax.ops.routing.route`);
            it has no gradient and is moved by `mom_jax.ops.routing.balanced_bias`.
        layers: memory layers of the model, which some rules depend on.
        options: of the rule, by name (its class ``Options``); defaults if None.
        router: further options of the router (`mom_jax.layers.router_options.RouterOptions`).

    Raises:
        InputError: a rule or option that does not exist, or sizes that do not fit.
    """

    sequence_axis: str | None = None
    initial_state: nnx.Param | None = None

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
        projection_rank: int | None = None,
        decay_spread: float = 1.0,
        learned_initial_state: bool = False,
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
        if projection_rank is not None:
            share_projections(self.rule, projection_rank, rngs)
        if decay_spread != 1:
            self.rule.pace = spread_paces(self.rule, num_memories, self.memories, decay_spread)
        if learned_initial_state:
            self.initial_state = initial_states(self.rule, self.memories)
        self.output = made.make_output(sizes, chosen, rngs)
        if num_memories is not None:
            how = RouterOptions(top_k, **router)
            check_split(how, self.rule)
            self.router = Router(hidden_size, num_memories, num_heads, how, rngs=rngs)
            if router_bias:  # no draw from rngs: with and without it, the other parameters start the same
                zeros = jnp.zeros(self.router.routers * num_memories)
                self.router_bias = nnx.Param(zeros, out_sharding=(None,), eager_sharding=False, decays=False)

    @property
    def memories(self) -> int:
        """G: all memories, the shared one included."""
        return (self.num_memories or 1) + self.shared

    @property
    def rows_per_token(self) -> int:
        """Memories that a token goes to at most, and on average where memories choose tokens."""
        routers = 1 if self.num_memories is None else self.router.routers
        return min(self.num_memories or 1, routers * self.top_k) + self.shared

    def empty_cache(self, layers: int, batch: int, dtype: DTypeLike, state_dtype: str = "float32") -> MemoryCache:
        """Empty memories of ``layers`` layers like this one; dtypes as in `MemoryCache.zeros`."""
        state, history = self.rule.state_shapes(), self.rule.conv_history()
        empty = MemoryCache.zeros(layers, self.memories, batch, state, history, dtype, state_dtype)
        if self.initial_state is None:
            return empty
        begin = jnp.expand_dims(self.initial_state[...], -1 - len(state.shape))  # [(L), G, 1, ...]
        begun = jnp.broadcast_to(begin, empty.recurrent.shape).astype(empty.recurrent.dtype)
        return dataclasses.replace(empty, recurrent=begun)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Mask | None = None,
        segment_ids: Shaped[AnyArray, "B T"] | DocumentRuns | None = None,
        cache: MemoryCache | None = None,
        layer: int | Array = 0,
        *,
        training: RouterTraining | None = None,
        memory_ids: Int[Array, "B T k"] | None = None,
    ) -> MixerOutput:
        """Mixes along time.

        Args:
            x: hidden states, float32 or bfloat16; float64 where parameters are.
            attention_mask: 0 marks padding, anywhere in the row: it goes to no memory and its
                output is exactly 0.
            segment_ids: document numbers, or what `count_documents` made of them. Memories, convolutions and
                token shift forget wherever the number changes along a row's tokens, also between two calls; a number
                that recurs is a new document. None: all tokens have the number of the row's
                last token (0 in an empty cache).
            cache: memories of all layers, read and written at ``layer``.
            training: what the router does in training alone; never together with a cache.
            memory_ids: each token's memories, where they are not for the router to choose.

        Returns:
            The output in ``x.dtype``, the decisions of the layer's routers (R, mostly 1), and the new cache.

        Raises:
            InputError: ``training`` and a cache; heads do not divide over the mesh, or its ``sequence`` axis is more
                than the rule or the router can do.
        """
        if training is not None and cache is not None:
            remedy = "noise and the memories' own choice, which looks ahead, are for training; leave out one of the two"
            raise InputError("training", "given with a cache", remedy)
        inputs, (batch, time) = BY_TOKENS_ALONE, x.shape[:2]
        if self.num_memories is not None:
            inputs = self.router.inputs(training, memory_ids, layer, (batch, time))
        devices = Devices.of(batch, time)
        if devices is not None:
            return self._on_devices(devices, x, attention_mask, segment_ids, cache, layer, inputs)
        reads, router, cache = self.read(x, attention_mask, segment_ids, cache, layer, inputs)
        return MixerOutput(self.output(reads, x), router, cache)

    def read(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Mask | None = None,
        segment_ids: Shaped[AnyArray, "B T"] | DocumentRuns | None = None,
        cache: MemoryCache | None = None,
        layer: int | Array = 0,
        inputs: RouterInputs = BY_TOKENS_ALONE,
    ) -> tuple[Reads, RouterOutput | None, MemoryCache | None]:
        """As `__call__`, on one device, up to the reads, the input of the output module."""
        router, assigned = self._route(x, inputs, attention_mask)
        last = None if cache is None else cache.document[layer]
        documents = documents_of_piece(count_documents(segment_ids, attention_mask, last), self.sequence_axis)
        initial = None if self.initial_state is None else self.initial_state[...]
        if initial is not None:
            check_whole_rows(self.rule.primitive, documents, self.sequence_axis)
        packing = keep(
            plan_packing(
                assigned.memory_ids,
                self.num_memories or 1,
                shared=self.shared,
                chunk_size=self.rule.chunk_rows(x.shape[1]),
                attention_mask=attention_mask,
                documents=documents,
                axis=self.sequence_axis,
                capacity=None if router is None else self.router.capacity(x.shape[1], inputs),
            )
        )
        rows, rest, cache = self.rule.rows(x, packing, cache, layer)
        primitive, impl = self.rule.primitive, self.rule.options.impl
        if assigned.writes is not None:
            rows = primitive.scaled(rows, by_row(assigned.writes, packing))
        o, cache = recur(primitive, rows, packing, cache, layer, scale=self.rule.scale, impl=impl, initial=initial)
        o = self.rule.finished(o, rest, packing).astype(x.dtype)
        if cache is not None:
            cache = note_tokens(cache, layer, attention_mask, x.shape[1])
            if documents is not None:
                cache = forget_earlier_documents(cache, layer, packing, documents, initial)
        if router is not None:
            router = self._summed(router._replace(energy=read_energy(o, assigned.weights, packing)))
        return Reads(o, assigned.weights, packing, impl), router, cache

    def _summed(self, router: RouterOutput) -> RouterOutput:
        """What is counted over tokens or heads, of all devices that hold some of a row's."""
        load, energy = router.load, router.energy
        if self.sequence_axis is not None:
            load, energy = jax.lax.psum((load, energy), self.sequence_axis)
        if self.rule.heads_axis is not None:
            energy = jax.lax.psum(energy, self.rule.heads_axis)
        return router._replace(load=load, energy=energy)

    def _route(
        self, x: Float[Array, "B T D"], inputs: RouterInputs, attention_mask: Mask | None
    ) -> tuple[RouterOutput | None, Assignment]:
        """The routers' decisions and the rows of tokens; without a router, every token goes to the only memory."""
        if self.num_memories is None:
            shape = (*x.shape[:2], 1)
            return None, Assignment(jnp.zeros(shape, jnp.int32), jnp.ones(shape, wide(x.dtype)), None)
        bias = self.router_bias[...] if self.biased else None
        router, assigned = keep(self.router.decide(x, bias, inputs, attention_mask))
        return router, jax.tree.map(self._own_heads, assigned)

    def _own_heads(self, x: Array) -> Array:
        """Of what is told apart by heads, the part of the heads that this device holds."""
        axis = self.rule.heads_axis
        if axis is None or x.ndim < 4:
            return x
        held = x.shape[-1] // jax.lax.axis_size(axis)
        return jax.lax.dynamic_slice_in_dim(x, held * jax.lax.axis_index(axis), held, -1)

    def _on_devices(
        self,
        devices: Devices,
        x: Float[Array, "B T D"],
        attention_mask: Mask | None,
        segment_ids: Shaped[AnyArray, "B T"] | DocumentRuns | None,
        cache: MemoryCache | None,
        layer: int | Array,
        inputs: RouterInputs,
    ) -> MixerOutput:
        """The same, on each device for its own tokens and heads, with one sum over the tensor axis."""
        devices.check_heads(self.rule.sizes.num_heads)
        if cache is not None:  # it is of whole rows
            devices = dataclasses.replace(devices, time=())
        if devices.time and self.num_memories is not None and self.router.looks_ahead(inputs):
            remedy = "needs whole rows on a device, which mesh.sequence splits; leave one of the two out"
            raise InputError("router_balance", "expert_choice", remedy)
        documents = count_documents(segment_ids, attention_mask, None if cache is None else cache.document[layer])

        def local(mixer: Self, x, attention_mask, documents, cache, layer, inputs) -> MixerOutput:
            mixer.rule.heads_axis = mixer.output.heads_axis = devices.tensor
            mixer.sequence_axis = SEQUENCE if devices.time else None
            reads, router, cache = mixer.read(x, attention_mask, documents, cache, layer, inputs)
            return MixerOutput(devices.summed(mixer.output(reads, x)), router, cache)

        tokens: Any = devices.tokens  # specs stand where arrays will
        rows: Any = P(devices.rows)
        of_documents = None if documents is None else DocumentRuns(tokens, rows)
        of_cache = None if cache is None else cache_specs(cache, devices, self.rule.whole_history)
        of_routers: list[Any] = [*[P(None, *tokens)] * 3, *[P(None, *rows)] * 2]
        router = None if self.num_memories is None else RouterOutput(*of_routers)
        return devices.run(
            self,
            local,
            (x, attention_mask, documents, cache, jnp.asarray(layer), inputs),
            (tokens, tokens, of_documents, of_cache, P(), tokens),
            MixerOutput(tokens, router, of_cache),
            x.dtype,
        )


def _head_dim(hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise InputError("num_heads", num_heads, f"does not divide hidden_size ({hidden_size}); set head_k_dim")
    return hidden_size // num_heads
