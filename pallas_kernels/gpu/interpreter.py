"""Triton's interpreter, made to round as an NVIDIA GPU does, and to lose no time between a kernel's functions.

By itself it knows bfloat16 as bits alone and multiplies float32 exactly, whatever precision a product asks for; at
every call of a function of a kernel it replaces all of `triton.language` once more, and it repeats every sum of whole
numbers in 64 bits, to see whether it overflows, which no GPU does. It works on NumPy arrays, and is
there only in a process that was started with ``TRITON_INTERPRET=1``.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np

BFLOAT16 = np.dtype(jnp.bfloat16)
_ONE_AT_A_TIME = threading.Lock()  # what is replaced belongs to the whole process


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Replaces those parts of the interpreter while a kernel runs."""
    from triton.runtime import interpreter

    with contextlib.ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        for name, made in _functions(interpreter, stack).items():
            stack.enter_context(mock.patch.object(interpreter, name, made))
        for name, made in _methods(interpreter).items():
            stack.enter_context(mock.patch.object(interpreter.InterpreterBuilder, name, made))
        options = interpreter.InterpreterOptions(sanitize_overflow=False)
        stack.enter_context(mock.patch.object(interpreter.interpreter_builder, "options", options))
        yield


def _functions(interpreter: Any, stack: contextlib.ExitStack) -> dict[str, Any]:
    """bfloat16 as numbers of NumPy's, and each module of `triton.language` replaced once, until the end."""
    dtype_of, patch = interpreter._get_np_dtype, interpreter._patch_lang
    done, known = set(), {"bf16": BFLOAT16}  # the interpreter makes its table of dtypes anew whenever it reads one

    def get_np_dtype(dtype):
        name = dtype.scalar.name
        return known.get(name) or known.setdefault(name, dtype_of(dtype))

    def patch_once(function):
        visible = {name for name in ("tl", "core") if name in function.__globals__}
        if not visible <= done:
            stack.callback(patch(function).restore)
            done.update(visible)
        return interpreter._LangPatchScope()

    return {"_get_np_dtype": get_np_dtype, "_patch_lang": patch_once}


def _methods(interpreter: Any) -> dict[str, Any]:
    """Of the builder: memory as bits, conversions to the nearest value, products in the precision asked for."""
    builder, handle, tl = interpreter.InterpreterBuilder, interpreter.TensorHandle, interpreter.tl
    cast, convert = builder.cast_impl, builder.create_fp_to_fp

    def load(self, ptrs, mask, other, *_):
        dtype = interpreter._get_np_dtype(ptrs.get_element_ty())
        bits = np.dtype(np.uint16) if dtype == BFLOAT16 else dtype
        other = np.zeros(ptrs.data.shape, bits) if other is None else other.data.view(bits)
        read = interpreter._interpreter.load(ptrs.data, mask.data, other, bits)
        return handle(read.view(dtype), ptrs.get_element_ty())

    def store(self, ptrs, value, mask, *_):
        bits = value.data.view(np.uint16) if value.data.dtype == BFLOAT16 else value.data
        return interpreter._interpreter.store(ptrs.data, bits, mask.data)

    def cast_impl(self, src, dst_type):
        if tl.bfloat16 not in (src.dtype.scalar, dst_type.scalar):
            return cast(self, src, dst_type)
        return handle(src.data.astype(interpreter._get_np_dtype(dst_type)), dst_type.scalar)

    def fp_to_fp(self, src, dst_type, rounding_mode):
        if tl.bfloat16 not in (src.dtype.scalar, dst_type.scalar):
            return convert(self, src, dst_type, rounding_mode)
        return cast_impl(self, src, dst_type)

    def dot(self, a, b, d, input_precision, *_):
        in_parts = input_precision == interpreter._ir.INPUT_PRECISION.TF32x3
        multiply = _three_products if in_parts and a.data.dtype == np.float32 else _product
        return handle(multiply(a.data, b.data) + d.data, d.dtype.scalar)

    def splat(self, block, scalar):  # what compares scalars has their dtype otherwise
        dtype = block.scalar
        return handle(np.full(block.shape, scalar.data, interpreter._get_np_dtype(dtype)), dtype)

    loads = {"create_masked_load": load, "create_masked_store": store, "create_dot": dot, "create_splat": splat}
    return {**loads, "cast_impl": cast_impl, "create_fp_to_fp": fp_to_fp}


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A product of half precision or float32, summed in float32."""
    return np.matmul(a.astype(np.float32, copy=False), b.astype(np.float32, copy=False))


def _three_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A product of float32 from two parts of 11 bits of each factor, without that of the two lower ones."""
    high_a, high_b = _to_tf32(a), _to_tf32(b)
    low_a, low_b = _to_tf32(a - high_a), _to_tf32(b - high_b)
    return low_a @ high_b + high_a @ low_b + high_a @ high_b


def _to_tf32(x: np.ndarray) -> np.ndarray:
    """The nearest numbers of 11 bits; infinities and NaN stay."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)
