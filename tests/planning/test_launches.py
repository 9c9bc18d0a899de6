"""Compiled programs, read from their text: what is launched, what it moves and computes."""

import pytest

from mom_jax.planning.flops import flops_of
from mom_jax.planning.hlo import axes_of, read, scheduled, size
from mom_jax.planning.launches import launches

LOOP = """
HloModule jit_f

%fused (p: f32[4,256], i: s32[]) -> f32[256] {
  %p = f32[4,256]{1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,256]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,256}
  ROOT %flat = f32[256]{0} bitcast(%row)
}

%updated (x: bf16[8,16], u: bf16[1,16], j: s32[]) -> bf16[8,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %u = bf16[1,16]{1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %put = bf16[8,16]{1,0} dynamic-update-slice(%x, %u, %j, %j)
}

%body (c: (s32[], f32[4,256])) -> (s32[], f32[4,256]) {
  %c = (s32[], f32[4,256]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %m = f32[4,256]{1,0} get-tuple-element(%c), index=1
  %taken = f32[256]{0} fusion(%m, %n), kind=kLoop, calls=%fused
  ROOT %out = (s32[], f32[4,256]{1,0}) tuple(%n, %m)
}

%condition (c: (s32[], f32[4,256])) -> pred[] {
  %c = (s32[], f32[4,256]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[4,256]), b: bf16[8,16], /*index=2*/w: bf16[1,16]) -> bf16[8,16] {
  %a = (s32[], f32[4,256]{1,0}) parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  %w = bf16[1,16]{1,0} parameter(2)
  %n = s32[] get-tuple-element(%a), index=0
  %loop = (s32[], f32[4,256]{1,0}) while(%a), condition=%condition, body=%body, config={"known_trip_count":{"n":"5"}}
  %call = f32[4]{0} custom-call(%b), custom_call_target="kernel", metadata={op_name="jit(f)/k"}
  ROOT %last = bf16[8,16]{1,0} fusion(%b, %w, %n), kind=kLoop, calls=%updated, backend_config={"estimated_cycles":"70"}
}
"""


IN_PLACE = r"""
HloModule jit_g

ENTRY %main (x: f32[4], states: f32[64,256]) -> f32[64,256] {
  %x = f32[4]{0} parameter(0)
  %states = f32[64,256]{1,0} parameter(1)
  ROOT %after = f32[64,256]{1,0} custom-call(%x, %states), custom_call_target="kernel", output_to_operand_aliasing={{}: (1, {})}, backend_config={cost_estimate_json = "{\22flops\22: 9, \22bytes_accessed\22: 2064}"}
}
"""  # noqa: E501


def test_counting_in_place():
    """A kernel that changes an array in place counts by what it says that it touches."""
    assert [x.bytes for x in launches(read(IN_PLACE))] == [2064]


def test_counting():
    """A slice counts by what it takes, an update in place by what it writes, a loop as often as it runs."""
    assert read(LOOP).entry == "main"
    taken, kernel, put = launches(read(LOOP))
    assert (taken.kind, taken.times, taken.bytes) == ("fusion", 5, 2 * 1024 + 4)
    assert (kernel.kind, kernel.times, kernel.bytes, kernel.source) == ("kernel", 1, 256 + 16, "jit(f)/k")
    assert (put.kind, put.times, put.bytes, put.cycles) == ("fusion of dynamic-update-slice", 1, 32 + 32 + 4, 70)


# As XLA for TPU writes it: a loop that does not tell its turns, a product as a convolution, what lies beside the cores.
TPU = """
HloModule jit_h

%body (c: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %c = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%c), index=0
  %x = bf16[16,8]{1,0:T(8,128)(2,1)} get-tuple-element(%c), index=1
  %w = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %y = f32[16,4]{1,0:T(8,128)} convolution(%x, %w), dim_labels=bf_io->bf
  %k = f32[16,4]{1,0} custom-call(%y), custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"77","transcendentals":"0"}}
  ROOT %out = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) tuple(%n, %x)
}

%condition (p: (s32[], bf16[16,8])) -> pred[] {
  %p = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %limit = s32[]{:T(128)} constant(24)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (a: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %a = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}) while(%a), condition=%condition, body=%body
}
"""  # noqa: E501


def test_tpu():
    """Turns come from the loop's condition, FLOPs from the product and from what the kernel declares."""
    product, kernel = launches(read(TPU))
    assert (product.times, product.flops) == (24, 2 * 16 * 4 * 8)
    assert product.bytes == 16 * 8 * 2 + 16 * 4 * 4  # the weights are beside the cores already
    assert (kernel.times, kernel.flops) == (24, 77)


DOT = """
ENTRY %main (a: f32[4,5,6], b: f32[4,6,7]) -> f32[4,5,7] {
  %a = f32[4,5,6]{2,1,0} parameter(0)
  %b = f32[4,6,7]{2,1,0} parameter(1)
  %cublas = (f32[4,5,7]{2,1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"]}}}
  ROOT %dot = f32[4,5,7]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}
"""  # noqa: E501


@pytest.mark.parametrize("name", ["dot", "cublas"])
def test_products(name):
    """Of XLA and of cuBLAS."""
    main = read(DOT).computations["main"]
    assert flops_of(main, main.instructions[name]) == 2 * 4 * 5 * 7 * 6


def test_shapes():
    """Bytes of several arrays, in a device's memory or in all; axes of one."""
    shape = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[], pred[5]{0}, u4[3]{0})"
    assert size(shape) == 12 + 4 + 5 + 2
    assert size(shape, in_memory=True) == 4 + 5 + 2
    assert axes_of("bf16[2,3]{1,0}") == [2, 3] and axes_of("f32[]") == []
    assert [name for _, instruction, _ in scheduled(read(DOT)) if (name := instruction.name)][-1] == "dot"
