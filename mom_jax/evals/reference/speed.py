# pyright: reportMissingImports=false
"""The PyTorch reference at work on a GPU, as calls that a benchmark can time; bfloat16, random inputs."""

from collections.abc import Callable, Sequence

import torch
from fla.layers.mom import MomAttention
from fla.models.mom import MomConfig, MomForCausalLM
from fla.ops.gated_delta_rule import chunk_gated_delta_rule

Call = Callable[[], None]


def operator(lengths: Sequence[int], heads: int, size: int) -> dict[str, Call]:
    """``chunk_gated_delta_rule`` over segments of some lengths behind each other: ``forward`` and ``training``."""
    rows, options = sum(lengths), {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
    q, k, v = (torch.randn(1, rows, heads, size, **options) for _ in range(3))
    g = (-torch.rand(1, rows, heads, device="cuda")).requires_grad_()
    beta = torch.rand(1, rows, heads, **options)
    bounds = torch.tensor([0, *lengths], device="cuda").cumsum(0)

    def run():
        return chunk_gated_delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel=True, cu_seqlens=bounds)[0]

    return _forward_and_training(run, (q, k, v, g, beta))


def layer(batch: int, time: int, hidden: int, heads: int, size: int) -> dict[str, Call]:
    """``MomAttention`` with the published 4 memories, top-2 and a shared one."""
    sizes = {"hidden_size": hidden, "head_dim": size, "num_heads": heads, "expand_v": 1, "layer_idx": 0}
    module = MomAttention(**sizes, num_memories=4, topk=2, shared_mem=True).to("cuda", torch.bfloat16).train()
    x = torch.randn(batch, time, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    return _forward_and_training(lambda: module(x)[0], (x, *module.parameters()))


def decoding(batch: int, hidden: int, layers: int, heads: int, size: int) -> dict[str, Call]:
    """One token after a prompt of 128, in a model of some layers; ``decoding``."""
    config = MomConfig(hidden_size=hidden, num_hidden_layers=layers, num_heads=heads, head_dim=size, expand_v=1,
                       num_memories=4, topk=2, shared_mem=True, vocab_size=32000)  # fmt: skip
    model = MomForCausalLM(config).to("cuda", torch.bfloat16).eval()
    with torch.no_grad():
        cache = model(torch.randint(32000, (batch, 128), device="cuda"), use_cache=True).past_key_values
    token = torch.randint(32000, (batch, 1), device="cuda")

    def run():
        with torch.no_grad():
            model(token, past_key_values=cache, use_cache=True)
        torch.cuda.synchronize()

    return {"decoding": run}


def _forward_and_training(run, inputs):
    cotangent = torch.randn_like(run())

    def forward():
        with torch.no_grad():
            run()
        torch.cuda.synchronize()

    def training():
        torch.autograd.grad(run(), inputs, cotangent)
        torch.cuda.synchronize()

    return {"forward": forward, "training": training}
