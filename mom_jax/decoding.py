"""Autoregressive generation with a constant-size state, one compiled scan."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.layers.cache import Cache
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.typing import Array, Bool, Float, Int

_PIECE = 2048  # tokens of a prompt that are read at once, so that its length does not decide the memory
_NORMAL = np.finfo(np.float32)  # temperatures between 0 and the smallest normal number count as 0
_NO_NUMBER = -1  # the token of a row whose logits are not finite


class _Sampling(NamedTuple):
    """What the compiled code is specialised on."""

    greedy: bool
    top_k: int | None
    top_p: bool
    eos_token_ids: tuple[int, ...]


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
    eos_token_id: int | Sequence[int] | None = None,
    allowed: Bool[Array, " vocab"] | None = None,
    on_token: Callable[[np.ndarray], None] | None = None,
) -> Int[Array, "B T+max_new_tokens"]:
    """Continues prompts token by token.

    Prompts of different lengths share a batch with padding on the left and an
    ``attention_mask``. Prompts are padded to the next power of two, so few lengths compile; those
    of more than 2,048 tokens are read in pieces of that length.

    Args:
        model: parameters and configuration.
        input_ids: prompts, int32.
        max_new_tokens: tokens to add, at least 1; the loop runs this long.
        attention_mask: 0 marks padding.
        temperature: 0 (or less than float32's normal range) takes the likeliest token, otherwise logits are
            divided by it.
        top_k: sample among the k likeliest tokens.
        top_p: sample among the likeliest tokens that together hold this probability.
        rng: key for sampling, needed when temperature > 0.
        eos_token_id: a row that produced it is filled up with it; of several, any ends a row and the first fills it.
        allowed: False marks ids that are never chosen, such as rows of the embedding without a token.
        on_token: called with each step's tokens [B] as soon as they exist, for streaming.

    Returns:
        The prompts followed by the new tokens, int32.

    Raises:
        InputError: an option out of its range, an empty prompt, a token id outside the vocabulary, or a model
            whose logits are not finite.
    """
    input_ids = np.asarray(input_ids, np.int32)
    steps = max_new_tokens if on_token is None else 1
    new = []
    for tokens in generate_blocks(
        model, input_ids, max_new_tokens, steps, attention_mask, temperature, top_k, top_p, rng, eos_token_id, allowed
    ):
        new.append(np.asarray(tokens))
        if on_token is not None:
            on_token(new[-1][:, 0])
    return jnp.asarray(np.concatenate([input_ids, *new], 1))


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
    eos_token_id: int | Sequence[int] | None = None,
    allowed: Bool[Array, " vocab"] | None = None,
) -> Iterator[Int[Array, "B block"]]:
    """The new tokens of `generate`, ``block`` steps at a time; who has seen enough of them stops asking.

    The last block is whole too: it may go past ``max_new_tokens``.

    Raises:
        InputError: as `generate`, when the first block is asked for; for logits that are not finite, with their block.
    """
    input_ids = np.asarray(input_ids, np.int32)  # what is done to prompts on the host needs no program
    ends = _ids(eos_token_id)
    _check_prompts(model, input_ids)
    _check_options(model.config.vocab_size, max_new_tokens, temperature, top_k, top_p, rng, ends, allowed)
    mask = np.ones_like(input_ids) if attention_mask is None else np.asarray(attention_mask, np.int32)
    if mask.shape != input_ids.shape:
        raise InputError("attention_mask.shape", mask.shape, f"expected {input_ids.shape}, as input_ids")
    if not mask[:, -1].all():
        raise InputError("attention_mask", "0 in the last column", "pad prompts on the left")

    blocks = -(-max_new_tokens // block)
    model = model.rounded()
    graph, params = nnx.split(model)
    sampling = _Sampling(temperature < _NORMAL.tiny, top_k, top_p is not None, ends)
    allowed = None if allowed is None else jnp.asarray(allowed)
    rng = jax.random.key(0) if rng is None else rng
    state = _read(model, *_padded(input_ids, mask), blocks * block, allowed, rng)
    knobs = (np.float32(temperature), np.float32(1.0 if top_p is None else top_p))
    for _ in range(blocks):
        state, tokens = _decode(graph, sampling, block, params, state, allowed, *knobs)
        if np.asarray(tokens).min() == _NO_NUMBER:
            raise not_finite("logits")
        yield tokens


def not_finite(what: str) -> InputError:
    """The complaint about a model that gives NaN or infinity."""
    remedy = f"its {what} are not finite: training diverged, or the weights are damaged; use an earlier checkpoint"
    return InputError("model", "NaN", remedy)


def _check_prompts(model, input_ids):
    if input_ids.ndim != 2 or input_ids.size == 0:
        raise InputError("input_ids.shape", input_ids.shape, "expected a non-empty [batch, time]")
    _check_ids("input_ids", np.asarray(input_ids), model.config.vocab_size)


def _check_ids(field, ids, vocab):
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if wrong.size:
        raise InputError(field, int(wrong[0]), f"token ids must lie in [0, {vocab})")


def _check_options(vocab, max_new_tokens, temperature, top_k, top_p, rng, ends, allowed):
    if max_new_tokens < 1:
        raise InputError("max_new_tokens", max_new_tokens, "must be at least 1")
    if not 0 <= float(temperature) <= float(_NORMAL.max):
        raise InputError("temperature", temperature, "must be 0 (greedy) or positive, and finite in float32")
    if temperature >= _NORMAL.tiny and rng is None:
        raise InputError("rng", None, "pass a jax.random.key to sample with temperature > 0")
    if top_k is not None and not (isinstance(top_k, int | np.integer) and 1 <= top_k <= vocab):
        raise InputError("top_k", top_k, f"must lie between 1 and the vocabulary size ({vocab}), a whole number")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError("top_p", top_p, "must lie in (0, 1]")
    _check_ids("eos_token_id", np.asarray(ends, np.int64), vocab)
    if allowed is not None and (np.shape(allowed) != (vocab,) or not np.asarray(allowed).any()):
        raise InputError("allowed", np.shape(allowed), f"expected booleans [{vocab}], at least one of them True")


def _ids(eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """The end tokens as a tuple, whatever their number."""
    ids = np.asarray([] if eos_token_id is None else eos_token_id).reshape(-1)
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise InputError("eos_token_id", eos_token_id, "must be a token id, or several in a list")
    return tuple(ids.tolist())


def _bucket(length: int) -> int:
    return max(16, 1 << (length - 1).bit_length())


def _padded(*prompts: np.ndarray) -> list[np.ndarray]:
    """Prompts [B, T] and their masks, padded on the left to one of few lengths, each of which needs a program."""
    length = prompts[0].shape[1]
    padded = _bucket(length) if length <= _PIECE else -(-length // _PIECE) * _PIECE
    return [np.pad(a, ((0, 0), (padded - length, 0))) for a in prompts]


def _read(model, input_ids, mask, new_tokens, allowed, rng):
    """What decoding begins with after padded prompts, read piece by piece."""
    graph, params = nnx.split(model)
    padded = input_ids.shape[1]
    capacity = _bucket(padded + new_tokens) if model.config.attention else None
    state = None
    for start in range(0, padded, _PIECE):
        piece = input_ids[:, start : start + _PIECE], mask[:, start : start + _PIECE]
        state = _prefill(graph, capacity, params, state and state.cache, *piece, allowed, rng)
    return state


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _prefill(graph, capacity, params, cache, input_ids, mask, allowed, rng):
    model = nnx.merge(graph, params)
    batch = input_ids.shape[0]
    before = model.init_cache(batch, capacity) if cache is None else cache
    hidden, _, cache = model.hidden_states(input_ids, mask, cache=before)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, cache)  # the state never grows
    return _Decoding(cache, _last_logits(model, hidden, allowed), jnp.zeros(batch, bool), rng)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode(graph, sampling, steps, params, state, allowed, temperature, top_p):
    model = nnx.merge(graph, params)
    ends = jnp.asarray(sampling.eos_token_ids, jnp.int32)

    def step(state, _):
        rng, key = jax.random.split(state.rng)
        token = _sample(state.logits, sampling, temperature, top_p, key)
        token = jnp.where(jnp.isfinite(state.logits.max(-1)), token, _NO_NUMBER)
        finished = state.finished
        if sampling.eos_token_ids:
            token = jnp.where(finished, ends[0], token)
            finished |= jnp.isin(token, ends)
        hidden, _, cache = model.hidden_states(token[:, None], cache=state.cache)
        return _Decoding(cache, _last_logits(model, hidden, allowed), finished, rng), token

    state, tokens = jax.lax.scan(step, state, length=steps)
    return state, tokens.T


def _last_logits(model, hidden, allowed):
    weight = model.output_embedding().astype(hidden.dtype)
    logits = jnp.einsum("bd,vd->bv", hidden[:, -1], weight, preferred_element_type=jnp.float32)
    return logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)


def _sample(logits, sampling, temperature, top_p, key):
    """One token for each row from float32 logits [B, vocab]."""
    if sampling.greedy:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    # Differences from the best are divided, for quotients of the logits overflow at low temperatures.
    logits = (logits - logits.max(-1, keepdims=True)) / temperature
    if sampling.top_k is not None:
        weakest = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < weakest, -jnp.inf, logits)
    if sampling.top_p:
        ranked = jnp.sort(logits, -1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ranked, -1), -1) - jax.nn.softmax(ranked, -1)
        weakest = jnp.min(jnp.where(before < top_p, ranked, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < weakest, -jnp.inf, logits)
    return jax.random.categorical(key, logits).astype(jnp.int32)
