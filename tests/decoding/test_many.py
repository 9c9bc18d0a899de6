"""Rows that join and leave a fixed batch, against the same prompts alone."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mom_jax import generate, generate_many
from mom_jax.decoding import slots
from mom_jax.errors import InputError
from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.models.lm import MoMForCausalLM

CONFIG = MoMConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_heads=2, head_dim=8, intermediate_size=24,
                   memory_rule="linear_attention", use_short_conv=False, initializer_range=0.5)  # fmt: skip
LENGTHS, MOST = (3, 30, 1, 12, 7, 16), (9, 4, 11, 2, 6, 5)
PROMPTS = [np.random.default_rng(n).integers(0, 32, n).astype(np.int32) for n in LENGTHS]
KEYS = jax.random.split(jax.random.key(7), len(PROMPTS))
ATTENTION = {"num_hidden_layers": 2, "attn": AttentionConfig(layers=(1,), num_heads=2)}


def model_of(**changes):
    return MoMForCausalLM(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))


def continued(model, numbers=None, **options):
    """The continuations of some of the prompts, or all, by number."""
    numbers = list(range(len(PROMPTS))) if numbers is None else numbers
    most = [MOST[i] for i in numbers]
    found = generate_many(model, [PROMPTS[i] for i in numbers], most, **({"slots": 2, "block": 3} | options))
    return {numbers[row.number]: row for row in found}


def alone(model, number, **options):
    """By `generate`, with one program for all."""
    row = generate(model, PROMPTS[number][None], max(MOST), **options)[0]
    return row[LENGTHS[number] :][: MOST[number]]


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def greedy(model):
    return continued(model)


def test_greedy_equals_every_prompt_alone(model, greedy):
    """However long it is and whoever sat there before; in the order in which they end."""
    assert sorted(greedy) == list(range(len(PROMPTS))) and next(iter(greedy)) == 1
    for number, row in greedy.items():
        np.testing.assert_array_equal(row.tokens, alone(model, number))
        assert not row.is_whole


@pytest.mark.parametrize(
    "changes,options",
    [
        ({"memory_rule": "gated_deltanet", "use_short_conv": True, "compute_dtype": "bfloat16", **ATTENTION}, {}),
        ({"memory_rule": "rwkv6", "mixture": False, "num_heads": 1, "head_dim": 16}, {}),
        ({"memory_rule": "titans"}, {"state_dtype": "bfloat16"}),
    ],
    ids=["hybrid in bfloat16", "single memory with token shift", "counts in states, memories in bfloat16"],
)
def test_drawn_tokens_equal_a_prompt_alone(changes, options):
    """Of memories, convolutions, token shift, attention and its places: nothing of another row is seen."""
    model, short = model_of(**changes), [0, 2, 3, 4, 5]
    options = {"temperature": 1.0, "top_k": 20, **options}
    together = continued(model, short, **options, rng=KEYS[np.array(short)])
    for number in (2, 4):
        (row,) = continued(model, [number], **options, rng=KEYS[number : number + 1]).values()
        np.testing.assert_array_equal(together[number].tokens, row.tokens)
    assert len({tuple(row.tokens[:2]) for row in together.values()}) > 2


def test_a_key_is_a_rows_own(model):
    """Other slots, blocks and rows beside it draw the same; a key for all is told apart by numbers."""
    options = {"temperature": 1.0, "top_p": 0.9}
    own = continued(model, **options, rng=KEYS)
    for number, row in continued(model, **options, rng=KEYS, slots=1, block=max(MOST)).items():
        np.testing.assert_array_equal(row.tokens, own[number].tokens)
        np.testing.assert_array_equal(row.tokens, alone(model, number, **options, rng=KEYS[number : number + 1]))
    folded = continued(model, **options, rng=jax.random.key(1))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), np.arange(len(PROMPTS)))
    for number, row in continued(model, **options, rng=keys).items():
        np.testing.assert_array_equal(row.tokens, folded[number].tokens)


def test_rows_end_by_themselves(model, greedy):
    """At an end token, which they keep, or where they are told to, whatever the block."""
    end = int(greedy[2].tokens[4])
    for number, row in continued(model, eos_token_id=[30, end]).items():
        whole = greedy[number].tokens.tolist()
        cut = whole[: whole.index(end) + 1] if end in whole else whole
        assert (row.tokens.tolist(), row.is_whole) == (cut, end in whole)
    stopped = continued(model, ended=lambda number, tokens: number == 0 and len(tokens) > 3)
    assert [len(stopped[i].tokens) for i in range(len(PROMPTS))] == [6, *MOST[1:]] and stopped[0].is_whole


def test_programs_are_few(model, greedy, monkeypatch):
    """Prompts of one bucket share a program, rows that come and go share one; none is compiled for more of them."""
    before = [program._cache_size() for program in (slots._prefill, slots._decode, slots._seated)]
    continued(model, [5, 0, 2, 3, 4, 1, 0, 3])
    assert [program._cache_size() for program in (slots._prefill, slots._decode, slots._seated)] == before


def test_memories_in_bfloat16(model):
    """They are rounded, and nothing else is: hidden states follow within a rounding for each token."""
    run = jax.jit(lambda ids, cache: model.hidden_states(ids, cache=cache)[::2])
    ids, found = np.stack([PROMPTS[5], PROMPTS[1][:16]]), []
    for dtype in ("float32", "bfloat16"):
        hidden, cache = run(ids, model.init_cache(2, state_dtype=dtype))
        assert cache.memory.recurrent.dtype == dtype
        found.append((hidden, *run(ids[:, :1], cache)))
    (whole, step, exact), (same, near, rounded) = found
    np.testing.assert_array_equal(whole, same)  # a prefill rounds what it leaves
    assert 0 < np.abs(near - step).max() < 2**-7 * np.abs(step).max()
    exact, rounded = (np.asarray(cache.memory.recurrent, np.float32) for cache in (exact, rounded))
    assert 0 < np.abs(rounded - exact).max() < 2**-7 * np.abs(exact).max()


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"state_dtype": "float16"}, "state_dtype=float16: choose one of float32, bfloat16"),
        ({"prompts": [[1], []]}, r"prompts\[1\]=\[\]: contains no token"),
        ({"prompts": [[1], [2, 32]]}, r"prompts\[1\]=32: token ids must lie in \[0, 32\)"),
        ({"prompts": [[1], [2**40]]}, r"prompts\[1\]=1099511627776: token ids must lie"),
        ({"max_new_tokens": np.int64(0)}, "max_new_tokens=0: must be at least 1"),
        ({"max_new_tokens": [3, 0]}, "max_new_tokens=0: must be at least 1"),
        ({"max_new_tokens": [3]}, "max_new_tokens"),
        ({"slots": 0}, "slots=0: must be at least 1"),
        ({"block": 0}, "block=0: must be at least 1"),
        ({"temperature": 1.0}, "rng=None: pass a jax.random.key"),
        ({"rng": KEYS}, r"rng.shape=\(6,\): expected one jax.random.key, or one for each row, \(2,\)"),
    ],
)
def test_bad_input(model, arguments, message):
    with pytest.raises(InputError, match=message):
        next(generate_many(model, **({"prompts": [[1], [2]], "max_new_tokens": 2} | arguments)))
