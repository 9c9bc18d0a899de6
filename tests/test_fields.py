"""Every field of every configuration, against what people and other programs write into it."""

import dataclasses
import functools
import json
import math
import os
import typing
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from mom_jax.experiments.command import ExperimentConfig
from mom_jax.experiments.report.command import ReportConfig

from mom_jax.cli.compare import CompareConfig
from mom_jax.cli.convert import ConvertConfig
from mom_jax.cli.data import PrepareConfig
from mom_jax.cli.evaluate import EvalConfig
from mom_jax.cli.generate import GenerateConfig
from mom_jax.cli.plan import Plan
from mom_jax.cli.train import TrainArguments, parse_train
from mom_jax.data.config import DataConfig
from mom_jax.errors import InputError
from mom_jax.fields import Name, Range, Seed, alternatives, checked, field_types
from mom_jax.layers.router import RouterOptions
from mom_jax.layers.rules import RULES
from mom_jax.layers.rules.registry import find_rule
from mom_jax.models.config import AttentionConfig, MoMConfig
from mom_jax.training.config import (
    CheckpointConfig,
    MeshConfig,
    OptimizerConfig,
    ProcessesConfig,
    TrainConfig,
    get_train_preset,
)
from mom_jax.training.optimizers import OPTIMIZERS, OwnOptimizer
from mom_jax.training.sections import ProfileConfig, SpikesConfig

# Each configuration, and a sound one to spoil.
SOUND = {
    MoMConfig: {},
    AttentionConfig: {},
    DataConfig: {},
    **{cls: {} for cls in OPTIMIZERS.values()},
    OwnOptimizer: {},
    MeshConfig: {},
    CheckpointConfig: {},
    SpikesConfig: {},
    ProfileConfig: {},
    ProcessesConfig: {"coordinator": "host:1", "count": 2, "index": 0},
    TrainConfig: {},
    TrainArguments: {},
    GenerateConfig: {"run": "r", "prompt": "p"},
    EvalConfig: {"run": "r"},
    CompareConfig: {"reference": "r"},
    PrepareConfig: {"out": "o"},
    ConvertConfig: {"src": "s", "dst": "d", "to": "mom"},
    Plan: {},
    ExperimentConfig: {"name": "mqar"},
    ReportConfig: {"paths": ("p",)},
    RouterOptions: {},
    **{find_rule(name).Options: {} for name in RULES},
}
FIELDS = [(cls, field) for cls in SOUND for field in (f.name for f in dataclasses.fields(cls))]


def names(text):
    """Words with spaces between them."""
    return text.split()


# Numbers that are a mistake in most fields and make sense in these.
NUMBERS = {
    0: names("""
        intermediate_size pad_token_id bos_token_id eos_token_id aux_loss_scale router_z_loss_scale seed warmup_steps
        decay_fraction min_learning_rate_ratio beta1 beta2 weight_decay max_minutes temperature new_tokens index
        correction_factor rope_fraction router_noise z_loss_scale momentum step noise rotary_fraction
        compile rewind
    """),
    -1: names("data fsdp tensor sequence"),
    2**31: names("seed shard_bytes max_shard_bytes clip_norm tolerance rope_theta"),
    2**64: names("clip_norm tolerance"),
}
# texts that abc does not fit, or not here
OF_A_FORM = names("""
    rates options mixture shard tokens coordinator name include_path prompt_file prompts memory_rule layer_pattern
""")
NEEDED = names("hidden_ratio coordinator count index prompt")  # may be None, but not beside the other fields here


def makes_sense(cls, field, value):
    """Whether a value is one that the field may have: its kind by the annotation, numbers by the tables above."""
    kinds = [typing.get_origin(kind) or kind for kind, _ in alternatives(field_types(cls)[field])]
    if value is None:
        return type(None) in kinds and field not in NEEDED
    if isinstance(value, bool):
        return bool in kinds and field != "list"
    if isinstance(value, str):
        beside = cls is GenerateConfig and field == "out"  # goes with prompts
        return str in kinds and value in ("abc", "3") and field not in OF_A_FORM and not beside
    if isinstance(value, list):
        return tuple in kinds and not value and cls is not ReportConfig
    return isinstance(value, int) and not {int, float}.isdisjoint(kinds) and field in NUMBERS.get(value, ())


VALUES = [math.nan, math.inf, -math.inf, -1, 0, 2**31, 2**64, 10**5000, -(10**5000), 1e308, 1e-320, -0.5]
VALUES += ["", "abc", "a\0b", "3", None, True, [], [None], {}, {"a": 1}]


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=[f"{cls.__name__}.{field}" for cls, field in FIELDS])
def test_only_what_makes_sense(cls, field):
    """Everything else is one line that names the field, whatever the value."""
    whole = {"data": 1} if cls is MeshConfig and field != "data" else {}
    for i, value in enumerate(VALUES):
        sense = makes_sense(cls, field, value)
        try:
            kept = getattr(cls(**SOUND[cls] | whole | {field: value}), field)
        except InputError as error:
            message = str(error)
            assert not sense, message
            assert field.rstrip("_") in message.partition("=")[0] or field in ("list", "name", "coordinator"), message
            assert "\n" not in message and len(message) < 1000, message
        else:
            assert sense, f"number {i} is let through"
            assert kept == value or (kept == () and value == [])


