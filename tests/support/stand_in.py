"""A subject with numbers drawn at random instead of a model, and changes to them."""

import copy

import numpy as np

from mom_jax.evals.compare.records import Record, as_mask

LAYERS, ROWS, TIME, HIDDEN, MEMORIES, VOCAB = 3, 3, 12, 5, 4, 7


class StandIn:
    """The same numbers for the same rows; layer 1 has no router, as attention has none.

    Rows are told apart by their first token.
    """

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        rows = (ROWS, TIME)
        self.record: Record = {"embedded": rng.normal(size=(*rows, HIDDEN))}
        self.record |= {f"hidden/{i}": rng.normal(size=(*rows, HIDDEN)) for i in range(LAYERS)}
        self.record |= {f"router/{i}": rng.normal(size=(*rows, MEMORIES)) for i in (0, 2)}
        self.record["logits"] = rng.normal(size=(*rows, VOCAB))
        self.losses: Record = {f"loss/{name}": np.asarray(rng.uniform(1, 2)) for name in ("lm", "aux", "total")}
        self.losses |= {f"gradient/{name}": rng.normal(size=(4, 6)) for name in ("model.a", "model.b")}
        self.steps: Record = {"decode/prefill": rng.normal(size=(*rows, VOCAB))}
        self.steps["decode/steps"] = rng.normal(size=(*rows, VOCAB))
        self.error = 0.0  # relative, of what `block` returns
        self.continuation = rng.integers(0, VOCAB, (ROWS, 9))
        self.asked: list[tuple[str, list[int]]] = []  # what was called, with which rows

    def changed(self, name: str, at: tuple[int, ...], by: float) -> "StandIn":
        """A copy with one number larger by ``by``."""
        other = copy.deepcopy(self)
        home = next(r for r in (other.record, other.losses, other.steps) if name in r)
        home[name][at] += by
        return other

    def forward(self, ids: np.ndarray) -> Record:
        found = self._rows("forward", self.record, ids)
        return found | {name.replace("router", "choices"): best(v) for name, v in found.items() if "router" in name}

    def block(self, layer: int, x: np.ndarray, cotangent: np.ndarray | None = None) -> Record:
        noise = np.random.default_rng(layer)
        off = lambda values: values * (1 + self.error * noise.normal(size=values.shape))  # noqa: E731
        if cotangent is not None:
            return {"gradient/x": off(2 * cotangent), "gradient/w": off(cotangent.sum((0, 1)))}
        found = {"hidden": x + off(np.tanh(x))}
        if f"router/{layer}" in self.record:
            logits = self.record[f"router/{layer}"]
            found |= {"router": off(logits), "choices": best(logits)}
        return found

    def loss_and_gradients(self, ids: np.ndarray) -> Record:
        self.asked.append(("loss", ids[:, 0].tolist()))
        return self.losses

    def decode(self, ids: np.ndarray, prefill: int) -> Record:
        return self._rows("decode", self.steps, ids)

    def continue_greedily(self, ids: np.ndarray, new_tokens: int) -> np.ndarray:
        self.asked.append(("generate", ids[:, 0].tolist()))
        return self.continuation[ids[:, 0], :new_tokens]

    def _rows(self, call, record, ids):
        self.asked.append((call, ids[:, 0].tolist()))
        return {name: values[ids[:, 0]] for name, values in record.items()}


def best(logits: np.ndarray) -> np.ndarray:
    """The two memories with the largest logits."""
    return as_mask(np.argsort(-logits, -1, kind="stable")[..., :2], MEMORIES)


def tokens() -> np.ndarray:
    """Ids [ROWS, TIME] whose first column numbers the rows."""
    ids = np.zeros((ROWS, TIME), np.int32)
    ids[:, 0] = np.arange(ROWS)
    return ids
