"""One device and eight agree, on the bias of routers to the bit; meshes that do not fit are refused."""

import dataclasses
import itertools
import json
import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from support.exchanged import check_exchanged
from support.processes import on_fake_devices

from mom_jax.data.loader import TrainLoader
from mom_jax.data.prepare import prepared
from mom_jax.errors import InputError
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.program import Program
from mom_jax.training.sharding import AXES, check_fit, device_grid, make_mesh, rows_of_process, shard_batch
from mom_jax.training.step import make_train_step

MESH = (2, 2, 2)
STEPS = 4
RATE = 0.02


def bias_of(params: Any) -> np.ndarray:
    """The bias [L, M] of the routers in a tree of parameters."""
    return np.asarray(params["layers"]["attn"]["router_bias"])


def run(config: TrainConfig) -> dict:
    """The initial parameters, and what a few steps make of losses, biases, loads and moments."""
    mesh = make_mesh(config.mesh)
    program = Program(config, mesh)
    state, step = program.init_state(), make_train_step(program)
    initial = [np.asarray(leaf).tobytes().hex()[:4096] for leaf in jax.tree.leaves(state.params)]
    loader = TrainLoader(prepared(config.data, progress=False), config.data)
    losses, loads, biases = [], [], [bias_of(state.params).tolist()]
    batches = [shard_batch(next(loader), mesh) for _ in range(STEPS)]
    with jax.set_mesh(mesh):
        compiled = step.lower(state, batches[0]).compile()
        if mesh.size > 1:
            tokens = batches[0]["labels"].size
            check_exchanged(compiled, mesh, program.abstract.params, passes=2, tokens=tokens, states=0)
        for batch in batches:
            state, metrics = compiled(state, batch)
            losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
            loads.append(metrics["load"].tolist())
            biases.append(bias_of(state.params).tolist())
    kernel = state.params["layers"]["mlp"]["up_proj"]["weight"]
    moments = state.opt_state[1][0]
    moment = moments.mu["layers"]["mlp"]["up_proj"]["weight"]
    shards = [list(array.addressable_shards[0].data.shape) for array in (kernel, moment)]
    biased = [bias_of(moment).tolist() for moment in (moments.mu, moments.nu)]
    found = {"initial": initial, "losses": losses, "shards": shards}
    return found | {"biases": biases, "loads": loads, "moments of biases": biased}


@pytest.fixture(scope="module")
def config(make_config):
    """Two layers whose routers are balanced by a bias."""
    model = {"num_hidden_layers": 2, "router_balance": "loss_free", "router_bias_rate": RATE}
    return make_config(model=model, optimizer={"weight_decay": 1.0}, remat="full")


@pytest.fixture(scope="module")
def on_eight_devices(config, tmp_path_factory):
    """Results of `run` on eight simulated devices, and the complaint about a mesh of four."""
    path = tmp_path_factory.mktemp("eight") / "config.json"
    path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return json.loads(on_fake_devices(8, __file__, path).splitlines()[-1])


@pytest.fixture(scope="module")
def on_one_device(config):
    return run(config)


def test_losses_agree_with_one_device(on_one_device, on_eight_devices):
    losses = on_eight_devices["losses"]
    np.testing.assert_allclose(losses, on_one_device["losses"], rtol=2e-4)
    assert losses[-1][0] < losses[0][0]


def test_initial_parameters_are_bit_identical(on_one_device, on_eight_devices):
    assert on_eight_devices["initial"] == on_one_device["initial"]


def test_parameters_and_moments_are_split(on_one_device, on_eight_devices):
    assert on_one_device["shards"] == [[2, 32, 64]] * 2
    assert on_eight_devices["shards"] == [[2, 16, 32]] * 2


def test_a_step_moves_the_bias_by_the_load_alone(on_one_device):
    """By the rate, against the load; neither the optimizer nor weight decay touches it."""
    biases, loads = np.array(on_one_device["biases"]), np.array(on_one_device["loads"])
    assert biases.shape == (STEPS + 1, 2, 4) and not biases[0].any()
    np.testing.assert_allclose(np.diff(biases, axis=0), RATE * np.sign(0.25 - loads), atol=1e-7)
    assert biases[-1].any()
    assert not np.any(on_one_device["moments of biases"])


def test_eight_devices_move_the_bias_alike(on_one_device, on_eight_devices):
    """Bit for bit: loads are whole numbers of tokens, divided once."""
    assert on_eight_devices["biases"] == on_one_device["biases"]
    np.testing.assert_allclose(on_eight_devices["loads"], on_one_device["loads"], atol=4 / 1024)


def test_a_mesh_smaller_than_the_devices_is_refused(on_eight_devices):
    assert "must multiply to the number of devices (8)" in on_eight_devices["four"]


