"""``push`` and ``pull`` with a hub on this machine."""

import json

import pytest
import tokenizers
import yaml
from huggingface_hub import constants
from support.hub import Hub
from support.made_up import train_record

from mom_jax import MoMConfig, save_pretrained
from mom_jax.cli.main import main
from mom_jax.data.tokenizers import load_tokenizer
from mom_jax.models.structure import build_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2, "head_dim": 8, "intermediate_size": 24}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with weights of a model of bytes and a log of two records."""
    place = tmp_path_factory.mktemp("runs")
    save_pretrained(build_model(MoMConfig(vocab_size=264, **SIZES), 0), place / "published")
    assert main(["convert", str(place / "published"), str(place / "run"), "--tokenizer", "bytes"]) == 0
    lines = [json.dumps(train_record(step, 1.9)) + "\n" for step in (10, 20)]
    (place / "run/metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return place / "run"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub, and this user's login."""
    with Hub() as server:
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "good")
        monkeypatch.chdir(tmp_path)
        yield server
        server.shutdown()


def test_there_and_back(run, hub, tmp_path, capsys, complaint):
    """What is pulled has the parameters that were pushed, the tokenizer, and a card that says what it is."""
    assert main(["push", str(run), "me/tiny", "--license", "mit", "--private"]) == 0
    assert f"published: {hub.address}/me/tiny/commit/" in capsys.readouterr().out
    assert hub.private == {"me/tiny"}
    stored = hub.repositories["me/tiny"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss.png"} <= set(stored)
    card = stored["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    for word in ("mom-jax pull me/tiny", "AutoModelForCausalLM", "20 steps", "1.9000 nats", '"hidden_size": 16'):
        assert word in card
    assert main(["pull", "me/tiny"]) == 0
    pulled = tmp_path / "runs/tiny"
    assert (pulled / "model.safetensors").read_bytes() == (run.parent / "published/model.safetensors").read_bytes()
    assert {path.name for path in pulled.iterdir()} == set(stored)
    assert main(["convert", str(pulled), "again"]) == 0
    assert json.loads((tmp_path / "again/config.json").read_text(encoding="utf-8"))["data"]["tokenizer"] == "bytes"
    assert "exists and is not an empty folder" in complaint("pull", "me/tiny")


MISTAKES = {
    "a name without an owner": ("push {run} tiny", "repository=tiny: must be OWNER/NAME"),
    "no run": ("push {run}/none me/tiny", "run={run}/none: no such folder"),
    "a folder that is no run": ("push {run}/checkpoints me/tiny --out out", "run={run}/checkpoints: "),
    "somebody else's": ("push {run} you/tiny", "don't have the rights"),
    "no such checkpoint": ("push {run} me/tiny --step 7 --out out", "step=7: "),
    "a choice for what has none": (
        "push {run}/../published me/tiny --dtype float16 --out out",
        "dtype=float16: goes with",
    ),
    "nothing there": ("pull me/nothing", "repository=me/nothing: the Hugging Face hub gave: "),
    "no model there": ("pull me/empty", "repository=me/empty: holds no model"),
    "no such revision": ("pull me/empty --revision old", "repository=me/empty: the Hugging Face hub gave: "),
}


@pytest.mark.parametrize("line,message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(run, hub, tmp_path, complaint, line, message):
    """Status 2, one line, and nothing written here or there."""
    hub.repositories["me/empty"] = {"notes.json": b"{}"}
    before = sorted(run.iterdir())
    assert message.format(run=run) in complaint(*line.format(run=run).split())
    assert sorted(run.iterdir()) == before and not any(path.is_file() for path in tmp_path.rglob("*"))
    assert all(set(files) <= {"notes.json"} for files in hub.repositories.values())


def test_without_a_login_and_without_a_network(run, hub, monkeypatch, capsys, complaint):
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert main(["push", str(run), "me/tiny"]) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "repository=me/tiny: the Hugging Face hub gave: " in complaint("push", run, "me/tiny")
    assert hub.repositories == {}


def test_a_look_before(run, hub, tmp_path, capsys):
    """``--out`` writes the folder and asks no hub; that folder can be published in turn."""
    assert main(["push", str(run), "me/tiny", "--out", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert hub.repositories == {} and "bfloat16" in (tmp_path / "out/config.json").read_text(encoding="utf-8")
    assert main(["push", str(tmp_path / "out"), "me/again"]) == 0
    assert hub.repositories["me/again"]["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()


def test_the_tokenizer_of_bytes_for_others(run, tmp_path):
    """Its file gives the ids of ours for every byte; here the name counts."""
    assert main(["convert", str(run), str(tmp_path / "out")]) == 0
    theirs, ours = tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")), load_tokenizer("bytes")
    text = "".join(map(chr, (*range(1, 0x180), 0x4E2D, 0x1F600))) + "\n\n  two  spaces"
    assert theirs.encode(text).ids == ours.encode(text).tolist()
    assert theirs.decode(theirs.encode(text).ids) == text
    special = [theirs.token_to_id(name) for name in ("<s>", "</s>", "<pad>")]
    assert special == [ours.bos_id, ours.eos_id, ours.pad_id] and theirs.get_vocab_size() == ours.vocab_size
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"] == "</s>"
