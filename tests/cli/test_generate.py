"""``mom-jax generate`` on a random model: where prompts come from, what is written, where it ends."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from flax import nnx
from support.tokenizers import llama

from mom_jax import generate
from mom_jax.cli.completion import Choices, _until_stop, complete
from mom_jax.cli.main import main
from mom_jax.data.config import DataConfig
from mom_jax.data.tokenizers import load_tokenizer
from mom_jax.errors import InputError
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.training.config import TrainConfig

ROWS = 300  # more than the tokenizer's tokens
MODEL = MoMConfig(vocab_size=ROWS, hidden_size=16, num_hidden_layers=1, num_heads=1, head_dim=8, intermediate_size=16,
                  num_memories=2, topk=1, initializer_range=0.5)  # fmt: skip
PROMPT = "the fox"
NEW = 12


@pytest.fixture(scope="module")
def model():
    return MoMForCausalLM(MODEL, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run whose tokenizer spells spaces and falls back to bytes."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    llama().save(str(path))
    return TrainConfig(model=MODEL, data=DataConfig(tokenizer=str(path)))


@pytest.fixture(scope="module")
def tokenizer(config):
    return load_tokenizer(config.data.tokenizer)


@pytest.fixture(scope="module")
def greedy(model, tokenizer):
    """The ids that follow the prompt, of those that have a token."""
    ids = tokenizer.encode(PROMPT)[None]
    return np.asarray(generate(model, ids, NEW, allowed=np.arange(ROWS) < tokenizer.vocab_size))[0, ids.shape[1] :]


def written(config, model, **options) -> str:
    parts = []
    complete(config, model, PROMPT, NEW, parts.append, **({"choices": Choices()} | options))
    return "".join(parts)


def test_what_is_written_is_prompt_and_continuation_decoded_at_once(config, model, tokenizer, greedy):
    whole = tokenizer.decode([*tokenizer.encode(PROMPT), *greedy])
    assert whole.startswith(PROMPT) and written(config, model) == whole


@pytest.mark.parametrize("listed", [False, True])
def test_an_end_token_ends_the_text(config, model, tokenizer, greedy, listed, monkeypatch):
    """The tokenizer's, or one of several in a published configuration."""
    end = int(greedy[4])
    stop = greedy.tolist().index(end)
    if listed:
        config = dataclasses.replace(config, model=dataclasses.replace(MODEL, eos_token_id=(1, end)))
    else:
        monkeypatch.setattr("mom_jax.data.tokenizer_kinds._END_NAMES", (tokenizer._backend.id_to_token(end),))
    assert written(config, model) == tokenizer.decode([*tokenizer.encode(PROMPT), *greedy[:stop]])


@pytest.mark.parametrize("cuts", [[1], [2, 5], list(range(1, 11))])
@pytest.mark.parametrize("stops", [(), ("lo w",), ("zz", "rld"), ("ld!", "o"), ("hello world!",), ("!?",)])
def test_a_stop_text_ends_the_stream_wherever_it_is_cut(stops, cuts):
    """And is not shown, nor is its beginning, unless it comes to nothing."""
    text = "hello world!"
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    want = text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]
    assert "".join(_until_stop(parts, stops)) == want


def test_a_stop_text_ends_the_decoding(config, model, tokenizer, greedy):
    """As soon as it is there, whatever comes before in the prompt."""
    new = tokenizer.decode([*tokenizer.encode(PROMPT), *greedy])[len(PROMPT) :]
    stop = new[2:4]
    assert written(config, model, stops=(stop, "no such text")) == PROMPT + new[: new.find(stop)]


def test_samples_differ_and_are_told_apart(config, model):
    choices = Choices(temperature=1.0, seed=2)
    text = written(config, model, choices=choices, samples=3)
    parts = text.split("--- sample ")[1:]
    assert [part[:11] for part in parts] == [f"{i} of 3 ---\n"[:11] for i in (1, 2, 3)]
    assert len({part.split("\n", 1)[1].strip() for part in parts}) == 3
    assert all(part.split("\n", 1)[1].startswith(PROMPT) for part in parts)
    assert parts[0].split("\n", 1)[1].rstrip("\n") == written(config, model, choices=choices).rstrip("\n")


@pytest.mark.parametrize(
    "change,options,message",
    [
        (
            {"vocab_size": 260, "pad_token_id": 0},
            {},
            r"tokenizer=tokenizer\.json: has \d+ tokens but the model 260 rows",
        ),
        ({}, {"choices": Choices(top_k=301)}, "top_k=301: must lie between 1 and the vocabulary size"),
    ],
)
def test_nothing_is_written_before_a_mistake(config, model, change, options, message):
    """Not even the prompt."""
    parts = []
    config = dataclasses.replace(config, model=dataclasses.replace(MODEL, **change))
    with pytest.raises(InputError, match=message):
        complete(config, model, PROMPT, NEW, parts.append, **({"choices": Choices()} | options))
    assert parts == []


@pytest.fixture
def command(config, model, monkeypatch):
    """The verb on the model above, with bytes as its standard input."""

    @contextlib.contextmanager
    def opened(run, mesh, choice):
        yield config, model, 0

    monkeypatch.setattr("mom_jax.runs.opened_run", opened)

    def run(*args, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return main(["generate", "run", *args, "--max-new-tokens", str(NEW), "--temperature", "0"])

    return run


@pytest.mark.parametrize("source", ["argument", "file", "stdin"])
def test_a_prompt_comes_from_three_places(command, source, tmp_path, capsys, config, model):
    """And gives the same text."""
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT, encoding="utf-8")
    sources = {"argument": ("--prompt", PROMPT), "file": ("--prompt-file", str(path)), "stdin": ("--prompt", "-")}
    assert command(*sources[source], stdin=PROMPT.encode()) == 0
    assert capsys.readouterr().out == written(config, model) + "\n"


@pytest.mark.parametrize(
    "args,content,message",
    [
        (["--prompt", "-"], b"", "prompt=- (standard input): contains no text to continue"),
        (["--prompt", "-"], b"abc\xff", "prompt=- (standard input): is not UTF-8 (byte 3)"),
        (["--prompt-file", "PLACE"], b"", "contains no text to continue"),
        (["--prompt-file", "PLACE"], b"\xe9t\xe9", "is damaged (byte 0 is not UTF-8); give a file of UTF-8 text"),
        (["--prompt-file", "PLACE/none"], b"", "cannot be read"),
        (["--prompt-file", "PLACE", "--prompt", "a"], b"", "give either this or --prompt, not both"),
        (["--prompt", "a\udcff"], b"", r"prompt='a\udcff': is not UTF-8 (character 1)"),
        (["--prompt", "a", "--stop="], b"", "stop='': must not be empty"),
        (["--prompt", "a", "--num-samples", "2"], b"", "num_samples=2: would all be the same at --temperature 0"),
    ],
)
def test_a_prompt_that_is_none_is_one_line(command, args, content, message, tmp_path, capsys):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    assert command(*(arg.replace("PLACE", str(path)) for arg in args), stdin=content) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_stops_may_begin_with_a_dash_and_a_prompt_may_be_the_word_none(command, capsys):
    assert command("--prompt", "None", "--stop", "-b", "--stop", "a\n") == 0
    assert capsys.readouterr().out.startswith("None")
