# pyright: reportMissingImports=false
"""Makes the stored arrays of the newer recurrences, tests/goldens/op_naive_*.npz, from the PyTorch package.

Runs the naive operators of flash-linear-attention 0.6.0 on a CPU, forward and backward. Needs Python 3.11,
torch 2.13.0 (CPU) and flash-linear-attention 0.6.0; some seconds.

    python tools/make_operator_goldens.py [--only gated_deltanet2,...] [--out tests/goldens]

A file holds ``in/*`` [1, T, H, ...] with the cotangents ``do`` and ``dstateN``, ``out/o`` and ``out/stateN``, and
``grad/*``; ``meta`` names the function. `tests/support/stored_operators.py` reads them.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid, normalize, softplus

warnings.filterwarnings("ignore")
TIME, HEADS, KEYS, VALUES, STEPS = 19, 2, 8, 12, 3
Tensors = dict[str, torch.Tensor]
Results = tuple[torch.Tensor, ...]  # outputs, then states


class Draw:
    """Random inputs of a recurrence, always the same."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(41)

    def normal(self, *shape: int) -> torch.Tensor:
        """Normal, on a grid of 1/64."""
        return torch.round(64 * torch.randn(*shape, generator=self.generator)) / 64

    def unit(self, *shape: int) -> torch.Tensor:
        """Of length 1 along the last axis."""
        return normalize(self.normal(*shape), dim=-1)

    def gate(self, *shape: int) -> torch.Tensor:
        """In (0, 1)."""
        return torch.sigmoid(self.normal(*shape))

    def log_gate(self, *shape: int) -> torch.Tensor:
        """Below 0."""
        return -softplus(self.normal(*shape))


def gated_deltanet2(draw: Draw) -> tuple[Tensors, Callable[..., Results]]:
    """Inputs, and the function of them."""
    from fla.ops.gdn2.naive import naive_recurrent_gdn2

    shape, values = (1, TIME, HEADS, KEYS), (1, TIME, HEADS, VALUES)
    inputs = {"q": draw.normal(*shape), "k": draw.unit(*shape), "v": draw.normal(*values), "g": draw.log_gate(*shape),
              "b": draw.gate(*shape), "w": draw.gate(*values),
              "initial_state": draw.normal(1, HEADS, KEYS, VALUES) / 2}  # fmt: skip
    return inputs, lambda **x: naive_recurrent_gdn2(**x, output_final_state=True)


def gated_deltaproduct(draw: Draw) -> tuple[Tensors, Callable[..., Results]]:
    """Keys, values and strengths of a token's steps stand one behind the other there, [1, T, H, steps, ...] here."""
    from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product as naive

    shape, steps = (1, TIME, HEADS, KEYS), (1, TIME, HEADS, STEPS)
    inputs = {"q": draw.normal(*shape), "k": draw.unit(*steps, KEYS), "v": draw.normal(*steps, VALUES),
              "g": draw.log_gate(1, TIME, HEADS), "beta": 2 * draw.gate(*steps),
              "initial_state": draw.normal(1, HEADS, KEYS, VALUES) / 2}  # fmt: skip

    def run(q: torch.Tensor, g: torch.Tensor, initial_state: torch.Tensor, **own: torch.Tensor) -> Results:
        own = {name: x.transpose(2, 3).flatten(1, 2) for name, x in own.items()}
        state = {"initial_state": initial_state, "output_final_state": True}
        return naive(q=q, g=g, **own, scale=KEYS**-0.5, **state, num_householder=STEPS)

    return inputs, run


