"""Whole programs that are compiled for an H100 and a v5e launch, move and hold no more than was recorded."""

import json
from pathlib import Path

import pytest
from support.processes import compiling

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
def test_the_layer():
    """Forward with backward, on an H100."""
    assert not risen(QUICK)


@pytest.mark.compilers
@pytest.mark.programs
@pytest.mark.parametrize(("program", "device"), LONG)
def test_what_takes_long(program, device):
    """Everything else."""
    assert not risen([(program, device)])


def test_the_page_tells_the_record():
    """The table of docs/kernels.md is that of counts.json."""
    page = (FOLDER / "docs/kernels.md").read_text(encoding="utf-8")
    for program, of in RECORD.items():
        numbers = [f"{x:,g}" for counts in of.values() for x in counts.values()]
        assert f"| {program} | {' | '.join(numbers)} |" in page.replace(" - |", "")
