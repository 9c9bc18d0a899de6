"""What a model costs, and a plan for devices that are not here, on the terminal."""

import itertools

from rich.console import Console

from mom_jax.cli.tables import print_results
from mom_jax.models.accounting import Cost, total
from mom_jax.planning.plan import Option, Plan, summary
from mom_jax.planning.roofline import ASSUMPTIONS
from mom_jax.reports.tables import Table
from mom_jax.training.memory import in_words

_COLUMNS = ("parameters", "activated", "state (MiB)", "forward (MFLOP / token)", "backward (MFLOP / token)")
_SHOWN = 6  # other options
_NOT = ("no: all numbers are guessed", "no: the compiler found it too large")


def print_costs(title: str, costs: list[Cost], out: Console) -> None:
    """One row for each part, runs of equal layers together, and the total."""
    rows = []
    for _, run in itertools.groupby(costs, key=lambda cost: (_kind(cost.name), *_cells(cost))):
        parts = list(run)
        rows.append([parts[0].name if len(parts) == 1 else _range(parts), *_cells(parts[0])])
    rows.append(["total", *_cells(total(costs))])
    print_results(Table(title, ["part", *_COLUMNS], rows), out)


def print_totals(models: dict[str, list[Cost]], out: Console) -> None:
    """One row for each model; the first is what the others are compared with."""
    first, rows = total(next(iter(models.values()))), []
    for name, costs in models.items():
        cost = total(costs)
        cells = [f"{cell} ({_ratio(value, base)})" for cell, value, base in
                 zip(_cells(cost), _values(cost), _values(first), strict=True)]  # fmt: skip
        rows.append([name, *cells])
    print_results(Table("in all", ["model", *_COLUMNS], rows), out)


def _values(cost):
    return cost.parameters, cost.activated, cost.state_bytes, cost.forward, cost.backward


def _cells(cost):
    return (
        f"{cost.parameters:,}",
        f"{cost.activated:,}",
        f"{cost.state_bytes / 2**20:,.2f}",
        f"{cost.forward / 1e6:,.2f}",
        f"{cost.backward / 1e6:,.2f}",
    )


def _ratio(value, base):
    return f"x{value / base:.2f}" if base else "-"


def _kind(name):
    return name.partition("(")[2]


def _range(parts):
    """The name of a run of equal layers: "layers 0-4 (memory), each"."""
    first, last = (part.name.split()[1] for part in (parts[0], parts[-1]))
    return f"layers {first}-{last} ({_kind(parts[0].name)}, each"


def print_plan(name: str, plan: Plan, out: Console) -> None:
    """What is recommended or was asked for, what a device holds, sends and computes, and what else there is."""
    data, topology = plan.config.data, plan.topology
    out.print(
        f"{name} on {topology.name} ({topology.devices:,} devices), "
        f"{data.batch_size:,} x {data.sequence_length:,} tokens a step"
    )
    for table in (_run(plan), _memory(plan), _time(plan), _sent(plan), _others(plan)):
        if table.rows:
            print_results(table, out)
    out.print(f"Estimates assume: {ASSUMPTIONS}.")


def _run(plan: Plan) -> Table:
    compiled = plan.best.compiled
    kernels = compiled and ", ".join(f"{count} {kind}" for kind, count in compiled.kernels.items())
    rows = {
        "compiled": f"yes, in {compiled.seconds:,.0f} s" if compiled else _NOT[plan.best.needed is not None],
        "mesh": _mesh(plan.best),
        "rematerialisation": plan.config.remat,
        "fits": "yes" if plan.fits else "no; split it over more devices, or raise --gradient-accumulation",
        "kernels in the program": kernels or "-",
        "FLOPs of the model": f"{plan.model_flops:.3e}",
        "tokens a second, estimated": f"{plan.tokens_per_second:,.0f}",
        "tokens a day, estimated": f"{plan.tokens_per_second * 86400:.3e}",
        "MFU, estimated": f"{100 * plan.mfu:.1f} %",
        "tokens of the run": f"{plan.all_tokens:.3e}",
        "days, estimated": f"{plan.days:,.4g}",
        "device hours, estimated": f"{summary(plan)['device_hours_estimate']:,.4g}",
    }
    return Table("the step", ["what", "value"], [[what, value] for what, value in rows.items()])


def _memory(plan: Plan) -> Table:
    available = plan.topology.chip.memory
    sizes = {**summary(plan)["hbm_bytes_by_kind"], "in all": plan.best.memory, "available": available}
    rows = [[kind, in_words(size), f"{100 * size / available:.1f} %"] for kind, size in sizes.items()]
    return Table("memory of a device", ["for", "bytes", "share"], rows)


def _time(plan: Plan) -> Table:
    time, times = plan.best.time, {"products or memory, and network": plan.best.seconds}
    if time is not None:
        times = {
            "products at full rate": time.products,
            "memory at full rate": time.memory,
            "launch by launch, the longer of both": time.device,
            "network": time.network,
            "step, nothing hidden": time.step,
            "step, all hidden that can be": time.hidden,
        }
    rows = [[name, _milliseconds(seconds)] for name, seconds in times.items()]
    return Table("least time of a step", ["of", "ms"], rows)


def _sent(plan: Plan) -> Table:
    rows = [
        [kind, axes, f"{entry['count']:,}", in_words(entry["bytes"])]
        for kind, by_axes in plan.best.exchanged.items()
        for axes, entry in by_axes.items()
    ]
    return Table("what a device sends in a step", ["by", "along", "times", "bytes"], rows)


def _others(plan: Plan) -> Table:
    rows = [
        [_mesh(option), option.guess.remat, _done(option), in_words(option.memory), _milliseconds(option.seconds)]
        for option in plan.others[:_SHOWN]
    ]
    return Table("other ways, the fastest first", ["mesh", "remat", "compiled", "bytes", "ms"], rows)


def _done(option: Option) -> str:
    return "too large" if option.needed else "failed" if option.failed else "yes" if option.compiled else "guessed"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.{1 if seconds > 0.01 else 3}f}"


def _mesh(option: Option) -> str:
    mesh = vars(option.guess.mesh)
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items())