def test_a_mesh_larger_than_the_devices_is_refused():
    message = r"data 1 x fsdp 2 x tensor 1 x sequence 1: must multiply to the number of devices \(1\)"
    with pytest.raises(InputError, match=message):
        make_mesh(MeshConfig(data=1, fsdp=2))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX asks of a device to find its place."""

    id: int
    slice_index: int
    coords: tuple[int, ...]
    platform: str
    device_kind: str
    core_on_chip: int = 0
    process_index: int = 0


def test_any_sizes_lie_on_a_torus():
    """Sizes that are no products of the torus's own: every chip has one place."""
    places = itertools.product(range(4), repeat=3)
    chips = [Chip(i, 0, place, "tpu", "TPU v5") for i, place in enumerate(places)]
    grid = device_grid((32, 1, 1, 2), chips)
    assert grid.shape == (32, 1, 1, 2) and {chip.id for chip in grid.flat} == set(range(64))


def nodes(count: int, each: int) -> list[Chip]:
    """GPUs, in an order of no meaning."""
    return [Chip(i, i % count, (), "gpu", "NVIDIA H100") for i in reversed(range(count * each))]


@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (4, 1, 1, 2), (1, 4, 1, 2)], ids=str)
def test_a_node_keeps_together_what_exchanges_most(sizes):
    """Two nodes: rows of the batch (or else parameters) lie across, all else within one of them."""
    grid = device_grid(sizes, nodes(2, 4))
    by_slice = np.vectorize(lambda chip: chip.slice_index)(grid)
    across = 0 if sizes[0] > 1 else 1
    halves = np.split(by_slice, 2, across)
    assert [set(half.flat) for half in halves] == [{0}, {1}]


def mesh_of(**axes: int) -> Any:
    """A mesh without devices."""
    sizes = dict.fromkeys(AXES, 1) | axes
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"tensor": 4}, r"mesh\.tensor=4: must divide model\.num_heads \(2\)"),
        ({"fsdp": 64}, r"mesh\.fsdp=64: must divide model\.hidden_size \(32\)"),
        ({"fsdp": 8, "sequence": 8}, r"mesh\.fsdp \* mesh\.sequence=64: must divide model\.hidden_size \(32\)"),
        ({"sequence": 7}, r"mesh\.sequence=7: must divide data\.sequence_length \(64\)"),
        ({"data": 16}, r"mesh\.data \* mesh\.fsdp=16: must divide data\.batch_size / gradient_accumulation \(8\)"),
    ],
)
def test_a_mesh_that_does_not_divide_the_run_is_refused(axes, message, make_config):
    with pytest.raises(InputError, match=message):
        check_fit(make_config(), mesh_of(**axes))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"memory_rule": "titans"}, r"must be 1 for titans: the recurrence titans linear hands no state .* are"),
        ({"memory_rule": "log_linear_gla"}, r"must be 1 for log_linear_gla: the recurrence log linear hands no state"),
        (
            {"memory_rule": "gated_deltanet", "use_short_conv": True, "reference_conv_leak": True},
            r"must be 1 with model\.reference_conv_leak",
        ),
    ],
)
def test_a_rule_that_cannot_go_on_from_another_device_is_refused(model, message, make_config):
    with pytest.raises(InputError, match=r"mesh\.sequence=2: " + message):
        check_fit(make_config(model=model), mesh_of(sequence=2))


def mesh_over(processes: list[int], **axes: int) -> Any:
    """A mesh over devices of these processes, of which nothing else is known."""
    sizes = dict.fromkeys(AXES, 1) | axes
    devices = np.array([SimpleNamespace(process_index=number) for number in processes])
    return SimpleNamespace(shape=sizes, size=len(devices), devices=devices.reshape(tuple(sizes.values())))


@pytest.mark.parametrize(
    ("processes", "axes", "want"),
    [
        ([0, 0, 1, 1], {"data": 4}, {0: (0, 2), 1: (1, 2)}),
        ([0, 0, 1, 1], {"sequence": 4}, {0: (0, 1), 1: (0, 1)}),
        ([0, 1, 2, 3], {"fsdp": 2, "sequence": 2}, {0: (0, 2), 1: (0, 2), 3: (1, 2)}),
        ([1, 0, 1, 0], {"data": 2, "tensor": 2}, {0: (0, 1), 1: (0, 1)}),
        ([0, 1, 1, 0], {"data": 4}, {0: (0, 2), 1: (1, 2)}),
    ],
)
def test_processes_that_share_rows_read_the_same_ones(processes, axes, want):
    mesh = mesh_over(processes, **axes)
    assert {process: rows_of_process(mesh, process) for process in want} == want


def test_rows_that_overlap_in_part_are_refused():
    """Two processes share the second of three blocks."""
    with pytest.raises(InputError, match="mesh="):
        rows_of_process(mesh_over([0, 0, 0, 1, 1, 1], data=3, sequence=2), 0)


def main(path: str) -> None:
    config = TrainConfig.from_file(path)
    results = run(dataclasses.replace(config, mesh=MeshConfig(*MESH)))
    try:
        make_mesh(MeshConfig(1, 2, 2))
    except InputError as error:
        results["four"] = str(error)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
