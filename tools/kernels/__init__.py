"""Compiles every kernel to machine code on a machine without the hardware, and writes docs/kernels.md."""
