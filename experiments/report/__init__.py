"""Finished runs and sweeps as one HTML page that stands by itself (``mom-jax report``)."""
