"""Kernels for GPUs run in Triton's interpreter here."""

import pytest
from support import triton_interpreter


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """As `triton_interpreter` says."""
    with pytest.MonkeyPatch.context() as patch:
        triton_interpreter.install(patch)
        yield
