"""The kernels inside a program, as equations of its jaxpr."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core


def calls(primitive: str, function: Callable, *arguments: Any) -> Iterator[Any]:
    """The equations of a primitive in the program of ``function``, in order."""
    return equations(primitive, jax.make_jaxpr(function)(*arguments).jaxpr)


def equations(primitive: str | None, jaxpr: Any) -> Iterator[Any]:
    """The same in a program that is traced already; those of all primitives, inner ones too, if None."""
    for equation in jaxpr.eqns:
        if primitive in (None, equation.primitive.name):
            yield equation
        if primitive == equation.primitive.name:
            continue
        for part in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(part):
                yield from equations(primitive, getattr(part, "jaxpr", part))


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)


def moved_bytes(equation: Any) -> int:
    """Bytes of a kernel's inputs and outputs, each counted once; one may stand in the place of another that is None."""
    arrays = {id(v): v.aval for v in (*equation.invars, *equation.outvars)}.values()
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)
