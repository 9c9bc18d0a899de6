"""Kernels on plain arrays, floor 0 of the house: Pallas for TPU and Triton for GPU. None is written yet."""
