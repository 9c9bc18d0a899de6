"""What is installed, and which kernels that leaves; without any of it."""

import importlib.metadata
import importlib.util

import pytest

from mom_jax.errors import InputError, install
from mom_jax.evals.reference.install import choose_kernels, installed_versions


def pretend(monkeypatch, *, without_triton: bool = False, **versions: str) -> None:
    """Installs packages in appearance; an underscore stands for a hyphen."""
    known = {name.replace("_", "-"): version for name, version in versions.items()}

    def version(name):
        if name not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if without_triton else object())


@pytest.mark.parametrize("release", ["0.6.0", "0.6.0.post1", "0.10.0", "1.0"])
def test_the_release_and_later_ones_do(monkeypatch, release):
    pretend(monkeypatch, flash_linear_attention=release, torch="2.13.0+cpu", transformers="5.23.0")
    assert installed_versions()["flash-linear-attention"] == release


@pytest.mark.parametrize("release", ["0.5.9", "0.5", "0.3.2.post1"])
def test_an_older_one_does_not(monkeypatch, release):
    pretend(monkeypatch, flash_linear_attention=release, torch="2.13.0", transformers="5.23.0")
    with pytest.raises(InputError) as error:
        installed_versions()
    message = str(error.value)
    assert message.startswith(f"flash-linear-attention={release}: is older than 0.6.0")
    assert message.endswith(install("parity"))


@pytest.mark.parametrize("missing", ["flash-linear-attention", "torch", "transformers"])
def test_a_missing_one_is_named(monkeypatch, missing):
    versions = {"flash_linear_attention": "0.6.0", "torch": "2.13.0", "transformers": "5.23.0"}
    del versions[missing.replace("-", "_")]
    pretend(monkeypatch, **versions)
    with pytest.raises(InputError) as error:
        installed_versions()
    assert str(error.value) == f"{missing}=not installed: a comparison runs it; {install('parity')}"


def test_triton_goes_by_its_module(monkeypatch):
    pretend(monkeypatch, without_triton=True, flash_linear_attention="0.6.0", torch="2.13.0", transformers="5.23.0")
    with pytest.raises(InputError, match=r"^triton=not installed: flash-linear-attention needs it"):
        installed_versions()


@pytest.mark.parametrize(
    ("wanted", "gpu", "chosen"),
    [
        ("auto", True, "triton"),
        ("auto", False, "naive"),
        ("naive", True, "naive"),
        ("interpreter", False, "interpreter"),
    ],
)
def test_kernels(wanted, gpu, chosen):
    assert choose_kernels(wanted, gpu) == chosen


@pytest.mark.parametrize(
    ("wanted", "gpu", "words"), [("triton", False, "needs a GPU"), ("interpreter", True, "without a GPU")]
)
def test_kernels_that_cannot_run(wanted, gpu, words):
    with pytest.raises(InputError, match=words):
        choose_kernels(wanted, gpu)
