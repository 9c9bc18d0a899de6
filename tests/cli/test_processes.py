"""Two processes of two devices each train one model; what goes wrong in one ends both."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support.processes import TESTS

from mom_jax.cli.main import main
from mom_jax.errors import InputError
from mom_jax.training import processes
from mom_jax.training.config import ProcessesConfig
from mom_jax.training.log import read_metrics
from mom_jax.training.processes import check_same, join
from mom_jax.training.sittings import packages


class Pair:
    """A program in two processes that meet on this machine; what each prints, and how it ends.

    Args:
        program: Python's arguments, from the number of the process and the options by which it meets the other.
        folders: where each of them works.
    """

    def __init__(self, program: Callable[[int, list[str]], list[str]], folders: tuple[Path | None, ...] = (None, None)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"  # no name that has to be looked up
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
        clusters = ("SLURM", "OMPI", "KUBERNETES", "TPU", "JAX_COORDINATOR")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(clusters)}
        environment |= {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))}
        meet = ["--processes.coordinator", address, "--processes.count", "2", "--processes.index"]
        self.processes = [
            subprocess.Popen(
                [sys.executable, *program(index, [*meet, str(index)])],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder,
            )
            for index, folder in enumerate(folders)
        ]  # fmt: skip

    def wait_for(self, line: str) -> None:
        """Returns when the first process has printed a line that begins like this."""
        assert self.processes[0].stdout is not None
        assert any(printed.startswith(line) for printed in self.processes[0].stdout)

    def end(self) -> tuple[list[int], list[str], list[str]]:
        """Exit statuses, outputs and complaints of both."""
        both = [process.communicate(timeout=300) for process in self.processes]
        return [process.returncode for process in self.processes], [out for out, _ in both], [err for _, err in both]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """Training and held-out losses, in the order of their steps."""
    return [(record["step"], record.get("loss", record.get("held_out_loss"))) for record in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def command(tiny_run) -> list[str]:
    """Twelve steps on parameters that are split over two devices."""
    return [*tiny_run, "--steps", "12", "--log-every", "2", "--eval-every", "6", "--checkpoint.every", "6"]


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory) -> Path:
    """A run of one process, with checkpoints at 6 and 12."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert main(["train", "mom-tiny", *command, "--run-dir", str(run_dir)]) == 0
    return run_dir


MISTAKES = {  # what the second process is told, and what each of them complains about
    "another seed": (["--seed", "5"], ("seed=0: is not the same in all", "seed=5: is not the same in all")),
    "no text": (["--data.path", "nowhere.txt"], ("another process gave up", "nowhere.txt: no such file")),
    "no number": (["--steps", "many"], ("another process gave up", "steps=many: expected a whole number")),
    "a folder that only one sees": (["--run-dir", "run"], ("another process gave up", "has to be one that all")),
}


@pytest.fixture(scope="module")
def met(command, alone, tmp_path_factory):
    """What two processes do one after the other, each in a folder of its own: lines with mistakes; going on with
    checkpoints that differ; a run whose second process gets SIGTERM."""
    places = tuple(tmp_path_factory.mktemp(name) for name in ("one", "other"))
    run_dir = places[0] / "run [1]"  # a name that Orbax misreads
    # The checkpoints of each process lie in a folder of its own, as where they read different copies of one disk.
    seen = [[place / f"checkpoints {which}" for which in ("a", "b")] for place in places]
    for folder in (*seen[0], *seen[1]):
        shutil.copytree(alone / "checkpoints", folder)
    for folder in (seen[0][0], seen[1][1]):
        for path in (folder / "12/params").rglob("d/*"):
            path.write_bytes(path.read_bytes()[:-9])
    train = ["train", "mom-tiny", *command, "--run-dir"]

    def jobs(index, meet):
        told = [[*train, "run", *(second if index else []), *meet] for second, _ in MISTAKES.values()]
        lines = [("line", line) for line in ([*train, "run", "--processes.coordinator", "auto"], *told)]
        lines += [("go on", [f"{alone}/config.json", *map(str, seen[index])])]
        lines += [("line", [*train, str(run_dir), "--mesh.fsdp", "2", *meet])]
        return [str(TESTS / "support" / "several_jobs.py"), json.dumps(lines)]

    pair = Pair(jobs, folders=places)
    pair.wait_for("step 6/")
    pair.processes[1].send_signal(signal.SIGTERM)
    statuses, printed, complaints = pair.end()
    assert statuses == [0, 0], complaints
    names = ("no cluster", *MISTAKES, "go on")
    ends = [dict(zip(names, json.loads(text.splitlines()[-1]), strict=True)) for text in printed]
    return SimpleNamespace(run_dir=run_dir, ends=ends, printed=printed, complaints=complaints, seen=seen, places=places)


