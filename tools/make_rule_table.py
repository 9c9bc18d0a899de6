"""Measures every memory rule and writes the table of them into README.md.

    python tools/make_rule_table.py

Each number is the largest difference, relative to the largest value of its array, of a run in float32:

    alone, mixture   outputs: chunk by chunk and token by token
    gradients        of the mixture's input and parameters: chunk by chunk and token by token
    decoding         outputs of the mixture: a prefill of 5 tokens, single steps after it, and one pass over all
    reference        outputs, states and gradients of the operator: ours and what the PyTorch package's naive one gave
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.compare import relative_error  # noqa: E402
from support.parameters import randomised  # noqa: E402
from support.stored_operators import run_stored  # noqa: E402

from mom_jax.layers.mixer import MemoryMixer  # noqa: E402
from mom_jax.layers.rules.published import Published  # noqa: E402
from mom_jax.layers.rules.registry import find_rule  # noqa: E402
from mom_jax.models.config import MEMORY_RULES  # noqa: E402
from mom_jax.models.mixers import make_mixer  # noqa: E402
from mom_jax.models.presets import get_preset  # noqa: E402

README = ROOT / "README.md"
PLACE = re.compile(r"(<!-- memory rules -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = ("alone", "mixture", "gradients", "decoding", "reference")
STORED = {
    "gated_deltanet": "gated_delta_rule",
    "deltanet": "delta_rule",
    "linear_attention": "linear_attn_norm",
    "retnet": "retention",
}
ROWS, TIME = 2, 70


def layer_of(rule: str, mixture: bool, impl: str) -> MemoryMixer:
    """The memory layer of a rule's smallest preset, with random parameters."""
    config: Any = get_preset("mom-tiny" if rule == "gated_deltanet" else f"mom-tiny-{rule.replace('_', '-')}")
    config = config.__class__.from_dict(config.to_dict() | {"mixture": mixture, "hidden_size": 32, "impl": impl})
    layer = randomised(nnx.eval_shape(lambda: make_mixer(config, "memory", nnx.Rngs(0))), 0.2)
    assert isinstance(layer, MemoryMixer)
    return layer


def outputs_and_gradients(layer: MemoryMixer, x: jax.Array, dy: jax.Array) -> tuple[jax.Array, Any]:
    """Of one pass over x."""
    graph, params = nnx.split(layer)

    @jax.jit
    def run(params, x):
        y, pull = jax.vjp(lambda params, x: nnx.merge(graph, params)(x, layer=1)[0], params, x)
        return y, pull(dy)

    return run(params, x)


def decoded(layer: MemoryMixer, x: jax.Array) -> jax.Array:
    """Outputs of a prefill and single steps."""
    run = jax.jit(lambda x, cache: layer(x, None, None, cache, layer=1))
    y, _, cache = run(x[:, :5], layer.empty_cache(2, ROWS, jnp.float32))
    outputs = [y]
    for t in range(5, TIME):
        y, _, cache = run(x[:, t : t + 1], cache)
        outputs.append(y)
    return jnp.concatenate(outputs, 1)


def error(actual: Any, expected: Any) -> float:
    """The largest relative error of all arrays."""
    return max(relative_error(a, b) for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))


def measure(rule: str) -> dict[str, float]:
    """The numbers of one row."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(ROWS, TIME, 32)), jnp.float32) for _ in range(2))

    def both(impl: str) -> list[tuple[jax.Array, Any]]:
        return [outputs_and_gradients(layer_of(rule, mixture, impl), x, dy) for mixture in (False, True)]

    (y_alone, _), (y, gradients) = both("xla")
    (scan_alone, _), (scan, scan_gradients) = both("reference")
    return {
        "alone": error(y_alone, scan_alone),
        "mixture": error(y, scan),
        "gradients": error(gradients, scan_gradients),
        "decoding": error(decoded(layer_of(rule, True, "xla"), x), y),
        "reference": error(*run_stored(STORED.get(rule, rule), "xla")),
    }


def published_form(rule: str) -> tuple[str, str]:
    """What stands in a row before and behind the numbers."""
    paper, published = find_rule(rule).paper, find_rule(rule).published
    assert paper is not None, f"{rule} names no paper"
    link = f"`{rule}` ([{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}))"
    return link, f"`{published.model_type}`" if isinstance(published, Published) else ""


def main() -> None:
    """Measures and writes."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    lines = [f"| `memory_rule` | {' | '.join(COLUMNS)} | published as |", "|---" * (len(COLUMNS) + 2) + "|"]
    for rule in track(MEMORY_RULES, description="measuring"):
        numbers = measure(rule)
        before, behind = published_form(rule)
        lines.append(f"| {before} | {' | '.join(f'{numbers[name]:.0e}' for name in COLUMNS)} | {behind} |")
    table = "\n".join(lines) + "\n"
    page = PLACE.sub(lambda match: match[1] + table + match[2], README.read_text(encoding="utf-8"))
    README.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
