"""`mom-jax train --config FILE`: values from a file, under those of the command line."""

import json

import pytest

from mom_jax.cli.train import parse_train
from mom_jax.errors import InputError
from mom_jax.training.config import get_train_preset

YAML = """
optimizer:
  learning_rate: 1e-3  # text, for YAML 1.1
  weight_decay: 5
model: {num_memories: 8, tie_word_embeddings: true}
data:
  exclude: ['*.md', drafts]
"""


@pytest.fixture
def written(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_file_counts_more_than_the_preset_and_less_than_options(written):
    path, preset = written(YAML), get_train_preset("mom-tiny")
    run = parse_train(["mom-tiny", f"--config={path}", "--optimizer.weight-decay", "0.5"]).run
    assert (run.optimizer.learning_rate, run.optimizer.weight_decay) == (1e-3, 0.5)
    assert run.model.num_memories == 8 and run.model.tie_word_embeddings
    assert run.data.exclude == ("*.md", "drafts")
    assert (run.model.hidden_size, run.optimizer.beta2) == (preset.model.hidden_size, preset.optimizer.beta2)


def test_a_runs_own_config_is_such_a_file(written):
    run = parse_train(["mom-tiny-gla", "--steps", "7", "--data.exclude", "*.md"]).run
    path = written(json.dumps(run.to_dict()), "config.json")
    assert parse_train(["--config", path]).run == run
    assert parse_train(["--config", path, "--steps", "9"]).run.steps == 9


@pytest.mark.parametrize(
    "text, message",
    [
        ("steps: [1", r"^config=.*: is not YAML \(line 1\)"),
        ("- steps", r"^config=.*: holds no names with values"),
        ("", r"^config=.*: holds no names with values"),
        ("1: 2", r"^config=.*: holds no names with values"),
        ("[" * 100_000, r"^config=.*: is nested too deeply"),
        ("optimizer: {lr: 3}", r"^optimizer\.lr=3: unknown field; did you mean .* \(in "),
        ("optimizer: 3", r"^optimizer=3: expected an object \(in "),
        ("steps: 0", r"^steps=0: .* \(in "),
        ("steps: !!python/object/apply:os.getcwd []", r"^config=.*: is not YAML"),
    ],
    ids=["syntax", "a list", "empty", "numbers as names", "deep", "unknown", "no section", "range", "code"],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(written, text, message):
    with pytest.raises(InputError, match=message) as error:
        parse_train(["mom-tiny", "--config", written(text)])
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^config=.*: cannot be read"):
        parse_train(["--config", str(tmp_path / "none.yaml")])
