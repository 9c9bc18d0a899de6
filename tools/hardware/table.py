"""The results as one page of text, at most a hundred lines."""

from collections.abc import Iterator, Mapping
from typing import Any

from tools.hardware.runner import SECTIONS, Results, failed

LINES, WIDTH = 100, 118


def page(results: Results) -> str:
    """What was found, worst first."""
    lines = [*_head(results["about"]), *_faults(results)]
    for section in SECTIONS:
        found = results.get(section, {})
        if section == "checks":
            lines.append(_summary(found))
        elif section == "rivals":
            lines += _rivals(found)
        elif section != "ceilings":
            lines += _times(found, _ceiling(results, "copy, bytes/s"))
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"... {len(lines) - LINES + 1} lines more in the JSON"]
    return "\n".join(line[:WIDTH] for line in lines)


def _head(about: Mapping[str, Any]) -> Iterator[str]:
    made = about["made"]
    card = f"{about['device']} ({about['driver']})"
    yield f"{card}, jax {about['jax']}, {about['date']}; programs of {made.get('commit')}"
    yield "seconds: " + ", ".join(f"{name} {x}" for name, x in about.get("seconds", {}).items())


def _ceiling(results: Results, name: str) -> float | None:
    found = results.get("ceilings", {}).get(name)
    return found if isinstance(found, float) else None


def _faults(results: Results) -> Iterator[str]:
    for name, value in results.get("ceilings", {}).items():
        yield f"{name}: {value:.3e}" if isinstance(value, float) else f"{name}: {value}"
    for section in SECTIONS:
        for name, found in results.get(section, {}).items():
            if isinstance(found, str):
                yield f"{section}: {name} {found}"
            elif isinstance(found, dict) and failed(found):
                yield f"FAULT {name}: {_what(found)}"


def _what(found: Mapping[str, Any]) -> str:
    if "failed" in found:
        return found["failed"].replace("\n", " | ")
    return f"{found.get('worst', '')} (tolerance {found.get('tolerance')}), bits again: {found['same']}"


def _summary(found: Mapping[str, Any]) -> str:
    all_found = [x for x in found.values() if isinstance(x, dict) and "same" in x]
    right, same = (sum(x[key] is True for x in all_found) for key in ("right", "same"))
    return f"checks: {right} of {len(all_found)} right, {same} with the same bits twice"


def _times(found: Mapping[str, Any], copy: float | None) -> Iterator[str]:
    for name, x in found.items():
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
    own = {name: x for name, x in kernels.items() if "bytes/s" in x}
    shown = own or dict(list(kernels.items())[:4])
    cells = []
    for name, x in shown.items():
        share = f" {100 * x['bytes/s'] / copy:.0f}%" if copy and "bytes/s" in x else ""
        times = f"{x['times']:.0f}x " if x["times"] != 1 else ""
        cells.append(f"{times}{name[:24]} {1e6 * x['seconds']:.0f}us{share}")
    if cells:
        yield "  " + "; ".join(cells)


def _rivals(found: Mapping[str, Any]) -> Iterator[str]:
    for name, x in found.items():
        if isinstance(x, dict) and "failed" not in x:
            yield f"beside {name}: " + ", ".join(f"{who} {1e3 * seconds:.3f} ms" for who, seconds in x.items())
