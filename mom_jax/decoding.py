"""Autoregressive generation with a constant-size state, one compiled scan."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.layers.cache import Cache
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.typing import Array, Float, Int


class _Sampling(NamedTuple):
    """What the compiled code is specialised on."""

    greedy: bool
    top_k: int | None
    top_p: bool
    eos_token_id: int | None


class _Decoding(NamedTuple):
    """What goes from one new token to the next."""

    cache: Cache
    logits: Float[Array, "B vocab"]
    finished: Array  # [B] bool
    rng: Array


def generate(
    model: MoMForCausalLM,
    input_ids: Int[Array, "B T"],
    max_new_tokens: int,
    attention_mask: Int[Array, "B T"] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: Array | None = None,
    eos_token_id: int | None = None,
    on_token: Callable[[np.ndarray], None] | None = None,
) -> Int[Array, "B T+max_new_tokens"]:
    """Continues prompts token by token.

    Prompts of different lengths share a batch with padding on the left and an
    ``attention_mask``. Prompts are padded to the next power of two, so few lengths compile.

    Args:
        model: parameters and configuration.
        input_ids: prompts, int32.
        max_new_tokens: tokens to add; the loop runs this long.
        attention_mask: 0 marks padding.
        temperature: 0 takes the likeliest token, otherwise logits are divided by it.
        top_k: sample among the k likeliest tokens.
        top_p: sample among the likeliest tokens that together hold this probability.
        rng: key for sampling, needed when temperature > 0.
        eos_token_id: a row that produced it is filled up with it.
        on_token: called with each step's tokens [B] as soon as they exist, for streaming.

    Returns:
        The prompts followed by the new tokens, int32.

    Raises:
        InputError: an option out of its range, an empty prompt, or a token id outside the vocabulary.
    """
    input_ids = jnp.asarray(input_ids, jnp.int32)
    steps = max_new_tokens if on_token is None else 1
    new = []
    for tokens in generate_blocks(
        model, input_ids, max_new_tokens, steps, attention_mask, temperature, top_k, top_p, rng, eos_token_id
    ):
        new.append(tokens)
        if on_token is not None:
            on_token(np.asarray(tokens[:, 0]))
    return jnp.concatenate([input_ids, *new], 1)


def generate_blocks(
    model: MoMForCausalLM,
    input_ids: Int[Array, "B T"],
    max_new_tokens: int,
    block: int,
    attention_mask: Int[Array, "B T"] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: Array | None = None,
    eos_token_id: int | None = None,
) -> Iterator[Int[Array, "B block"]]:
    """The new tokens of `generate`, ``block`` steps at a time; who has seen enough of them stops asking.

    The last block is whole too: it may go past ``max_new_tokens``.

    Raises:
        InputError: as `generate`, when the first block is asked for.
    """
    input_ids = jnp.asarray(input_ids, jnp.int32)
    _check(model, input_ids, max_new_tokens, temperature, top_k, top_p, rng)
    mask = jnp.ones_like(input_ids) if attention_mask is None else jnp.asarray(attention_mask, jnp.int32)
    if mask.shape != input_ids.shape:
        raise InputError("attention_mask.shape", mask.shape, f"expected {input_ids.shape}, as input_ids")
    if not bool(mask[:, -1].all()):
        raise InputError("attention_mask", "0 in the last column", "pad prompts on the left")

    blocks = -(-max_new_tokens // block)
    pad = _bucket(input_ids.shape[1]) - input_ids.shape[1]
    padded, padded_mask = (jnp.pad(a, ((0, 0), (pad, 0))) for a in (input_ids, mask))
    graph, params = nnx.split(model)
    sampling = _Sampling(temperature == 0, top_k, top_p is not None, eos_token_id)
    rng = jax.random.key(0) if rng is None else rng
    capacity = _bucket(padded.shape[1] + blocks * block) if "attention" in model.config.layer_kinds else None
    state = _prefill(graph, capacity, params, padded, padded_mask, rng)
    knobs = (jnp.float32(temperature), jnp.float32(1.0 if top_p is None else top_p))
    for _ in range(blocks):
        state, tokens = _decode(graph, sampling, block, params, state, *knobs)
        yield tokens


def _check(model, input_ids, max_new_tokens, temperature, top_k, top_p, rng):
    vocab = model.config.vocab_size
    if input_ids.ndim != 2 or input_ids.size == 0:
        raise InputError("input_ids.shape", input_ids.shape, "expected a non-empty [batch, time]")
    wrong = input_ids[(input_ids < 0) | (input_ids >= vocab)]
    if wrong.size:
        raise InputError("input_ids", int(wrong[0]), f"token ids must lie in [0, {vocab})")
    if max_new_tokens < 1:
        raise InputError("max_new_tokens", max_new_tokens, "must be at least 1")
    if temperature < 0:
        raise InputError("temperature", temperature, "must be 0 (greedy) or positive")
    if temperature > 0 and rng is None:
        raise InputError("rng", None, "pass a jax.random.key to sample with temperature > 0")
    if top_k is not None and not 1 <= top_k <= vocab:
        raise InputError("top_k", top_k, f"must lie between 1 and the vocabulary size ({vocab})")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError("top_p", top_p, "must lie in (0, 1]")


def _bucket(length: int) -> int:
    return max(16, 1 << (length - 1).bit_length())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prefill(graph, capacity, params, input_ids, mask, rng):
    model = nnx.merge(graph, params)
    batch = input_ids.shape[0]
    hidden, _, cache = model.hidden_states(input_ids, mask, cache=model.init_cache(batch, capacity))
    return _Decoding(cache, _last_logits(model, hidden), jnp.zeros(batch, bool), rng)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode(graph, sampling, steps, params, state, temperature, top_p):
    model = nnx.merge(graph, params)

    def step(state, _):
        rng, key = jax.random.split(state.rng)
        token = _sample(state.logits, sampling, temperature, top_p, key)
        finished = state.finished
        if sampling.eos_token_id is not None:
            token = jnp.where(finished, sampling.eos_token_id, token)
            finished |= token == sampling.eos_token_id
        hidden, _, cache = model.hidden_states(token[:, None], cache=state.cache)
        return _Decoding(cache, _last_logits(model, hidden), finished, rng), token

    state, tokens = jax.lax.scan(step, state, length=steps)
    return state, tokens.T


def _last_logits(model, hidden):
    weight = model.output_embedding().astype(hidden.dtype)
    return jnp.einsum("bd,vd->bv", hidden[:, -1], weight, preferred_element_type=jnp.float32)


def _sample(logits, sampling, temperature, top_p, key):
    """One token for each row from float32 logits [B, vocab]."""
    if sampling.greedy:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits = logits / temperature
    if sampling.top_k is not None:
        weakest = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < weakest, -jnp.inf, logits)
    if sampling.top_p:
        ranked = jnp.sort(logits, -1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ranked, -1), -1) - jax.nn.softmax(ranked, -1)
        weakest = jnp.min(jnp.where(before < top_p, ranked, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < weakest, -jnp.inf, logits)
    return jax.random.categorical(key, logits).astype(jnp.int32)
