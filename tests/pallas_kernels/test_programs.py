"""Whole programs that are compiled for an H100 and a v5e launch, move and hold no more than was recorded."""

import json
from pathlib import Path

import pytest
from support.processes import compiling

from mom_jax.planning.hlo import read
from mom_jax.planning.launches import launches

FOLDER = Path(__file__).resolve().parents[2]
RECORD = json.loads((FOLDER / "tools/kernels/counts.json").read_text(encoding="utf-8"))
QUICK = [("layer, forward", "H100"), ("layer, forward and backward", "H100")]
LONG = [(program, device) for program, of in RECORD.items() for device in of if (program, device) not in QUICK]

COUNT = """
import json
from tools.kernels import programs
for program, device in {pairs}:
    print(json.dumps(programs.counted(program, device)))
"""


def risen(pairs):
    """What is above the record by more than three hundredths."""
    counted = map(json.loads, compiling(COUNT.format(pairs=pairs)).splitlines())
    before = {pair: RECORD[pair[0]][pair[1]] for pair in pairs}
    return [
        f"{pair}: {name} {old[name]} -> {x}"
        for (pair, old), now in zip(before.items(), counted, strict=True)
        for name, x in now.items()
        if x > 1.03 * old[name]
    ]


@pytest.mark.compilers
def test_the_layer():
    """Forward, and forward with backward, on an H100."""
    assert not risen(QUICK)


@pytest.mark.compilers
@pytest.mark.programs
@pytest.mark.parametrize(("program", "device"), LONG)
def test_what_takes_long(program, device):
    """Everything else."""
    assert not risen([(program, device)])


def test_the_page_tells_the_record():
    """The table of docs/kernels.md is that of counts.json."""
    page = (FOLDER / "docs/kernels.md").read_text(encoding="utf-8")
    for program, of in RECORD.items():
        numbers = [f"{x:,g}" for counts in of.values() for x in counts.values()]
        assert f"| {program} | {' | '.join(numbers)} |" in page.replace(" - |", "")


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
