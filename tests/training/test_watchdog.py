"""A step that hangs: a process of its own, which loads no JAX."""

import subprocess
import sys
import time
from contextlib import closing

from mom_jax.training.watchdog import Watchdog

HANGS = """
import sys, threading, time
from contextlib import closing
from mom_jax.training.watchdog import Watchdog

def stuck_thread():
    time.sleep(60)

def stuck_step():
    time.sleep(60)

threading.Thread(target=stuck_thread, daemon=True).start()
watchdog = Watchdog(0.5 / 60)
with closing(watchdog):
    for _ in range(3):
        watchdog.beat()
        time.sleep(0.05)
    stuck_step()
"""


def test_every_threads_stack_is_shown_and_the_process_ends():
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 1 and time.monotonic() - started < 40
    first, *rest = ended.stderr.splitlines()
    assert first.startswith("mom-jax: watchdog_minutes=0.00833333: no step was finished for so long")
    assert any("stuck_step" in line for line in rest) and any("stuck_thread" in line for line in rest)
    assert rest[-1] == "mom-jax: run the same command again to continue from the newest checkpoint"


def test_it_stops_watching_when_the_run_ends(monkeypatch):
    watchdog = Watchdog(0.02 / 60)
    monkeypatch.setattr(watchdog, "_end", lambda: ended.append(1))
    ended = []
    with closing(watchdog):
        watchdog.beat()
    time.sleep(0.1)
    assert ended == []
    Watchdog(None).beat()
