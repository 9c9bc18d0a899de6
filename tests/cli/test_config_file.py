"""`mom-jax train --config FILE`: values from a file, under those of the command line."""

import json

import pytest

from mom_jax.cli.config_file import as_yaml
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


def test_numbers_and_words_are_those_of_json(written):
    text = "steps: 010\nrun_dir: 2026-01-01\nseed: 7\ndata: {path: no, text_field: on}"
    run = parse_train(["mom-tiny", "--config", written(text)]).run
    assert (run.steps, run.run_dir, run.data.path, run.data.text_field) == (10, "2026-01-01", "no", "on")


@pytest.mark.parametrize("name", ["1e-3", "010", "1:30", "2026-01-01", "no", "null", "<<", ".5", "a: b", "# a", "1_0"])
def test_any_name_is_written_so_that_it_comes_back(written, name):
    run = parse_train(["mom-tiny", "--run-dir", name]).run
    assert parse_train(["--config", written(as_yaml(run))]).run == run


WRONG = {
    "syntax": ("steps: [1", r"^config=.*: is not YAML \(line 1: "),
    "a list": ("- steps", r"^config=.*: holds no names with values"),
    "empty": ("", r"^config=.*: holds no names with values"),
    "numbers as names": ("1: 2", r"^config=.*: holds no names with values"),
    "deep": ("[" * 100_000, r"^config=.*: is nested too deeply"),
    "unknown": ("optimizer: {lr: 3}", r"^optimizer\.lr=3: unknown field; did you mean .* \(in "),
    "an option": (
        "optimizer.learning-rate: 1",
        r"^config=optimizer\.learning-rate: .* optimizer: {learning_rate: 1} \(in ",
    ),
    "another option": ("data.path: a b", r"^config=data\.path: .* write data: {path: \"a b\"} \(in "),
    "no section": ("optimizer: 3", r"^optimizer=3: expected an object \(in "),
    "range": ("steps: 0", r"^steps=0: .* \(in "),
    "code": ("steps: !!python/object/apply:os.getcwd []", r"^config=.*: is not YAML"),
    "twice": ("steps: 1\nseed: 0\nsteps: 2", r"^config=.*: is not YAML \(line 3: 'steps' occurs twice\)"),
    "twice in JSON": (
        '{"optimizer": {"beta1": 0.5, "beta1": 0.6}}',
        r"^config=.*: is not YAML \(line 1: 'beta1' occurs twice\)",
    ),
    "a list as a name": ("? [a, b]\n: 3", r"^config=.*: is not YAML"),
    "base 60": ("max_minutes: 1:30", r"^max_minutes=1:30: expected a number"),
    "base 16": ("steps: 0x10", r"^steps=0x10: expected a whole number"),
    "digits": ("steps: " + "9" * 5000, r"^steps=inf: expected a whole number"),
    "no day": ("seed: !!timestamp 2026-13-45", r"^config=.*: is not YAML \(month"),
    "half a character": (r'run_dir: "\ud800"', r"^run_dir='\\ud800': holds half of a surrogate pair"),
}


@pytest.mark.parametrize("text, message", WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_file_is_said_in_a_line(written, text, message):
    with pytest.raises(InputError, match=message) as error:
        parse_train(["mom-tiny", "--config", written(text)])
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^config=.*: cannot be read"):
        parse_train(["--config", str(tmp_path / "none.yaml")])
