"""Head sizes of published configurations: every one that is saved comes back, there and here."""

import itertools
import json

import numpy as np
import pytest

from mom_jax.errors import InputError
from mom_jax.interop.published import published_fields
from mom_jax.layers.rules.published import Published
from mom_jax.layers.rules.registry import published_rules
from mom_jax.models.config import AttentionConfig, MoMConfig

RULES = [*(name for name, form in published_rules().items() if isinstance(form, Published)), "mixture"]
OPTIONS = {
    "linear_attention": {"use_short_conv": False, "use_output_gate": False},
    "retnet": {"use_short_conv": False},
    "mamba2": {"intermediate_size": 0},
    "mamba3": {"intermediate_size": 0},
}


def config_of(rule, **sizes):
    """A single memory of a rule, or the mixture."""
    about = {"mixture": True} if rule == "mixture" else {"mixture": False, "memory_rule": rule}
    return MoMConfig(**about, **OPTIONS.get(rule, {}), **sizes)


def sizes_of(config):
    """What parameters get their shapes from."""
    heads = config.num_heads, config.head_dim, config.head_v_dim
    return config.hidden_size, *heads, config.mlp_dim, config.num_hidden_layers, config.vocab_size


def theirs(fields):
    """Channels of keys and values of all heads, and heads, as the PyTorch library's layers compute them."""
    hidden, kind = fields["hidden_size"], fields["model_type"]
    if "state_size" in fields:
        values = int(fields["expand"] * hidden)
        heads = int(fields["expand"] * hidden / fields["head_dim"])
        return heads * fields["state_size"], values, heads
    if kind == "hgrn2":
        return hidden, hidden, hidden // fields["expand_ratio"]
    heads = fields["num_heads"]
    if "head_dim" in fields:
        keys = heads * fields["head_dim"]
        expand_v = fields.get("expand_v", 1.0)
        per_head = int(fields["head_dim"] * expand_v)
        assert int(keys * expand_v) == heads * per_head
        return keys, heads * per_head, heads
    return int(hidden * fields["expand_k"]), int(hidden * fields["expand_v"]), heads


def check(config):
    """Saves, reads back, and compares sizes; returns whether the PyTorch library has such a model."""
    try:
        fields = published_fields(config, "float32")
    except InputError:
        return False
    heads = config.num_heads
    # a head of Mamba2 reads with the keys of all
    assert theirs(fields) == (heads * config.head_dim, heads * config.head_v_dim, heads), config
    read = MoMConfig.from_dict(json.loads(json.dumps(fields)))
    assert sizes_of(read) == sizes_of(config), config
    assert read.expand_v == config.expand_v and read.memory_rule == config.memory_rule
    return True


