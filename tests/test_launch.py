"""The files of launch/: their syntax, and that every option they give to mom-jax exists."""

import os
import re
import shlex
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mom_jax.cli.train import TrainArguments, parse_train

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS, MANIFESTS = ("slurm.sbatch", "tpu-vm.sh"), ("jobset-tpu.yaml", "jobset-gpu.yaml")
# Of sbatch's manual.
SBATCH = {
    "job-name",
    "nodes",
    "gpus-per-node",
    "ntasks-per-node",
    "cpus-per-task",
    "time",
    "requeue",
    "signal",
    "output",
    "open-mode",
}
DOCKERFILE = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT", "CMD"}


def text(name: str) -> str:
    """A file's text."""
    return (LAUNCH / name).read_text(encoding="utf-8")


def commands(name: str) -> Iterator[list[str]]:
    """The words behind ``mom-jax train`` in a script or a manifest, as a process gets them."""
    if name in MANIFESTS:
        for container in containers(name):
            values = {f"$({x['name']})": x["value"] for x in container.get("env", ())}
            values["$(JOB_COMPLETION_INDEX)"] = "0"
            words = [values.get(word, word) for word in container["args"]]
            assert words[:2] == ["mom-jax", "train"]
            yield words[2:]
        return
    for line in text(name).replace("\\\n", " ").splitlines():
        found = re.search(r"mom-jax train ([^#]*)$", line)
        if found and not line.lstrip().startswith("#"):
            words = found[1].replace("$", "").strip()
            yield shlex.split(words.removesuffix('"') if words.count('"') % 2 else words)


def job(name: str) -> dict[str, Any]:
    """The one job of a manifest."""
    (document,) = yaml.safe_load_all(text(name))
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = document["spec"]["replicatedJobs"]
    return {"name": f"{document['metadata']['name']}-{replicated['name']}", **replicated["template"]["spec"]}


def containers(name: str) -> list[dict[str, Any]]:
    """Of a manifest's pods."""
    return job(name)["template"]["spec"]["containers"]


def test_all_are_tested():
    """No file of the folder is left out."""
    assert {path.name for path in LAUNCH.iterdir()} == {*SCRIPTS, *MANIFESTS, "Containerfile"}


@pytest.mark.parametrize("name", [*SCRIPTS, *MANIFESTS])
def test_options_exist(name):
    """Each file starts one run of the published model in several processes, by options that the command takes."""
    (words,) = commands(name)
    arguments = parse_train(words)
    assert isinstance(arguments, TrainArguments) and arguments.processes.coordinator is not None
    assert arguments.run.model.hidden_size == 2048 and arguments.mesh.fsdp > 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse(name):
    """By bash; what stands in #SBATCH are options of sbatch."""
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)
    options = re.findall(r"^#SBATCH --([\w-]+)", text(name), re.MULTILINE)
    assert set(options) <= SBATCH and bool(options) == name.endswith("sbatch")


