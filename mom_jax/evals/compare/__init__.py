"""Our numbers beside those of the PyTorch reference, from the same checkpoint and the same tokens.

- `records`: the arrays that both sides hand in, and who can hand them in.
- `ours`: our side of it.
- `differences`: how far two records lie apart, and where.
- `comparison`: all quantities of a model in float32.
- `budget`: the error of bfloat16, ours beside the reference's own.
- `tables`, `picture`: what is printed and drawn.
"""
