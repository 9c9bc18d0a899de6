"""Our side of a comparison: the library's model, its numbers as NumPy arrays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.decoding import generate
from mom_jax.evals.compare.records import Dtype, Record, as_mask
from mom_jax.interop.keys import pieces
from mom_jax.labels import IGNORE
from mom_jax.models.blocks import Block
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.ops.loss import chunked_cross_entropy, logits_of
from mom_jax.ops.routing import RouterOutput, auxiliary_loss


class Ours:
    """A `Subject` around a loaded model.

    Args:
        model: float32 parameters.
        dtype: of activations.
        rounded: round the parameters to bfloat16 first, whatever ``dtype`` is.
        reference_conv_leak: compute as the reference does in training mode, with its leak.
    """

    def __init__(
        self,
        model: MoMForCausalLM,
        dtype: Dtype = "float32",
        rounded: bool = False,
        reference_conv_leak: bool = False,
    ):
        leak = reference_conv_leak
        self.config = dataclasses.replace(model.config, compute_dtype=dtype, reference_conv_leak=leak)
        self.graph, _ = nnx.split(nnx.eval_shape(lambda: MoMForCausalLM(self.config, rngs=nnx.Rngs(0))))
        params = nnx.state(model)
        if rounded:
            params = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(p.dtype), params)
        self.params = params
        self.model: MoMForCausalLM = nnx.merge(self.graph, params)
        self._stacks = {s.kind: (name, *nnx.split(s)) for name, s in vars(self.model).items() if isinstance(s, Block)}
        kinds = self.config.layer_kinds
        self._places = [(kind, kinds[:number].count(kind)) for number, kind in enumerate(kinds)]

    def forward(self, ids: np.ndarray) -> Record:
        """As `Subject.forward`: block by block, where the model scans them."""
        x = self.model.embeddings[...].astype(self.config.compute_dtype)[ids]
        record = {"embedded": _numpy(x)}
        for number, (kind, rank) in enumerate(self._places):
            _, graph, params = self._stacks[kind]
            x, router = _run_block(graph, params, rank, x)
            record[f"hidden/{number}"] = _numpy(x)
            for name, value in self._routing(router).items():
                record[f"{name}/{number}"] = value
        return {**record, "logits": _numpy(jax.jit(logits_of)(self.model.norm(x), self.model.output_embedding()))}

    def block(self, layer: int, x: np.ndarray, cotangent: np.ndarray | None = None) -> Record:
        """As `Subject.block`."""
        kind, rank = self._places[layer]
        stack, graph, params = self._stacks[kind]
        inputs = jnp.asarray(x, self.config.compute_dtype)
        if cotangent is None:
            hidden, router = _run_block(graph, params, rank, inputs)
            return {"hidden": _numpy(hidden), **self._routing(router)}
        of_params, of_x = _block_gradients(graph, params, rank, inputs, jnp.asarray(cotangent, inputs.dtype))
        named = published(self.config, {f"{stack}.{name}": value for name, value in by_name(of_params).items()})
        inside = f"model.layers.{layer}."
        of_parameters = {name.removeprefix(inside): value for name, value in named.items() if name.startswith(inside)}
        return {f"gradient/{name}": value for name, value in {**of_parameters, "x": _numpy(of_x)}.items()}

    def _routing(self, router: RouterOutput | None) -> Record:
        if router is None:
            return {}
        choices = as_mask(np.asarray(router.memory_ids[0]), self.config.num_memories)
        return {"router": _numpy(router.logits[0]), "choices": choices}

    def loss_and_gradients(self, ids: np.ndarray) -> Record:
        """As `Subject.loss_and_gradients`, by the functions that training uses."""
        labels = np.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
        gradients, losses = _gradients(self.graph, self.params, jnp.asarray(ids), jnp.asarray(labels))
        return {f"loss/{name}": _numpy(value) for name, value in losses.items()} | {
            f"gradient/{name}": value for name, value in published(self.config, by_name(gradients)).items()
        }

    def decode(self, ids: np.ndarray, prefill: int) -> Record:
        """As `Subject.decode`."""
        cache = self.model.init_cache(len(ids), ids.shape[1])
        logits, cache = _step(self.graph, self.params, jnp.asarray(ids[:, :prefill]), cache)
        first, steps = _numpy(logits), []
        for t in range(prefill, ids.shape[1]):
            logits, cache = _step(self.graph, self.params, jnp.asarray(ids[:, t : t + 1]), cache)
            steps.append(_numpy(logits))
        return {"decode/prefill": first, "decode/steps": np.concatenate(steps, 1)}

    def continue_greedily(self, ids: np.ndarray, new_tokens: int) -> np.ndarray:
        """As `Subject.continue_greedily`, by `mom_jax.generate`."""
        tokens = generate(self.model, jnp.asarray(ids, jnp.int32), new_tokens)
        return np.asarray(tokens)[:, ids.shape[1] :]


def by_name(params: nnx.State) -> dict[str, jax.Array]:
    """Arrays of a state by dotted name."""
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(params)}


def published(config: MoMConfig, params: dict[str, jax.Array]) -> Record:
    """Parameters of a model (or their gradients) under the published names and in the published shapes."""
    record: Record = {}
    for name, values in params.items():
        values = _numpy(values)
        for piece in pieces(config, "mom", name, values.shape):
            record[piece.name] = piece.form.stored(values[piece.where])
    return record


@functools.partial(jax.jit, static_argnums=0)
def _run_block(graph, params, rank, x):
    block: Block = nnx.merge(graph, jax.tree.map(lambda p: p[rank], params))
    return block(x, None, None, None, 0)[:2]


@functools.partial(jax.jit, static_argnums=0)
def _block_gradients(graph, params, rank, x, cotangent):
    """Gradients of the stacked parameters (0 in other layers) and of the input."""
    _, pull = jax.vjp(lambda params, x: _run_block(graph, params, rank, x)[0], params, x)
    return pull(cotangent)


@functools.partial(jax.jit, static_argnums=0)
def _step(graph, params, ids, cache):
    out = nnx.merge(graph, params)(ids, cache=cache)
    return out.logits, out.cache


@functools.partial(jax.jit, static_argnums=0)
def _gradients(graph, params, ids, labels):
    def total_loss(params):
        model: MoMForCausalLM = nnx.merge(graph, params)
        hidden, router, _ = model.hidden_states(ids)
        nats, count = chunked_cross_entropy(hidden, model.output_embedding(), labels)
        aux = auxiliary_loss(router)
        total = nats / count + model.config.aux_loss_scale * aux
        return total, {"lm": nats / count, "aux": aux, "total": total}

    return jax.grad(total_loss, has_aux=True)(params)


def _numpy(array) -> np.ndarray:
    return np.asarray(array, np.float32)
