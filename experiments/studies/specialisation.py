"""What goes to which memory: UMAP of the hidden states that routers see, and the tokens of each memory.

    mom-jax experiment specialisation --scale tiny        two CPU cores, two minutes after `commonsense`
    mom-jax experiment specialisation --scale paper       32 GPUs, ten hours for the model

The mixture of `commonsense` reads held-out text. Of each layer the normed hidden states that its router sees are laid
out in the plane by UMAP (arXiv 1802.03426), in the colour of the memory with the largest probability; beside it, the
tokens that go there most above their share of all tokens. The first router sees the token alone. The paper's figure
shows clusters. UMAP can draw clusters where there are none: the table's lifts do not
depend on it, and neither does the share of neighbours, in all dimensions, that go to the same memory (beside it: what
it would be by chance).
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mom_jax.errors import need
from mom_jax.training.config import TrainConfig

from ..common.comparison import training_facts
from ..common.text import recipe
from ..registry import Experiment, Point, Record
from .recall import MODELS

_SIZES = {"tiny": "tiny", "paper": "mom-340m"}
_DRAWN = 2000  # tokens of a picture
_NEIGHBOURS = 15  # of a token, for UMAP and for the share of the same memory
_RARE = 20  # occurrences below which a token is left out
_SHOWN = 12  # tokens of a memory


def points(scale: str) -> list[Point]:
    """A point for each seed."""
    size = _SIZES[scale]
    facts = training_facts(size)
    return [{"size": size, "seed": seed, "drawn": _DRAWN, **facts} for seed in range(2 if scale == "tiny" else 1)]


def training(point: Point) -> TrainConfig:
    """The model of a point."""
    return recipe(point["size"], MODELS["MoM"].rule, MODELS["MoM"].change, point["seed"])


def run(point: Point, models: Path) -> dict[str, Any]:
    """Of each layer: ``places`` in the plane, the ``memory`` of each, ``neighbours`` and ``chance``, ``tokens``.

    Raises:
        InputError: umap-learn is missing.
    """
    need("umap", "experiments", "experiment", "specialisation", "umap-learn")
    from ..common.text import trained

    run_dir = trained(training(point), models)
    ids, states, chosen, names = routed(run_dir)
    drawn = np.random.default_rng(0).permutation(len(ids))[: point["drawn"]]
    return {
        "layers": [
            {
                **_layout(layer_states[drawn], layer_chosen[drawn]),
                "tokens": characteristic(ids, layer_chosen, names),
            }
            for layer_states, layer_chosen in zip(states, chosen, strict=True)
        ]
    }


def routed(run_dir: str) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], dict[int, str]]:
    """Of held-out text: ids [N]; of each layer what its router saw [N, D] and the likeliest memory [N]; ids' names."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from mom_jax.data.loader import eval_batches
    from mom_jax.data.prepare import prepared
    from mom_jax.data.tokenizers import load_tokenizer
    from mom_jax.ops.documents import count_documents
    from mom_jax.runs import one_device, opened_run

    with opened_run(run_dir, one_device()) as (config, model, _):
        batch = next(iter(eval_batches(prepared(config.data), config.data, max_windows=config.data.batch_size)))
        stack, params = nnx.split(model.blocks("memory"))
        real = batch["segment_ids"] > 0

        @jax.jit
        def run(params, x, segments, layer):
            mask = segments.clip(0, 1)
            block = nnx.merge(stack, jax.tree.map(lambda a: a[layer], params))
            out = block(x, mask, count_documents(segments, mask), None, layer)
            assert out.router is not None
            return out.y, block.attn_norm(x), out.router.logits[0]

        x, states, chosen = model.embeddings[...].astype(config.model.compute_dtype)[batch["input_ids"]], [], []
        for layer in range(config.model.num_hidden_layers):
            x, seen, logits = run(params, x, jnp.asarray(batch["segment_ids"]), layer)
            states.append(np.asarray(seen, np.float32)[real])
            chosen.append(np.asarray(logits).argmax(-1)[real])
        ids = np.asarray(batch["input_ids"])[real]
        tokenizer = load_tokenizer(config.data.tokenizer)
        return ids, states, chosen, {int(i): tokenizer.decode([int(i)]) for i in np.unique(ids)}


def characteristic(ids: np.ndarray, chosen: np.ndarray, names: dict[int, str]) -> list[dict[str, Any]]:
    """Of each memory its ``share`` of the tokens, and ``lift``: [token, its share there over its share of all]."""
    total = np.bincount(ids)
    common = np.flatnonzero(total >= _RARE)
    memories = []
    for memory in range(chosen.max() + 1):
        members = chosen == memory
        share = np.bincount(ids[members], minlength=len(total))[common] / max(1, members.sum())
        lift = share / (total[common] / total.sum())
        first = np.argsort(-lift)[:_SHOWN]
        shown = [[names[int(common[i])], round(float(lift[i]), 2)] for i in first if lift[i] > 1]
        memories.append({"share": float(members.mean()), "lift": shown})
    return memories


def _layout(states: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    umap, neighbours = (importlib.import_module(name) for name in ("umap", "sklearn.neighbors"))  # of an extra
    places = umap.UMAP(n_neighbors=_NEIGHBOURS, random_state=0, n_jobs=1).fit_transform(states)
    near = neighbours.NearestNeighbors(n_neighbors=_NEIGHBOURS + 1).fit(states)
    near = near.kneighbors(states, return_distance=False)[:, 1:]
    shares = np.bincount(chosen) / len(chosen)
    return {
        "places": np.round(places, 2).tolist(),
        "memory": chosen.tolist(),
        "neighbours": float((chosen[near] == chosen[:, None]).mean()),
        "chance": float((shares**2).sum()),
    }


def table(records: list[Record]) -> list[list[str]]:
    """The tokens of each memory, with their lift."""
    rows = []
    for record in records:
        for number, layer in enumerate(record["result"]["layers"]):
            for memory, of in enumerate(layer["tokens"]):
                tokens = "  ".join(f"{token!r} {lift:g}" for token, lift in of["lift"])
                same = f"{layer['neighbours']:.2f} ({layer['chance']:.2f})"
                seed = str(record["point"]["seed"])
                rows.append([seed, str(number), str(memory), f"{of['share']:.3f}", same, tokens])
    heading = ["seed", "layer", "memory", "share", "same memory as neighbours (chance)", "tokens above their share"]
    return [heading, *rows]


def plot(records: list[Record]) -> dict[str, Figure]:
    """A row for each seed, a panel for each layer."""
    layers = len(records[0]["result"]["layers"])
    figure = Figure(figsize=(4.2 * layers, 4.0 * len(records) + 0.4), layout="constrained")
    grid = figure.subplots(len(records), layers, squeeze=False)
    for row, record in zip(grid, records, strict=True):
        for number, (axes, layer) in enumerate(zip(row, record["result"]["layers"], strict=True)):
            places, memory = np.asarray(layer["places"]), np.asarray(layer["memory"])
            for m in range(len(layer["tokens"])):
                members = places[memory == m]
                axes.plot(members[:, 0], members[:, 1], ".", color=f"C{m % 10}", markersize=3, label=f"memory {m}")
            axes.set(title=f"seed {record['point']['seed']}, layer {number}", xticks=[], yticks=[])
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False, markerscale=4)
    return {"umap": figure}


EXPERIMENT = Experiment(points, run, plot, table, training=training)
