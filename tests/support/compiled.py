"""Compilation for tests: the same program, with the cheapest machine code."""

from collections.abc import Callable

import jax


def jit(function: Callable, **options) -> Callable:
    """`jax.jit` at the compiler's lowest optimisation level, which halves the time a test waits for it."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)
