"""Measures every memory rule and writes the table of them into docs/rules.md.

    python tools/make_rule_table.py [--only comba,mamba3]

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

PAGE = ROOT / "docs/rules.md"
PLACE = re.compile(r"(<!-- memory rules -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = ("alone", "mixture", "gradients", "decoding", "reference")
STORED = {
    "gated_deltanet": "gated_delta_rule",
    "deltanet": "delta_rule",
    "linear_attention": "linear_attn_norm",
    "retnet": "retention",
    "raven": "gsa",
    "sse": "gla",
    "log_linear_mamba2": "log_linear",
}
# the PyTorch package has no recurrence of theirs that a CPU can run
WITHOUT_REFERENCE = ("mamba3", "erase_then_delta", "log_linear_gla", "sparse_delta_memory")
ROWS, TIME = 2, 70
IMPLS = ("xla", "reference")


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

    alone, scan_alone = (jax.jit(lambda layer: layer(x, layer=1).y)(layer_of(rule, False, impl)) for impl in IMPLS)
    (y, gradients), (scan, scan_gradients) = (
        outputs_and_gradients(layer_of(rule, True, impl), x, dy) for impl in IMPLS
    )
    return {
        "alone": error(alone, scan_alone),
        "mixture": error(y, scan),
        "gradients": error(gradients, scan_gradients),
        "decoding": error(decoded(layer_of(rule, True, "xla"), x), y),
    }


def beside_reference(rule: str) -> dict[str, float]:
    """The number of the operator, where there is one."""
    if rule in WITHOUT_REFERENCE:
        return {}
    return {"reference": error(*run_stored(STORED.get(rule, rule), "xla"))}


def published_form(rule: str) -> tuple[str, str]:
    """What stands in a row before and behind the numbers."""
    paper, published = find_rule(rule).paper, find_rule(rule).published
    assert paper is not None, f"{rule} names no paper"
    link = f"`{rule}` ([{paper.arxiv}]({paper.address}))"
    return link, f"`{published.model_type}`" if isinstance(published, Published) else ""


def row_of(rule: str) -> str:
    """A rule's row, measured."""
    numbers = measure(rule) | beside_reference(rule)
    before, behind = published_form(rule)
    cells = [f"{numbers[name]:.0e}" if name in numbers else "" for name in COLUMNS]
    return f"| {before} | {' | '.join(cells)} | {behind} |"


def main() -> None:
    """Measures and writes; rules that are not asked for keep their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(MEMORY_RULES))
    only, page = parser.parse_args().only.split(","), PAGE.read_text(encoding="utf-8")
    place = PLACE.search(page)
    assert place is not None, f"{PAGE} has no table"
    rows = {line.split("`")[1]: line for line in place[0].splitlines()[3:-1]}
    for rule in track(only, description="measuring"):
        rows[rule] = row_of(rule)
    lines = [f"| `memory_rule` | {' | '.join(COLUMNS)} | published as |", "|---" * (len(COLUMNS) + 2) + "|"]
    table = "\n".join([*lines, *(rows[rule] for rule in MEMORY_RULES if rule in rows)]) + "\n"
    PAGE.write_text(PLACE.sub(lambda match: match[1] + table + match[2], page), encoding="utf-8")


if __name__ == "__main__":
    main()
