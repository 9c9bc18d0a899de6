"""Whole programs that are compiled for an H100 and a v5e launch, move and hold no more than was recorded."""

import json
from pathlib import Path

import pytest
from support.processes import compiling

from tools.kernels import bundles

FOLDER = Path(__file__).resolve().parents[2]
RECORD = json.loads((FOLDER / "tools/kernels/counts.json").read_text(encoding="utf-8"))
QUICK = [("layer, forward and backward", "H100")]
LONG = [(program, device) for program, of in RECORD.items() for device in of if (program, device) not in QUICK]

COUNT = """
import json
from tools.kernels import programs
for program, device in {pairs}:
    print(json.dumps(programs.counted(program, device)))
"""


BUNDLES = """
import json
from tools.kernels import bundles
print(json.dumps([x.bundles for x in bundles.counted("{operator}")]))
"""

OTHERS = """
from mom_jax.benchmarks.kernel_passes import Case, training
from mom_jax.planning.targets import compiled, mesh
from tools.kernels.tpu import TOPOLOGIES
for operator in ("delta_rule", "grouped_matmul"):
    function, arguments = training(Case("tpu", operator, 256, "bfloat16"))
    compiled(mesh(TOPOLOGIES["{generation}"]), function, *arguments)
    print(operator)
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
@pytest.mark.exhaustive
def test_the_layer():
    """Forward with backward, on an H100."""
    assert not risen(QUICK)


@pytest.mark.compilers
@pytest.mark.programs
@pytest.mark.parametrize(("program", "device"), LONG)
def test_what_takes_long(program, device):
    """Everything else."""
    assert not risen([(program, device)])


@pytest.mark.compilers
@pytest.mark.programs
@pytest.mark.parametrize("operator", bundles.recorded())
def test_bundles_of_tpu_kernels(operator):
    """No step of a kernel takes a v5e's core more bundles than were recorded."""
    found = json.loads(compiling(BUNDLES.format(operator=operator)))
    before = [1.03 * x.bundles for x in bundles.recorded()[operator]]
    assert all(now <= most for now, most in zip(found, before, strict=True)), (found, before)


@pytest.mark.compilers
@pytest.mark.programs
@pytest.mark.parametrize("generation", ["v6e", "v5p"])
def test_other_tpus(generation):
    """libtpu takes the kernels that are largest, whose blocks depend on the chip's cores."""
    assert compiling(OTHERS.format(generation=generation)).split() == ["delta_rule", "grouped_matmul"]


def test_the_page_tells_the_record():
    """The tables of docs/kernels.md are those of counts.json and bundles.json."""
    page = (FOLDER / "docs/kernels.md").read_text(encoding="utf-8")
    assert "\n".join(bundles.lines(bundles.recorded())) in page
    for program, of in RECORD.items():
        numbers = [f"{x:,g}" for counts in of.values() for x in counts.values()]
        assert f"| {program} | {' | '.join(numbers)} |" in page.replace(" - |", "")
