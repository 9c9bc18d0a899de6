"""What the devices of a program send each other, read from its text."""

from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from mom_jax.planning.chips import CHIPS
from mom_jax.planning.collectives import collectives
from mom_jax.planning.compiled import axes_between, link_of
from mom_jax.planning.hlo import read

LINES = {
    "%s = f32[8]{0} all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}": ("all-reduce", (0, 1), 32),
    "%s = f32[8]{0} all-reduce(%x), replica_groups=[2,4]<=[4,2]T(1,0)": ("all-reduce", (0, 2, 4, 6), 48),
    "%s = f32[8]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'a'}": ("all-reduce", (0, 4), 32),
    "%s = f32[8]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}": ("all-reduce", (0, 1), 32),
    "%s = f32[8]{0} all-reduce(%x), replica_groups={}": ("all-reduce", tuple(range(8)), 56),
    "%s = f32[32]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}": ("all-gather", (0, 1, 2, 3), 96),
    "%s = ((f32[8]{0}), f32[2]{0}) reduce-scatter-start(%x), replica_groups=[2,4]<=[8]": (
        "reduce-scatter",
        (0, 1, 2, 3),
        24,
    ),
    "%s = f32[8]{0} collective-permute(%x), source_target_pairs={{0,2},{2,0}}": ("collective-permute", (0, 2), 32),
}


@pytest.mark.parametrize("line", LINES)
def test_groups_and_bytes(line):
    """Groups in all the ways that XLA writes them, and what a device sends of 32 bytes."""
    text = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n  ROOT {line}\n}}\n"
    (found,) = collectives(read(text), 8)
    assert (found.kind, found.group, found.sent) == LINES[line]


CHAIN = """
%begin (p: f32[8]) -> (f32[8], f32[16]) {
  %p = f32[8]{0} parameter(0)
  %gather.1 = f32[16]{0} all-gather(%p), replica_groups=[4,2]<=[8], frontend_attributes={chain_id="3"}
  ROOT %both = (f32[8]{0}, f32[16]{0}) tuple(%p, %gather.1)
}

%end (q: f32[8], r: f32[16]) -> f32[16] {
  %q = f32[8]{0} parameter(0)
  %r = f32[16]{0} parameter(1)
  %gather.2 = f32[16]{0} all-gather(%q), replica_groups=[4,2]<=[8], frontend_attributes={chain_id="3"}
  ROOT %done = f32[16]{0} custom-call(%q, %r, %gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (s: f32[16]) -> f32[4] {
  %s = f32[16]{0} parameter(0)
  %zero = s32[] constant(0)
  %sum = f32[16]{0} all-reduce(%s), replica_groups=[2,4]<=[8]
  ROOT %own = f32[4]{0} dynamic-slice(%sum, %zero), dynamic_slice_sizes={4}
}

ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[16]{0}) fusion(%x), kind=kLoop, calls=%begin
  %a = f32[8]{0} get-tuple-element(%start), index=0
  %b = f32[16]{0} get-tuple-element(%start), index=1
  %gathered = f32[16]{0} fusion(%a, %b), kind=kLoop, calls=%end
  ROOT %part = f32[4]{0} fusion(%gathered), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_inside_fusions():
    """A collective that several fusions carry counts once; a sum of which each keeps its part is a scatter."""
    gathered, scattered = collectives(read(CHAIN), 8)
    assert (gathered.kind, gathered.sent) == ("all-gather", 32)
    assert (scattered.kind, scattered.sent) == ("reduce-scatter", 48)


def test_axes_and_links():
    """Which axes a group runs along, and whether it leaves a machine of eight GPUs."""
    text = "ENTRY %main (x: f32[8]) -> f32[8] {\n  %x = f32[8]{0} parameter(0)\n  ROOT %s = f32[8]{0} all-reduce(%x), "
    mesh = AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))

    def first(groups):
        return collectives(read(f"{text}replica_groups={groups}\n}}\n"), 16)[0]

    assert axes_between(first("{{0,2,4,6}}"), mesh) == ("fsdp",)
    assert axes_between(first("{{0,1,8,9}}"), mesh) == ("data", "tensor")

    devices = np.array([SimpleNamespace(id=number) for number in range(16)])
    machines = SimpleNamespace(devices=devices)
    gpu, tpu = CHIPS["h100"], CHIPS["v5p"]
    assert link_of(first("{{0,7}}"), machines, gpu) == gpu.link
    assert link_of(first("{{0,8}}"), machines, gpu) == gpu.network
    assert link_of(first("{{0,8}}"), machines, tpu) == tpu.link
