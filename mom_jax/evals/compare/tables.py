"""What a comparison prints."""

from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Table

from mom_jax.evals.compare.budget import Budget
from mom_jax.evals.compare.comparison import Comparison, Layer
from mom_jax.evals.compare.differences import Difference

WORST = 8  # gradients that are listed


def comparison_tables(result: Comparison) -> Iterable[RenderableType]:
    """Tables of blocks, routers, outputs and the worst gradients; then lines of text."""
    yield _blocks(result.layers)
    yield _routers(result.layers)
    yield _differences("logits, losses and decoding", "quantity", result.outputs)
    if result.gradients:
        title = f"gradients: the worst {min(WORST, len(result.gradients))} of {len(result.gradients)} parameters"
        yield _differences(title, "parameter", result.gradients[:WORST])
    compared, rows = result.rows
    if compared < rows:
        left_out = f"{rows - compared} of {rows} rows hold a routing choice that differs"
        yield f"{left_out}: they are left out of losses, gradients and decoding"
        if not compared:
            yield "no row is left: use another --seed, or fewer --tokens"
    if result.generation:
        yield _generation(result)


def _blocks(layers: list[Layer]) -> Table:
    table = _table("output of each block")
    for name in ("layer", "max abs", "max rel", "where", "tokens compared", ""):
        table.add_column(name, justify="left" if name == "where" else "right")
    for layer in layers:
        compared = _percent(layer.compared, int(layer.compared < 1))
        table.add_row(str(layer.number), *_cells(layer.hidden), compared, _mark(layer.hidden.ok))
    return table


def _routers(layers: list[Layer]) -> Table:
    table = _table("router logits and memory choices")
    for name in ("layer", "max abs", "max rel", "where", "choices equal", ""):
        table.add_column(name, justify="left" if name == "where" else "right")
    for layer in layers:
        if layer.router is None or layer.choices is None:
            continue
        choices = _percent(layer.choices.share_equal, layer.choices.differing)
        if layer.choices.differing:
            choices += f" (gap {layer.choices.widest_gap:.0e})"
        ok = layer.router.ok and layer.choices.ok
        table.add_row(str(layer.number), *_cells(layer.router), choices, _mark(ok))
    return table


def _differences(title: str, first: str, differences: list[Difference]) -> Table:
    table = _table(title)
    for name in (first, "max abs", "max rel", "where", "tolerance", ""):
        table.add_column(name, justify="left" if name in (first, "where") else "right", overflow="fold")
    for part in differences:
        name = part.quantity.removeprefix("gradient/").removeprefix("model.").replace("/", ": ")
        table.add_row(name, *_cells(part), f"{part.tolerance:.0e}", _mark(part.ok))
    return table


def _generation(result: Comparison) -> str:
    generation = result.generation
    assert generation is not None
    line = f"generation: {generation.equal} of {generation.total} greedy tokens equal"
    if generation.first:
        row, token = generation.first
        line += f"; first other token: row {row}, number {token}, where the reference's lead was {generation.lead:.1e}"
    return f"{line} {_mark(generation.ok)}"


def budget_table(budget: Budget) -> Table:
    """Ours beside the reference's own error."""
    table = _table(f"relative error of bfloat16 against float32, mean of {budget.draws} draws")
    for name in ("quantity", "reference", "ours", "ours / reference", ""):
        table.add_column(name, justify="left" if name == "quantity" else "right")
    for line in budget.lines:
        ratio = f"{line.ours / line.reference:.2f}" if line.reference else "-"
        table.add_row(
            line.quantity,
            f"{line.reference:.2e}",
            f"{line.ours:.2e}",
            ratio,
            _mark(line.ok) if line.judged else "",
        )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left")


def _cells(part: Difference) -> tuple[str, str, str]:
    return f"{part.max_abs:.1e}", f"{part.max_rel:.1e}", ",".join(map(str, part.where)) or "-"


def _percent(share: float, differing: int) -> str:
    # 99.996 % must not read as 100 %.
    return f"{share:.2%}" if not differing else f"{min(share, 0.9999):.2%}"


def _mark(ok: bool) -> str:
    return "ok" if ok else "TOO LARGE"