PLACES = [
    (section, field.name)
    for section, cls in {
        "model": MoMConfig,
        "data": DataConfig,
        "optimizer": OptimizerConfig,
        "mesh": MeshConfig,
        "checkpoint": CheckpointConfig,
        "": TrainConfig,
    }.items()
    for field in dataclasses.fields(cls)
]
IN_JSON = [
    "NaN",
    "Infinity",
    "-Infinity",
    "-1e999",
    "1e400",
    '""',
    '"abc"',
    "[]",
    "{}",
    "[[1]]",
    '{"a": {}}',
    "1" * 4000,
]


@pytest.mark.parametrize(("section", "field"), PLACES)
def test_a_run_read_from_a_file(section, field, tmp_path):
    """A damaged config.json is refused as the value itself would be: by an `InputError` and nothing else."""
    path = tmp_path / "config.json"
    for text in IN_JSON:
        fields = get_train_preset("mom-tiny").to_dict()
        (fields[section] if section else fields)[field] = "HERE"
        path.write_text(json.dumps(fields).replace('"HERE"', text), encoding="utf-8")
        try:
            config = TrainConfig.from_file(path)
        except InputError as error:
            assert "\n" not in str(error)
            continue
        kept = getattr(getattr(config, section) if section else config, field)
        assert text in ('"abc"', "[]", "{}") and not isinstance(kept, int | float), (text, kept)


@functools.cache
def number_options():
    """Options of ``mom-jax train`` that hold numbers."""
    tiny = get_train_preset("mom-tiny").to_dict()
    found = []
    for section, values in {"": tiny, **{name: part for name, part in tiny.items() if isinstance(part, dict)}}.items():
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.append(f"--{section + '.' if section else ''}{name}".replace("_", "-"))
    return found


NO_NUMBERS = ["nan", "inf", "-inf", "1e308", "-1", "9" * 5000, "", "abc", "None", "[]", "1 2"]


@pytest.mark.parametrize("start, value", list(enumerate(NO_NUMBERS)))
def test_on_the_command_line(start, value):
    """Numbers that make no sense are refused before anything loads; each option meets one or two of them.

    What each field makes of each value is tested above, on the configurations alone: a parser takes twenty times that.
    """
    takes_minus_one = ("--mesh.data", "--mesh.fsdp", "--mesh.tensor", "--mesh.sequence")
    takes_none = ("--model.hidden-ratio", "--model.pad-token-id", "--model.bos-token-id", "--model.eos-token-id")
    options = number_options()
    assert len(options) > 40
    for option in options[start % 8 :: 8]:
        if (value == "-1" and option in takes_minus_one) or (value == "None" and option in takes_none):
            continue
        if value == "1 2" and option == "--model.eos-token-id":
            continue
        with pytest.raises(InputError) as caught:
            parse_train(["mom-tiny", option, *value.split(" ")])
            pytest.fail(f"{option} {value} is let through")
        assert "\n" not in str(caught.value)


def test_exact_types():
    """Whole numbers become floats in a field of floats, never the other way; numbers of NumPy become Python's."""
    config = MoMConfig(expand_v=np.int64(2), hidden_size=np.int32(64), norm_eps=np.float32(0.5))
    assert [type(v) for v in (config.expand_v, config.hidden_size, config.norm_eps)] == [float, int, float]
    json.dumps(config.to_dict())
    assert TrainConfig(run_dir=Path("runs") / "x").run_dir == os.path.join("runs", "x")
    with pytest.raises(InputError, match=r"hidden_size=64\.0: expected a whole number"):
        MoMConfig(hidden_size=64.0)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (5, Annotated[int, Range(least=1, most=4)], "x=5: must be at least 1 and at most 4"),
        (0.0, Annotated[float, Range(above=0)], "x=0.0: must be greater than 0"),
        (0, Annotated[int | None, Range(least=1, most=1e12)], "x=0: must be at least 1 and at most 1e+12"),
        (-2, Annotated[int, Range(least=1, also=(-1,))] | None, "x=-2: must be at least 1, or -1"),
        ("a", Annotated[int, Range(least=1)] | None, "x=a: expected a whole number or None"),
        ("b", Literal["a", "c"], "x=b: choose one of a, c"),
        (2**32, Seed, "x=4294967296: must be at least 0 and below 4294967296"),
        ("", Name, "x='': must not be empty"),
        ([1, "a"], tuple[Annotated[int, Range(least=0)], ...], "x=a: expected a whole number"),
        pytest.param(10**4999, float, "must be a finite number", id="beyond all floats"),
        (1e-39, float, "x=1e-39: is beyond the range of float32"),
    ],
)
def test_messages(value, hint, message):
    """What is asked for, in words."""
    with pytest.raises(InputError) as caught:
        checked("x", value, hint)
    assert message in str(caught.value)


def test_none_has_no_range():
    """A range beside several types is of the numbers among them."""
    assert checked("x", None, Annotated[int | None, Range(least=1)]) is None


def test_any_value_can_be_shown():
    """A message stays one short line: no digits by the thousand, no nesting by the hundred, no line breaks."""
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for value in (10**5000, nested, {"a": nested}, list(range(10**6)), "a\nb" * 1000, object()):
        message = str(InputError("field", value, "remedy"))
        assert "\n" not in message and len(message) < 600
    assert str(InputError("field", [0, 5], "r")) == "field=[0, 5]: r"
