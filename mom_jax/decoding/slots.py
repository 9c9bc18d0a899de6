"""A fixed batch of rows that are decoded together, which prompts join and leave: the one way to decode.

A batch of prompts at once is the case in which all join before the first token.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.decoding.sampling import Knobs, Sampling, drawn, row_keys
from mom_jax.errors import InputError
from mom_jax.layers.cache import Cache
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.ops.loss import logits_of
from mom_jax.trace_cache import kept
from mom_jax.typing import AnyArray, Array, Bool, Float, Int

_PIECE = 2048  # tokens of a prompt that are read at once, so that its length does not decide the memory
_NO_NUMBER = -1  # the token of a row whose logits are not finite


class _Decoding(NamedTuple):
    """What goes from one new token to the next."""

    cache: Cache
    logits: Float[Array, "B vocab"]
    rng: Array  # [B] keys


class _Form(NamedTuple):
    """What the empty state is made of, and programs are specialised on."""

    capacity: int | None  # tokens that attention keeps; None: there is none
    state_dtype: str


class Slots:
    """A fixed batch of rows that are decoded together by one program, whoever sits in them.

    What a row reads, keeps and draws is its own, and a prompt is read before it joins: nothing of a row depends on the
    others. Slots in which nobody sits stay as they are.

    Args:
        model: parameters and configuration.
        rows: slots, S.
        longest: tokens that a row may come to, prompt and continuation together.
        how, knobs: how tokens are chosen.
        allowed: False marks ids that are never chosen.
        state_dtype: of the memories, as `MoMForCausalLM.init_cache` has it.
    """

    def __init__(
        self,
        model: MoMForCausalLM,
        rows: int,
        longest: int,
        how: Sampling,
        knobs: Knobs,
        allowed: Bool[AnyArray, " vocab"] | None = None,
        state_dtype: str = "float32",
    ):
        self._graph, self._params = nnx.split(model.rounded())
        self._form = form_for(model, longest, state_dtype)
        self._how, self._knobs = how, knobs
        self._allowed = None if allowed is None else jnp.asarray(allowed)
        self._state: _Decoding | None = None
        self._programs: dict[int, Callable[..., Any]] = {}  # by the number of steps
        self.taken = np.zeros(rows, bool)

    def join(
        self,
        rows: Sequence[int] | np.ndarray,
        input_ids: Int[AnyArray, "J T"],
        mask: Int[AnyArray, "J T"],
        rng: Array,
        numbers: Int[AnyArray, " J"],
    ) -> None:
        """Puts prompts, padded on the left, into slots ``rows``; whoever sat there is forgotten.

        Args:
            rng: one key, into which ``numbers`` are folded, or one for each prompt.
        """
        ids, mask = _padded(np.asarray(input_ids, np.int32), np.asarray(mask, np.int32))
        new = _read(self._graph, self._form, self._params, ids, mask, self._allowed, rng, np.asarray(numbers, np.int32))
        if len(rows) < len(self.taken):
            if self._state is None:
                self._state = _empty(self._graph, self._form, len(self.taken), self._params, new)
            new = _seated(self._state, new, np.asarray(rows, np.int32))
        self._state = new
        self.taken[rows] = True

    def leave(self, rows: Sequence[int] | np.ndarray) -> None:
        """Frees slots (numbers, or a mask): they cost no more than a place in the batch."""
        self.taken[rows] = False

    def decode(self, steps: int) -> np.ndarray:
        """The next ``steps`` tokens of every slot, [S, steps]; those of free slots mean nothing.

        Raises:
            InputError: logits that are not finite.
        """
        assert self._state is not None, "nobody has joined"
        arguments = self._params, self._state, self.taken, self._allowed, self._knobs
        if steps not in self._programs:
            static = self._graph, self._how, steps
            program = functools.partial(_decode, *static)
            self._programs[steps] = kept(program, ("decode", static), arguments, donate=(1,))
        self._state, tokens = self._programs[steps](*arguments)
        tokens = np.asarray(tokens)
        if (tokens[self.taken] == _NO_NUMBER).any():
            raise not_finite("logits")
        return tokens


def not_finite(what: str) -> InputError:
    """The complaint about a model that gives NaN or infinity."""
    remedy = f"its {what} are not finite: training diverged, or the weights are damaged; use an earlier checkpoint"
    return InputError("model", "NaN", remedy)


def _bucket(length: int) -> int:
    return max(16, 1 << (length - 1).bit_length())


def padded_length(length: int) -> int:
    """The length to which a prompt is padded: one of few, each of which needs a program."""
    return _bucket(length) if length <= _PIECE else -(-length // _PIECE) * _PIECE


def _padded(*prompts: np.ndarray) -> list[np.ndarray]:
    """Prompts [B, T] and their masks, padded on the left."""
    length = prompts[0].shape[1]
    return [np.pad(a, ((0, 0), (padded_length(length) - length, 0))) for a in prompts]


def form_for(model: MoMForCausalLM, longest: int, state_dtype: str = "float32") -> _Form:
    """The form of a state for rows of ``longest`` tokens."""
    return _Form(_bucket(longest) if model.config.attention else None, state_dtype)


def _read(graph, form, params, input_ids, mask, allowed, rng, numbers):
    """What decoding begins with after padded prompts, read piece by piece."""
    state: Any = None
    for start in range(0, input_ids.shape[1], _PIECE):
        piece = input_ids[:, start : start + _PIECE], mask[:, start : start + _PIECE]
        arguments = params, state and state.cache, *piece, allowed, rng, numbers
        program = functools.partial(_prefill, graph, form)
        state = kept(program, ("prefill", graph, form), arguments, donate=(1,))(*arguments)
    return state


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _prefill(graph, form, params, cache, input_ids, mask, allowed, rng, numbers):
    model = nnx.merge(graph, params)
    before = model.init_cache(input_ids.shape[0], *form) if cache is None else cache
    hidden, _, cache = model.hidden_states(input_ids, mask, cache=before)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, cache)  # the state never grows
    return _Decoding(cache, _last_logits(model, hidden, allowed), row_keys(rng, numbers))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(graph, form, rows, params, like):
    """The state of slots in which nobody sits yet; logits and keys as those of some row."""
    cache = nnx.merge(graph, params).init_cache(rows, *form)
    return _Decoding(cache, jnp.zeros((rows, like.logits.shape[1]), like.logits.dtype), jnp.repeat(like.rng[:1], rows))


@functools.partial(jax.jit, donate_argnums=0)
def _seated(state, new, rows):
    """The state, with the rows of another one in the slots ``rows``."""
    put = lambda slots, joining: slots.at[rows].set(joining)  # noqa: E731
    return _Decoding(state.cache.with_rows(rows, new.cache), put(state.logits, new.logits), put(state.rng, new.rng))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode(graph, how, steps, params, state, taken, allowed, knobs):
    model = nnx.merge(graph, params)
    mask = taken[:, None].astype(jnp.int32)

    def step(state, _):
        token, rng = drawn(state.logits, how, knobs, state.rng)
        token = jnp.where(jnp.isfinite(state.logits.max(-1)), token, _NO_NUMBER)
        hidden, _, cache = model.hidden_states(token[:, None], mask, cache=state.cache)
        return _Decoding(cache, _last_logits(model, hidden, allowed), rng), token

    state, tokens = jax.lax.scan(step, state, length=steps)
    return state, tokens.T


def _last_logits(model, hidden, allowed):
    logits = logits_of(hidden[:, -1:], model.output_embedding())[:, 0]
    return logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)
