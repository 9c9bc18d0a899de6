"""Runs planned for devices that are not here."""

import dataclasses
import json

import jax
import pytest

from mom_jax.cli.main import main
from mom_jax.errors import InputError
from mom_jax.models.config import MoMConfig
from mom_jax.planning import compilers, plan
from mom_jax.planning.alone import Died
from mom_jax.planning.chips import CHIPS, SHAPES, find_topology
from mom_jax.planning.compiled import Compiled, Failed, _memory_that_is_missing, compile_step
from mom_jax.planning.guess import Guess, Guesser, all_meshes
from mom_jax.planning.plan import Option, _best
from mom_jax.planning.roofline import Time
from mom_jax.planning.step import sized
from mom_jax.planning.targets import abstract_mesh
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.program import Program
from mom_jax.training.sharding import AXES, make_mesh

SMALL = MoMConfig(
    vocab_size=264, hidden_size=64, num_hidden_layers=1, num_heads=2, head_dim=32, intermediate_size=128, num_memories=2
)
RUN = sized(TrainConfig(model=SMALL), 8, 128)


def test_topologies():
    """Each is found by its name, with so many devices; GPUs come in machines of eight."""
    for kind, shapes in SHAPES.items():
        for shape in shapes:
            assert find_topology(f"{kind}:{shape}").name == f"{kind}:{shape}"
    assert find_topology("v5p:8x8x8").devices == 512
    assert [find_topology(f"h100:{n}").shape for n in (1, 4, 8, 64)] == [(1, 1), (1, 4), (1, 8), (8, 8)]


@pytest.fixture(scope="module")
def guesser():
    """Of the small run; nothing is compiled."""
    return Guesser(RUN, CHIPS["v5e"])


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2), (1, 4, 1)])
def test_state_is_exact(guesser, sizes):
    """Bytes of parameters and of the optimizer's state, on one device of several meshes."""
    mesh = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    guess = guesser.guess(MeshConfig(**mesh), "none")
    axes = {axis: mesh.get(axis, 1) for axis in AXES}
    state = Program(RUN, abstract_mesh("TPU v5 lite", "tpu", **axes)).abstract

    def held(tree):
        shapes = [(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree)]
        return sum(jax.ShapeDtypeStruct(*x).size * x[1].itemsize for x in shapes)

    assert guess.parameters == held(state.params)
    assert abs(guess.optimizer - held(state.opt_state)) < 64  # counters are whole everywhere


def test_guesses(guesser):
    """What is kept falls with what is computed again; meshes that do not divide are left out; memory comes first."""
    assert guesser.kept("full") < guesser.kept("recurrence") < guesser.kept("mixer") < guesser.kept("none")
    assert guesser.flops() < guesser.flops("mixer") < guesser.flops("recurrence") < guesser.flops("full")
    meshes = guesser.fitting(all_meshes(16))
    assert meshes and all(x.tensor <= 2 and x.data * x.fsdp <= 8 for x in meshes)
    ranked = guesser.ranked(meshes, ("none", "full"))
    assert len(ranked) == 2 * len(meshes) and ranked[0].mesh.sequence == 1
    assert ranked[0].seconds == min(x.seconds for x in ranked if x.mesh.sequence == 1)
    tight = Guesser(RUN, dataclasses.replace(CHIPS["v5e"], memory=1))
    tight.__dict__ |= {"program": guesser.program}
    smallest = tight.ranked(meshes[:3], ("full", "none"))
    assert smallest[0].memory == min(x.memory for x in smallest)


def test_compiled_step():
    """The step that training runs, for this machine: state, products counted beside the model's, nothing sent."""
    simple = {"memory_rule": "linear_attention", "feature_map": "elu", "use_short_conv": False}
    config = dataclasses.replace(RUN, model=dataclasses.replace(SMALL, impl="xla", **simple))
    program = Program(config, make_mesh(MeshConfig(), jax.devices()[:1]))
    step = compile_step(program)
    assert step.parameters == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract.params))
    assert step.temporaries > 0 and step.moved > step.parameters and not step.kernels and not step.sent
    assert step.memory >= step.parameters + step.optimizer + step.temporaries


