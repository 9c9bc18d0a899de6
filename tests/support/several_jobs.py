"""Run by itself, as one of several processes that meet once: jobs one after the other, of which the last is watched."""

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from mom_jax.cli.main import main
from mom_jax.errors import InputError
from mom_jax.training import origin, processes
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.program import Program
from mom_jax.training.sharding import make_mesh


def meet_once() -> None:
    """Further jobs find the others where one has met them: JAX meets only once in a process."""
    connect = processes._connect

    def first(*arguments):
        connect(*arguments)
        processes._connect = lambda *_: None
        processes.meet = lambda *_: {}

    processes._connect = first


def go_on(file: str, *folders: str) -> int:
    """Prints the step with which a run goes on, or why it does not, for checkpoints in each of the folders."""
    config = TrainConfig.from_file(file)
    program = Program(config, make_mesh(MeshConfig(fsdp=2)))
    for folder in folders:
        with mock.patch.object(origin, "checkpoint_folder", lambda _, folder=folder: Path(folder)):
            try:
                found = origin.find_origin(config, SimpleNamespace(set_state=lambda position: None))
                print("step", int(origin.first_state(program, found).step))
            except InputError as error:
                print(error)
    return 0


def ended(kind: str, arguments: list[str]) -> tuple[int, str, str]:
    """The exit status of a job, what it prints, and its complaint."""
    with contextlib.redirect_stderr(io.StringIO()) as complaint, contextlib.redirect_stdout(io.StringIO()) as printed:
        return go_on(*arguments) if kind == "go on" else main(arguments), printed.getvalue(), complaint.getvalue()


if __name__ == "__main__":
    meet_once()
    *jobs, (_, last) = json.loads(sys.argv[1])
    ends = [ended(*job) for job in jobs]
    status = main(last)
    print(json.dumps(ends), flush=True)
    sys.exit(status)
