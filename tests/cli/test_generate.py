"""``mom-jax generate`` on a random model: where prompts come from, what is written, where it ends."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from flax import nnx
from support.tokenizers import llama

from mom_jax import generate
from mom_jax.cli.completion import Choices, complete, until_stop
from mom_jax.cli.generate import GenerateConfig
from mom_jax.cli.main import main
from mom_jax.cli.prompts import read_prompts
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
    assert "".join(until_stop(parts, stops)) == want


def test_a_stop_text_ends_the_decoding(config, model, tokenizer, greedy):
    """As soon as it is there, whatever comes before in the prompt."""
    new = tokenizer.decode([*tokenizer.encode(PROMPT), *greedy])[len(PROMPT) :]
    stop = new[2:4]
    assert written(config, model, stops=(stop, "no such text")) == PROMPT + new[: new.find(stop)]


def test_samples_differ_and_are_told_apart(config, model):
    how = {"choices": Choices(temperature=1.0), "seed": 2}
    text = written(config, model, **how, samples=3)
    parts = text.split("--- sample ")[1:]
    assert [part[:11] for part in parts] == [f"{i} of 3 ---\n"[:11] for i in (1, 2, 3)]
    assert len({part.split("\n", 1)[1].strip() for part in parts}) == 3
    assert all(part.split("\n", 1)[1].startswith(PROMPT) for part in parts)
    assert parts[0].split("\n", 1)[1].rstrip("\n") == written(config, model, **how).rstrip("\n")


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
        greedily = [] if "--temperature" in args else ["--temperature", "0"]
        return main(["generate", "run", *args, "--max-new-tokens", str(NEW), *greedily])

    return run


LINES = [PROMPT, "a", "the fox " * 3, "fox", PROMPT]
OBJECTS = [
    {"prompt": PROMPT, "id": "first"},
    {"prompt": "a", "max_new_tokens": 3},
    {"prompt": "the fox " * 3, "seed": 4},
    {"prompt": PROMPT, "stop": "no such text"},
]


def records(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def alone(config, model):
    """The text of a prompt by itself, without the prompt."""

    def continuation(prompt, seed=0, sample=0, **options):
        parts = []
        choices = Choices(temperature=1.0)
        complete(config, model, prompt, NEW, parts.append, choices, seed=seed, samples=sample + 1, **options)
        text = "".join(parts)
        return text.split(f"--- sample {sample + 1} of {sample + 1} ---\n")[-1][len(prompt) :]

    return continuation


def test_many_prompts_get_the_texts_that_they_get_alone(command, alone, capsys, tmp_path):
    """From a file of lines or from standard input, drawn, in any number of slots; to the screen or to a file."""
    path, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    path.write_text("\n".join([*LINES, "", ""]), encoding="utf-8")
    drawn = ("--temperature", "1", "--num-samples", "2")
    assert command("--prompts", str(path), "--slots", "3", "--out", str(out), *drawn) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "continuations: 10 of 10" in shown.err and "tokens/s" in shown.err
    found = {(x["line"], x["sample"]): x for x in records(out.read_text(encoding="utf-8"))}
    assert sorted(found) == [(line, sample) for line in range(1, 6) for sample in (0, 1)]
    for (line, sample), record in found.items():
        assert record["prompt"] == LINES[line - 1] and record["finish_reason"] in ("length", "stop")
        assert line > 2 or record["completion"] == alone(LINES[line - 1], sample=sample)
    assert command("--prompts", "-", "--slots", "3", *drawn, stdin=path.read_bytes()) == 0
    again = records(capsys.readouterr().out)
    assert sorted(again, key=str) == sorted(found.values(), key=str)


def test_lines_have_limits_stops_and_seeds_of_their_own(command, alone, capsys, tmp_path):
    """And what else an object holds stands in its record."""
    text = alone("the fox " * 3, seed=4)
    ended = {**OBJECTS[2], "stop": ["no such text", text[4:6]]}
    lines = "\n".join(map(json.dumps, [*OBJECTS[:2], ended, OBJECTS[3]]))
    assert command("--prompts", "-", "--slots", "3", "--temperature", "1", stdin=lines.encode()) == 0
    found = {x["line"]: x for x in records(capsys.readouterr().out)}
    assert found[1]["id"] == "first" and "id" not in found[2]
    assert alone("a").startswith(found[2]["completion"]) and len(found[2]["completion"]) < len(alone("a"))
    assert found[3]["completion"] == text[: text.find(text[4:6])]
    assert [found[i]["finish_reason"] for i in (1, 2, 3, 4)] == ["length", "length", "stop", "length"]


def test_a_file_of_continuations_is_gone_on_with(command, capsys, tmp_path):
    """What it holds is not made again, and half a line does not count; of other prompts it is refused and kept."""
    path, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    args = ("--prompts", str(path), "--slots", "3", "--out", str(out))
    assert command(*args) == 0
    whole = out.read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:2])
    out.write_bytes(kept + b'{"line": 3, "sam')
    assert command(*args) == 0
    assert out.read_bytes().startswith(kept)
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert command(*args) == 0 and len(out.read_bytes()) == len(whole)
    path.write_text("other\n" * 5, encoding="utf-8")
    capsys.readouterr()
    assert command(*args) == 2
    assert "holds continuations of other prompts (of line" in capsys.readouterr().err
    assert len(out.read_bytes()) == len(whole)


@pytest.mark.parametrize(
    "lines,message",
    [
        ("", "contains no prompt"),
        (" \n\n", "contains no prompt"),
        ('{"prompt": "a"}\n{"prompt": 3}', ":2: is no prompt (['prompt'] is a whole"),
        ('{"prompt": "a"}\n\nplain', ":3: is no prompt (Expecting value"),
        ('{"text": "a"}', ":1: is no prompt (the object has no 'prompt')"),
        ('{"prompt": "a", "max_new_tokens": 0}', ":1: max_new_tokens=0: must be"),
        ('{"prompt": "a", "stop": ["b", ""]}', ":1: stop"),
        ('{"prompt": "a", "seed": -1}', ":1: seed=-1: must be"),
        ('{"prompt": ""}', ":1: prompt='': contains no text"),
        ('{"prompt": "\\ud800"}', ":1: is no prompt ("),
        ("plain", ":1: is no prompt (Expecting value"),
        ('[\n{"prompt": "a"}\n]', ":1: is no prompt (Expecting value"),
    ],
)
def test_a_bad_line_is_named(lines, message):
    with pytest.raises(InputError) as caught:
        read_prompts(lines, "prompts.jsonl", GenerateConfig("run", prompts="x"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


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
        (["--prompts", "PLACE/none"], b"a\n", "prompts="),
        (["--prompts", "PLACE", "--prompt", "a"], b"a\n", "give either this or --prompt, not both"),
        (["--prompt", "a", "--out", "PLACE"], b"a\n", "is for many continuations; give --prompts FILE"),
        (["--prompts", "PLACE", "--out", "PLACE/none/out"], b"a\n", "out="),
        (["--prompts", "PLACE", "--out", "PLACE"], b"a\n", "out="),
        (["--prompts", "PLACE", "--out", "/"], b"a\n", "out=/: cannot be written (Is a directory)"),
        (["--prompts", "PLACE", "--slots", "0"], b"a\n", "slots=0: must be at least 1"),
    ],
)
def test_prompts_that_are_none_are_one_line(command, args, content, message, tmp_path, capsys):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    assert command(*(arg.replace("PLACE", str(path)) for arg in args), stdin=content) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert path.read_bytes() == content


def test_stops_may_begin_with_a_dash_and_a_prompt_may_be_the_word_none(command, capsys):
    assert command("--prompt", "None", "--stop", "-b", "--stop", "a\n") == 0
    assert capsys.readouterr().out.startswith("None")
