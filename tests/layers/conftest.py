"""A small layer with parameters that make every part matter."""

from collections.abc import Callable

import pytest
from flax import nnx
from support.parameters import randomised

from mom_jax.layers.mom import MoM
from mom_jax.layers.output import HeadNormOutput
from mom_jax.layers.rules.deltanet import DeltaNet
from mom_jax.layers.rules.gated_deltanet import GatedDeltaNet

MakeLayer = Callable[..., MoM]


@pytest.fixture(scope="session")
def make_layer() -> MakeLayer:
    """A layer of D=16, H=2, K=8, V=12, four memories, top-2; keyword arguments replace these."""

    def make(
        hidden: int = 16,
        heads: int = 2,
        key_dim: int = 8,
        value_dim: int = 12,
        num_memories: int | None = 4,
        top_k: int = 2,
        shared: bool = True,
        single_projection: bool = False,
        output_gate: bool = True,
        conv_size: int | None = 4,
        rule: type[GatedDeltaNet | DeltaNet] = GatedDeltaNet,
        **options,
    ) -> MoM:
        sizes = (hidden, heads, key_dim, value_dim)
        memories = 1 if single_projection or num_memories is None else num_memories + shared

        def layer() -> MoM:
            rngs = nnx.Rngs(0)
            made = rule(*sizes, memories=memories, conv_size=conv_size, **options, rngs=rngs)
            output = HeadNormOutput(hidden, heads, value_dim, gate=output_gate, norm_eps=1e-5, rngs=rngs)
            return MoM(hidden, made, output, num_memories=num_memories, top_k=top_k, shared=shared, rngs=rngs)

        return randomised(nnx.eval_shape(layer), 0.35)

    return make
