"""Generation against full passes of the model, and sampling against its definition."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mom_jax.decoding import generate, slots
from mom_jax.decoding.sampling import drawn, sampling
from mom_jax.errors import InputError
from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from tools.kernels.equations import calls

# A rule that compiles fast: decoding by others is tested by model (`tests/models`) and by layer.
CONFIG = MoMConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_heads=2, head_dim=8, intermediate_size=24,
                   memory_rule="linear_attention", use_short_conv=False, initializer_range=0.5)  # fmt: skip
NEW = 6


@pytest.fixture(scope="module")
def model():
    """A small random model whose logits are spread out."""
    return MoMForCausalLM(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def prompts():
    """Two rows of nine tokens."""
    return np.random.default_rng(0).integers(0, 32, (2, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def greedy(model, prompts):
    """Greedy continuations."""
    return np.asarray(generate(model, prompts, NEW))


def test_greedy_is_the_argmax_of_full_passes(model, prompts, greedy):
    """Every new token is the likeliest one after all tokens before it."""
    assert greedy.shape == (2, 9 + NEW) and greedy.dtype == np.int32
    np.testing.assert_array_equal(greedy[:, :9], prompts)
    logits = np.asarray(jax.jit(lambda ids: model(ids).logits)(greedy))
    np.testing.assert_array_equal(greedy[:, 9:], logits[:, 8:-1].argmax(-1))
    assert len(set(greedy[:, 9:].ravel())) > 2  # not one token for ever


def test_prompts_need_no_programs_of_their_own(model):
    """Of sizes that nothing else here has: what is compiled is the prefill, the decoding and a key."""
    names: set[str] = set()

    def note(event, begin, end, fun_name="", **_):
        names.update([fun_name] if "backend_compile" in event else [])

    jax.monitoring.register_event_time_span_listener(note)
    try:
        out = generate(model, np.arange(15, dtype=np.int32).reshape(5, 3), 3)
    finally:
        jax.monitoring.unregister_event_time_span_listener(note)
    assert out.shape == (5, 6) and {"jit(_prefill)", "jit(_decode)"} <= names
    assert [name for name in names if not re.search("prefill|decode|threefry|convert|stage", name)] == []


@pytest.mark.parametrize("padding", [2, 8])
def test_left_padding(model, prompts, greedy, padding):
    """Prompts of different lengths in one batch continue as they do alone; what stands under the mask is irrelevant."""
    short = np.asarray(generate(model, prompts[:1, padding:], NEW))
    ids, mask = prompts.copy(), np.ones_like(prompts)
    ids[0, :padding], mask[0, :padding] = 31, 0
    both = np.asarray(generate(model, ids, NEW, attention_mask=mask))
    np.testing.assert_array_equal(both[0, 9:], short[0, 9 - padding :])
    np.testing.assert_array_equal(both[1], greedy[1])


def test_a_prompt_with_the_end_token_goes_on(model, prompts, greedy):
    """An end token inside the prompt ends nothing."""
    out = np.asarray(generate(model, prompts, 1, eos_token_id=int(prompts[0, -1])))
    np.testing.assert_array_equal(out, greedy[:, :10])


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"top_k": 3, "top_p": 1e-6}])
def test_sharp_sampling_is_greedy(model, prompts, greedy, options):
    """The likeliest token alone is left."""
    out = generate(model, prompts, NEW, **({"temperature": 1.0} | options), rng=jax.random.key(0))
    np.testing.assert_array_equal(out, greedy)


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1.1754943e-38, np.float32(1e-40), 1e-4])
def test_temperatures_near_zero_are_greedy(model, prompts, greedy, temperature):
    """Below float32's normal range too, where a division gives nothing but infinities."""
    np.testing.assert_array_equal(generate(model, prompts, NEW, temperature=temperature, rng=jax.random.key(0)), greedy)


@pytest.mark.parametrize("kind", [lambda ids: ids[1], list, tuple, np.array], ids=["one", "list", "tuple", "array"])
def test_an_end_token_ends_a_row(model, prompts, greedy, kind):
    """Alone, or one of several, whose first, which never comes by itself here, fills the row up; the other goes on."""
    end = int(greedy[0, 10])
    ends = kind([next(i for i in range(32) if i not in greedy), end])
    found = np.asarray(generate(model, prompts, NEW, eos_token_id=ends))
    for row, want in zip(found[:, 9:].tolist(), greedy[:, 9:].tolist(), strict=True):
        stop = want.index(end) + 1 if end in want else NEW
        assert row == want[:stop] + [np.ravel(ends)[0]] * (NEW - stop)


