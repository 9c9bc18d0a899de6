"""Pallas kernels for TPU (Mosaic)."""
