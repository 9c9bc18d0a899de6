"""Triton kernels, called through jax-triton."""
