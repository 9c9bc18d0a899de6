"""Measures how far bfloat16 states of memories drift from float32 ones while a trained model reads a long text.

    python tools/measure_state_drift.py RUN [RUN ...] [--text FILE] [--tokens 65536]

Both read the same tokens one by one, as decoding does; the rounded states are rounded at every token. Prints a line of
Markdown for each run and position: the relative error of all states there (root of summed squares), and over the
512 tokens up to it the relative error of logits about their mean, the divergence KL(float32, bfloat16) and the loss
that the rounding adds, both in nats, and how often both would have chosen the same token greedily. The default text
is `_pydecimal.py` of Python's own library; the table of docs/benchmarks.md says how its runs were trained.
"""

import argparse
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.data.tokenizers import load_tokenizer
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.runs import one_device, opened_run

WINDOW = 512
POSITIONS = (1024, 4096, 16384, 65536)
HEADING = "| rule | tokens read | states, relative | logits, relative | KL, nats | added loss, nats | same choice |"


def drift(model: MoMForCausalLM, ids: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """What differs at each token, a window of `WINDOW` tokens at a time."""
    graph, params = nnx.split(model.rounded())
    caches = tuple(model.init_cache(1, len(ids), dtype) for dtype in ("float32", "bfloat16"))
    for start in range(0, len(ids) - 1, WINDOW):
        inputs, labels = ids[start : start + WINDOW], ids[start + 1 : start + WINDOW + 1]
        caches, found = _window(graph, params, caches, inputs[: len(labels)], labels)
        yield jax.device_get(found)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _window(graph: Any, params: Any, caches: Any, inputs: jax.Array, labels: jax.Array) -> Any:
    model = nnx.merge(graph, params)

    def token(caches, pair):
        token_id, label = pair
        outs = [model(token_id[None, None], cache=cache) for cache in caches]
        exact, rounded = (jax.nn.log_softmax(out.logits[0, 0]) for out in outs)
        about_mean = [x - x.mean() for x in (exact, rounded)]
        found = {
            "states": _relative(*(_matrices(out.cache) for out in outs)),
            "logits": _relative([about_mean[0]], [about_mean[1]]),
            "kl": jnp.sum(jnp.exp(exact) * (exact - rounded)),
            "loss": exact[label] - rounded[label],
            "same": (exact.argmax() == rounded.argmax()).astype(jnp.float32),
        }
        return tuple(out.cache for out in outs), found

    return jax.lax.scan(token, caches, (inputs, labels))


def _matrices(cache: Any) -> list[jax.Array]:
    return [state.astype(jnp.float32) for state in jax.tree.leaves(cache.memory.recurrent)]


def _relative(exact: list[jax.Array], rounded: list[jax.Array]) -> jax.Array:
    apart = sum(jnp.sum((a - b) ** 2) for a, b in zip(exact, rounded, strict=True))
    return jnp.sqrt(apart / sum(jnp.sum(a**2) for a in exact))


def lines(run: str, text: str, tokens: int) -> Iterator[str]:
    """The table's lines of a run."""
    with opened_run(run, one_device()) as (config, model, _):
        ids = load_tokenizer(config.data.tokenizer).encode(text)[: tokens + 1]
        for number, found in enumerate(drift(model, ids), 1):
            if number * WINDOW in POSITIONS:
                mean = {name: float(x.mean()) for name, x in found.items()}
                yield (
                    f"| {config.model.memory_rule} | {number * WINDOW:,} | {found['states'][-1]:.1e} "
                    f"| {mean['logits']:.1e} | {mean['kl']:.1e} | {mean['loss']:+.1e} | {mean['same']:.1%} |"
                )


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--text", type=Path, help="of more tokens than are read")
    parser.add_argument("--tokens", type=int, default=POSITIONS[-1])
    arguments = parser.parse_args()
    spec = importlib.util.find_spec("_pydecimal")
    assert spec is not None and spec.origin is not None
    text = (arguments.text or Path(spec.origin)).read_text(encoding="utf-8")
    print(HEADING, "|---" * HEADING.count(" |") + "|", sep="\n")
    for run in arguments.runs:
        for line in lines(run, text, arguments.tokens):
            print(line, flush=True)


if __name__ == "__main__":
    main()