@pytest.mark.exhaustive
def test_a_signal_to_one_stops_both_at_one_step(met):
    assert all("it was set aside" in line for text in met.complaints for line in text.splitlines())
    first, second = met.printed
    assert "by another process; saved in" in first
    assert not any(line for line in second.splitlines()[:-1] if "Gloo" not in line)
    (step,) = {int(path.name) for path in (met.run_dir / "checkpoints").iterdir()} - {6} or {6}
    assert 6 <= step < 12 and step % 2 == 0
    assert json.loads((met.run_dir / "sittings.jsonl").read_text(encoding="utf-8"))["devices"] == "4 cpu"


@pytest.mark.exhaustive
def test_one_process_goes_on_with_the_same_losses(met, alone, command):
    assert main(["train", "mom-tiny", *command, "--run-dir", str(met.run_dir)]) == 0
    together, by_one = losses(met.run_dir), losses(alone)
    assert [step for step, _ in together] == [2, 4, 6, 6, 8, 10, 12, 12] == [step for step, _ in by_one]
    np.testing.assert_allclose([x for _, x in together], [x for _, x in by_one], rtol=2e-4)


@pytest.mark.exhaustive
def test_a_checkpoint_that_only_one_finds_damaged(met):
    """Where it is the first process, which checks it for all, both go on from the one before; otherwise both end."""
    (status, first, _), (other, second, _) = (end["go on"] for end in met.ends)
    first, second = ([line for line in text.splitlines() if "Gloo" not in line] for text in (first, second))
    assert status == other == 0
    assert first[0] == second[0] == "step 6" and len(first) == len(second) == 2
    assert "another process gave up" in first[1]
    assert f"{met.seen[1][1]}/12/params: cannot be read" in second[1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_in_one_ends_both(mistake, met):
    for message, end in zip(MISTAKES[mistake][1], met.ends, strict=True):
        status, _, complaint = end[mistake]
        assert status == 2 and message in complaint and complaint.count("\n") == 1
    assert not any((place / "run" / "config.json").exists() for place in met.places)


def test_other_versions_are_refused(monkeypatch):
    """By the first that differs, with this process's own."""
    digests = lambda mine: np.stack([mine, mine ^ 1])  # noqa: E731
    same = lambda mine: np.stack([mine, mine])  # noqa: E731
    seen = iter([digests, *[same] * list(packages()).index("jax"), digests])
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda mine: next(seen)(mine))
    with pytest.raises(InputError, match=rf"^jax={packages()['jax']}: is not the same in all processes; install"):
        check_same(packages(), "install the same versions for all of them")


@pytest.mark.exhaustive
def test_no_cluster_is_one_line(met):
    """Before JAX has met anybody."""
    for end in met.ends:
        status, _, complaint = end["no cluster"]
        assert status == 2 and complaint.count("\n") == 1
        assert "coordinator=auto: finds no Slurm, Open MPI, Kubernetes or TPU pod here; give HOST:PORT" in complaint


def test_the_coordinator_listens_at_its_address_alone(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"coordinator={address}: process 0 cannot listen there .*in use"):
            free.listen()
            join(ProcessesConfig(address, 2, 0))
    with pytest.raises(InputError, match=r"process 0 cannot listen there .*; give a free port of its own machine"):
        join(ProcessesConfig("192.0.2.1:1234", 2, 0))  # nobody's, by RFC 5737
    called = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **options: called.update(options))
    join(ProcessesConfig(address, 1, 0))
    assert called["coordinator_bind_address"] == address


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--processes.coordinator here", "processes.coordinator=here: is written HOST:PORT, or auto"),
        ("--processes.coordinator here:1", "processes.count=None: is needed with a coordinator that is not auto"),
        (
            "--processes.coordinator nowhere.invalid:1 --processes.count 2 --processes.index 1",
            "processes.coordinator=nowhere.invalid:1: process 0 does not answer there",
        ),
        ("--processes.count 2", "processes.count=2: goes with --processes.coordinator HOST:PORT"),
        ("--processes.coordinator here:1 --processes.count 2 --processes.index 2", "index=2: must lie between 0 and 1"),
    ],
)  # fmt: skip
def test_a_process_that_does_not_know_its_place_is_one_line(options, message, complaint):
    assert message in complaint("train", "mom-tiny", *options.split())