@pytest.mark.parametrize("options", [{}, {"temperature": 50.0, "top_k": 20, "top_p": 0.99}])
def test_ids_that_are_not_allowed_are_never_chosen(model, prompts, options):
    """Rows of the embedding without a token, for one; half of all rows here, the likeliest among them."""
    allowed = np.arange(32) % 2 == 0
    out = np.asarray(generate(model, prompts, 3 * NEW, **options, rng=jax.random.key(1), allowed=allowed))
    assert allowed[out[:, 9:]].all() and len(set(out[:, 9:].ravel())) > 1
    with pytest.raises(InputError, match=r"allowed=\(32,\): expected booleans \[32\], at least one of them True"):
        generate(model, prompts, 1, allowed=np.zeros(32, bool))


def test_long_prompts_are_read_in_pieces(monkeypatch):
    """What follows a prompt does not depend on how it was read, by memories and by attention."""
    attn = AttentionConfig(layers=(1,), num_heads=2)
    model = MoMForCausalLM(dataclasses.replace(CONFIG, num_hidden_layers=2, attn=attn), rngs=nnx.Rngs(0))
    prompt = np.random.default_rng(1).integers(0, 32, (1, 60)).astype(np.int32)
    whole = np.asarray(generate(model, prompt, NEW))
    monkeypatch.setattr(slots, "_PIECE", 16)
    np.testing.assert_array_equal(generate(model, prompt, NEW), whole)


@pytest.mark.parametrize(
    "value,options", [(np.nan, {}), (np.inf, {"temperature": 1.0, "rng": jax.random.key(0), "top_p": 0.9})]
)
def test_a_model_of_nan_is_noticed(model, prompts, value, options):
    """Rather than a text of zeros."""
    broken = nnx.clone(model)
    broken.norm.weight[...] = jnp.full_like(broken.norm.weight[...], value)
    with pytest.raises(InputError, match=r"^model=NaN: its logits are not finite: training diverged"):
        generate(broken, prompts, 2, **options)


@pytest.mark.parametrize(
    "options", [{}, {"attn": AttentionConfig(layers=(0,), num_heads=2), "tie_word_embeddings": True}]
)
def test_parameters_are_rounded_once(options):
    """In bfloat16: the same logits, and no parameter is rounded in the program of a step."""
    model = MoMForCausalLM(dataclasses.replace(CONFIG, compute_dtype="bfloat16", **options), rngs=nnx.Rngs(0))
    ids, cache = jnp.full((2, 1), 3), model.init_cache(2, 16)
    run = jax.jit(lambda model, cache: model(ids, cache=cache).logits)
    narrow = model.rounded()
    np.testing.assert_array_equal(run(narrow, cache), run(model, cache))

    weights = {leaf.shape[-2:] for leaf in jax.tree.leaves(nnx.state(narrow)) if leaf.dtype == jnp.bfloat16}
    casts = calls("convert_element_type", lambda model: run(model, cache), narrow)
    assert weights and not weights & {cast.outvars[0].aval.shape[-2:] for cast in casts if "bf" in str(cast.params)}


def test_prompts_of_a_kind_compile_once(model, monkeypatch):
    """Lengths up to 16 share a program, and so does every further token."""
    chex.clear_trace_counter()
    for name in ("_prefill", "_decode"):
        static = {"_prefill": (0, 1), "_decode": (0, 1, 2)}[name]
        body = chex.assert_max_traces(getattr(slots, name).__wrapped__, n=1)
        monkeypatch.setattr(slots, name, jax.jit(body, static_argnums=static))
    for length in (2, 9, 16):
        generate(model, np.ones((1, length), np.int32), 3, on_token=lambda token: None)


def test_a_prefill_that_changes_its_state_is_refused(model, monkeypatch):
    """It would be compiled anew for each token; found while it is traced, whatever a rule of one's own does."""
    hidden_states = MoMForCausalLM.hidden_states

    def narrower(*args, **options):
        out = hidden_states(*args, **options)
        return out._replace(cache=jax.tree.map(lambda a: a.astype(jnp.float16), out.cache))

    monkeypatch.setattr(MoMForCausalLM, "hidden_states", narrower)
    slots._prefill.clear_cache()
    with pytest.raises(AssertionError, match="dtype"):
        generate(model, np.ones((5, 3), np.int32), 1)


def test_streaming_and_keys(model, prompts):
    """Each step's tokens arrive in order; the same key gives the same text, another key another."""
    seen = []
    options = {"temperature": 1.0, "top_k": 20, "top_p": 0.95}
    streamed = generate(model, prompts, NEW, **options, rng=jax.random.key(1), on_token=seen.append)
    np.testing.assert_array_equal(np.stack(seen, 1), streamed[:, 9:])
    np.testing.assert_array_equal(generate(model, prompts, NEW, **options, rng=jax.random.key(1)), streamed)
    assert (np.asarray(generate(model, prompts, NEW, **options, rng=jax.random.key(2))) != np.asarray(streamed)).any()


