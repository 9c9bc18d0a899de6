"""Starts of commands: with no compiled program kept, and again.

Each start is a process of its own, which tells how many programs it needed and how long JAX took to trace them and to
compile them (or to read them from the cache).
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

AGAIN = 2  # starts with kept programs, of which the faster one counts
_TRACING = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
_COMPILING = "/jax/core/compile/backend_compile_duration"
_TOLD = "MOM_JAX_START"  # names the file that a start writes what it has seen into

# The README's.
EXAMPLE = """\
import jax.numpy as jnp
from flax import nnx
from mom_jax import MoMForCausalLM, generate, load_balancing_loss
from mom_jax.models.presets import get_preset

cfg = get_preset("mom-tiny")
model = MoMForCausalLM(cfg, rngs=nnx.Rngs(0))
ids = jnp.arange(48).reshape(2, 24)
out = model(ids)                              # out.logits [2, 24, 264]
aux = load_balancing_loss(out.router_logits, cfg.topk)
step = model(ids, cache=model.init_cache(2))  # the same logits; step.cache goes on
print(out.logits.shape, float(aux), generate(model, ids, max_new_tokens=8).shape)
"""
TRAIN = "train mom-tiny --data.path shards --data.batch-size 4 --steps 4 --checkpoint.every 2 --eval-windows 4"
# name: arguments of mom-jax, or a program; the run's last checkpoint is taken away before train starts again.
STARTS = {
    "train, which goes on": f"{TRAIN} --run-dir run".split(),
    "train, in another folder": f"{TRAIN} --run-dir other".split(),
    "eval": ["eval", "run", "--max-windows", "4"],
    "generate": ["generate", "run", "--prompt", "def main(", "--max-new-tokens", "16"],
    "the README's ten lines": ["-c", EXAMPLE],
}


class Start(NamedTuple):
    """What a start took."""

    seconds: float
    cpu: float  # seconds of all processors
    programs: int
    tracing: float  # seconds, lowering included
    compiling: float  # seconds, reading from the cache included


def start_table() -> Iterator[str]:
    """Commands with an empty cache, and again."""
    yield "| command | programs | first s (CPU s) | again s (CPU s) | again / first | of it: tracing s | reading s |"
    yield "|---|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as place:
        _start(Path(place), "data", ["data", "prepare", "shards", "--data.path", "stdlib"])
        for number, (name, words) in enumerate(STARTS.items()):
            first, *others = [_again(Path(place), str(number), words, turn) for turn in range(1 + AGAIN)]
            again = min(others)
            cells = [name, first.programs, *(f"{s.seconds:.1f} ({s.cpu:.1f})" for s in (first, again))]
            cells += [f"{again.seconds / first.seconds:.2f} ({again.cpu / first.cpu:.2f})"]
            cells += [f"{again.tracing:.1f}", f"{again.compiling:.1f}"]
            yield f"| {' | '.join(map(str, cells))} |"


def _again(place: Path, cache: str, words: list[str], turn: int) -> Start:
    if turn and words[0] == "train":
        run = place / words[-1]
        shutil.rmtree(run / "checkpoints/4") if run.name == "run" else shutil.rmtree(run)
    return _start(place, cache, words)


def _start(place: Path, cache: str, words: list[str]) -> Start:
    """Runs a command in ``place``, with the cache of that name."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(place / f"cache-{cache}"), _TOLD: str(place / "told.json")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "mom_jax.benchmarks.start", *words]
    before, begin = _cpu(), time.perf_counter()
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, encoding="utf-8")
    seconds, cpu = time.perf_counter() - begin, _cpu() - before
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return Start(seconds, cpu, **json.loads((place / "told.json").read_text(encoding="utf-8")))


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """A start, in a process of its own: runs the command, and writes what JAX did for it."""
    from mom_jax.cli.main import main as command
    from mom_jax.compilation_cache import keep_programs

    keep_programs([])  # before JAX loads; an example gets the same cache
    from jax import monitoring

    spans: dict[str, list[tuple[float, float]]] = {event: [] for event in (*_TRACING, _COMPILING)}

    def note(event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event in spans:
            spans[event].append((start_time, end_time))

    monitoring.register_event_time_span_listener(note)
    words = sys.argv[1:]
    sys.argv = ["mom-jax", *words]
    status = exec(words[1], {}) or 0 if words[0] == "-c" else command()
    tracing = covered([span for event in _TRACING for span in spans[event]])
    told = {"programs": len(spans[_COMPILING]), "tracing": tracing, "compiling": covered(spans[_COMPILING])}
    Path(os.environ[_TOLD]).write_text(json.dumps(told), encoding="utf-8")
    return status


def covered(spans: list[tuple[float, float]]) -> float:
    """Seconds that lie in at least one of the spans, which may contain each other."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    sys.exit(main())
