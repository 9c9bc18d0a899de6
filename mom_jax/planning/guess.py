"""A training step by a few numbers, to choose among meshes before any is compiled.

Bytes of the state are exact. What is kept from the forward pass to the backward pass is that of the traced model, so it
follows every rule, kernel and rematerialisation; it is taken to divide evenly over the axes. The time is that of the
products at the chip's full rate or of the memory's bytes at its, and of what is sent beside them.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.models.accounting import Cost, account, total
from mom_jax.models.structure import ModelParts, param_shardings
from mom_jax.planning.chips import Chip
from mom_jax.planning.targets import abstract_mesh
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.memory import device_bytes
from mom_jax.training.program import Program, placed
from mom_jax.training.sharding import AXES, check_fit

ROOM = 0.9  # share of the memory that the guess may fill
# Bytes that cross the memory's bus in a step for each byte that is kept without rematerialisation, which takes more in
# proportion to its products: 8 to 11 in compiled steps of mom-340m for an H100 and a v5e.
TRAFFIC = 8.0
_SHORT = 1024  # tokens of the traced row; what is kept grows in proportion


@dataclasses.dataclass(frozen=True)
class Guess:
    """A way to run a step, and what is expected of it on each device.

    Attributes:
        mesh: sizes by axis.
        remat: what is recomputed.
        parameters, optimizer, activations, temporaries: bytes.
        seconds: of a step, nothing hidden behind anything else.
    """

    mesh: MeshConfig
    remat: str
    parameters: int
    optimizer: int
    activations: int
    temporaries: int
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.parameters + self.optimizer + self.activations + self.temporaries


class Guesser:
    """Guesses for one run on one kind of chip."""

    def __init__(self, config: TrainConfig, chip: Chip):
        self.config, self.chip = config, chip

    @functools.cached_property
    def program(self) -> Program:
        """The run's, for one device."""
        return Program(self.config, self._abstract(MeshConfig(data=1)))

    @functools.cached_property
    def cost(self) -> Cost:
        """The whole model's for a token."""
        return total(account(self.config.model, self.config.data.sequence_length))

    def flops(self, remat: str | None = None) -> float:
        """FLOPs of a step on all devices together: the model's, or with what is computed again."""
        cost, model = self.cost, self.config.model
        layers = cost.forward - 2.0 * model.vocab_size * model.hidden_size
        again = {
            "full": layers,
            "dots": layers - cost.mlp,
            "recurrence": layers - cost.recurrence,
            "mixer": cost.mlp,
        }
        return self.config.data.tokens_per_step * (cost.forward + cost.backward + again.get(remat or "none", 0.0))

    @functools.cached_property
    def _moments(self) -> float:
        """Bytes of the optimizer's state for each byte of parameters."""
        state = self.program.abstract
        return device_bytes((state.opt_state, state.ema)) / device_bytes(state.params)

    @functools.cache  # noqa: B019 (lives as long as a plan)
    def kept(self, remat: str) -> float:
        """Bytes that each token leaves from the forward pass for the backward pass."""
        with jax.sharding.use_abstract_mesh(self._abstract(MeshConfig(data=1))):
            short, long = (_residuals(self.program.parts, remat, tokens) for tokens in (_SHORT, 2 * _SHORT))
        return (long - short) / _SHORT

    def guess(self, mesh: MeshConfig, remat: str) -> Guess:
        """What is expected of a mesh whose axes are all given, and that fits."""
        sizes, abstract = {axis: getattr(mesh, axis) for axis in AXES}, self._abstract(mesh)
        shapes = self.program.parts.abstract
        parameters = device_bytes(placed(nnx.to_pure_dict(shapes), param_shardings(shapes, abstract)))
        tokens = self.config.data.tokens_per_step / self.config.gradient_accumulation / math.prod(sizes.values())
        layer = self.kept("none") / self.config.model.num_hidden_layers
        rounded = parameters // 2 if self.config.model.compute_dtype != "float32" else 0
        return Guess(
            mesh,
            remat,
            parameters,
            int(parameters * self._moments),
            int(self.kept(remat) * tokens),
            int(parameters + rounded + 2 * layer * tokens),
            self._seconds(sizes, remat, parameters),
        )

    def _seconds(self, sizes: Mapping[str, int], remat: str, parameters: int) -> float:
        """Products or bytes, whichever take longer, then everything that is sent."""
        model, chip = self.config.model, self.chip
        copies, tensor = sizes["data"], sizes["tensor"]
        shards = math.prod(sizes.values()) // copies // tensor  # over which parameters are split
        whole = parameters * shards
        passes = 2 + (remat != "none")  # in which layers are computed
        width = jnp.dtype(model.compute_dtype).itemsize
        rows = self.config.data.tokens_per_step / (copies * shards) * model.hidden_size * width
        accumulated = self.config.gradient_accumulation
        sent = {
            "shards": _ring(shards) * whole * (passes * width / 4 * accumulated + accumulated),
            "tensor": 2 * _ring(tensor) * rows * 2 * model.num_hidden_layers * passes,
            "data": 2 * _ring(copies) * parameters,
        }
        inner = {"tensor": tensor, "shards": tensor * shards, "data": tensor * shards * copies}
        speed = {axis: chip.network if chip.node and reach > chip.node else chip.link for axis, reach in inner.items()}
        devices = math.prod(sizes.values())
        products = self.flops() / devices / chip.flops
        memory = TRAFFIC * self.kept("none") * self.config.data.tokens_per_step / devices / chip.bandwidth
        again = self.flops(remat) / self.flops()
        return again * max(products, memory) + sum(sent[x] / speed[x] for x in sent)

    def fitting(self, meshes: Iterable[MeshConfig]) -> list[MeshConfig]:
        """Those meshes that model and batch divide over.

        Raises:
            InputError: none does; what the last one lacks.
        """
        found, reason = [], None
        for mesh in meshes:
            try:
                check_fit(self.config, self._abstract(mesh))
                found.append(mesh)
            except InputError as error:
                reason = error
        if reason and not found:
            raise reason
        return found

    def ranked(self, meshes: Iterable[MeshConfig], remats: Sequence[str]) -> list[Guess]:
        """A guess for each mesh and rematerialisation: those first that fit the memory, then the fastest.

        Rows are split only where they have to be: how evenly memories are busy along a row is not known here.
        """
        room = ROOM * self.chip.memory
        guesses = [self.guess(mesh, remat) for mesh in meshes for remat in remats]
        return sorted(guesses, key=lambda x: (max(x.memory - room, 0), x.mesh.sequence, x.seconds))

    def _abstract(self, mesh: MeshConfig) -> Any:  # to type checkers it is no mesh
        sizes = {axis: getattr(mesh, axis) for axis in AXES}
        platform = {"cuda": "gpu"}.get(self.chip.platform, self.chip.platform)
        return abstract_mesh(self.chip.kind, platform, **sizes)


def all_meshes(devices: int) -> Iterator[MeshConfig]:
    """Every way to split so many devices."""
    divisors = [x for x in range(1, devices + 1) if devices % x == 0]
    for sizes in itertools.product(divisors, repeat=len(AXES)):
        if math.prod(sizes) == devices:
            yield MeshConfig(**dict(zip(AXES, sizes, strict=True)))


def _ring(ways: int) -> float:
    """The share of an array that each of so many devices sends to gather or to scatter it."""
    return (ways - 1) / ways


def _residuals(parts: ModelParts, remat: str, tokens: int) -> int:
    """Bytes that the backward pass of a row of so many tokens is given."""
    ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def forward(params: Any, ids: jax.Array) -> Any:
        def hidden(params: Any) -> jax.Array:
            return parts.merge(params).rounded().hidden_states(ids, segment_ids=ids, remat=remat).hidden

        return jax.vjp(hidden, params)[1]

    kept = jax.eval_shape(forward, nnx.to_pure_dict(parts.abstract), ids)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