@pytest.mark.parametrize(
    ("name", "resource"), [("jobset-tpu.yaml", "google.com/tpu"), ("jobset-gpu.yaml", "nvidia.com/gpu")]
)
def test_pods_and_mesh_agree(name, resource):
    """All pods run at once, and the mesh divides their devices; volumes that are mounted exist."""
    spec, (container,), (words,) = job(name), containers(name), commands(name)
    arguments = parse_train(words)
    devices = spec["completions"] * container["resources"]["limits"][resource]
    mesh = arguments.mesh
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
    assert devices == mesh.data * mesh.fsdp if mesh.data > 0 else devices % mesh.fsdp == 0
    if arguments.processes.count:
        assert arguments.processes.count == spec["completions"]
        assert arguments.processes.coordinator.startswith(f"{spec['name']}-0-0.")
    mounted = {volume["name"] for volume in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_that_are_told_to_end_have_failed(name):
    """Also when the command itself saved and was content; else they end as it does."""
    (container,) = containers(name)
    saves = "trap 'echo saved; exit 0' TERM; echo begun; while :; do sleep 0.1; done"
    with subprocess.Popen([*container["command"], "sh", "-c", saves], stdout=subprocess.PIPE, text=True) as pod:
        assert pod.stdout is not None and pod.stdout.readline() == "begun\n"
        pod.terminate()
        assert pod.communicate(timeout=60)[0] == "saved\n" and pod.returncode == 128 + signal.SIGTERM
    for status in (0, 3):
        assert subprocess.run([*container["command"], "sh", "-c", f"exit {status}"], check=False).returncode == status


@pytest.fixture
def machine(tmp_path):
    """A folder of commands that come before all others, and what starts a script with them."""
    folder = tmp_path / "bin"

    def add(name: str, script: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def run(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
        variables |= dict.fromkeys(("HERE", "TMPDIR"), str(tmp_path))
        command = ["bash", LAUNCH / script, *words]
        return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)

    return SimpleNamespace(add=add, run=run, path=tmp_path)


# What a command of ours is told, by the number of its process.
RECORD = 'printf "%s\\n" "$@" > "$HERE/words-$SLURM_PROCID$TPU_WORKER_ID"; exit "${STATUS:-0}"'


@pytest.mark.parametrize("status", ["0", "3"])
def test_slurm_starts_every_process(machine, status):
    """Each in the environment of the shared folder, with all cores of its task; one that fails fails the job."""
    machine.add(".venv/bin/mom-jax", RECORD)
    machine.add(".venv/bin/activate", 'PATH="$HERE/.venv/bin:$PATH"')
    srun = """[ "$1" = --kill-on-bad-exit=1 ] && [ "$SRUN_CPUS_PER_TASK" = 8 ] || exit 90
        for SLURM_PROCID in 0 1; do export SLURM_PROCID; "${@:2}" || exit; done"""
    machine.add("bin/srun", srun)
    done = machine.run("slurm.sbatch", SHARED=str(machine.path), SLURM_CPUS_PER_TASK="8", STATUS=status)
    assert done.returncode == int(status) and not done.stderr
    (words,) = commands("slurm.sbatch")
    expected = ["train", *(word.replace("SHARED", str(machine.path)) for word in words)]
    for number in range(2 if status == "0" else 1):
        assert (machine.path / f"words-{number}").read_text(encoding="utf-8").splitlines() == expected


def test_tpu_machines_are_made_filled_and_started(machine):
    """gcloud is asked for a slice, this commit is installed on each of its machines, and all of them train."""
    python = """[ "$*" = "-m venv .venv" ] || exit 90
        mkdir -p .venv/bin && cp "$HERE/bin/mom-jax" .venv/bin && cp "$HERE/bin/pip" .venv/bin"""
    gcloud = """echo "$4" >> "$HERE/asked"; [ "$1 $2 $3" = "compute tpus tpu-vm" ] || exit 90
        for TPU_WORKER_ID in 0 1; do export TPU_WORKER_ID; mkdir -p "$HERE/$TPU_WORKER_ID"
          [ "$4" != scp ] || cp "$5" "$HERE/$TPU_WORKER_ID"
          [ "$4" != ssh ] || (cd "$HERE/$TPU_WORKER_ID"; bash -c "${@: -1:1}") || exit
        done"""
    gcloud = gcloud.replace('bash -c "${@: -1:1}"', 'last="${@: -1}"; bash -c "${last#--command=}"')
    git = """[ "$1 $2 $3 $5" = "archive --prefix=mom-jax/ -o HEAD" ] || exit 90
        mkdir "$HERE/mom-jax" && cp pyproject.toml "$HERE/mom-jax" && tar czf "$4" -C "$HERE" mom-jax"""
    for name, script in (("python3.12", python), ("gcloud", gcloud), ("mom-jax", RECORD), ("git", git)):
        machine.add(f"bin/{name}", script)
    machine.add("bin/pip", '[ "$1 $2 $3" = "install -q -e" ] && [ -f pyproject.toml ]')
    for verb in ("create", "install", "train", "delete"):
        done = machine.run("tpu-vm.sh", verb, PROJECT="mine", ZONE="us-east5-a", SHARED="/mnt/all")
        assert (done.returncode, done.stderr) == (0, "")
    assert (machine.path / "asked").read_text(encoding="utf-8").split() == ["create", "scp", "ssh", "ssh", "delete"]
    (words,) = commands("tpu-vm.sh")
    for number in (0, 1):
        told = (machine.path / f"words-{number}").read_text(encoding="utf-8").splitlines()
        assert told == ["train", *(word.replace("SHARED", "/mnt/all") for word in words)]
    assert machine.run("tpu-vm.sh", "strain", PROJECT="mine", ZONE="us-east5-a").returncode == 2
    assert "the project" in machine.run("tpu-vm.sh", "train", PROJECT="", ZONE="us-east5-a").stderr


def test_container():
    """Its instructions are a Dockerfile's, and the extras that it names exist."""
    lines = [line for line in text("Containerfile").splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= DOCKERFILE and lines[0].startswith("FROM ")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"EXTRA=([\w,]+)", text("Containerfile")) + re.findall(r"\.\[([\w,]+)\]", text("tpu-vm.sh"))
    assert named and all(extra in extras for names in named for extra in names.split(","))
