"""The run's description: JSON round trip, presets, and what may differ between two sittings."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from mom_jax.errors import InputError
from mom_jax.models.config import AttentionConfig
from mom_jax.training.config import (
    TRAIN_PRESETS,
    CheckpointConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    changes_between,
    get_train_preset,
)


@pytest.mark.parametrize("name", TRAIN_PRESETS)
def test_json_round_trip(name):
    config = get_train_preset(name)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_published_recipe():
    small, large = get_train_preset("mom-340m"), get_train_preset("mom-1.3b")
    for config, tokens in ((small, 2**19), (large, 2**21)):
        assert config.data.batch_size * config.data.sequence_length == tokens
        assert (config.optimizer.learning_rate, config.optimizer.warmup_steps) == (3e-4, 1024)
        assert (config.data.sequence_length, config.data.tokenizer) == (2048, "mistral")
        assert config.model.compute_dtype == "bfloat16"
    assert small.steps == 30720
    assert large.steps * 2**21 == pytest.approx(100e9, rel=1e-4)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (None, "steps", 0),
        (None, "remat", "ful"),
        (None, "max_bad_steps", 0),
        (None, "gradient_accumulation", 3),
        (None, "max_minutes", float("nan")),
        (None, "run_dir", ""),
        (OptimizerConfig, "learning_rate", 0.0),
        (OptimizerConfig, "schedule", "cosin"),
        (OptimizerConfig, "beta2", 1.0),
        (OptimizerConfig, "decay_fraction", 1.5),
        (CheckpointConfig, "every", 0),
        (MeshConfig, "fsdp", 0),
    ],
)
def test_bad_values_name_the_field(section, field, value):
    with pytest.raises(InputError, match=field):
        (section or TrainConfig)(**{field: value})


def test_two_axes_cannot_both_take_what_is_left():
    with pytest.raises(InputError, match="only one"):
        MeshConfig(data=-1, fsdp=-1)


def test_unknown_field_in_a_file_suggests_the_known_one():
    fields = get_train_preset("mom-tiny").to_dict()
    fields["optimizer"]["learning_rat"] = 1.0
    with pytest.raises(InputError, match=r"optimizer\.learning_rat=1\.0.*learning_rate"):
        TrainConfig.from_dict(fields)


def test_unreadable_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="run_dir"):
        TrainConfig.from_file(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"is damaged .*; restore it or train again"):
        TrainConfig.from_file(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"stepz": 3}', None])
def test_a_config_that_is_lost_is_in_every_checkpoint(text, tmp_path):
    """The remedy can be carried out: the copy that it names is the config."""
    config = get_train_preset("mom-tiny")
    copy = tmp_path / "checkpoints" / "5" / "config" / "metadata"
    copy.parent.mkdir(parents=True)
    copy.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"copy {copy} in its place"):
        TrainConfig.from_file(tmp_path / "config.json")
    shutil.copyfile(copy, tmp_path / "config.json")
    assert TrainConfig.from_file(tmp_path / "config.json") == config


def test_a_run_may_grow_and_move_but_not_change():
    config = get_train_preset("mom-tiny")
    wanted = dataclasses.replace(config, steps=config.steps + 1, mesh=MeshConfig(fsdp=2), log_every=3)
    assert changes_between(config, wanted) == ["mesh.fsdp 1 -> 2", "steps 400 -> 401", "log_every 10 -> 3"]
    other = dataclasses.replace(config, seed=7, optimizer=dataclasses.replace(config.optimizer, beta1=0.5))
    with pytest.raises(InputError) as error:
        changes_between(config, other)
    assert "optimizer.beta1 (was 0.9, now 0.5)" in str(error.value)
    assert "seed (was 0, now 7)" in str(error.value)
    with pytest.raises(InputError, match="steps"):
        changes_between(config, dataclasses.replace(config, steps=config.steps - 1))


def test_what_is_chosen_anew_on_purpose_is_told():
    config = get_train_preset("mom-tiny")
    recipe = {"learning_rate": 1e-4, "schedule": "wsd", "weight_decay": 0.0, "clip_norm": 0.5}
    optimizer = dataclasses.replace(config.optimizer, **recipe)
    data = dataclasses.replace(config.data, path="moved", tokenizer="moved.json")
    told = changes_between(config, dataclasses.replace(config, optimizer=optimizer, data=data))
    assert "optimizer.learning_rate 0.003 -> 0.0001" in told and f"data.path stdlib -> {Path.cwd()}/moved" in told
    assert len(told) == 6


def test_a_section_that_one_of_two_runs_lacks_is_told():
    config = get_train_preset("mom-tiny")
    hybrid = dataclasses.replace(config, model=dataclasses.replace(config.model, attn=AttentionConfig(layers=(0,))))
    for saved, wanted in ((config, hybrid), (hybrid, config)):
        with pytest.raises(InputError, match=r"model\.attn"):
            changes_between(saved, wanted)


def test_the_same_text_may_be_named_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = get_train_preset("mom-tiny")
    here = dataclasses.replace(config, data=dataclasses.replace(config.data, path="texts"))
    assert changes_between(here, here.anchored()) == changes_between(here.anchored(), here) == []
    anchored = here.anchored()
    monkeypatch.chdir("/")
    assert changes_between(anchored, here) == [f"data.path {tmp_path}/texts -> /texts"]


def test_how_the_same_text_is_found_may_change():
    config = get_train_preset("mom-tiny")
    found = {"text_field": "body", "exclude": ("*.md",), "on_error": "skip", "held_out_fraction": 0.1}
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, **found))
    assert len(changes_between(config, other)) == len(found)


@pytest.mark.parametrize("run_dir", ["gs:/bucket/run", "", "\0", "s3://b\0"])
def test_a_run_lies_in_a_folder_or_at_an_address(run_dir):
    with pytest.raises(InputError, match=r"^run_dir="):
        dataclasses.replace(get_train_preset("mom-tiny"), run_dir=run_dir)
