"""The error of bfloat16 against float32: ours beside the reference's own, on the same tokens and parameters."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from mom_jax.evals.compare.comparison import json_ready
from mom_jax.evals.compare.differences import equal_so_far, same_choices
from mom_jax.evals.compare.records import Record, Subject, layer_numbers

# Rounding is a matter of luck: within this factor two errors count as equal.
EQUAL = 1.1
# What is judged: blocks by themselves. Behind a choice that flips, the whole model's error says when it flipped.
JUDGED = ("block: ", "block gradients: ", "block router: ")
Errors = dict[str, tuple[float, float]]  # (ours, reference) by quantity


@dataclasses.dataclass(frozen=True)
class Line:
    """One quantity of the budget, the mean over the draws.

    Attributes:
        ours, reference: relative error against float32; of ``choices``, the share of tokens that choose otherwise.
        judged: whether ours may not be larger.
    """

    quantity: str
    ours: float
    reference: float
    judged: bool

    @property
    def ok(self) -> bool:
        """Whether ours is not larger, within `EQUAL`."""
        return not self.judged or self.ours <= EQUAL * self.reference


@dataclasses.dataclass(frozen=True)
class Budget:
    """All lines; ``compared`` is the share of the tokens behind the errors of the whole model."""

    lines: list[Line]
    draws: int
    compared: float

    @property
    def ok(self) -> bool:
        """Whether ours is nowhere larger."""
        return all(line.ok for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        lines = [{**dataclasses.asdict(line), "ok": line.ok} for line in self.lines]
        return json_ready({"ok": self.ok, "draws": self.draws, "compared": self.compared, "lines": lines})


def error_budget(ours: Subject, reference: Subject, exact: Subject, draws: Iterable[np.ndarray]) -> Budget:
    """Measures both bfloat16 models against the float32 one.

    A token that is rounded to another memory has an error of order one, and so have tokens that read the memory later;
    in a whole model that hides everything else. So each block is also measured by itself, on the input that it has in
    the float32 model, over the rows in which neither side chose otherwise: the error of its output relative to what
    the block adds, of its router logits, and of its gradients for a random cotangent (median over its parameters and
    its input). Of the whole model, errors are those of tokens that no other choice can have reached.

    Args:
        ours, reference: in bfloat16.
        exact: the reference in float32, with the same parameters (rounded to bfloat16).
        draws: ids [B, T].
    """
    measured, shares = [], []
    for number, ids in enumerate(draws):
        truth = exact.forward(ids)
        errors: Errors = {}
        for layer in layer_numbers(truth, "hidden"):
            x = _to_bfloat16(truth[f"hidden/{layer - 1}"] if layer else truth["embedded"])
            cotangent = _to_bfloat16(np.random.default_rng((number, layer)).normal(size=x.shape))
            errors |= _block_errors((ours, reference), exact, layer, x, cotangent)
        whole, share = _model_errors([side.forward(ids) for side in (ours, reference)], truth)
        measured.append(errors | whole)
        shares.append(share)
    names = dict.fromkeys(name for errors in measured for name in errors)
    means = {name: np.mean([errors[name] for errors in measured if name in errors], 0) for name in names}
    lines = [Line(name, float(m[0]), float(m[1]), name.startswith(JUDGED)) for name, m in means.items()]
    lines.sort(key=lambda line: list(dict.fromkeys(_kind(name) for name in names)).index(_kind(line.quantity)))
    return Budget(lines, len(measured), float(np.mean(shares)))


def _kind(name: str) -> str:
    return name.rpartition(" ")[0]


def _block_errors(
    sides: tuple[Subject, Subject], exact: Subject, layer: int, x: np.ndarray, cotangent: np.ndarray
) -> Errors:
    truth, records = exact.block(layer, x), [side.block(layer, x) for side in sides]
    errors: Errors = {}
    clean = np.ones(len(x), bool)
    if "router" in truth:
        others = [~same_choices(record["choices"], truth["choices"]) for record in records]
        errors[f"block choices: {layer}"] = _pair(other.mean() for other in others)
        errors[f"block router: {layer}"] = _pair(_relative(record["router"], truth["router"]) for record in records)
        clean = np.logical_not((others[0] | others[1]).any(1))
    if not clean.any():
        return errors
    added = truth["hidden"] - x
    errors[f"block: {layer}"] = _pair(_relative((record["hidden"] - x)[clean], added[clean]) for record in records)
    # Rows are independent: without a cotangent, one leaves no gradient.
    cotangent = cotangent * clean[:, None, None]
    truth, records = exact.block(layer, x, cotangent), [side.block(layer, x, cotangent) for side in sides]
    gradients = [name for name in truth if name.startswith("gradient/") and np.any(truth[name])]
    errors[f"block gradients: {layer}"] = _pair(
        float(np.median([_relative(record[name], truth[name]) for name in gradients])) for record in records
    )
    return errors


def _model_errors(sides: list[Record], truth: Record) -> tuple[Errors, float]:
    errors: Errors = {}
    clean = [equal_so_far(side, truth) for side in sides]
    keep = np.ones(truth["logits"].shape[:2], bool)
    for layer in layer_numbers(truth, "hidden"):
        if f"router/{layer}" in truth:
            name = f"choices/{layer}"
            errors[f"model choices: {layer}"] = _pair((~same_choices(side[name], truth[name])).mean() for side in sides)
        keep = clean[0][layer] & clean[1][layer]
        if keep.any():
            name = f"hidden/{layer}"
            errors[f"model: {layer}"] = _pair(_relative(side[name][keep], truth[name][keep]) for side in sides)
    if keep.any():
        errors["model: logits"] = _pair(_relative(side["logits"][keep], truth["logits"][keep]) for side in sides)
    return errors, float(keep.mean())


def _pair(values: Iterable[float]) -> tuple[float, float]:
    ours, reference = map(float, values)
    return ours, reference


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square error over root mean square."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Float32 values that bfloat16 can hold."""
    return x.astype(jnp.dtype("bfloat16")).astype(np.float32)
