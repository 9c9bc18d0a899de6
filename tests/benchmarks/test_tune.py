"""The search for kernel configurations, on times that are known, and that it changes what kernels run with."""

import importlib
import pkgutil

import pytest

import pallas_kernels
from mom_jax.benchmarks.kernel_passes import OPERATORS, Case
from mom_jax.benchmarks.tune import choose, chosen, configs, neighbours, search
from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import Config, find
from pallas_kernels.gpu import linear_state

DEVICES = {"gpu": ("sm_80", "sm_90", "sm_100", "gfx942"), "tpu": ("v4", "v5e", "v6e", "v99")}
CASES = [Case(platform, name, 128, "bfloat16") for platform, names in OPERATORS.items() for name in names]


@pytest.mark.parametrize("operator, kernel", [("delta_rule", "forward"), ("rank_one_decay", "outputs")])
def test_what_spills_more_than_xla_moves(operator, kernel):
    """An A100 has no kernels for float32 heads above 128, so that ``auto`` runs XLA; all else has them."""
    entries = configs(Case("gpu", operator, 256, "float32"))[kernel]
    with pytest.raises(Unsupported, match="no configuration for sm_80, 4 bytes and 256 channels"):
        find(entries, "sm_80", 4, 256)
    assert all(find(entries, *x) for x in (("sm_80", 4, 128), ("sm_80", 2, 256), ("sm_90", 4, 256), ("gfx942", 4, 256)))


def test_no_two_kernels_share_a_list():
    """Or to tune one would change the other. Operators that run the same kernel have one list for it."""
    names = [x.name for x in pkgutil.walk_packages(pallas_kernels.__path__, "pallas_kernels.")]
    tables = [getattr(importlib.import_module(name), "CONFIGS", {}) for name in names]
    lists = {(name, id(entries)) for table in tables for name, entries in table.items()}
    assert lists and len({number for _, number in lists}) == len(lists)


def test_neighbours():
    """One number is doubled or halved, none falls below 1, and what a kernel does not have stays away."""
    assert set(neighbours(Config(block_k=64, num_warps=1))) == {
        Config(block_k=128, num_warps=1), Config(block_k=32, num_warps=1), Config(block_k=64, num_warps=2),
    }  # fmt: skip


def test_search_finds_the_fastest():
    """It changes one number after the other, passes over what cannot run, and tries nothing twice."""
    tried = []

    def seconds(choice):
        first, second = choice["forward"], choice["backward"]
        tried.append(choice)
        if first.block_k > 128:
            return float("inf")
        return abs(first.block_k - 128) + abs(first.num_warps - 8) + abs(second.block_h - 2) + 1.0

    found = search({"forward": Config(block_k=16, num_warps=4), "backward": Config(block_h=16)}, seconds)
    assert found == ({"forward": Config(block_k=128, num_warps=8), "backward": Config(block_h=2)}, 1.0)
    assert len(tried) == len({str(x) for x in tried})


@pytest.fixture
def restored():
    """Gives a table back as it was."""
    saved = []

    def keep(table):
        saved.extend((entries, list(entries)) for entries in table.values())
        return table

    yield keep
    for entries, before in saved:
        entries[:] = before


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.platform}-{case.operator}")
def test_every_operator_has_a_table(case, restored):
    """Each kernel has a configuration for every device and dtype, and takes one that is chosen over it."""
    for device in DEVICES[case.platform]:
        for dtype in ("float32", "bfloat16"):
            assert all(any(config) for config in chosen(case._replace(dtype=dtype), device).values())
    device, table = DEVICES[case.platform][0], restored(configs(case))
    other = {name: neighbours(config)[0] for name, config in chosen(case, device).items()}
    choose(case, other)
    assert chosen(case, device) == other
    shared = table.keys() & linear_state.CONFIGS.keys() if case.operator in ("scalar_decay", "vector_decay") else ()
    for name in shared if case.platform == "gpu" else ():
        assert find(linear_state.CONFIGS[name], device, 2, 128) == other[name]
