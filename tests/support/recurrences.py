"""What every implementation of a recurrence is tested on, and how: outputs, states and gradients."""

import jax
import jax.numpy as jnp
import numpy as np

RAGGED = (9, 0, 1, 8, 17, 1, 2, 0)  # tokens of segments, in chunks of 8 rows
DOCUMENTS = (0, 3, 8, 9, 10, 21, 22, 34, 36)  # tokens that begin one
# The same kinds in half as many chunks, of 16 rows, where each chunk is interpreted by itself.
FEW_CHUNKS = (33, 0, 1, 16, 0)
FEW_DOCUMENTS = (0, 5, 16, 33, 40, 49)  # at a border of chunks, where a segment begins, inside, on the last token
TOLERANCE = 1e-5  # of the largest value of each array, in float32
EXTREMES = {
    "total decay": lambda g: np.full_like(g, -1e4),
    "no decay": np.zeros_like,
    "total among weak": lambda g: np.where((np.arange(g.size) % 7 == 0).reshape(g.shape), -1e4, 0.1 * g),
    "strong": lambda g: np.where(np.random.default_rng(3).random(g.shape) < 0.3, -50.0, -0.1),
}


def _by_head(first, second):
    """Changes the first head's gates in one way and the second's in another: heads know nothing of each other."""
    return lambda g: np.stack([first(g)[:, 0], second(g)[:, 1]], 1)


# The same in half as many runs, where runs are what costs.
_PAIRS = (("total decay", "no decay"), ("total among weak", "strong"))
EXTREMES_BY_HEAD = {f"{a}, {b}": _by_head(EXTREMES[a], EXTREMES[b]) for a, b in _PAIRS}


def _keys(spread, gate, strength):
    """Changes that make keys of one direction but for ``spread``, with one gate and one strength of writing."""

    def near(k):
        k = 1 + spread * k
        return k / np.linalg.norm(k, axis=-1, keepdims=True)

    return {"k": near, "g": lambda g: np.full_like(g, gate), "beta": lambda beta: np.full_like(beta, strength)}


# Of recurrences that write with a strength beta: the second turns the state round at every token.
DIRECTIONS = {"nearly equal": _keys(0.02, -1e-3, 0.98), "equal, strength 2": _keys(0.0, -0.02, 2.0)}


def outputs(run, layout, resets, inputs):
    """Outputs of the tokens and final states; what inputs name ``padding`` stands on padding rows, before the mask."""
    rows, valid = jax.tree.map(layout.pack, inputs["rows"]), None
    if "padding" in inputs:
        valid = layout.pack(np.ones(len(layout.index), bool))
        real = lambda x: valid.reshape(-1, *[1] * (x.ndim - 1))  # noqa: E731
        rows = jax.tree.map(lambda x, padding: jnp.where(real(x), x, padding.astype(x.dtype)), rows, inputs["padding"])
    o, final = run(rows, inputs["shared"], layout.table(resets), inputs["state"], valid)
    return o[layout.index], final


def with_padding(inputs, layout, size):
    """The inputs with random rows of that size as ``padding``."""
    rng = np.random.default_rng(1)
    noise = lambda x: np.float32(size * rng.normal(size=(layout.rows, *x.shape[1:])))  # noqa: E731
    return inputs | {"padding": jax.tree.map(noise, inputs["rows"])}


def with_gradients(function, inputs):
    """Outputs of ``function`` and its gradients, for fixed random cotangents."""
    values, pull = jax.vjp(function, inputs)
    rng = np.random.default_rng(99)
    return values, pull(jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), y.dtype), values))[0]
