"""Measures the tables of docs/parity.md: models of every kind beside the PyTorch reference, and the budget of bfloat16.

    pip install -e '.[parity]'
    python tools/measure_parity.py [--only NAME,...] [--kernels interpreter]

Each model is random, with parameters of the size that training leads to, saved here and loaded there. The reference
runs naive PyTorch, or in float32 its Triton kernels through the interpreter. Prints Markdown, on a CPU of two cores in
about a quarter of an hour, through the interpreter in an hour.
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from mom_jax import MoMConfig, MoMForCausalLM, save_pretrained
from mom_jax.evals.compare.budget import error_budget
from mom_jax.evals.compare.comparison import Comparison, compare, tolerances
from mom_jax.evals.compare.ours import Ours
from mom_jax.evals.compare.tokens import random_tokens
from mom_jax.evals.reference.install import Kernels, installed_versions
from mom_jax.models.config import AttentionConfig
from mom_jax.models.structure import model_parts

SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16}
WIDER: dict[str, Any] = {"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 4, "num_heads": 2, "head_dim": 64}
EXACT: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no shared memory": {"shared_mem": False},
    "one projection": {"single_kv_proj": True},
    "top-1 of 3": {"topk": 1, "num_memories": 3},
    "top-3 of 8": {"topk": 3, "num_memories": 8},
    "V = 2 K": {"expand_v": 2.0},
    "tied": {"tie_word_embeddings": True},
    "no output gate": {"use_output_gate": False},
    "hybrid": {
        "num_hidden_layers": 3,
        "attn": AttentionConfig(layers=(1,), num_heads=2, num_kv_heads=1, window_size=9),
    },
    "24 layers": {"num_hidden_layers": 24},
}
ROUNDED: dict[str, dict[str, Any]] = {"small": SMALL, "wider": WIDER}


def random_model(options: dict[str, Any], scale: float) -> MoMForCausalLM:
    """Parameters drawn with a standard deviation of ``scale``, norms around 1."""
    config = MoMConfig(intermediate_size=2 * options["hidden_size"], **options)
    parts, rng = model_parts(config), np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(0, scale, leaf.shape)
        return np.asarray(values + ("norm" in jax.tree_util.keystr(path)), np.float32)

    return parts.merge(jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(parts.abstract)))


def row(name: str, result: Comparison) -> str:
    """The largest relative differences of one model."""

    def worst(parts: Iterable[Any]) -> str:
        return f"{max(part.max_rel for part in parts if part):.0e}"

    def of(kind: str) -> str:
        return worst(part for part in result.outputs if part.quantity.startswith(kind))

    choices = [layer.choices for layer in result.layers if layer.choices]
    differing, tokens = (sum(getattr(c, field) for c in choices) for field in ("differing", "tokens"))
    assert result.generation is not None
    cells = [
        name,
        worst(layer.hidden for layer in result.layers),
        worst(layer.router for layer in result.layers),
        f"{tokens - differing} of {tokens}",
        of("logits"),
        of("loss"),
        worst(result.gradients),
        of("decode"),
        f"{result.generation.equal} of {result.generation.total}",
        "yes" if result.ok else "NO",
    ]
    return f"| {' | '.join(cells)} |"


def exact(folder: Path, names: Iterable[str], kernels: Kernels) -> None:
    """Every kind of model in float32."""
    from mom_jax.evals.reference.model import Reference, running

    columns = ["blocks", "router", "choices equal", "logits", "loss", "gradients", "decoding", "greedy tokens"]
    print(f"| model | {' | '.join(columns)} | all within |")
    print(f"|---|{'---:|' * len(columns)}---|")
    for name in names:
        model = random_model(SMALL | EXACT[name], 0.2 if name != "24 layers" else 0.1)
        save_pretrained(model, folder / name)
        ids = random_tokens(model.config, 2, 70, seed=0)
        with running(kernels, model.config.num_memories):
            result = compare(Ours(model), Reference(folder / name), ids, 64, tolerances())
        print(row(name, result), flush=True)
        if name == "24 layers":
            print_depth(result)


def print_depth(result: Comparison) -> None:
    """How differences grow with depth."""
    layers = {layer.number: layer for layer in result.layers if layer.number % 4 in (0, 3)}
    print("\n| layer |", " | ".join(map(str, layers)), "|\n|---|" + "---:|" * len(layers))
    print("| block output |", " | ".join(f"{layer.hidden.max_rel:.0e}" for layer in layers.values()), "|", flush=True)


def rounded(folder: Path, names: Iterable[str]) -> None:
    """The error of bfloat16, with naive operators."""
    from mom_jax.evals.reference.model import Reference, running

    for name in names:
        model = random_model(ROUNDED[name], 0.2 if name == "small" else 0.05)
        save_pretrained(model, folder / name)
        draws = [random_tokens(model.config, 4, 96, seed) for seed in range(5)]
        with running("naive", model.config.num_memories):
            exactly = Reference(folder / name, rounded=True)
            sides = Ours(model, "bfloat16", rounded=True), Reference(folder / name, "bfloat16")
            budget = error_budget(*sides, exactly, draws)
        print(f"\n{name}: {budget.draws} draws of 4 x 96 tokens; the whole model over {budget.compared:.0%} of them\n")
        print("| error of | reference | ours | ours / reference |\n|---|---:|---:|---:|")
        for line in budget.lines:
            ratio = f"{line.ours / line.reference:.2f}" if line.reference else "-"
            print(f"| {line.quantity} | {line.reference:.2e} | {line.ours:.2e} | {ratio} |", flush=True)


def main() -> None:
    """Runs the models that are asked for, all by default."""
    parser = argparse.ArgumentParser(description="Measures the tables of docs/parity.md.")
    parser.add_argument("--only", default=",".join([*EXACT, *ROUNDED]), help="names, separated by commas")
    parser.add_argument("--kernels", choices=("naive", "interpreter"), default="naive", help="of float32")
    arguments = parser.parse_args()
    selected = arguments.only.split(",")
    print(", ".join(f"{package} {version}" for package, version in installed_versions().items()), "\n", flush=True)
    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision("highest"):
        if names := [name for name in EXACT if name in selected]:
            exact(Path(folder), names, arguments.kernels)
        if names := [name for name in ROUNDED if name in selected]:
            rounded(Path(folder), names)


if __name__ == "__main__":
    main()
