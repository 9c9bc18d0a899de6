# pyright: reportMissingImports=false
"""The Triton kernels of flash-linear-attention on a CPU, through Triton's interpreter.

Nothing of that library is copied or edited; what it needs to run there is changed at run time:

- Autotuning wants a device to measure on. One of a kernel's configurations is taken unmeasured.
- Some kernels call ``.to`` on a loop variable, which the interpreter hands out as a plain ``int``.
- Its tokens are sorted by memory with ``Tensor.argsort``, which may reorder equal keys (on a CPU it does, from 17
  elements on), so the order of time is lost within each memory. `stable_sort` gives the intended order.
"""

import builtins
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch


def enable() -> None:
    """Makes every Triton kernel that is defined from now on run in the interpreter.

    Raises:
        RuntimeError: Triton was imported before, for a device.
    """
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton is loaded already: enable its interpreter before anything imports it")
    os.environ["TRITON_INTERPRET"] = "1"
    use_tiles(largest_tiles)


def use_tiles(pick: Callable[[list[Any]], Any]) -> None:
    """Takes the configuration ``pick(configurations)`` of each autotuned kernel, without measuring any."""
    from triton.runtime.autotuner import Autotuner

    Autotuner.prune_configs = lambda self, kwargs: [pick(self.configs)]


def largest_tiles(configurations: list[Any]) -> Any:
    """The configuration with the largest tiles: the fewest programs to interpret."""

    def size(configuration):
        sizes = configuration.kwargs.values()
        return math.prod(n for n in sizes if isinstance(n, int) and not isinstance(n, bool))

    return max(configurations, key=size)


class _LoopIndex(int):
    """A loop variable with Triton's conversion, which changes nothing here."""

    def to(self, *_: object) -> "_LoopIndex":
        return self


def _range(*bounds: Any) -> list[_LoopIndex]:
    return [_LoopIndex(i) for i in builtins.range(*map(int, bounds))]


def convert_loops() -> None:
    """Lets the kernels of every fla module that is loaded convert their loop variables; call it after imports."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("fla.ops", "fla.modules")) and module is not None and "tl" in vars(module):
            vars(module)["range"] = _range


def stable_argsort(self: torch.Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> torch.Tensor:
    """``Tensor.argsort`` that keeps the order of equal keys whatever ``stable`` says."""
    return torch.sort(self, dim=dim, descending=descending, stable=True).indices


@contextlib.contextmanager
def replaced(*replacements: tuple[Any, str, Callable]) -> Iterator[None]:
    """Sets attributes (owner, name, value) inside the context."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    for owner, name, value in replacements:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)


def stable_sort() -> contextlib.AbstractContextManager[None]:
    """Sorts stably inside the context."""
    return replaced((torch.Tensor, "argsort", stable_argsort))
