"""``python -m mom_jax.benchmarks.checkpoint_memory [PRESET]``: peak host memory of loading, saving and converting.

Random weights of a preset (mom-340m by default) go through `load_pretrained`, `save_pretrained` and
``mom-jax convert``, each in a process of its own. Memory is the resident set, mapped file pages
included; its peak is taken from Linux (``VmHWM``) over what the process held before it began.
The promise is a peak below the model plus 1.2 times the largest tensor of what is read: one
matrix of a published model, the matrices of all layers and memories together of a run.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

MIB = 2**20
READS = {"load": "matrix", "load and save": "matrix", "convert to a run": "matrix", "convert back": "stack"}


def main() -> None:
    """Prints the table."""
    preset = sys.argv[1] if len(sys.argv) > 1 else "mom-340m"
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: size / MIB for name, size in json.loads(_child("make", preset, folder)).items()}
        print("{}: model {model:.0f} MiB, largest matrix {matrix:.0f}, stacked {stack:.0f}\n".format(preset, **sizes))
        print("| what | seconds | peak MiB | over the model MiB | of the largest tensor |\n|---|---|---|---|---|")
        for what, reads in READS.items():
            measured = json.loads(_child(what, preset, folder))
            peak = measured["peak"] / MIB
            over = peak - sizes["model"]
            cells = (what, f"{measured['seconds']:.1f}", f"{peak:.0f}", f"{over:.0f}", f"{over / sizes[reads]:.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)


def _child(*arguments: str) -> str:
    command = [sys.executable, "-c", "import mom_jax.benchmarks.checkpoint_memory as m; m.measure()", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    return done.stdout.splitlines()[-1]


def measure() -> None:
    """One line of the table, in a process of its own; prints JSON."""
    what, preset, folder = sys.argv[1:]
    if what == "make":
        print(json.dumps(make(preset, Path(folder))))
        return
    run = _jobs(Path(folder))[what]
    jax.block_until_ready(jax.device_put(np.zeros(1)))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before, begin = _memory("VmRSS"), time.perf_counter()
    kept = run()
    print(json.dumps({"peak": _memory("VmHWM") - before, "seconds": time.perf_counter() - begin}))
    del kept


def make(preset: str, folder: Path) -> dict[str, int]:
    """Writes random weights of a preset tensor by tensor; returns bytes of the model and of its largest tensors."""
    from mom_jax.interop.keys import pieces
    from mom_jax.interop.published import write_config
    from mom_jax.interop.tensors import Tensor, write_tensors
    from mom_jax.models.presets import get_preset
    from mom_jax.models.structure import dotted, model_parts

    config, rng = get_preset(preset), np.random.default_rng(0)
    tensors, stacks = [], []
    for path, leaf in jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(model_parts(config).abstract))[0]:
        stacks.append(4 * leaf.size)
        for where, name, form in pieces(config, "mom", dotted(path), leaf.shape):
            shape = form.stored_shape(leaf.shape[len(where) :])
            tensors.append(Tensor(name, shape, lambda shape=shape: rng.standard_normal(shape, np.float32) * 0.02))
    (folder / "published").mkdir()
    write_config(config, folder / "published/config.json", "float32")
    write_tensors(folder / "published", tensors, "float32", 5 * 10**9, lambda done: None)
    return {
        "model": sum(stacks), "matrix": max(4 * math.prod(tensor.shape) for tensor in tensors), "stack": max(stacks)
    }  # fmt: skip


def _jobs(folder: Path):
    import mom_jax.cli.main
    import mom_jax.runs  # loaded here, so that only data counts
    from mom_jax.interop.pretrained import load_pretrained, save_pretrained

    def load():
        return load_pretrained(folder / "published")

    return {
        "load": load,
        "load and save": lambda: save_pretrained(load(), folder / "saved"),
        "convert to a run": lambda: mom_jax.cli.main.main(
            ["convert", str(folder / "published"), str(folder / "run"), "--tokenizer", "mistral"]
        ),
        "convert back": lambda: mom_jax.cli.main.main(["convert", str(folder / "run"), str(folder / "back")]),
    }


def _memory(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


if __name__ == "__main__":
    main()
