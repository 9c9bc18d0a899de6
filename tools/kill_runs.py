"""Kills a tiny training run at random moments, again and again, and compares it with one that was left alone.

Moments are drawn over whole steps and, every other time, over the writing of a checkpoint. Of several processes one is
killed, drawn too, and the others have to end by themselves. Prints a line for each kill, then a row of
docs/reliability.md:

    python tools/kill_runs.py --kills 20 --processes 1
    python tools/kill_runs.py --kills 20 --processes 2
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jax
import numpy as np

from mom_jax.runs import one_device
from mom_jax.training.checkpoint import load_run
from mom_jax.training.log import read_metrics

_SIZES = "--model.hidden-size 32 --model.num-hidden-layers 1 --model.head-dim 16 --model.intermediate-size 64"
_RUN = "--data.sequence-length 64 --log-every 2 --eval-every 100000 --checkpoint.every 4 --checkpoint.keep 3"
_BOUND = 120  # seconds in which the processes that are left have to end


def command(run_dir: Path, text: Path, steps: int) -> list[str]:
    """The line that trains a run."""
    places = ["--data.path", str(text), "--data.cache-dir", str(text.parent / "cache"), "--run-dir", str(run_dir)]
    options = [*_SIZES.split(), *_RUN.split(), "--steps", str(steps), *places]
    return [sys.executable, "-m", "mom_jax", "train", "mom-tiny", *options]


def start(line: list[str], count: int, folder: Path) -> list[subprocess.Popen]:
    """The run in so many processes, each of one device; what they complain about goes into files of the folder."""
    meet = [[]]
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        by = ["--processes.coordinator", address, "--processes.count", str(count), "--processes.index"]
        meet = [[*by, str(index)] for index in range(count)]
    processes = []
    for index, more in enumerate(meet):
        with _complaints(folder, index).open("w", encoding="utf-8") as file:
            processes.append(subprocess.Popen([*line, *more], stdout=subprocess.DEVNULL, stderr=file))
    return processes


def _complaints(folder: Path, index: int) -> Path:
    return folder / f"complaints-{index}"


def said_so(folder: Path, count: int) -> int:
    """How many processes have said in one line that another one ended before them, and nothing else of their own."""
    texts = [_complaints(folder, index).read_text(encoding="utf-8", errors="replace") for index in range(count)]
    own = [[line for line in text.splitlines() if line.startswith("mom-jax: ")] for text in texts]
    return sum(len(lines) == 1 and "ended before the others" in lines[0] for lines in own)


def last_words(folder: Path, count: int) -> str:
    """The last lines of what each process has complained about."""
    texts = [_complaints(folder, index).read_text(encoding="utf-8", errors="replace") for index in range(count)]
    return "\n".join(line for text in texts for line in text.splitlines()[-3:])


def ended(processes: list[subprocess.Popen]) -> bool:
    """Whether one of them has."""
    return any(process.poll() is not None for process in processes)


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.exists() and path.stat().st_size else 0.0


def wait_for_moment(run_dir: Path, processes: list[subprocess.Popen], rng: random.Random, inside_save: bool) -> None:
    """Returns at a random moment after the sitting's first step, or as soon as a checkpoint is being written."""
    metrics, begun = run_dir / "metrics.jsonl", time.time()
    while not ended(processes) and _written(metrics) <= begun:
        time.sleep(0.02)
    if not inside_save:
        time.sleep(rng.uniform(0, 1.5))
        return
    while not ended(processes) and not list((run_dir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))


def kill_one(processes: list[subprocess.Popen], rng: random.Random) -> float:
    """Kills one process; returns the seconds in which the others ended."""
    victim = rng.choice(processes)
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    for process in processes:
        process.wait(_BOUND)
    return time.monotonic() - killed


def differences(run_dir: Path, reference: Path) -> list[str]:
    """What is not bit for bit the same in two runs."""
    found = []
    losses = [[(r["step"], r["loss"]) for r in read_metrics(run) if "loss" in r] for run in (run_dir, reference)]
    if losses[0] != losses[1]:
        found.append("losses")
    models = [jax.tree.leaves(load_run(run, one_device())[1]) for run in (run_dir, reference)]
    if not all(np.array_equal(a, b) for a, b in zip(*models, strict=True)):
        found.append("parameters")
    return found


def main() -> int:
    """Runs the kills; the exit status is 0 if the run is that which was left alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2500, help="enough that the run outlives its kills")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        text = folder / "text.txt"
        text.write_text(" ".join(rng.choices(["some", "words", "of", "a", "text"], k=20000)), "utf-8")
        run_dir, parting, told, kills, saves = folder / "killed", 0.0, 0, 0, 0
        while kills < arguments.kills:
            processes = start(command(run_dir, text, arguments.steps), arguments.processes, folder)
            wait_for_moment(run_dir, processes, rng, inside_save=kills % 2 == 1)
            if ended(processes):
                statuses = [process.wait(_BOUND) for process in processes]
                print(f"ended by itself with {statuses} before kill {kills + 1}")
                return 1
            kills, saves = kills + 1, saves + kills % 2
            seconds = kill_one(processes, rng)
            parting, told = max(parting, seconds), told + said_so(folder, arguments.processes)
            checkpoints = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
            print(f"kill {kills}: the others ended after {seconds:.1f} s; checkpoints {checkpoints}", flush=True)
            if arguments.processes > 1:
                print(textwrap.indent(last_words(folder, arguments.processes), "    "), flush=True)
        for run in (run_dir, folder / "alone"):
            processes = start(command(run, text, arguments.steps), arguments.processes, folder)
            if any(process.wait() for process in processes):
                print(f"{run} cannot be trained to its end")
                return 1
        found = differences(run_dir, folder / "alone")
    same = f"no: {', '.join(found)}" if found else "yes"
    others = f"{parting:.0f} s, {told} of {kills * (arguments.processes - 1)} in one line"
    print(f"| {arguments.processes} | {kills} | {saves} | {others if arguments.processes > 1 else '-'} | {same} |")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
