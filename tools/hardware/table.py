"""The results as one page of text, at most a hundred lines."""

from collections.abc import Iterator, Mapping
from typing import Any

from tools.hardware.runner import SECTIONS, Results, failed

LINES, WIDTH = 100, 118


def page(results: Results) -> str:
    """What was found, worst first."""
    lines = [*_head(results["about"]), *_faults(results)]
    for section in SECTIONS:
        outcome = results.get(section, {})
        if section == "checks":
            lines.append(_summary(outcome))
        elif section == "rivals":
            lines += _rivals(outcome)
        elif section != "ceilings":
            lines += _times(outcome, _ceiling(results, "copy, bytes/s"))
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"... {len(lines) - LINES + 1} lines more in the JSON"]
    return "\n".join(line[:WIDTH] for line in lines)


def _head(about: Mapping[str, Any]) -> Iterator[str]:
    made = about["made"]
    card = f"{about['device']} ({about['driver']})"
    yield f"{card}, jax {about['jax']}, {about['date']}; programs of {made.get('commit')}"
    yield "seconds: " + ", ".join(f"{name} {x}" for name, x in about.get("seconds", {}).items())


def _ceiling(results: Results, name: str) -> float | None:
    outcome = results.get("ceilings", {}).get(name)
    return outcome if isinstance(outcome, float) else None


def _faults(results: Results) -> Iterator[str]:
    for name, value in results.get("ceilings", {}).items():
        yield f"{name}: {value:.3e}" if isinstance(value, float) else f"{name}: {value}"
    for section in SECTIONS:
        for name, outcome in results.get(section, {}).items():
            if isinstance(outcome, str):
                yield f"{section}: {name} {outcome}"
            elif isinstance(outcome, dict) and failed(outcome):
                yield f"FAULT {name}: {_what(outcome)}"


def _what(outcome: Mapping[str, Any]) -> str:
    if "failed" in outcome:
        return outcome["failed"].replace("\n", " | ")
    return f"{outcome.get('worst', '')} (tolerance {outcome.get('tolerance')}), bits again: {outcome['same']}"


def _summary(outcome: Mapping[str, Any]) -> str:
    checked = [x for x in outcome.values() if isinstance(x, dict) and "same" in x]
    right, same = (sum(x[key] is True for x in checked) for key in ("right", "same"))
    return f"checks: {right} of {len(checked)} right, {same} with the same bits twice"


def _times(outcome: Mapping[str, Any], copy: float | None) -> Iterator[str]:
    for name, x in outcome.items():
        if not (isinstance(x, dict) and "seconds" in x):
            continue
        share = f", {100 * x['bytes/s'] / copy:.0f} % of the copy" if copy else ""
        rate = f", {x['tokens/s']:,.0f} tokens/s" if "tokens/s" in x else ""
        right = {True: "right", False: "WRONG", None: "-"}[x.get("right")]
        error = f" {x['worst'].split()[-1]}" if "worst" in x else ""
        yield f"{name}: {1e3 * x['seconds']:.3f} ms, {x['bytes'] / 1e9:.2f} GB at least{share}{rate}, {right}{error}"
        kernels = x.get("kernels", {})
        if "failed" in kernels:
            yield f"  kernels: {_what(kernels)}"
        else:
            yield from _kernels(kernels, copy)


def _kernels(kernels: Mapping[str, Any], copy: float | None) -> Iterator[str]:
    measured = {name: x for name, x in kernels.items() if "bytes/s" in x}
    shown = measured or dict(list(kernels.items())[:4])
    cells = []
    for name, x in shown.items():
        share = f" {100 * x['bytes/s'] / copy:.0f}%" if copy and "bytes/s" in x else ""
        times = f"{x['times']:.0f}x " if x["times"] != 1 else ""
        cells.append(f"{times}{name[:24]} {1e6 * x['seconds']:.0f}us{share}")
    if cells:
        yield "  " + "; ".join(cells)


def _rivals(outcome: Mapping[str, Any]) -> Iterator[str]:
    for name, x in outcome.items():
        if isinstance(x, dict) and "failed" not in x:
            yield f"beside {name}: " + ", ".join(f"{who} {1e3 * seconds:.3f} ms" for who, seconds in x.items())
