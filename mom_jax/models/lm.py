"""The MoM language model: embedding, scanned blocks, tied or separate output."""

import dataclasses
import inspect
import warnings
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from mom_jax.errors import InputError
from mom_jax.layers.cache import Cache
from mom_jax.layers.linear import param, rounded
from mom_jax.layers.norm import RMSNorm
from mom_jax.layers.router import RouterTraining
from mom_jax.models.blocks import REMAT_POLICIES, Block, LayerPlan, decode_layers, run_layers, stack_blocks
from mom_jax.models.config import MoMConfig
from mom_jax.models.tables import TABLE_AXES, cross_entropy, looked_up, token_nats
from mom_jax.ops.documents import DocumentRuns, count_documents, places_in_documents
from mom_jax.ops.fixed_routing import fixed_choice, hashed
from mom_jax.ops.loss import logits_of
from mom_jax.ops.precision import wide
from mom_jax.ops.routing import RouterOutput
from mom_jax.typing import AnyArray, Array, Bool, Float, Int, Mask


def stack_name(kind: str) -> str:
    """The attribute of a model that holds the blocks of a kind: ``layers`` for memory, ``attention_layers``, ..."""
    return "layers" if kind == "memory" else f"{kind}_layers"


class CausalLMOutput(NamedTuple):
    """What a forward pass returns."""

    logits: Float[Array, "B T vocab"]  # float32 or wider
    router_logits: tuple[Float[Array, "B T M"], ...]  # float32 or wider, one for each router, layer by layer
    cache: Cache | None
    router: RouterOutput | None = None  # what all routers decided, stacked; None without one


class HiddenStates(NamedTuple):
    """What comes before the output matrix."""

    hidden: Float[Array, "B T D"]
    router: RouterOutput | None  # what all routers decided, stacked; None without one
    cache: Cache | None


class _ConstructorSignature:
    """What `help` and editors show of the class; Flax's metaclass takes any arguments. A model's own is its call's."""

    def __get__(self, model: "MoMForCausalLM | None", cls: type) -> inspect.Signature:
        if model is not None:
            raise AttributeError("__signature__")
        _, *others = inspect.signature(cls.__init__).parameters.values()
        return inspect.Signature(others)


