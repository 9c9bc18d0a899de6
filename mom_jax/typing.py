"""The letters of the house: every array in names, docstrings and annotations uses them.

B  batch rows              M  routed memories         S  segments (memory-major: s = g * B + b)
T  time                    k  memories per token      N  packed rows
D  hidden size             G  memories in all,        C  rows per chunk
H  heads                      M plus the shared one   L  layers
K  key channels per head   A  assignments per token,  W  taps of the short convolution
V  value channels per head    k plus the shared one
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

__all__ = ["AnyArray", "Array", "Batch", "Bool", "Float", "Int", "Mask", "Shaped"]

AnyArray = Array | np.ndarray  # what may come from outside, not yet on a device
Mask = Int[AnyArray, "B T"] | Bool[AnyArray, "B T"]  # 0 or False marks padding
# ``input_ids``, ``labels`` and ``segment_ids``, each int32 [B, T], or [T] of a single window: of NumPy or of JAX.
Batch = dict[str, Any]
