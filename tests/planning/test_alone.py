"""Calls in processes of their own: what they return, raise and say, and what is left of those that die."""

import os
import pickle
import subprocess
import sys

import pytest

from mom_jax.errors import InputError
from mom_jax.planning.alone import Died, alone
from mom_jax.planning.chips import find_topology
from mom_jax.planning.compiled import TooLarge

FATAL = "F1128 23:21:25.047231   16207"
SAID = "emitter.cc:11591] Check failed: rank == 2 no window for x[2] %fusion"


def test_result_and_error(capfd):
    """Come back whole; what a library writes to stderr stays there, what Python writes does not."""
    assert alone(exec, "import os, sys; os.write(2, b'noise'); print('said', file=sys.stderr)") is None
    assert alone(sorted, [2, 1]) == [1, 2]
    assert capfd.readouterr().err == "said\n"
    with pytest.raises(InputError, match=r"^topology=v9:1: unknown") as raised:
        alone(find_topology, "v9:1")
    assert "chips.py" in raised.value.__notes__[0]
    assert pickle.loads(pickle.dumps(TooLarge(7))).needed == 7


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (f"os.write(2, b'begun\\n{FATAL} {SAID}\\n  @ 0x7f stack\\n'); os.abort()", SAID.replace("]", ":", 1)),
        ("os.write(2, b'LLVM ERROR: Cannot select\\n'); os.abort()", "Cannot select"),
        ("os.write(2, b'*** SIGSEGV received by PID 3\\n'); os._exit(1)", "SIGSEGV"),
        ("os.kill(os.getpid(), 9)", "killed by signal 9, as where a machine is out of memory"),
        ("os._exit(3)", "status 3"),
    ],
)
def test_death(program, reason, capfd):
    """Its last words, or else how it ended; nothing of it reaches the terminal, and no core is left."""
    with pytest.raises(Died) as died:
        alone(exec, f"import os; {program}")
    assert str(died.value) == reason
    assert capfd.readouterr() == ("", "")


def test_ends_with_its_parent():
    """However that ends: else a compiler would go on for minutes."""
    sleep = "import time; print('begun', flush=True); time.sleep(600)"
    program = f"from mom_jax.planning.alone import alone; alone(exec, {sleep!r})"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "begun\n"
        parent.kill()
        assert parent.stdout.read() == ""  # when both have ended
