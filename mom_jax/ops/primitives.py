"""All recurrences by name: every `Primitive` at the top of a module of `mom_jax.ops`.

Those that are made for a number of slots or a mini-batch stand there with one of them.
"""

import importlib
import pkgutil

from mom_jax import ops
from mom_jax.ops.primitive import Primitive


def _primitives() -> dict[str, Primitive]:
    names = sorted(module.name for module in pkgutil.iter_modules(ops.__path__) if module.name != "primitives")
    modules = [importlib.import_module(f"mom_jax.ops.{name}") for name in names]
    return {p.name: p for module in modules for p in vars(module).values() if isinstance(p, Primitive)}


PRIMITIVES = _primitives()
