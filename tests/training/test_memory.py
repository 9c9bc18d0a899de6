"""What no machine holds is refused before a byte of it is allocated."""

import dataclasses

import pytest

from mom_jax.errors import InputError
from mom_jax.training.config import MeshConfig, get_train_preset
from mom_jax.training.program import Program
from mom_jax.training.sharding import make_mesh


@pytest.mark.parametrize(
    ("model", "data"),
    [({"hidden_size": 2**20}, {}), ({}, {"batch_size": 2**20, "sequence_length": 2**20})],
    ids=["parameters", "activations"],
)
def test_more_than_the_memory(model, data):
    """Parameters and moments by themselves, or one layer's input."""
    tiny = get_train_preset("mom-tiny")
    config = dataclasses.replace(
        tiny, model=dataclasses.replace(tiny.model, **model), data=dataclasses.replace(tiny.data, **data)
    )
    with pytest.raises(InputError, match=r"^memory=[0-9,.]+ GiB: is the least that each device needs") as caught:
        Program(config, make_mesh(MeshConfig())).init_state()
    assert "\n" not in str(caught.value)
