"""Configurations: presets, the published file format, and one-line errors."""

import ast
import dataclasses
import inspect
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from mom_jax.data.config import DataConfig
from mom_jax.errors import InputError
from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.models.presets import PRESETS, get_preset
from mom_jax.training.config import CheckpointConfig, MeshConfig, OptimizerConfig, TrainConfig

PUBLISHED = {
    "architectures": ["MomForCausalLM"],
    "attn": None,
    "attn_mode": "chunk",
    "bos_token_id": 1,
    "capacity": 1.0,
    "conv_size": 4,
    "eos_token_id": 2,
    "expand_v": 1,
    "fuse_cross_entropy": True,
    "fuse_norm": True,
    "head_dim": 256,
    "hidden_act": "swish",
    "hidden_ratio": 4,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": None,
    "max_position_embeddings": 2048,
    "mom_backend": "gated_deltanet",
    "model_type": "mom",
    "norm_eps": 1e-06,
    "num_heads": 4,
    "num_hidden_layers": 24,
    "num_memories": 4,
    "shared_mem": True,
    "single_kv_proj": False,
    "tie_word_embeddings": True,
    "topk": 2,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0",
    "use_cache": True,
    "use_output_gate": True,
    "use_short_conv": True,
    "vocab_size": 32000,
}


