"""The PyTorch reference of MoM (flash-linear-attention), run beside ours for comparison.

The only package that imports torch, transformers and fla (the extra ``parity``); nothing imports it unless a
comparison was asked for.

- `install`: which versions are there, and which kernels can run here; imports none of the three.
- `interpreter`: the library's Triton kernels on a CPU.
- `operators`: plain PyTorch in their place, and repairs of what the library cannot run.
- `model`: a checkpoint's numbers, as NumPy arrays.
"""
