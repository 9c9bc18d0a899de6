"""A plan for devices that are not here, on the terminal."""

from rich.console import Console
from rich.table import Table

from mom_jax.cli.tables import titled
from mom_jax.planning.plan import Option, Plan, summary
from mom_jax.planning.roofline import ASSUMPTIONS
from mom_jax.terminal import print_table
from mom_jax.training.memory import in_words

_SHOWN = 6  # other options
_NOT = ("no: all numbers are guessed", "no: the compiler found it too large")


def print_plan(name: str, plan: Plan, out: Console) -> None:
    """What is recommended or was asked for, what a device holds, sends and computes, and what else there is."""
    data, topology = plan.config.data, plan.topology
    out.print(
        f"{name} on {topology.name} ({topology.devices:,} devices), "
        f"{data.batch_size:,} x {data.sequence_length:,} tokens a step"
    )
    for table in (_run(plan), _memory(plan), _time(plan), _sent(plan), _others(plan)):
        if table.row_count:
            print_table(table, out)
    out.print(f"Estimates assume: {ASSUMPTIONS}.")


def _run(plan: Plan) -> Table:
    table, compiled, config = titled("the step", "what", left=("value",)), plan.best.compiled, plan.config
    kernels = compiled and ", ".join(f"{count} {kind}" for kind, count in compiled.kernels.items())
    said = summary(plan)
    rows = {
        "compiled": f"yes, in {compiled.seconds:,.0f} s" if compiled else _NOT[plan.best.needed is not None],
        "mesh": _mesh(plan.best),
        "rematerialisation": config.remat,
        "fits": "yes" if plan.fits else "no; split it over more devices, or raise --gradient-accumulation",
        "kernels in the program": kernels or "-",
        "FLOPs of the model": f"{plan.model_flops:.3e}",
        "tokens a second, estimated": f"{plan.tokens_per_second:,.0f}",
        "tokens a day, estimated": f"{plan.tokens_per_second * 86400:.3e}",
        "MFU, estimated": f"{100 * plan.mfu:.1f} %",
        "tokens of the run": f"{plan.all_tokens:.3e}",
        "days, estimated": f"{plan.days:,.4g}",
        "device hours, estimated": f"{said['device_hours_estimate']:,.4g}",
    }
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _memory(plan: Plan) -> Table:
    table = titled("memory of a device", "for", right=("bytes", "share"))
    said, available = summary(plan), plan.topology.chip.memory
    sizes = {**said["hbm_bytes_by_kind"], "in all": plan.best.memory, "available": available}
    for kind, size in sizes.items():
        table.add_row(kind, in_words(size), f"{100 * size / available:.1f} %")
    return table


def _time(plan: Plan) -> Table:
    table = titled("least time of a step", "of", right=("ms",))
    time = plan.best.time
    if time is None:
        table.add_row("products or memory, and network", _milliseconds(plan.best.seconds))
        return table
    rows = {
        "products at full rate": time.products,
        "memory at full rate": time.memory,
        "launch by launch, the longer of both": time.device,
        "network": time.network,
        "step, nothing hidden": time.step,
        "step, all hidden that can be": time.hidden,
    }
    for name, seconds in rows.items():
        table.add_row(name, _milliseconds(seconds))
    return table


def _sent(plan: Plan) -> Table:
    table = titled("what a device sends in a step", "by", left=("along",), right=("times", "bytes"))
    for kind, by_axes in plan.best.exchanged.items():
        for axes, entry in by_axes.items():
            table.add_row(kind, axes, f"{entry['count']:,}", in_words(entry["bytes"]))
    return table


def _others(plan: Plan) -> Table:
    table = titled("other ways, the fastest first", "mesh", left=("remat", "compiled"), right=("bytes", "ms"))
    for option in plan.others[:_SHOWN]:
        done = "too large" if option.needed else "failed" if option.failed else "yes" if option.compiled else "guessed"
        table.add_row(_mesh(option), option.guess.remat, done, in_words(option.memory), _milliseconds(option.seconds))
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.{1 if seconds > 0.01 else 3}f}"


def _mesh(option: Option) -> str:
    mesh = vars(option.guess.mesh)
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items())