def parameter_shapes(config):
    """Shapes by name, without allocating anything."""
    model = nnx.eval_shape(lambda: MoMForCausalLM(config, rngs=nnx.Rngs(0)))
    return {".".join(map(str, path)): leaf.get_value().shape for path, leaf in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize("name,hidden,mlp", [("mom-340m", 1024, 2048), ("mom-1.3b", 2048, 5632)])
def test_published_sizes(name, hidden, mlp):
    """24 layers, four heads of 256, ratio 3 and 4, tied vocabulary of 32000; the count follows from the shapes."""
    config = get_preset(name)
    shapes = parameter_shapes(config)
    wide = 4 * 256
    assert shapes["embeddings"] == (32000, hidden) and "lm_head" not in shapes
    assert shapes["layers.attn.rule.k_proj"] == shapes["layers.attn.rule.v_proj"] == (24, 5, hidden, wide)
    assert shapes["layers.attn.rule.q_conv1d"] == (24, wide, 4)
    assert shapes["layers.mlp.gate_proj.weight"] == (24, hidden, mlp)
    mixer = hidden * 4 + 3 * hidden * wide + 5 * hidden * (2 * wide + 8) + 2 * 4 + 3 * wide * 4 + 256
    want = 24 * (mixer + 2 * hidden + 3 * hidden * mlp) + hidden + 32000 * hidden
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == want


def test_tiny():
    """The demonstration model reads bytes and a few special tokens."""
    config = get_preset("mom-tiny")
    special = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert all(256 <= token < config.vocab_size for token in special if token is not None)
    assert sum(int(np.prod(shape)) for shape in parameter_shapes(config).values()) < 2e6


def test_published_file(tmp_path):
    """A published ``config.json`` with its many other fields is the preset."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED), encoding="utf-8")
    assert MoMConfig.from_file(tmp_path / "config.json") == get_preset("mom-1.3b")
    assert MoMConfig.from_dict({**PUBLISHED, "model_type": "mom_gated_deltanet"}) == get_preset("mom-1.3b")


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name):
    """`to_dict` is JSON and `from_dict` reads it back."""
    config = dataclasses.replace(get_preset(name), compute_dtype="bfloat16", norm_eps=1e-3, intermediate_size=77)
    assert MoMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict()["model_type"] == "mom"


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"topk": 5}, r"topk=5: must lie between 1 and num_memories \(4\)"),
        ({"topk": 0}, r"topk=0: must lie between 1"),
        *(({name: 0}, rf"{name}=0: must be at least 1") for name in
          ("vocab_size", "hidden_size", "num_hidden_layers", "num_heads", "head_dim", "num_memories", "conv_size")),
        ({"expand_v": 0.3}, r"expand_v=0\.3: head_dim \(256\) \* expand_v must be a positive whole number"),
        ({"expand_v": 0.0}, r"expand_v=0\.0: "),
        ({"hidden_ratio": None}, r"hidden_ratio=None: set hidden_ratio or intermediate_size"),
        ({"memory_rule": "mamba"}, r"memory_rule=mamba: did you mean mamba[23]\?, or package\.module:Class"),
        ({"memory_rule": "zzz"}, r"memory_rule=zzz: choose one of gated_deltanet, .*, or package\.module:Class"),
        ({"rule_options": ["rank"]}, r"rule_options=rank: expected name=value with the value in JSON"),
        *(({"reference_conv_leak": True, **other}, r"reference_conv_leak=True: is for mixtures of gated_deltanet")
          for other in ({"mixture": False}, {"memory_rule": "gla"}, {"use_short_conv": False})),
        ({"router_balance": "lossfree"}, r"router_balance=lossfree: choose one of auxiliary, loss_free, expert_choice"),
        ({"router_bias_rate": 0.0}, r"router_bias_rate=0\.0: must be greater than 0 and below 1"),
        ({"router_bias_rate": float("nan")}, r"router_bias_rate=nan: must be a finite number"),
        ({"compute_dtype": "float16"}, r"compute_dtype=float16: choose one of float32, bfloat16"),
        ({"layer_pattern": "3x"}, r"layer_pattern=3x: expected numbers and letters as in 3m1a"),
        ({"layer_pattern": "1m1b"}, r"layer_pattern=1m1b: .* m is a memory layer, a attention"),
        ({"layer_pattern": "4m1a"}, r"layer_pattern=4m1a: has 5 layers, which does not divide num_hidden_layers"),
        (
            {"layer_pattern": "3m1a", "attn": AttentionConfig(layers=(1,))},
            r"layer_pattern=3m1a: says which layers are attention layers, and so does attn.layers",
        ),
        ({"attn_more": ("{}",)}, r"attn_more=settings without layers: name their layers"),
        ({"attn_more": ("3",)}, r"attn=3: expected null, an object"),
        ({"attn_more": ("x",)}, r"attn_more=x: expected JSON"),
        (
            {"attn": AttentionConfig(layers=(1,), rotary_fraction=0.3, head_dim=10)},
            r"attn.rotary_fraction=0.3: of 10 channels are not an even number",
        ),
        ({"router_choice": "hash"}, r"router_balance=auxiliary: has nothing to balance beside router_choice=hash"),
        (
            {"router_choice": "one", "router_balance": "expert_choice"},
            r"router_balance=expert_choice: has nothing to balance beside router_choice=one",
        ),
        (
            {"router_choice": "one", "router_balance": "none", "router_noise": 0.5},
            r"router_noise=0.5: has no choice to vary beside router_choice=one",
        ),
        (
            {"router_choice": "position", "router_balance": "none", "router_reads": "apart"},
            r"router_reads=apart: would be the same memories as those written beside router_choice=position",
        ),
        ({"router_noise_steps": 9}, r"router_noise_steps=9: has no noise to lower beside router_noise=0.0; leave one"),
        ({"router_bias_rate": 0.1}, r"router_bias_rate=0.1: has no bias to move beside router_balance=auxiliary"),
        ({"router_block": 8}, r"router_block=8: has no blocks to measure beside router_choice=scores"),
        ({"aux_loss_scale": 0.1, "router_balance": "none"}, r"aux_loss_scale=0.1: has no loss .* router_balance=none"),
        ({"mixture": False, "router_scores": "sigmoid"}, r"router_scores=sigmoid: .* one memory beside mixture=False"),
        ({"mixture": False, "decay_spread": 2.0}, r"decay_spread=2.0: has nothing to do .* beside mixture=False"),
    ],
)  # fmt: skip
def test_bad_values(fields, message):
    """Field, value and remedy, in one line."""
    with pytest.raises(InputError, match=message) as caught:
        MoMConfig(**fields)
    assert "\n" not in str(caught.value)


def test_another_model_type():
    """The file of another architecture is refused by name."""
    with pytest.raises(InputError, match=r"model_type=llama: expected one of mom, mom_gated_deltanet"):
        MoMConfig.from_dict({**PUBLISHED, "model_type": "llama"})


def test_a_misspelt_field():
    """What a published file has besides the model's fields is left out, what is nearly a field is not."""
    bookkeeping = {"architectures": ["X"], "use_cache": True, "eos_token": "</s>", "expand_k": 1.0, "top_k": 50}
    assert MoMConfig.from_dict({**PUBLISHED, **bookkeeping}) == MoMConfig.from_dict(PUBLISHED)
    with pytest.raises(InputError, match=r"hiden_size=3: unknown; did you mean hidden_size\?"):
        MoMConfig.from_dict({**PUBLISHED, "hiden_size": 3})


def test_unknown_preset():
    """Close names are suggested; without one, all are listed."""
    with pytest.raises(InputError, match=r"preset=mom-340: unknown; did you mean .*mom-340m"):
        get_preset("mom-340")
    with pytest.raises(InputError, match=r"mom-tiny or mom-340m or mom-1\.3b"):
        get_preset("zzz")


def test_the_model_shows_how_it_is_made_and_called():
    """`help` and editors see the constructor of the class and the call of a model."""
    assert list(inspect.signature(MoMForCausalLM).parameters) == ["config", "rngs"]
    model = nnx.eval_shape(lambda: MoMForCausalLM(get_preset("mom-tiny"), rngs=nnx.Rngs(0)))
    assert list(inspect.signature(model).parameters)[:2] == ["input_ids", "attention_mask"]


def test_every_field_is_documented():
    """By the text under it, which editors and the command's help show."""
    for cls in (MoMConfig, AttentionConfig, DataConfig, TrainConfig, OptimizerConfig, MeshConfig, CheckpointConfig):
        bases = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)]
        bodies = [ast.parse(inspect.getsource(base)).body[0].body for base in bases]
        documented = {
            field.target.id
            for body in bodies
            for field, text in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(getattr(text, "value", None), ast.Constant)
        }
        sections = {f.name for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.type)}
        assert {f.name for f in dataclasses.fields(cls)} - sections - documented == set()


