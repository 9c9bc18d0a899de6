"""Decoding with a constant-size state: a batch of prompts at once (`generate`), or many that come and go."""

from mom_jax.decoding.batch import generate, generate_blocks
from mom_jax.decoding.many import Continuation, generate_many
from mom_jax.decoding.slots import not_finite

__all__ = ["Continuation", "generate", "generate_blocks", "generate_many", "not_finite"]
