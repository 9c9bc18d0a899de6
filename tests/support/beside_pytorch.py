"""Run by itself where flash-linear-attention is installed: our checkpoints there, and its checkpoints here.

Arguments: a folder to work in and, unless all are meant, kinds of models. Prints a line of JSON for each. The library's
Triton kernels run in Triton's interpreter, which must be switched on before torch loads them.
"""

import contextlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from goldens.read import parameters_by_name

from mom_jax import MoMConfig, load_pretrained, save_pretrained
from mom_jax.interop.published import published_fields
from mom_jax.models.config import AttentionConfig
from support.parameters import random_model

SIZES = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16}
BARE = {"mixture": False, "use_short_conv": False, "use_output_gate": False}
CONFIGS = {
    "defaults": {},
    "no shared": {"shared_mem": False},
    "single projection": {"single_kv_proj": True},
    "top-1 of 3": {"topk": 1, "num_memories": 3},
    "expanded values": {"expand_v": 2.0},
    "tied": {"tie_word_embeddings": True},
    "no gate": {"use_output_gate": False},
    "hybrid": {"attn": AttentionConfig(layers=(1,), num_heads=4, num_kv_heads=2, window_size=8)},
    "one memory": {"mixture": False, "expand_v": 2.0},
    "one memory, DeltaNet": {"mixture": False, "memory_rule": "deltanet"},
    "one memory, linear attention": {**BARE, "memory_rule": "linear_attention", "feature_map": "elu"},
    "one memory, normalised": {
        **BARE,
        "memory_rule": "linear_attention",
        "feature_map": "relu",
        "norm_feature_map": True,
    },
    "one memory, RetNet": {"mixture": False, "memory_rule": "retnet", "use_short_conv": False, "expand_v": 2.0},
    "one memory, GLA": {"mixture": False, "memory_rule": "gla", "use_short_conv": False},
    "one memory, HGRN2": {"mixture": False, "memory_rule": "hgrn2", "use_short_conv": False},
    "one memory, GSA": {**BARE, "memory_rule": "gsa", "num_slots": 8, "gate_logit_normalizer": 8},
    "one memory, KDA": {"mixture": False, "memory_rule": "kda"},
    "one memory, Mamba2": {"mixture": False, "memory_rule": "mamba2", "expand_v": 2.0, "intermediate_size": 0},
    "one memory, DeltaProduct": {
        "mixture": False,
        "memory_rule": "gated_deltaproduct",
        "allow_neg_eigval": True,
        "expand_v": 2.0,
        "rule_options": ("num_householder=3",),
    },
    "one memory, Comba": {"mixture": False, "memory_rule": "comba", "expand_v": 2.0},
    "one memory, MesaNet": {"mixture": False, "memory_rule": "mesanet", "use_output_gate": False},
    "one memory, Raven": {"mixture": False, "memory_rule": "raven", "num_slots": 8, "gate_logit_normalizer": 8},
    "one memory, Raven by slots": {
        "mixture": False,
        "memory_rule": "raven",
        "num_slots": 8,
        "use_output_gate": False,
        "rule_options": ('slot_decay="slot"', 'slot_scores="softmax"', "slot_bias=false", "slot_top_k=3"),
    },
    "one memory, Mamba-3": {"mixture": False, "memory_rule": "mamba3", "expand_v": 2.0, "intermediate_size": 0},
    "one memory, log-linear": {"mixture": False, "memory_rule": "log_linear_mamba2", "intermediate_size": None},
    "one memory, hybrid": {"mixture": False, "attn": AttentionConfig((0,), num_heads=4, num_kv_heads=4, qkv_bias=True)},
    "transformer": {"attn": AttentionConfig(layers=(0, 1), num_heads=4, num_kv_heads=2, rope_theta=5000.0)},
}


def same(one, other, dtype="float32"):
    """Whether two models have equal parameters, those of the second rounded to ``dtype``."""
    one, other = (parameters_by_name(nnx.state(model)) for model in (one, other))
    want = {name: np.asarray(values.astype(dtype).astype("float32")) for name, values in other.items()}
    return set(one) == set(want) and all(np.array_equal(one[name], want[name]) for name in want)


def theirs(folder):
    """Their model of a folder, in evaluation mode; nothing may be missing or left over."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def check(place, ours, ids):
    """What agrees between our model and theirs, in both directions, as JSON-ready values."""
    import torch

    from mom_jax.evals.reference.interpreter import convert_loops

    save_pretrained(ours, place / "ours")
    save_pretrained(ours, place / "shards", max_shard_bytes=20_000)
    logits = np.asarray(jax.jit(lambda model: model(ids).logits)(ours))
    there, from_shards = theirs(place / "ours"), theirs(place / "shards").state_dict()
    convert_loops()
    with torch.no_grad():
        their_logits = there(torch.as_tensor(ids, dtype=torch.int64), use_cache=False).logits.numpy()
    whole = there.state_dict()
    there.save_pretrained(place / "single")
    there.save_pretrained(place / "sharded", max_shard_size="10KB")
    there.to(torch.bfloat16).save_pretrained(place / "bfloat16")
    again = load_pretrained(place / "single")
    return {
        "logits, relative": float(np.abs(logits - their_logits).max() / np.abs(their_logits).max()),
        "there from shards": set(whole) == set(from_shards)
        and all(torch.equal(whole[name], from_shards[name]) for name in whole),
        "here from one file": same(again, ours),
        "here from shards": same(load_pretrained(place / "sharded"), ours),
        "here from bfloat16": same(load_pretrained(place / "bfloat16"), ours, "bfloat16"),
        "configuration": published_fields(again.config, "float32") == published_fields(ours.config, "float32"),
        "several files": len(list((place / "sharded").glob("*.safetensors"))) > 3,
    }


def main(folder, *chosen):
    """Each kind of model, or those that are chosen, both ways."""
    from mom_jax.evals.reference import interpreter

    interpreter.enable()  # before anything below loads Triton
    import fla.models  # noqa: F401 (registers its models)
    from transformers.utils import logging

    from mom_jax.evals.reference import operators
    from support.plain_pytorch import plain_layers

    logging.disable_progress_bar()
    ids = np.random.default_rng(5).integers(3, 48, (1, 12))
    kinds = {name: options for name, options in CONFIGS.items() if not chosen or name in chosen}
    for number, (name, options) in enumerate(kinds.items()):
        ours = random_model(MoMConfig(**SIZES | {"intermediate_size": 48} | options), 0.2, number)
        with interpreter.stable_sort(), operators.with_attention(), plain_layers(), contextlib.ExitStack() as stack:
            if ours.config.mixture and len(set(ours.config.layer_kinds)) == 2:
                stack.enter_context(operators.repaired_hybrid(ours.config.num_memories))
            print(json.dumps({"model": name, **check(Path(folder) / str(number), ours, ids)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