class MoMForCausalLM(nnx.Module):
    """Causal language model with Mixture-of-Memories layers.

    The module holds float32 parameters and nothing else; the parameters of all blocks of a kind
    (``layers``: memories, ``attention_layers``: the attention of a hybrid) are stacked along a
    leading axis and scanned, so compile time does not grow with depth.

    Args:
        config: sizes and options.
        rngs: a `flax.nnx.Rngs` with a ``params`` (or default) stream.
    """

    __signature__ = _ConstructorSignature()

    def __init__(self, config: MoMConfig, *, rngs: nnx.Rngs):
        if config.reference_conv_leak:
            warnings.warn(
                "reference_conv_leak is on: without a cache, outputs depend on later tokens and other rows",
                stacklevel=2,
            )
        self.config, self.plan = config, LayerPlan.of(config.layer_kinds)
        init = jax.nn.initializers.normal(config.initializer_range)
        table = (config.vocab_size, config.hidden_size)
        self.embeddings = param(rngs, init, table, TABLE_AXES, rounds=True)
        for kind in sorted(set(config.layer_kinds), reverse=True):
            setattr(self, stack_name(kind), stack_blocks(config, kind, rngs))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = param(rngs, init, table, TABLE_AXES, rounds=True)

    def __call__(
        self,
        input_ids: Int[AnyArray, "B T"],
        attention_mask: Int[AnyArray, "B S"] | Bool[AnyArray, "B S"] | None = None,
        segment_ids: Int[AnyArray, "B T"] | None = None,
        cache: Cache | None = None,
    ) -> CausalLMOutput:
        """Logits of the next token at every position.

        One call serves training, prefill, chunked prefill and single steps: pass the cache of
        the call before to continue it, with any number of tokens.

        Args:
            input_ids: token ids.
            attention_mask: 1 for tokens, 0 for padding, left, right or anywhere; of S >= T columns, those of
                earlier calls before them, the last T count.
            segment_ids: document numbers of packed rows. A document is a maximal run of one number along a
                row's tokens, over padding and over calls; no layer looks into another one, and a number that comes
                back is a new document. None: all tokens have the number of the row's last token (0 in an empty
                cache), so the document goes on.
            cache: from `init_cache` or from the call before.

        Raises:
            InputError: a token id outside the vocabulary or a document number outside int32 (both
                outside of ``jit``), or a mask of another shape.
        """
        out = self.hidden_states(input_ids, attention_mask, segment_ids, cache)
        logits = logits_of(out.hidden, self.output_embedding())
        return CausalLMOutput(logits, () if out.router is None else tuple(out.router.logits), out.cache, out.router)

    def hidden_states(
        self,
        input_ids: Int[AnyArray, "B T"] | None = None,
        attention_mask: Int[AnyArray, "B S"] | Bool[AnyArray, "B S"] | None = None,
        segment_ids: Int[AnyArray, "B T"] | None = None,
        cache: Cache | None = None,
        remat: str = "none",
        inputs_embeds: Float[Array, "B T D"] | None = None,
        training: RouterTraining | None = None,
    ) -> HiddenStates:
        """As `__call__`, up to the final norm; ``remat`` is what a block keeps for its backward pass.

        ``none`` keeps everything, ``dots`` the results of dense matmuls, ``full`` only the block's input,
        ``recurrence`` besides that what the memories' recurrences computed, ``mixer`` also the projections before
        them. ``inputs_embeds`` are taken for the embeddings of ``input_ids``, which then only choose memories where
        tokens do. ``training`` is what routers do in training alone.
        """
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        shape = x.shape[0], x.shape[1]
        attention_mask = _current_columns(attention_mask, shape)
        if segment_ids is not None and segment_ids.shape != shape:
            raise InputError("segment_ids.shape", segment_ids.shape, f"expected {shape}, as input_ids")
        documents = count_documents(segment_ids, attention_mask, None if cache is None else cache.document)
        if remat not in REMAT_POLICIES:
            raise InputError("remat", remat, f"choose one of {', '.join(REMAT_POLICIES)}")
        routing: dict[str, Any] = {} if training is None else {"training": training}
        if self.config.router_choice != "scores" and self.config.mixture:
            routing["memory_ids"], cache = self.chosen_elsewhere(input_ids, shape, attention_mask, documents, cache)
        stacks = {kind: self.blocks(kind) for kind in set(self.config.layer_kinds)}
        if cache is None:
            x, router = run_layers(self.plan, stacks, x, attention_mask, documents, remat, routing)
        else:
            x, router, cache = decode_layers(self.plan, stacks, x, attention_mask, documents, cache, routing)
        return HiddenStates(self.norm(x), router, cache)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Type of activations: the configuration's, or float64 in the place of float32 where parameters are float64."""
        dtype = jnp.dtype(self.config.compute_dtype)
        return wide(self.embeddings.dtype) if dtype == jnp.float32 else dtype

    def without_conv_leak(self) -> Self:
        """This model, with clean convolutions if ``reference_conv_leak`` is on: as the reference evaluates."""
        if not self.config.reference_conv_leak:
            return self
        config = dataclasses.replace(self.config, reference_conv_leak=False)
        graph, _ = nnx.split(nnx.eval_shape(lambda: type(self)(config, rngs=nnx.Rngs(0))))
        return nnx.merge(graph, nnx.state(self))

    def rounded(self) -> Self:
        """This model with the parameters that every use rounds to ``compute_dtype`` rounded once: results are the same.

        Decoding reads every parameter for each token: in bfloat16 half the bytes. Gradients flow through it.
        """
        return rounded(self, self.compute_dtype)

    def cross_entropy(
        self, hidden: Float[Array, "B T D"], labels: Int[AnyArray, "B T"], z_scale: float = 0.0
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Cross entropy of hidden states against labels as `mom_jax.ops.loss.penalised_cross_entropy` sums it."""
        return cross_entropy(hidden, self.output_embedding(), labels, z_scale)

    def token_nats(self, hidden: Float[Array, "B T D"], labels: Int[AnyArray, "B T"]) -> Float[Array, "B T"]:
        """Cross entropy of each label, float32; 0 where it does not count."""
        return token_nats(hidden, self.output_embedding(), labels)

    def output_embedding(self) -> Float[Array, "vocab D"]:
        """The matrix that turns hidden states into logits: the embedding when tied."""
        return self.embeddings[...] if self.config.tie_word_embeddings else self.lm_head[...]

    def router_bias(self) -> Float[Array, "L columns"] | None:
        """What counts besides the router's probabilities in the choice of memories; None where nothing does."""
        biased = self.config.has_router_bias and "memory" in self.config.layer_kinds
        return self.blocks("memory").attn.router_bias[...] if biased else None

    def blocks(self, kind: str) -> Block:
        """All blocks of a kind of `MoMConfig.layer_kinds`, stacked along a leading axis."""
        return getattr(self, stack_name(kind))

    def init_cache(self, batch_size: int, max_length: int | None = None, state_dtype: str = "float32") -> Cache:
        """Empty state for ``batch_size`` rows.

        The size of memories never changes. Attention layers, where the model has any, keep the
        keys and values of their window, or of ``max_length`` tokens without one; that is
        ``max_position_embeddings`` unless given. ``state_dtype`` is what matrices of memories are kept in, float32 or
        bfloat16 (half the bytes; `mom_jax.layers.cache.MemoryCache.zeros`).
        """
        layers, dtype = self.config.layer_kinds, self.compute_dtype
        kinds: dict[str, Any] = {}
        if "memory" in layers:
            kinds["memory"] = self.blocks("memory").attn.empty_cache(
                layers.count("memory"), batch_size, dtype, state_dtype
            )
        for kind, attn in self.config.attention.items():
            capacity = attn.window_size or max_length or self.config.max_position_embeddings
            kinds[kind] = self.blocks(kind).attn.empty_cache(layers.count(kind), batch_size, capacity, dtype)
        place = jnp.zeros(batch_size, jnp.int32) if self.config.router_choice in ("position", "round_robin") else None
        return Cache(kinds, place)

    def chosen_elsewhere(
        self,
        input_ids: Int[AnyArray, "B T"] | None,
        shape: tuple[int, int],
        attention_mask: Mask | None,
        documents: DocumentRuns | None,
        cache: Cache | None,
    ) -> tuple[Int[Array, "B T k"], Cache | None]:
        """The memories of every token as `router_choice` says, the same in all layers, and the cache.

        Raises:
            InputError: they depend on token ids, and there are none.
        """
        config, base = self.config, jnp.zeros(shape, jnp.int32)
        if config.router_choice == "hash":
            if input_ids is None:
                remedy = "is what router_choice=hash chooses by; give it beside inputs_embeds"
                raise InputError("input_ids", None, remedy)
            base = hashed(jnp.asarray(input_ids))
        elif config.router_choice != "one":
            place = places_in_documents(shape, documents, attention_mask, None if cache is None else cache.place)
            cache = None if cache is None else dataclasses.replace(cache, place=place[:, -1] + 1)
            base = place if config.router_choice == "round_robin" else place // config.router_block
        return fixed_choice(base, config.topk, config.num_memories), cache

    def embed(self, input_ids: Int[AnyArray, "B T"] | None) -> Float[Array, "B T D"]:
        """What goes into the first layer, in ``compute_dtype``.

        Raises:
            InputError: there are none, or a token id lies outside the vocabulary (outside of ``jit``).
        """
        if input_ids is None:
            raise InputError("input_ids", None, "is needed where no inputs_embeds are given")
        if not isinstance(input_ids, Tracer):
            ids = np.asarray(input_ids)
            wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
            if wrong.size:
                raise InputError("input_ids", int(wrong[0]), f"token ids must lie in [0, {self.config.vocab_size})")
        return looked_up(self.embeddings[...], input_ids, self.compute_dtype)


def _current_columns(mask: Int[AnyArray, "B S"] | Bool[AnyArray, "B S"] | None, shape: tuple[int, int]) -> Mask | None:
    if mask is None:
        return None
    if mask.shape[0] != shape[0] or mask.shape[1] < shape[1]:
        raise InputError("attention_mask.shape", mask.shape, f"expected {shape}, as input_ids")
    return jnp.asarray(mask)[:, -shape[1] :]
