"""How a test compiles what runs long; ``tests/conftest.py`` says how all the others are compiled."""

import functools

import jax

# Without optimisation a loop over many tokens, or over a kernel's interpreted blocks, runs longer than it compiles.
optimised = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
