"""GPU kernels move and ask for no more than was recorded."""

import json
import re
from pathlib import Path

import pytest
from support.cases import some

from tools.kernels import requests

PAGE = Path(__file__).resolve().parents[2] / "docs/kernels.md"
XLA = requests.RECORD.with_name("xla.json")
RECORD = json.loads(requests.RECORD.read_text(encoding="utf-8"))


@pytest.mark.parametrize("operator", some(["delta_rule", "scalar_decay"], ("scalar_decay",)))
def test_what_programs_ask_for(operator):
    """Bytes through HBM and L2 of each kernel, at the published size."""
    counted, before = requests.traffic(operator), RECORD[operator]
    assert counted.keys() == before.keys()
    risen = {(name, at): x for name, of in counted.items() for at, x in of.items() if x > 1.03 * before[name][at]}
    assert not risen


def test_the_page_tells_the_record():
    """The tables of docs/kernels.md are those of traffic.json and, of XLA's recurrences, xla.json."""
    page = PAGE.read_text(encoding="utf-8")
    assert "\n".join(requests.lines(RECORD)) in page
    for operator, counts in json.loads(XLA.read_text(encoding="utf-8")).items():
        (line,) = (x for x in page.splitlines() if re.match(rf"\| {operator} \|( \d+ \|){{5}} [\d,]+ \|$", x))
        assert line.endswith(f"| {counts['KB']:.0f} | {counts['launches']:,} |")