def test_needs_no_jax():
    """Importing the configuration does not import JAX."""
    code = "import sys, mom_jax.models.config; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_initial_values():
    """The published initialisation: standard deviations and ranges of every kind of parameter."""
    config = MoMConfig(vocab_size=512, hidden_size=128, num_hidden_layers=1, num_heads=64, head_dim=4)
    model = MoMForCausalLM(config, rngs=nnx.Rngs(0))
    block, rule = model.layers, model.layers.attn.rule
    for weight in (model.embeddings, model.lm_head, block.mlp.gate_proj.weight, block.mlp.down_proj.weight):
        assert float(weight[...].std()) == pytest.approx(0.02, rel=0.05)
    bound = 2**-2.5 * (6 / (128 + 256)) ** 0.5
    output = block.attn.output
    for weight in (rule.k_proj, rule.v_proj, rule.q_proj.weight, output.o_proj.weight, output.g_proj.weight):
        assert float(jax.numpy.abs(weight[...]).max()) == pytest.approx(bound, rel=0.01)
    a, dt = np.exp(rule.A_log[...]), np.log1p(np.exp(rule.dt_bias[...]))
    assert a.min() > 0 and 12 < a.max() <= 16.001
    assert 0.00099 < dt.min() < 0.002 and 0.05 < dt.max() < 0.101
    (q_taps,) = (leaf for path, leaf in nnx.to_flat_state(nnx.state(rule)) if path[-1] == "q_conv1d")
    assert float(np.abs(q_taps[...]).max()) == pytest.approx(0.5, rel=0.02)
    for norm in (block.attn_norm.weight, block.mlp_norm.weight, model.norm.weight, block.attn.output.norm):
        assert (norm[...] == 1).all()
