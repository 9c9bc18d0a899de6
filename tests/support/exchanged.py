"""What devices exchange in a compiled training step is what docs/scaling.md says, counted in its instructions."""

import collections
import math
from typing import Any

import jax
from jax.sharding import Mesh

from mom_jax.planning.collectives import Collective, collectives
from mom_jax.planning.compiled import axes_between
from mom_jax.planning.hlo import read

SPLIT = {"fsdp", "sequence"}  # what a parameter is gathered over
_KINDS = {"all-gather", "reduce-scatter", "all-reduce", "collective-permute"}
METRICS = 1024  # bytes: losses, loads, norms
Sizes = collections.Counter  # how often, by bytes


def check_exchanged(compiled: Any, mesh: Mesh, params: Any, *, passes: int, tokens: int, states: int) -> None:
    """Fails where a float32 program exchanges more than it should.

    Args:
        compiled: of loss and gradients, or of a whole step.
        mesh: with all four axes; those of one device count for nothing.
        params: placed on the mesh, by name; those of layers are stacked.
        passes: that gather parameters of layers: 1 where the backward pass keeps everything, else 2.
        tokens: of the batch.
        states: bytes of one layer's memories on a device, of all its rows.
    """
    found = _found(compiled, mesh)
    once, layers, unsplit = _of_parameters(params, mesh)
    gathered, others = _parted(found["all-gather"], lambda c: c.source.endswith("all_gather") and c.axes <= SPLIT)
    assert _sizes(gathered) == once + sum([layers] * passes, Sizes()), "each parameter once a pass"
    others += [c for kind in found.keys() - _KINDS for c in found[kind]]
    assert all(c.operands <= 4 * tokens or c.axes == {"tensor"} for c in others), "else only numbers of documents"
    ways = math.prod(mesh.shape[axis] for axis in SPLIT)
    scattered = [c for c in found["reduce-scatter"] if c.axes <= SPLIT]
    assert _sizes(scattered) == collections.Counter({ways * size: n for size, n in (once + layers).items()})
    summed = [c for c in found["all-reduce"] if c.axes & SPLIT]
    assert sum(c.times * c.operands for c in summed) <= unsplit + METRICS, "gradients of small parameters"
    passed = [c for c in found["collective-permute"] if c.operands > 4 * tokens]  # else numbers of documents
    assert {frozenset(c.axes) for c in passed} <= {frozenset({"sequence"})}
    assert all(c.operands <= states for c in found["collective-permute"]), "states and inputs of convolutions"


class _Along(Collective):
    axes: set[str]


def _found(compiled: Any, mesh: Mesh) -> dict[str, list[_Along]]:
    """The collectives of several devices, by kind."""
    found = collections.defaultdict(list)
    for each in collectives(read(compiled.as_text()), mesh.size):
        along = _Along(*each)
        along.axes = set(axes_between(each, mesh))
        if along.axes:
            found[each.kind].append(along)
    return found


def _parted(collected: list[_Along], condition: Any) -> tuple[list[_Along], list[_Along]]:
    return [c for c in collected if condition(c)], [c for c in collected if not condition(c)]


def _sizes(collected: list[_Along]) -> Sizes:
    sizes: Sizes = collections.Counter()
    for each in collected:
        sizes[each.operands] += each.times
    return sizes


def _of_parameters(params: Any, mesh: Mesh) -> tuple[Sizes, Sizes, int]:
    """What a device gives to each gathering, of tables and of layers, and the bytes of what is not split."""
    once, layers, unsplit = collections.Counter(), collections.Counter(), 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = {axis for place in leaf.sharding.spec for axis in ((place,) if isinstance(place, str) else place or ())}
        shape, stacked = leaf.sharding.shard_shape(leaf.shape), "layers" in jax.tree_util.keystr(path)
        size = 4 * math.prod(shape)
        if not axes & SPLIT:
            unsplit += size
        elif stacked:
            layers[size // shape[0]] += shape[0]
        else:
            once[size * mesh.shape["tensor"]] += 1  # rows of a table are gathered before
    return once, layers, unsplit
