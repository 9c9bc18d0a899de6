"""The letters of the house: every array in names, docstrings and annotations uses them.

B  batch rows              M  routed memories         S  segments (memory-major: s = g * B + b)
T  time                    k  memories per token      N  packed rows
D  hidden size             G  memories in all,        C  rows per chunk
H  heads                      M plus the shared one   L  layers
K  key channels per head   A  assignments per token,  W  taps of the short convolution
V  value channels per head    k plus the shared one
"""

from jaxtyping import Array, Bool, Float, Int, Shaped

__all__ = ["Array", "Bool", "Float", "Int", "Shaped"]
