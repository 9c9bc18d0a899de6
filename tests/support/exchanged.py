"""What devices exchange in a compiled step is what docs/scaling.md says."""

import collections
import math
from typing import Any

import jax
from jax.sharding import Mesh

from mom_jax.planning.collectives import Collective, collectives
from mom_jax.planning.compiled import axes_between
from mom_jax.planning.hlo import read

SPLIT = {"fsdp", "sequence"}


def exchanged(compiled: Any, mesh: Mesh) -> dict[tuple[str, tuple[str, ...]], list[Collective]]:
    """The collectives of a compiled program by kind and axes of the mesh; those along axes of one device are none."""
    found = collections.defaultdict(list)
    for each in collectives(read(compiled.as_text()), mesh.size):
        axes = axes_between(each, mesh)
        if axes:
            found[each.kind, axes].append(each)
    return found


def of_parameters(params: Any, mesh: Mesh) -> collections.Counter[int]:
    """How many parameters of each number of elements on a device are split over what `SPLIT` names; layers apart."""
    sizes: collections.Counter[int] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = {axis for place in leaf.sharding.spec for axis in ((place,) if isinstance(place, str) else place or ())}
        if axes & SPLIT:
            shape = leaf.sharding.shard_shape(leaf.shape)
            stacked = "layers" in jax.tree_util.keystr(path)
            sizes[math.prod(shape[stacked:])] += shape[0] if stacked else 1
    return sizes
