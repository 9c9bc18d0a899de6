"""Checkpoints of the PyTorch library."""
