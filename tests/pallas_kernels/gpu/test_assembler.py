"""Which PTX is written: what the assembler takes that XLA will find."""

import sys
from pathlib import Path

import pytest

from pallas_kernels.gpu import assembler


def ptxas(folder: Path, release: str) -> Path:
    """A stand-in for NVIDIA's assembler of a CUDA release."""
    file = folder / "bin/ptxas"
    file.parent.mkdir(parents=True)
    said = f"Cuda compilation tools, release {release}, V{release}.1"
    file.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    "release, ptx", [("12.4", 84), ("12.5", 85), ("12.6", 85), ("12.8", 87), ("12.9", 88), ("13.0", 90), ("13.4", 94)]
)
def test_releases(tmp_path, release, ptx):
    """CUDA and the PTX that came with it, by NVIDIA's release notes."""
    assert assembler.ptx_of(ptxas(tmp_path, release)) == ptx


def sought(monkeypatch) -> Path | None:
    """What a fresh process finds."""
    for name in [x for x in sys.modules if x.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    return assembler.find_ptxas()


@pytest.mark.parametrize("package", ["cuda_nvcc", "cu13"])
def test_the_order_of_the_search(tmp_path, monkeypatch, package):
    """``CUDA_ROOT``, then the packages that JAX brings, then the path."""
    places = {name: ptxas(tmp_path / name, "12.9") for name in ("root", f"packages/nvidia/{package}", "path")}
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    monkeypatch.setenv("PATH", str(places["path"].parent))
    monkeypatch.setenv("CUDA_ROOT", str(tmp_path / "root"))
    found = [sought(monkeypatch)]
    monkeypatch.delenv("CUDA_ROOT")
    found.append(sought(monkeypatch))
    monkeypatch.setattr(sys, "path", [])
    found.append(sought(monkeypatch))
    assert found == list(places.values())


def test_nothing_installed(monkeypatch):
    """A program for another machine runs with what the project's extra brings, and with all that is newer."""
    monkeypatch.setattr(assembler, "find_ptxas", lambda: None)
    assert assembler.ptx_version.__wrapped__() == 88
