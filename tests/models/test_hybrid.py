"""Models with attention layers between memory layers: order, caches, generation, configuration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.calls import compiled, in_pieces
from support.compare import assert_close
from support.parameters import random_model

from mom_jax.decoding import generate
from mom_jax.errors import InputError
from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.presets import get_preset
from mom_jax.ops.routing import load_balancing_loss

TIME = 14


def hybrid_config(layers, depth, window=None):
    """Small sizes, attention layers at the given places, and the rule that compiles fastest in the others."""
    attn = AttentionConfig(layers=layers, num_heads=4, num_kv_heads=2, window_size=window)
    return MoMConfig(vocab_size=32, hidden_size=16, num_hidden_layers=depth, num_heads=2, head_dim=8,
                     intermediate_size=24, initializer_range=0.3, max_position_embeddings=32, attn=attn,
                     memory_rule="linear_attention", feature_map="elu", use_short_conv=False)  # fmt: skip


@functools.cache
def hybrid(layers, depth, window=None):
    """The model, and its compiled call."""
    model = random_model(hybrid_config(layers, depth, window))
    return model, compiled(model)


def one_by_one(graph, params, ids):
    """Router logits and logits of blocks that are called one after the other."""
    model = nnx.merge(graph, params)
    x, seen, logits = model.embeddings[...][ids], {"memory": 0, "attention": 0}, []
    for kind in model.config.layer_kinds:
        stack, stacked = nnx.split(model.layers if kind == "memory" else model.attention_layers)
        block = nnx.merge(stack, jax.tree.map(lambda a, i=seen[kind]: a[i], stacked))
        x, router, _ = block(x, None, None, None, 0)
        logits += [] if router is None else [router.logits[0]]
        seen[kind] += 1
    return tuple(logits), model.norm(x) @ model.lm_head[...].T


def tokens(rows=2, time=TIME):
    """Random ids."""
    return np.random.default_rng(0).integers(0, 32, (rows, time)).astype(np.int32)


ALL = np.ones((2, TIME), np.int32)  # a mask, and with it one document: arrays, so that calls share one program


@pytest.mark.parametrize("layers,depth", [((1, 3), 4), ((0,), 3)])
def test_layers_run_in_order(layers, depth):
    """Scanned patterns equal blocks called one after the other."""
    model, call = hybrid(layers, depth)
    graph, params = nnx.split(model)
    out = call(tokens(), None, None, None)
    assert len(out.router_logits) == depth - len(layers)
    want = jax.jit(functools.partial(one_by_one, graph))(params, tokens())
    assert_close((out.router_logits, out.logits), want, 1e-5)


def test_a_repeated_pattern_is_scanned():
    """Twelve layers of "memory, memory, attention" trace as many blocks as three do."""

    def products(depth):
        config = hybrid_config(tuple(range(2, depth, 3)), depth)
        model = nnx.eval_shape(lambda: MoMForCausalLM(config, rngs=nnx.Rngs(0)))
        graph, params = nnx.split(model)
        run = lambda params, ids: nnx.merge(graph, params)(ids).logits  # noqa: E731
        return str(jax.make_jaxpr(run)(params, jnp.zeros((1, 4), jnp.int32))).count("dot_general")

    assert products(12) == products(3) > 10


@pytest.mark.parametrize("window", [None, 3])
def test_any_split_equals_the_full_pass(window):
    """Steps, prefill and steps, steps and a piece that is longer than the window; padding left and documents."""
    model, call = hybrid((1,), 2, window)
    ids, mask = tokens(), np.ones((2, TIME), np.int32)
    mask[0, :5] = 0
    documents = np.where(np.arange(TIME) < 9, 3, 4)[None].repeat(2, 0).astype(np.int32)
    want = call(ids, mask, documents, None).logits
    for lengths in ((1,) * TIME, (7, *[1] * 7), (1, 1, 1, 7, *[1] * 4)):  # few lengths, because each compiles
        got, cache = in_pieces(call, model.init_cache(2), lengths, ids, mask, documents)
        assert_close(got, want, 2e-5)
        assert cache.attention.keys.shape[2] == (window or 32)


def test_no_room_left_is_not_a_number():
    """Tokens beyond the capacity of a cache without a window say so; as many as fit are right."""
    model, call = hybrid((1,), 2)
    ids = tokens()
    out = call(ids[:, :7], None, None, model.init_cache(2, max_length=7))
    assert_close(out.logits, call(ids, ALL, ALL, None).logits[:, :7], 2e-5)
    assert np.isnan(call(ids[:, 7:8], None, None, out.cache).logits).all()
    assert np.isnan(call(ids[:, 7:], None, None, out.cache).logits).all()


@pytest.mark.parametrize("window", [None, 3])
def test_greedy_generation(window):
    """Every new token is the likeliest after a full pass over what came before; rows are padded on the left."""
    model, call = hybrid((1,), 2, window)
    mask = ALL.copy()
    mask[0, :2] = 0
    out = np.asarray(generate(model, tokens(2, 5), TIME - 4, mask[:, :5]))
    logits = np.asarray(call(out[:, :-1], mask, ALL, None).logits)
    np.testing.assert_array_equal(out[:, 5:], logits[:, 4:].argmax(-1))


TWO_SETTINGS = [
    {"num_heads": 2, "num_kv_heads": 1, "head_dim": 6, "output_gate": True, "qk_norm": True, "rotary_fraction": 0.7},
    {"num_heads": 4, "window_size": 3, "rotary_fraction": 0.0},
]


@functools.cache
def of_two_settings():
    """Memories, gated attention, memories, attention without positions in a window."""
    fields = hybrid_config((), 4).to_dict() | {"attn": TWO_SETTINGS, "layer_pattern": "1m1a1m1b"}
    model = random_model(MoMConfig.from_dict(fields))
    return model, compiled(model)


def test_settings_of_each_layer():
    """Token by token as in one pass, in documents; each set of layers has its own parameters and cache."""
    model, call = of_two_settings()
    ids, numbers = tokens(2, 7), np.repeat([[1, 1, 1, 2, 2, 2, 2]], 2, 0)
    want = call(ids, ALL[:, :7], numbers).logits
    got, cache = in_pieces(call, model.init_cache(2), [1] * 7, ids, ALL[:, :7], numbers)
    assert_close(got, want, 2e-5)
    shapes = {kind: state.keys.shape for kind, state in cache.kinds.items() if kind != "memory"}
    assert shapes == {"attention": (1, 2, 32, 1, 6), "attention_b": (1, 2, 3, 4, 4)}


def test_gated_attention_by_definition():
    """Queries and keys are normed, the first 4 of 6 channels turned, and what is read is gated, head by head."""
    model, _ = of_two_settings()
    block = jax.tree.map(lambda a: np.asarray(a[0], np.float64), nnx.to_pure_dict(nnx.state(model.blocks("attention"))))
    p, x = block["attn"], np.random.default_rng(1).normal(size=(1, 5, 16))
    norm = lambda y, w: y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * w["weight"]  # noqa: E731
    q = norm((x @ p["q_proj"]["weight"]).reshape(5, 2, 6), p["q_norm"])
    k = norm((x @ p["k_proj"]["weight"]).reshape(5, 1, 6), p["k_norm"])
    v = (x @ p["v_proj"]["weight"]).reshape(5, 6)
    turn = np.exp(1j * np.arange(5)[:, None, None] * 10000.0 ** (-np.arange(2) / 2))

    def turned(y):
        z = (y[..., :2] + 1j * y[..., 2:4]) * turn
        return np.concatenate([z.real, z.imag, y[..., 4:]], -1)

    scores = np.einsum("thc,sc->hts", turned(q), turned(k)[:, 0]) / 6**0.5 + np.triu(np.full((5, 5), -np.inf), 1)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    o = np.einsum("hts,sc->thc", shares, v) / (1 + np.exp(-(x @ p["g_proj"]["weight"]).reshape(5, 2, 6)))
    graph, params = nnx.split(model.blocks("attention"))
    layer = nnx.merge(graph, jax.tree.map(lambda a: a[0], params)).attn
    assert_close(layer(jnp.asarray(x, jnp.float32)).y, (o.reshape(1, 5, 12) @ p["o_proj"]["weight"]), 1e-5)


def test_patterns():
    """Written and read back; a published file with one dictionary means what it did."""
    config = MoMConfig(num_hidden_layers=8, layer_pattern="3m1a")
    assert config.layer_kinds == ("memory", "memory", "memory", "attention") * 2
    assert MoMConfig.from_dict(config.to_dict()) == config
    plain = config.spelt_out()
    assert plain.attn.layers == (3, 7) and plain.layer_kinds == config.layer_kinds
    model, _ = of_two_settings()
    assert MoMConfig.from_dict(model.config.to_dict()) == model.config
    assert [attn["layers"] for attn in model.config.spelt_out().to_dict()["attn"]] == [(1,), (3,)]
    for name in ("mom-340m-qwen3-next", "mom-tiny-kimi-linear"):
        assert get_preset(name).layer_kinds[:4] == config.layer_kinds[:4]


def test_attention_alone_is_a_transformer():
    """All layers attention: no memories, no router, no auxiliary loss."""
    model, call = hybrid((0, 1), 2)
    out = call(tokens(), None, None, model.init_cache(2))
    assert out.router_logits == () and out.cache.memory is None and not hasattr(model, "layers")
    assert float(load_balancing_loss(out.router_logits, 2)) == 0


def test_memories_alone_have_no_keys():
    """The cache of a pure MoM model holds memories alone."""
    model, _ = hybrid((), 2)
    assert model.init_cache(1).attention is None and not hasattr(model, "attention_layers")


def test_published_field():
    """The published form is read, written back, and None for a model without attention."""
    published = {
        "layers": [1, 3],
        "num_heads": 4,
        "num_kv_heads": 2,
        "qkv_bias": True,
        "window_size": 8,
        "rope_theta": 1e5,
    }
    config = MoMConfig.from_dict({"hidden_size": 16, "num_hidden_layers": 4, "attn": published})
    assert config.attn == AttentionConfig((1, 3), 4, 2, True, 8, 1e5)
    assert config.layer_kinds == ("memory", "attention", "memory", "attention")
    assert MoMConfig.from_dict(config.to_dict()) == config
    assert MoMConfig().to_dict()["attn"] is None and MoMConfig.from_dict({"attn": None}) == MoMConfig()


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"layers": (4,)}, r"attn\.layers=\[4\]: must be different layer numbers from 0 to 3"),
        ({"layers": (1, 1)}, r"attn\.layers=\[1, 1\]: must be different"),
        ({"layers": (1,), "num_heads": 3}, r"attn\.num_heads=3: must divide hidden_size \(16\)"),
        (
            {"layers": (1,), "num_heads": 16},
            r"attn\.num_heads=16: must divide hidden_size \(16\) into heads of an even",
        ),
        ({"layers": (1,), "num_kv_heads": 3}, r"attn\.num_kv_heads=3: must divide attn\.num_heads \(4\)"),
        ({"layers": (1,), "window_size": 0}, r"attn\.window_size=0: must be at least 1"),
    ],
)
def test_bad_attention(fields, message):
    """Field, value and remedy."""
    with pytest.raises(InputError, match=message):
        MoMConfig(hidden_size=16, num_hidden_layers=4, attn=AttentionConfig(**fields))


def test_a_hybrid_differs_from_its_parts():
    """The attention layers take part: another window, other logits."""
    wide, narrow = (hybrid((1,), 2, window)[1](tokens(), ALL, ALL, None).logits for window in (None, 3))
    assert_close(wide[:, :3], narrow[:, :3], 1e-5)
    assert np.abs(wide[:, 5:] - narrow[:, 5:]).max() > 1e-3