@pytest.mark.parametrize(
    "temperature,top_k,top_p,kept",
    [
        (1.0, None, None, [0, 1, 2, 3, 4]),
        (2.0, None, None, [0, 1, 2, 3, 4]),
        (1.0, 3, None, [1, 2, 4]),
        (1.0, None, 0.6, [1, 4]),  # 0.5 is not enough, the second token crosses 0.6
        (1.0, None, 0.5, [1]),
        (1.0, 3, 0.8, [1, 4]),  # top-k first: of what it leaves, two tokens hold 0.83
        (1.0, None, 1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_sampling_frequencies(temperature, top_k, top_p, kept):
    """20,000 draws follow the softmax over the tokens that are left, within five standard errors."""
    p = np.array([0.06, 0.5, 0.15, 0.04, 0.25])
    draws = 20_000
    logits = jnp.tile(jnp.log(jnp.asarray(p, jnp.float32)), (draws, 1))
    keys = jax.random.split(jax.random.key(3), draws)
    tokens = np.asarray(drawn(logits, *sampling(temperature, top_k, top_p, 5), keys)[0])
    want = np.zeros(5)
    want[kept] = p[kept] ** (1 / temperature)
    want /= want.sum()
    frequency = np.bincount(tokens, minlength=5) / draws
    assert (frequency[want == 0] == 0).all()
    assert (np.abs(frequency - want) <= 5 * np.sqrt(want * (1 - want) / draws)).all()


PROMPT = np.zeros((1, 2), np.int32)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"top_k": 0}, r"top_k=0: must lie between 1 and the vocabulary size \(32\)"),
        ({"top_k": 33}, r"top_k=33: must lie"),
        ({"top_p": 0.0}, r"top_p=0\.0: must lie in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p=1\.5: must lie"),
        ({"temperature": -1.0}, r"temperature=-1\.0: must be 0 \(greedy\) or positive"),
        ({"temperature": np.nan}, r"temperature=nan: must be 0 \(greedy\) or positive, and finite"),
        ({"temperature": np.inf}, r"temperature=inf: must be 0 \(greedy\) or positive, and finite"),
        ({"temperature": 1e39}, r"temperature=1e\+39: must be 0 \(greedy\) or positive, and finite in float32"),
        ({"top_k": 2.5}, r"top_k=2\.5: must lie between 1 and the vocabulary size \(32\), a whole number"),
        ({"top_p": np.nan}, r"top_p=nan: must lie"),
        ({"eos_token_id": 32}, r"eos_token_id=32: token ids must lie in \[0, 32\)"),
        ({"eos_token_id": [2, -1]}, r"eos_token_id=-1: token ids must lie in \[0, 32\)"),
        ({"eos_token_id": "end"}, "eos_token_id=end: token ids must be whole numbers"),
        ({"max_new_tokens": -3}, r"max_new_tokens=-3: must be at least 1"),
        ({"temperature": 1.0}, r"rng=None: pass a jax\.random\.key"),
        ({"max_new_tokens": 0}, r"max_new_tokens=0: must be at least 1"),
        ({"input_ids": np.zeros((1, 0), np.int32)}, r"input_ids\.shape=\(1, 0\): expected a non-empty"),
        ({"input_ids": np.zeros(3, np.int32)}, r"input_ids\.shape=\(3,\): expected a non-empty"),
        ({"input_ids": [[1, 32]]}, r"input_ids=32: token ids must lie in \[0, 32\)"),
        ({"input_ids": [[-1, 5]]}, r"input_ids=-1: token ids must lie in \[0, 32\)"),
        ({"input_ids": [[1, 2**40]]}, r"input_ids=1099511627776: token ids must lie in \[0, 32\)"),
        ({"input_ids": [[0.5, 1.0]]}, r"input_ids=0\.5: token ids must be whole numbers"),
        ({"attention_mask": np.array([[1, 0]])}, r"attention_mask=0 in the last column: pad prompts on the left"),
        ({"attention_mask": np.array([[1]])}, r"attention_mask\.shape=\(1, 1\): expected \(1, 2\)"),
    ],
)
def test_bad_input(model, arguments, message):
    """Field, value and remedy, before anything is computed."""
    with pytest.raises(InputError, match=message) as caught:
        generate(model, **({"input_ids": PROMPT, "max_new_tokens": 2} | arguments))
    assert "\n" not in str(caught.value)
