"""Triton's interpreter without work that it does over and over.

When a launch begins it puts interpreted functions in the place of those of ``triton.language``, and looks through the
whole language for them again at every call of a device function, which takes longer than most of these calls. Nothing
puts the others back before the launch ends, so here each module's language is replaced once for each launch. The table
from Triton's dtypes to NumPy's is made once too, not at every read of a dtype.
"""

import numpy as np
import pytest
from triton.runtime import interpreter


def install(patch: pytest.MonkeyPatch) -> None:
    """Until ``patch`` is undone."""
    replace, launch, looked_up = interpreter._patch_lang, interpreter.GridExecutor.__call__, interpreter._get_np_dtype
    replaced: set[int] = set()
    known: dict[str, np.dtype] = {}

    def once(function):
        if (module := id(function.__globals__)) in replaced:
            return None
        replaced.add(module)
        return replace(function)

    def run(self, *arguments, **options):
        replaced.clear()
        return launch(self, *arguments, **options)

    def read(dtype):
        return known.get(dtype.name) or known.setdefault(dtype.name, looked_up(dtype))

    patch.setattr(interpreter, "_patch_lang", once)
    patch.setattr(interpreter.GridExecutor, "__call__", run)
    patch.setattr(interpreter, "_get_np_dtype", read)