def comba(draw: Draw) -> tuple[Tensors, Callable[..., Results]]:
    """Its chunked form: the recurrent one lets p read the decayed state, which no kernel of the package does."""
    from fla.ops.comba.naive import naive_chunk_comba

    shape, values = (1, TIME, HEADS, KEYS), (1, TIME, HEADS, VALUES)
    inputs = {"q": draw.normal(*shape), "k": draw.unit(*shape), "v": draw.normal(*values), "p": draw.unit(*shape),
              "g": draw.log_gate(1, TIME, HEADS), "beta": draw.gate(1, TIME, HEADS),
              "initial_state": draw.normal(1, HEADS, KEYS, VALUES) / 2}  # fmt: skip
    return inputs, lambda **x: naive_chunk_comba(**x, chunk_size=16, output_final_state=True)


def mesanet(draw: Draw) -> tuple[Tensors, Callable[..., Results]]:
    """Solved exactly, not by its thirty steps of conjugate gradients."""
    from fla.ops.mesa_net.naive import naive_mesa_net_exact

    shape, keys = (1, TIME, HEADS, KEYS), draw.unit(HEADS, KEYS, KEYS)
    inputs = {"q": draw.unit(*shape), "k": draw.unit(*shape), "v": draw.normal(*shape),
              "g": logsigmoid(draw.normal(1, TIME, HEADS)), "beta": draw.gate(1, TIME, HEADS),
              "lamb": 0.25 + softplus(draw.normal(HEADS, KEYS)), "h_kk_init": (keys.mT @ keys)[None] / 2,
              "h_kv_init": draw.normal(1, HEADS, KEYS, KEYS) / 2}  # fmt: skip
    return inputs, lambda **x: flat(naive_mesa_net_exact(**x))


def log_linear(draw: Draw) -> tuple[Tensors, Callable[..., Results]]:
    """Over scalar decay, its only form, with as many levels as 32 tokens have."""
    from fla.ops.log_linear_attn.naive import naive_log_linear_attn

    shape, values = (1, 32, HEADS, KEYS), (1, 32, HEADS, VALUES)
    inputs = {"q": draw.normal(*shape), "k": draw.normal(*shape), "v": draw.normal(*values),
              "g": draw.log_gate(1, 32, HEADS), "level_scales": draw.gate(1, 32, HEADS, 6)}  # fmt: skip
    return inputs, lambda **x: (naive_log_linear_attn(**x),)


def flat(results: Any) -> Results:
    """Outputs and states in one tuple."""
    first, *rest = results
    return first, *(x for part in rest for x in (part if isinstance(part, tuple) else (part,)))


RECURRENCES = {make.__name__: make for make in (gated_deltanet2, gated_deltaproduct, comba, mesanet, log_linear)}


def stored(name: str) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    draw = Draw()
    inputs, function = RECURRENCES[name](draw)
    inputs = {key: x.float().contiguous().requires_grad_() for key, x in inputs.items()}
    o, *states = function(**inputs)
    do, dstates = draw.normal(*o.shape), [draw.normal(*state.shape) for state in states]
    total: Any = sum((x * dx).sum() for x, dx in zip((o, *states), (do, *dstates), strict=True))
    total.backward()
    arrays = {"in/do": do, "out/o": o}
    for i, (state, dstate) in enumerate(zip(states, dstates, strict=True)):
        arrays |= {f"out/state{i}": state, f"in/dstate{i}": dstate}
    arrays |= {f"in/{key}": x for key, x in inputs.items()}
    arrays |= {f"grad/{key}": x.grad for key, x in inputs.items() if x.grad is not None}
    finite = all(math.isfinite(float(x.abs().max())) for x in arrays.values())
    assert finite, f"{name}: not finite"
    meta = {"case": name, "shapes": {key: list(x.shape) for key, x in inputs.items()}}
    return {"meta": np.array(json.dumps(meta))} | {key: x.detach().numpy() for key, x in arrays.items()}


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(RECURRENCES))
    parser.add_argument("--out", default="tests/goldens", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only.split(","):
        arrays: dict[str, Any] = stored(name)
        np.savez_compressed(arguments.out / f"op_naive_{name}.npz", **arrays)
        print(name, {key: x.shape for key, x in arrays.items() if key.startswith("out/")})


if __name__ == "__main__":
    main()
