"""Programs made here, run on a GPU where only JAX is installed: `python -m tools.hardware make`, then `run`.

`folder`, `draws`, `runner` and what they import need JAX, NumPy and the standard library and nothing else of the
project, so that the machine with the GPU needs neither jax-triton nor a Triton that is new enough for it.
"""
