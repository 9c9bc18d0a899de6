"""Which implementation runs: by name, by the device that is compiled for, by what a kernel refuses."""

import jax
import pytest
from jax.sharding import AbstractMesh

from mom_jax.errors import InputError
from mom_jax.ops import dispatch
from mom_jax.ops.chunks import chunk_rows
from mom_jax.ops.delta_rule import DELTA_RULE
from mom_jax.ops.dispatch import KERNELS, select, target, uses_kernels
from pallas_kernels.chunks import Unsupported

FORMS = {"reference": lambda *_: "reference", "xla": lambda *_: "xla"}


def compiling_for(platform: str, kind: str):
    """As if the computation were compiled for another device."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device))


@pytest.fixture(name="fast")
def kernels(monkeypatch):
    """Kernels that tell where they ran, and refuse negative numbers."""

    def run(device, x):
        if x < 0:
            raise Unsupported("x is negative")
        return f"kernel on {device.generation or device.kind}"

    monkeypatch.setattr(dispatch, "_check_gpu", lambda device: None)
    return dict.fromkeys(dispatch.KERNELS, run)


def test_target():
    """JAX's first device, or that of the mesh; GPUs tell their generation."""
    assert target().platform == jax.default_backend() == "cpu"
    with compiling_for("gpu", "NVIDIA H200"):
        assert target()[:3] == ("gpu", "NVIDIA H200", "sm_90") and uses_kernels("auto") and not uses_kernels("xla")
    with compiling_for("tpu", "TPU v5 lite"):
        assert target()[:3] == ("tpu", "TPU v5 lite", None)
    assert uses_kernels("gpu") and not uses_kernels("auto")


def test_rows_of_a_chunk():
    """As many as suit the matrix units, and the kernels of small TPUs have room for; short rows have no more."""
    kinds = {("tpu", "TPU v5 lite"): 128, ("tpu", "TPU v5"): 128, ("tpu", "TPU v4"): 64, ("gpu", "NVIDIA H100"): 64}
    for device, rows in kinds.items():
        with compiling_for(*device):
            found = [chunk_rows(2048, 256, "auto", names) for names in (KERNELS, ("gpu",), ())]
            assert found == [rows, 64, 64] and chunk_rows(2048, 256, "xla", KERNELS) == 64
            assert chunk_rows(20, 256, "auto", KERNELS) == 32
    assert [chunk_rows(2048, size, "auto", KERNELS) for size in (64, 256)] == [32, 64]


def test_auto(fast):
    """XLA on a CPU, without a kernel, and for what a kernel refuses."""
    assert select("auto", FORMS, fast)(1) == "xla"
    with compiling_for("gpu", "NVIDIA A100-SXM4-80GB"):
        assert select("auto", FORMS, {})(1) == "xla"
        assert select("auto", FORMS, fast)(1) == "kernel on sm_80"
        assert select("auto", FORMS, fast)(-1) == "xla"


def test_by_name(fast):
    """A named implementation runs, or says why it cannot."""
    assert select("reference", FORMS, fast)(1) == "reference"
    with pytest.raises(InputError, match=r"impl=tpu: needs a TPU, and this is compiled for cpu; use auto or xla"):
        select("tpu", FORMS, fast)
    with pytest.raises(InputError, match=r"impl=gpu: choose one of auto, reference, xla$"):
        select("gpu", FORMS, {})
    with compiling_for("tpu", "TPU v6 lite"):
        assert select("tpu", FORMS, fast)(1) == "kernel on TPU v6 lite"
        with pytest.raises(InputError, match=r"impl=tpu: x is negative; use auto or xla"):
            select("tpu", FORMS, fast)(-1)


def test_two_compilers(fast):
    """Mosaic GPU's kernel runs where it is asked for, and is no fallback; operators without one run their other."""

    def refuses(device, x):
        if x > 1:
            raise Unsupported("x is large")
        return f"mosaic on {device.generation}"

    both = {**fast, "mosaic": refuses}
    with compiling_for("gpu", "NVIDIA H200"):
        assert select("mosaic", FORMS, both)(1) == "mosaic on sm_90"
        assert select("auto", FORMS, both)(1) == select("gpu", FORMS, both)(1) == "kernel on sm_90"
        assert select("mosaic", FORMS, fast)(1) == "kernel on sm_90"
        with pytest.raises(InputError, match=r"impl=mosaic: x is large; use auto or xla"):
            select("mosaic", FORMS, both)(2)
    with pytest.raises(InputError, match=r"impl=mosaic: needs a GPU, and this is compiled for cpu"):
        select("mosaic", FORMS, fast)


def test_no_such_kernel(fast):
    """A primitive without a kernel for the platform runs in XLA, unless the kernel is asked for."""
    del fast["tpu"]
    with compiling_for("tpu", "TPU v5 lite"):
        assert select("auto", FORMS, fast)(1) == "xla"
        with pytest.raises(InputError, match=r"impl=tpu: there is no such kernel for a TPU; use auto or xla"):
            select("tpu", FORMS, fast)(1)


@pytest.mark.parametrize("kind", ["NVIDIA L4", "NVIDIA A10", "NVIDIA GeForce RTX 4090", "NVIDIA B300", "Tesla V100"])
def test_gpus_without_kernels(monkeypatch, kind):
    """XLA and one warning, rows laid out for XLA; an error where kernels are asked for by name."""
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    dispatch._warn_of_gpu.cache_clear()
    with compiling_for("gpu", kind):
        with pytest.warns(UserWarning, match=f"the GPU kernels are made for sm_80.*, not for {kind}; XLA runs") as said:
            assert [select("auto", FORMS, DELTA_RULE.kernels)(1) for _ in range(3)] == ["xla"] * 3
        assert len(said) == 1 and not uses_kernels("auto")
        with pytest.raises(InputError, match=rf"impl=gpu: .*not for {kind}; use auto or xla"):
            select("gpu", FORMS, DELTA_RULE.kernels)(1)


def test_a_gpu_of_another_generation():
    """A device that tells its compute capability is known by it, whatever its name."""
    (known, unknown) = (dispatch.Target("gpu", "NVIDIA X", generation) for generation in ("sm_90", "sm_89"))
    assert known.has_kernels and not unknown.has_kernels


def test_without_jax_triton(monkeypatch):
    """Nothing falls back silently where kernels are a package away."""
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with compiling_for("gpu", "NVIDIA H200"), pytest.raises(InputError, match=r"impl=gpu: needs jax-triton"):
        select("auto", FORMS, DELTA_RULE.kernels)(1)
