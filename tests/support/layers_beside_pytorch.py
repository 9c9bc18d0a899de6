"""Run by itself where flash-linear-attention is installed: memory layers of ours and its layers of the same name.

For the rules whose whole models cannot be converted. Prints a line of JSON for each. The library's
Triton kernels run in Triton's interpreter, which must be switched on before torch loads them.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.models.config import MoMConfig
from mom_jax.models.mixers import make_mixer

D, H, K, TIME = 32, 2, 16, 12
CONFIG = MoMConfig(hidden_size=D, num_heads=H, head_dim=K, mixture=False, norm_eps=1e-5, proj_low_rank_dim=4,
                   decay_low_rank_dim=6, a_low_rank_dim=5, gate_low_rank_dim=7)  # fmt: skip
RULES = ("rwkv6", "rwkv7")


def rwkv6():
    """Their layer, and where its parameters lie here."""
    from fla.layers.rwkv6 import RWKV6Attention

    layer = RWKV6Attention(hidden_size=D, expand_k=1.0, num_heads=H, proj_low_rank_dim=4, gate_low_rank_dim=6,
                           layer_idx=0)  # fmt: skip
    ours = {
        "x_mix": ("x_proj.0.mu", lambda w: w),
        "x_down.weight": ("x_proj.0.linear.weight", np.transpose),
        "x_up": ("x_proj.2.weight", lambda w: w.reshape(D, 5, -1).transpose(1, 2, 0)),
        "x_bias": ("x_bias", lambda w: w),
        "q_proj.weight": ("r_proj.linear.weight", np.transpose),
        "k_proj": ("k_proj.linear.weight", own),
        "v_proj": ("v_proj.linear.weight", own),
        "w_down": ("w_proj.linear.lora.0.weight", own),
        "w_up": ("w_proj.linear.lora.2.weight", own),
        "w_bias": ("w_proj.linear.lora.2.bias", lambda w: w[None]),
        "g_proj.weight": ("g_proj.linear.weight", np.transpose),
        "bonus": ("bonus", lambda w: w),
    }
    return layer, ours


def rwkv7():
    """As `rwkv6`; their first layer, which takes no values of another one."""
    from fla.layers.rwkv7 import RWKV7Attention

    layer = RWKV7Attention(hidden_size=D, head_dim=K, decay_low_rank_dim=6, a_low_rank_dim=5, gate_low_rank_dim=7,
                           layer_idx=0, num_hidden_layers=2, fuse_norm=True)  # fmt: skip
    ours = {
        "q_proj.weight": ("r_proj.weight", np.transpose),
        "k_proj": ("k_proj.weight", own),
        "v_proj": ("v_proj.weight", own),
        "g_down.weight": ("g_lora.lora.0.weight", np.transpose),
        "g_up.weight": ("g_lora.lora.2.weight", np.transpose),
    }
    for name in "wa":
        ours[f"{name}_down"] = (f"{name}_lora.lora.0.weight", own)
        ours[f"{name}_up"] = (f"{name}_lora.lora.2.weight", own)
        ours[f"{name}_bias"] = (f"{name}_lora.lora.2.bias", lambda w: w[None])
    return layer, ours | {name: (name, lambda w: w.reshape(H, K)) for name in ("k_k", "k_a", "r_k")}


def own(weight):
    """A projection of the only memory."""
    return weight.T[None]


def check(rule):
    """The largest relative difference of outputs, and of gradients of the input."""
    import torch

    from mom_jax.evals.reference.interpreter import convert_loops

    torch.manual_seed(0)
    layer, where = {"rwkv6": rwkv6, "rwkv7": rwkv7}[rule]()
    convert_loops()
    with torch.no_grad():
        for name, values in layer.named_parameters():
            values.normal_(1.0 if name == "g_norm.weight" else 0.0, 0.3)
    theirs = {name: values.detach().numpy() for name, values in layer.named_parameters()}
    config = MoMConfig.from_dict(CONFIG.to_dict() | {"memory_rule": rule})
    graph, params = nnx.split(nnx.eval_shape(lambda: make_mixer(config, "memory", nnx.Rngs(0))))
    found = {f"rule.{ours}": form(theirs[name]) for ours, (name, form) in where.items()}
    found["rule.norm"], found["rule.norm_bias"] = (theirs[f"g_norm.{n}"].reshape(H, K) for n in ("weight", "bias"))
    found["output.o_proj.weight"] = theirs["o_proj.weight"].T
    if rule == "rwkv7":
        found["rule.x_mix"] = np.stack([theirs[f"x_{name}"].reshape(D) for name in "rwkvag"])

    def place(path, leaf):
        values = found[".".join(str(key.key) for key in path if hasattr(key, "key"))]
        assert values.shape == leaf.shape, path
        return jnp.asarray(values)

    layer_here = nnx.merge(graph, jax.tree_util.tree_map_with_path(place, params))
    rng = np.random.default_rng(1)
    x, dy = (rng.normal(size=(1, TIME, D)).astype(np.float32) for _ in range(2))
    y, pull = jax.vjp(jax.jit(lambda x: layer_here(x)[0]), jnp.asarray(x))
    there = torch.as_tensor(x).requires_grad_()
    out = layer(there)[0]
    out.backward(torch.as_tensor(dy))
    pairs = (y, out.detach().numpy()), (pull(jnp.asarray(dy))[0], there.grad.numpy())
    outputs, gradients = (float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in pairs)
    return {"outputs": outputs, "gradients": gradients}


def main():
    """Every rule."""
    from mom_jax.evals.reference import interpreter

    interpreter.enable()
    for rule in RULES:
        print(json.dumps({"rule": rule, **check(rule)}), flush=True)


if __name__ == "__main__":
    main()