def test_recommended():
    """What is compiled and fits goes before what is only guessed, and that before what is known to be too large."""
    guesses = [Guess(MeshConfig(), name, 1, 1, 1, 1, seconds) for name, seconds in (("full", 2.0), ("dots", 1.0))]
    compiled = Compiled(1, 1, 1, 1, [], [], {}, 1.0)
    large, guessed = Option(guesses[0], needed=100), Option(guesses[1])
    fits, slower = (Option(x, compiled, Time(0, 0, x.seconds, 0)) for x in reversed(guesses))
    assert _best([large, guessed], 50) is guessed and _best([large], 50) is large
    assert _best([large, guessed, slower, fits], 50) is fits
    assert _best([guessed, fits], 2) is guessed  # what was compiled does not fit


def test_failing_compiler(guesser, monkeypatch):
    """Where it aborts at one program it is given the next; where it made none, one line says so and what to do."""
    guesses = [guesser.guess(MeshConfig(data=1, fsdp=n), "none") for n in (4, 2, 1)]
    topology, said = find_topology("v5e:2x2"), []
    made = Compiled(1, 1, 1, 1, [], [], {}, 1.0), Time(0, 0, 1.0, 0), {}

    def alone(call, config, *_):
        if config.mesh.fsdp != 1:
            raise (Died if config.mesh.fsdp == 4 else Failed)("Check failed")
        return made

    monkeypatch.setattr(plan, "alone", alone)
    options = list(plan._tried(RUN, topology, guesser, guesses, 1, said.append))
    assert [x.failed for x in options] == ["Check failed"] * 2 + [None] and _best(options, 2**40) is options[2]
    assert said.count("the compiler failed: Check failed") == 2
    plan._check_compiler(options, topology)
    with pytest.raises(InputError, match=r"^topology=v5e:2x2: its compiler failed .*Check failed.*--compile 0$"):
        plan._check_compiler(options[:2], topology)


def test_too_large():
    """What libtpu says when memory does not suffice; other messages are no such thing."""
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded by 4.75G."
    assert _memory_that_is_missing(said) == int(20.5 * 2**30)
    said = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (784.00G) exceeds available HBM (15.75G)."
    assert _memory_that_is_missing(said) == 784 * 2**30
    assert _memory_that_is_missing("INTERNAL: Mosaic failed") is None


def test_guessed_alone(capsys, monkeypatch):
    """Without compiling, a plan has every number that it can have, and says that it was not compiled."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    model = "--model.hidden-size 64 --model.num-hidden-layers 1 --model.intermediate-size 128 --model.no-use-short-conv"
    line = f"plan mom-tiny {model} --topology v6e:4x4 --global-batch 32 --seq-len 128 --mesh.fsdp 16 --remat full"
    assert main([*line.split(), "--compile", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["compiled"], said["devices"], said["custom_kernels"]) == (False, 16, None)
    assert {axis: said["mesh"][axis] for axis in ("data", "fsdp", "tensor")} == {"data": 1, "fsdp": 16, "tensor": 1}
    assert said["hbm_bytes_per_device"] == sum(said["hbm_bytes_by_kind"].values())
    assert said["fits"] and said["flops_per_step"] > 0 and said["tokens_per_second_estimate"] > 0


@pytest.mark.parametrize(("topology", "extra"), [("v5p:8x8x8", "tpu"), ("v6e:1x1", "tpu")])
def test_compiler_is_missing(topology, extra, complaint, monkeypatch, tmp_path):
    """One line names what installs it."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(compilers, "FOLDER", tmp_path)
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: None)
    said = complaint("plan", "mom-tiny", "--topology", topology)
    assert said.startswith(f"mom-jax: topology={topology}: needs libtpu") and f"[{extra}]" in said
