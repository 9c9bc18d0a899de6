"""Programs of the layer, of the training step and of decoding."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.decoding import slots
from mom_jax.decoding.sampling import sampling
from mom_jax.models.config import MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.models.presets import get_preset
from mom_jax.models.structure import build_model
from mom_jax.training.config import get_train_preset
from mom_jax.training.program import Program as Training
from mom_jax.training.step import train_step
from tools.hardware.draws import Draw
from tools.hardware.programs import Program, Sizes, outputs_of

LAYER_TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}


def models(sizes: Sizes) -> Iterator[Program]:
    """All of them, what is worth most first."""
    yield from layers(sizes)
    yield from steps(sizes)
    yield from decodings(sizes)


def layers(sizes: Sizes) -> Iterator[Program]:
    """A small layer in float32 beside single tokens, and the published one in bfloat16 beside XLA."""
    small = {"hidden_size": 2 * min(64, sizes.head_dim), "num_heads": 2, "head_dim": min(64, sizes.head_dim)}
    large = {"hidden_size": sizes.heads * sizes.head_dim, "num_heads": sizes.heads, "head_dim": sizes.head_dim}
    tokens = {"small": (2, 5 * sizes.chunk - 17), "published": (sizes.batch, sizes.time)}
    kinds = (("small", small, "float32", "reference"), ("published", large, "bfloat16", "xla"))
    for name, given, dtype, right in kinds:
        config = MoMConfig(**given)  # type: ignore[arg-type]
        start = _parameters(f"layer {name} parameters", lambda config=config: make_mixer(config, "memory", nnx.Rngs(0)))
        yield start
        impls = (right, sizes.impl) if right != sizes.impl else (right,)
        for impl in impls:
            for way in ("training",) if name == "small" else ("forward", "training"):
                of = _layer(dataclasses.replace(config, impl=impl), start, tokens[name], dtype, way)
                against = f"layer {name} {way} {right}" if impl != right else ""
                yield dataclasses.replace(
                    of,
                    name=f"layer {name} {way} {impl}",
                    section="" if name == "small" and not against else "layer",
                    against=against,
                    tolerance=LAYER_TOLERANCES[dtype],
                    exact=name == "small",
                )


def _parameters(name: str, make: Any) -> Program:
    return Program(name, "", lambda: {"parameters": nnx.split(make())[1]}, ())


def _layer(config: MoMConfig, start: Program, tokens: tuple[int, int], dtype: str, way: str) -> Program:
    mixer = nnx.eval_shape(lambda: make_mixer(config, "memory", nnx.Rngs(0)))
    graph, shapes = nnx.split(mixer)
    x = Draw("normal", (*tokens, config.hidden_size), dtype)
    arguments = (outputs_of(start.name, shapes), x, x.moved_to(1))

    def forward(params, x):
        return {"y": nnx.merge(graph, params)(x)[0]}

    def training(params, x, dy):
        y, pull = jax.vjp(lambda params, x: forward(params, x)["y"], params, x)
        dparams, dx = pull(dy)
        return {"y": y, "dx": dx, "dparameters": dparams}

    function, arguments = (forward, arguments[:2]) if way == "forward" else (training, arguments)
    return Program("", "", function, arguments, tokens=tokens[0] * tokens[1])


def steps(sizes: Sizes) -> Iterator[Program]:
    """The training step of the preset, as `mom_jax.training` makes it."""
    preset = get_train_preset(sizes.preset)
    data = dataclasses.replace(preset.data, batch_size=sizes.batch, sequence_length=sizes.time)
    name = f"{sizes.preset} first state"
    for impl in ("auto", "xla"):
        model = dataclasses.replace(preset.model, impl=impl)
        training = Training(dataclasses.replace(preset, data=data, model=model), sizes.mesh)
        if impl == "auto":
            yield Program(name, "", lambda training=training: {"state": training.first_state()}, ())
        rows = Draw("integers", (sizes.batch, sizes.time), "int32", scale=model.vocab_size)
        batch = {"input_ids": rows, "labels": rows.moved_to(1), "segment_ids": dataclasses.replace(rows, kind="zeros")}

        def function(state, batch, training=training):
            state, metrics = train_step(state, batch, training)
            return {"state": state, **metrics}

        yield Program(
            f"{sizes.preset} step {impl}",
            "step" if impl == "auto" else "step by XLA",
            function,
            (outputs_of(name, training.abstract), batch),
            against="" if impl == "auto" else f"{sizes.preset} step auto",
            tolerance=0.1,
            tokens=sizes.batch * sizes.time,
            carried=0,
        )


def decodings(sizes: Sizes) -> Iterator[Program]:
    """A prompt, and greedy tokens after it; one call decodes several."""
    config = dataclasses.replace(get_preset(sizes.preset), compute_dtype="bfloat16")
    start = _parameters(f"{sizes.preset} parameters", lambda: build_model(config, 0))
    yield start
    graph, params = nnx.split(nnx.eval_shape(lambda: build_model(config, 0)))
    greedy, knobs = sampling(0.0, None, None, config.vocab_size)
    form = slots.form_for(nnx.merge(graph, params), sizes.prompt + sizes.decoded)

    def read(params, ids):
        numbers = jnp.arange(ids.shape[0])
        state = slots._read(graph, form, params, ids, jnp.ones_like(ids), None, jax.random.key(0), numbers)
        return {"state": state._replace(rng=jax.random.key_data(state.rng))}

    def decode(state, params):
        state = state._replace(rng=jax.random.wrap_key_data(state.rng))
        taken = jnp.ones(state.logits.shape[0], bool)
        state, tokens = slots._decode(graph, greedy, sizes.decoded, params, state, taken, None, knobs)
        return {"state": state._replace(rng=jax.random.key_data(state.rng)), "tokens": tokens}

    given = outputs_of(start.name, params)
    for batch in sizes.batches:
        ids = Draw("integers", (batch, sizes.prompt), "int32", scale=config.vocab_size)
        prompt = f"{sizes.preset} prompt, batch {batch}"
        yield Program(prompt, "decoding", read, (given, ids), tokens=batch * sizes.prompt)
        shapes = jax.eval_shape(read, params, jax.ShapeDtypeStruct(ids.shape, ids.dtype))["state"]
        yield Program(
            f"{sizes.preset} decoding, batch {batch}",
            "decoding",
            decode,
            (outputs_of(prompt, shapes), given),
            tokens=batch * sizes.decoded,
            carried=0,
        )
