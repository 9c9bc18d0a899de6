"""Which implementation runs: by name, by the device that is compiled for, by what a kernel refuses."""

import jax
import pytest
from jax.sharding import AbstractMesh

from mom_jax.errors import InputError
from mom_jax.ops import dispatch
from mom_jax.ops.dispatch import select, target, uses_kernels
from pallas_kernels.chunks import Unsupported

FORMS = {"reference": lambda *_: "reference", "xla": lambda *_: "xla"}


def compiling_for(platform: str, kind: str):
    """As if the computation were compiled for another device."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device))


@pytest.fixture
def kernels(monkeypatch):
    """Kernels that tell where they ran, and refuse negative numbers."""

    def run(x, device="a TPU"):
        if x < 0:
            raise Unsupported("x is negative")
        return f"kernel on {device}"

    monkeypatch.setattr(dispatch, "_load", lambda device, kernel: run)


def test_target():
    """JAX's first device, or that of the mesh; GPUs tell their generation."""
    assert target().platform == jax.default_backend() == "cpu"
    with compiling_for("gpu", "NVIDIA H200"):
        assert target() == ("gpu", "NVIDIA H200", "sm_90") and uses_kernels("auto") and not uses_kernels("xla")
    with compiling_for("tpu", "TPU v5 lite"):
        assert target() == ("tpu", "TPU v5 lite", None)
    assert uses_kernels("gpu") and not uses_kernels("auto")


def test_auto(kernels):
    """XLA on a CPU, without a kernel, and for what a kernel refuses."""
    assert select("auto", FORMS, "fast")(1) == "xla"
    with compiling_for("gpu", "NVIDIA A100-SXM4-80GB"):
        assert select("auto", FORMS)(1) == "xla"
        assert select("auto", FORMS, "fast")(1) == "kernel on sm_80"
        assert select("auto", FORMS, "fast")(-1) == "xla"


def test_by_name(kernels):
    """A named implementation runs, or says why it cannot."""
    assert select("reference", FORMS, "fast")(1) == "reference"
    with pytest.raises(InputError, match=r"impl=tpu: needs a TPU, and this is compiled for cpu; use auto or xla"):
        select("tpu", FORMS, "fast")
    with pytest.raises(InputError, match=r"impl=gpu: choose one of auto, reference, xla$"):
        select("gpu", FORMS)
    with compiling_for("tpu", "TPU v6 lite"):
        assert select("tpu", FORMS, "fast")(1) == "kernel on a TPU"
        with pytest.raises(InputError, match=r"impl=tpu: x is negative; use auto or xla"):
            select("tpu", FORMS, "fast")(-1)


def test_no_such_kernel():
    """A primitive without a kernel for the platform runs in XLA, unless the kernel is asked for."""
    with compiling_for("tpu", "TPU v5 lite"):
        assert select("auto", FORMS, "fast")(1) == "xla"
        with pytest.raises(InputError, match=r"impl=tpu: there is no fast kernel for a TPU; use auto or xla"):
            select("tpu", FORMS, "fast")(1)


def test_missing_or_old(monkeypatch):
    """Without jax-triton, or on a GPU without kernels, nothing falls back silently."""
    with compiling_for("gpu", "Tesla V100"), pytest.raises(InputError, match=r"impl=gpu: .*not for Tesla V100"):
        monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
        select("auto", FORMS, "delta_rule")(1)
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with compiling_for("gpu", "NVIDIA H200"), pytest.raises(InputError, match=r"impl=gpu: needs jax-triton"):
        select("auto", FORMS, "delta_rule")(1)
