"""Cases of which `make test` runs some and `make test-exhaustive` the others."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], kept: Container[Any]) -> list[Any]:
    """The cases for `pytest.mark.parametrize`; those that are not kept are marked ``exhaustive``."""
    return [case if case in kept else _left(case) for case in cases]


def _left(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.exhaustive)