@pytest.mark.parametrize("rule", RULES)
def test_every_saved_size_comes_back(rule):
    """Sixty sizes, others for each rule and odd ones among them; then head sizes up to 320 for usual hidden sizes."""
    rng = np.random.default_rng(RULES.index(rule))
    for _ in range(60):
        heads, keys = int(rng.integers(1, 33)), int(rng.integers(1, 301))
        values = int(rng.integers(1, 601))
        hidden = int(rng.integers(1, 4097))
        if rule in ("hgrn2", "gsa"):
            hidden = heads * (keys if rule == "hgrn2" else values)
        values = keys if rule in ("hgrn2", "mesanet") else values
        assert check(config_of(rule, hidden_size=hidden, num_heads=heads, head_dim=keys, expand_v=values / keys))
    for hidden, keys in itertools.product((768, 2048), range(1 + RULES.index(rule) % 8, 321, 8)):
        heads = max(1, hidden // keys)
        check(config_of(rule, hidden_size=hidden, num_heads=heads, head_dim=keys, expand_v=1.0))


def test_everything_else_comes_back_too():
    """Token ids, one or several, attention layers and ratios."""
    attn = AttentionConfig(layers=(1,), num_heads=4, num_kv_heads=2, window_size=7)
    config = MoMConfig(num_hidden_layers=2, attn=attn, eos_token_id=(2, 7), pad_token_id=0, norm_eps=1e-5)
    assert MoMConfig.from_dict(json.loads(json.dumps(published_fields(config, "float32")))) == config
    assert MoMConfig.from_dict(json.loads(json.dumps(config.to_dict()))).eos_token_id == (2, 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "delta_net", "num_heads": 3},
            "expand_k=1.0: times hidden_size (2048) must divide by num_heads",
        ),
        ({"model_type": "gla", "expand_v": 0.3}, "expand_v=0.3: times hidden_size (2048) must divide by num_heads (4)"),
        ({"model_type": "retnet", "expand_k": float("inf")}, "expand_k=inf: must be a finite number"),
        ({"model_type": "linear_attn", "feature_map": "elu", "num_heads": 0}, "num_heads=0: must be at least 1"),
        ({"model_type": "gsa", "hidden_size": "2048"}, "hidden_size=2048: expected a whole number"),
        ({"model_type": "hgrn2", "expand_ratio": 100}, "expand_ratio=100: must divide hidden_size (2048)"),
        ({"model_type": "hgrn2", "expand_ratio": None}, "num_heads=None: expected a whole number"),
        ({"model_type": "mamba2", "expand": 1.1}, "expand=1.1: times hidden_size (2048) must divide by head_dim (64)"),
        ({"model_type": "mamba2", "head_dim": True}, "head_dim=True: expected a whole number"),
        ({"model_type": "mamba2", "dt_limit": [0.0, {"__float__": "NaN"}]}, "dt_limit="),
        ({"model_type": "mamba2", "dt_limit": 3}, "dt_limit=3: not available"),
        ({"model_type": "transformer", "num_hidden_layers": 2**31}, "num_hidden_layers=2147483648: must be"),
        ({"model_type": "transformer", "num_hidden_layers": None}, "num_hidden_layers=None: expected a whole number"),
        ({"model_type": ["mom"]}, "model_type=['mom']: expected text"),
        ({"model_type": "mom_gated_deltanet", "num_experts": []}, "num_memories=[]: expected a whole number"),
        ({"model_type": "mom", "attn": [1]}, "attn=1: expected null, an object"),
        ({"model_type": "mom", "attn": {"layers": None}}, "attn.layers=None: expected a list"),
        ({"model_type": "mom", "attn": {"layer": [1]}}, "attn=layer: unknown"),
        ({"model_type": "kda", "hidden_act": ["swish"]}, "hidden_act=['swish']: not available"),
        ({"model_type": "raven", "decay_type": ["GLA"]}, "decay_type=['GLA']: expected Mamba2 or GLA"),
        ({"model_type": "raven", "expand_k": 0.3}, "expand_k=0.3: times hidden_size (2048) must be a whole number"),
        ({"model_type": "mamba3", "is_mimo": True}, "is_mimo=True: not available in a mamba3 model; only False is"),
    ],
)
def test_bad_published_numbers(fields, message):
    """One line, whatever the file holds."""
    with pytest.raises(InputError) as caught:
        MoMConfig.from_dict(fields)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "fields", "message"),
    [
        ("comba", {"rule_options": ("feedback_decay=true",)}, "rule_options=feedback_decay=True: .*comba has no such"),
        ("gated_deltanet", {"rule_options": ("norm_eps=1e-3",)}, r"rule_options=norm_eps=0\.001: .*only 1e-06 can be"),
        ("mixture", {"rule_options": ("norm_eps=1e-3",)}, r"rule_options=norm_eps=0\.001: .*'s mom has no such option"),
        ("mamba3", {"rule_options": ("rope_fraction=0.25",)}, r"rope_fraction=0\.25: .*mamba3 has 0\.5 or 1 only"),
        ("mesanet", {"expand_v": 2.0}, r"expand_v=2\.0: the PyTorch library's mesa_net has 1\.0 only"),
        ("mesanet", {"use_short_conv": False}, "use_short_conv=False: the PyTorch library's mesa_net has True only"),
    ],
)
def test_what_cannot_be_saved(rule, fields, message):
    """Options that the PyTorch library would leave out, and so compute something else."""
    with pytest.raises(InputError, match=message):
        published_fields(config_of(rule, **fields), "float32")


TYPES = """mom mom_gated_deltanet gated_deltanet delta_net linear_attn retnet gla hgrn2 gsa kda mamba2 transformer
gated_deltaproduct comba mesa_net raven mamba3 log_linear_mamba2"""
VALUES = [None, True, -1, 0, 2**64, 1e308, float("nan"), float("inf"), "", "abc", [], {}, [[1]], {"a": {"b": 1}}, 0.5]
NAMES = """hidden_size num_hidden_layers num_heads head_dim state_size conv_kernel expand_ratio num_slots expand
expand_k expand_v topk decay_type router_score num_householder rope_fraction lambda_lower_bound attn dt_limit
feature_map num_experts num_kv_heads num_v_heads hidden_ratio norm_eps eos_token_id"""


@pytest.mark.parametrize("model_type", TYPES.split())
def test_a_damaged_published_file(model_type):
    """Every field that a translation looks at, with values of every kind: a config or one line."""
    for name, value in itertools.product(NAMES.split(), VALUES):
        try:
            config = MoMConfig.from_dict({"model_type": model_type, "feature_map": "elu", name: value})
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(size < 2**24 for size in sizes_of(config))
