import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mom_jax.data.tokenizers import ByteTokenizer, StreamDecoder, load_tokenizer
from mom_jax.errors import InputError

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "memories are mixed by weights",
    "a router picks memories",
] * 40


@pytest.fixture(scope="session")
def piece_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(folder / "small"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "small.model"


@pytest.fixture(scope="session")
def json_file(tmp_path_factory):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    backend.save(str(path))
    return path


@pytest.fixture(params=["bytes", "pieces", "json"])
def any_tokenizer(request, piece_model, json_file):
    return load_tokenizer({"bytes": "bytes", "pieces": str(piece_model), "json": str(json_file)}[request.param])


@given(st.text())
def test_bytes_round_trip(text):
    ids = ByteTokenizer().encode(text)
    assert ids.dtype == np.int32 and ids.tolist() == list(text.encode())
    assert ByteTokenizer().decode(ids) == text


def test_byte_ids_beyond_the_bytes():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (256, 257, 258, 264)
    assert tokenizer.decode([256, 104, 105, 257, 258, 263]) == "hi"


def test_broken_utf8_is_replaced_or_refused():
    assert ByteTokenizer().decode([104, 0xC3]) == "h\ufffd"
    assert ByteTokenizer().decode([104, 0xC3], errors="ignore") == "h"
    with pytest.raises(UnicodeDecodeError):
        ByteTokenizer().decode([104, 0xC3], errors="strict")


@pytest.mark.parametrize("text", ["the lazy memories", "  two  spaces\n\ttab", "naïve 漢字 🎉", "<|endoftext|></s>"])
def test_round_trip(any_tokenizer, text):
    ids = any_tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert ids.min() >= 0 and ids.max() < any_tokenizer.vocab_size
    # Text that spells the end token must not end the document.
    assert any_tokenizer.eos_id not in ids
    assert any_tokenizer.decode(ids) == text


def test_empty_text_has_no_tokens(any_tokenizer):
    assert any_tokenizer.encode("").shape == (0,) and any_tokenizer.decode([]) == ""


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_an_id_out_of_range_is_refused(any_tokenizer, bad):
    with pytest.raises(InputError, match=f"token id={bad}: must lie between 0 and {any_tokenizer.vocab_size - 1}"):
        any_tokenizer.decode([1, bad])


@pytest.mark.parametrize("text", ["the quick fox", " the  naïve 漢字 🎉 end", "é"])
def test_streamed_text_is_the_whole_text(any_tokenizer, text):
    stream = StreamDecoder(any_tokenizer)
    parts = [stream.feed(i) for i in any_tokenizer.encode(text)]
    assert "\ufffd" not in "".join(parts)
    assert "".join(parts) + stream.flush() == text


def test_a_stream_shows_broken_bytes_late_but_shows_them():
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.feed(b) for b in b"a\xc3"] == ["a", ""]
    assert stream.flush() == "\ufffd" and stream.flush() == ""
    stream = StreamDecoder(ByteTokenizer())
    assert "".join(stream.feed(b) for b in b"\xff\xff\xff\xffok").endswith("ok")


def test_fingerprints_tell_tokenizers_apart(piece_model, json_file, tmp_path):
    copy = tmp_path / "renamed.model"
    copy.write_bytes(piece_model.read_bytes())
    prints = [load_tokenizer(str(s)).fingerprint for s in ("bytes", piece_model, json_file)]
    assert len(set(prints)) == 3 and load_tokenizer(str(copy)).fingerprint == prints[1]


def test_a_folder_gives_its_tokenizer_and_declared_end(json_file, tmp_path):
    content = json.loads(json_file.read_text(encoding="utf-8"))
    content["added_tokens"][0]["content"] = "<stop>"
    content["model"]["vocab"]["<stop>"] = content["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="no known end token"):
        load_tokenizer(str(tmp_path))
    for declared in ("<stop>", {"content": "<stop>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": declared}), encoding="utf-8")
        assert load_tokenizer(str(tmp_path)).eos_id == 0
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: is not readable JSON"):
        load_tokenizer(str(tmp_path))


def test_mistral_comes_from_its_package(monkeypatch, tmp_path, piece_model):
    data = tmp_path / "mistral_common" / "data"
    data.mkdir(parents=True)
    (tmp_path / "mistral_common" / "__init__.py").touch()
    (data / "tokenizer.model.v1").write_bytes(piece_model.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = load_tokenizer("mistral")
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_id) == ("mistral", 330, 2)


def test_mistral_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mom-jax\[mistral\]'"):
        load_tokenizer("mistral")


@pytest.mark.parametrize("name", ["absent.model", "absent.json", "./absent", "/absent/file"])
def test_a_missing_file_is_not_sought_on_the_hub(name):
    with pytest.raises(InputError, match="no such file"):
        load_tokenizer(name)


@pytest.mark.parametrize("name", ["broken.model", "broken.json"])
def test_a_broken_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\x01nonsense")
    with pytest.raises(InputError, match=f"{name}: is not a readable") as caught:
        load_tokenizer(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        load_tokenizer(str(tmp_path))


class _Hub:
    def __init__(self, outcome):
        self.outcome = outcome

    def from_pretrained(self, name):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_a_hub_name_without_network_is_one_line(monkeypatch):
    monkeypatch.setattr(tokenizers, "Tokenizer", _Hub(Exception("cannot connect\nlong story")))
    with pytest.raises(InputError, match=r"^tokenizer=some/name: .*\(cannot connect\)$"):
        load_tokenizer("some/name")


def test_a_hub_name_loads(monkeypatch, json_file):
    monkeypatch.setattr(tokenizers, "Tokenizer", _Hub(tokenizers.Tokenizer.from_file(str(json_file))))
    assert load_tokenizer("some/name").decode(load_tokenizer("some/name").encode("fox")) == "fox"
