"""Processes of their own, for what is fixed when JAX starts."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
COMPILERS = Path(sys.prefix) / "compilers"


def on_fake_devices(count: int, script: str | Path, *arguments: str | Path) -> str:
    """The output of a Python file run on so many simulated devices; its own message where it fails."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    # none of these programs is compiled again, and to keep one takes a quarter of the time to compile it
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    program = "import sys; from support import typechecked; typechecked.run(sys.argv[1:])"
    return output_of(["-c", program, str(script), *map(str, arguments)], environment)


def compiler(package: str) -> bool:
    """Whether one of the packages of tools/install_compilers.py is there."""
    return importlib.util.find_spec(package) is not None or (COMPILERS / package).is_dir()


def compiling(program: str) -> str:
    """The output of Python text that compiles kernels for accelerators, instead of interpreting them."""
    return output_of(["-c", program], {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"})


def output_of(arguments: list[str], environment: dict[str, str]) -> str:
    """What Python prints with these arguments, with tests and compilers in reach; its message where it fails."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), str(COMPILERS)])
    environment = {**environment, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
