"""A small layer with parameters that make every part matter."""

from collections.abc import Callable

import pytest
from flax import nnx
from support.parameters import randomised

from mom_jax.layers.mixer import MemoryMixer

MakeLayer = Callable[..., MemoryMixer]


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
        rule: str = "gated_deltanet",
        **options,
    ) -> MemoryMixer:
        conv = {"use_short_conv": False} if conv_size is None else {"conv_size": conv_size}

        def layer() -> MemoryMixer:
            return MemoryMixer(
                hidden,
                rule=rule,
                num_heads=heads,
                head_k_dim=key_dim,
                head_v_dim=value_dim,
                num_memories=num_memories,
                top_k=top_k,
                shared=shared,
                single_projection=single_projection,
                options={"use_output_gate": output_gate, "norm_eps": 1e-5, **conv, **options},
                rngs=nnx.Rngs(0),
            )

        return randomised(nnx.eval_shape(layer), 0.35)

    return make
