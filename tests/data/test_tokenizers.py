import json
from unittest import mock

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers import JSON_KINDS, byte_level, sentencepiece_file

from mom_jax.data.tokenizer_kinds import ByteTokenizer, JsonTokenizer
from mom_jax.data.tokenizers import StreamDecoder, load_tokenizer, token_rows
from mom_jax.errors import InputError


@pytest.fixture(scope="session")
def piece_model(tmp_path_factory):
    return sentencepiece_file(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="session")
def json_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    byte_level().save(str(path))
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


TEXTS = [
    "the quick fox",
    "  the  naïve 漢字 🎉 end ",
    "漢字漢字 👨\u200d👩\u200d👧",
    "a\ufffdb the\ufffd",
    "don't, the . \n\n",
]


@pytest.fixture(scope="session", params=["bytes", "pieces", "tidy pieces", "space behind", *JSON_KINDS])
def every_kind(request, tmp_path_factory):
    """Tokenizers whose text of a token depends on its neighbours in different ways."""
    pieces = {
        "pieces": {},
        "tidy pieces": {"model_type": "unigram", "remove_extra_whitespaces": True},
        "space behind": {"treat_whitespace_as_suffix": True},
    }
    if request.param == "bytes":
        return ByteTokenizer()
    if request.param in pieces:
        return load_tokenizer(str(sentencepiece_file(tmp_path_factory.mktemp("p"), **pieces[request.param])))
    return JsonTokenizer(JSON_KINDS[request.param](), request.param, None)


def streamed(tokenizer, prompt, ids):
    stream = StreamDecoder(tokenizer, prompt)
    text = "".join(stream.feed(i) for i in ids) + stream.flush()
    assert stream.flush() == ""
    return text


def random_ids(tokenizer, seed):
    """Ids as an untrained model draws them, with many single bytes of characters that are whole, cut or wrong."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, tokenizer.vocab_size, 12)
    parts = [i for byte in (0xE6, 0xBC, 0xA2, 0xF0, 0x9F, 0x8E, 0x41, 0x20) for i in _ids_of_byte(tokenizer, byte)]
    return np.where(rng.random(12) < 0.6, rng.choice(parts), ids) if parts else ids


def _ids_of_byte(tokenizer, byte):
    first = {"bytes": 0, "small.model": 3, "llama": 3, "metaspace": 3}.get(tokenizer.name)
    return [] if first is None else [first + byte]


def test_streamed_text_is_that_of_prompt_and_continuation_at_once(every_kind):
    """Wherever the prompt ends, in the middle of a character too, and whatever the ids spell."""
    rows = [every_kind.encode(text) for text in TEXTS] + [random_ids(every_kind, seed) for seed in range(40)]
    for ids in rows:
        whole = every_kind.decode(ids)
        for split in range(len(ids) + 1):
            shown = every_kind.decode(ids[:split])
            while not whole.startswith(shown):  # an unfinished character
                shown = shown[:-1]
            assert shown + streamed(every_kind, ids[:split], ids[split:]) == whole


@pytest.mark.parametrize("kind", ["byte level", "llama"])
def test_a_stream_gives_each_character_as_soon_as_it_is_sure(kind):
    """A character of a byte-level vocabulary with its last byte; a run of byte tokens when it has ended."""
    tokenizer = JsonTokenizer(JSON_KINDS[kind](), kind, None)
    stream = StreamDecoder(tokenizer, tokenizer.encode("the"))
    parts = [stream.feed(i) for i in tokenizer.encode(" 漢字 the")]
    assert "\ufffd" not in "".join(parts) and "".join(parts).startswith(" " if kind == "byte level" else "")
    assert ("漢" in parts) if kind == "byte level" else ("漢字 the" in parts)


def test_a_stream_shows_broken_bytes_late_but_shows_them():
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.feed(b) for b in b"a\xc3"] == ["a", ""]
    assert stream.flush() == "\ufffd" and stream.flush() == ""
    stream = StreamDecoder(ByteTokenizer())
    assert "".join(stream.feed(b) for b in b"\xff\xff\xff\xffok").endswith("ok")


def test_a_stream_forgets_what_it_no_longer_needs():
    """Long texts take no longer by the token: after ten thousand ids a few are decoded again."""
    tokenizer, most = ByteTokenizer(), 0
    decode, ids = tokenizer.decode, tokenizer.encode("漢字 the " * 1000)
    lengths = []
    tokenizer.decode = lambda ids: lengths.append(len(ids)) or decode(ids)
    streamed(tokenizer, ids, ids)
    most = max(lengths[10:])
    assert most <= 16, most


def test_fingerprints_tell_tokenizers_apart(piece_model, json_file, tmp_path):
    copy = tmp_path / "renamed.model"
    copy.write_bytes(piece_model.read_bytes())
    prints = [load_tokenizer(str(s)).fingerprint for s in ("bytes", piece_model, json_file)]
    assert len(set(prints)) == 3 and load_tokenizer(str(copy)).fingerprint == prints[1]


@pytest.fixture
def folder_with_stop(json_file, tmp_path):
    """A folder with a tokenizer whose end token has a name of its own, and no word about it."""
    content = json.loads(json_file.read_text(encoding="utf-8"))
    content["added_tokens"][0]["content"] = "<stop>"
    content["model"]["vocab"]["<stop>"] = content["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("declared", ["<stop>", {"content": "<stop>"}, ["<stop>", "x"], [{"content": "<stop>"}]])
def test_a_folder_declares_its_end(folder_with_stop, file, declared):
    (folder_with_stop / file).write_text(json.dumps({"eos_token": declared}), encoding="utf-8")
    assert load_tokenizer(str(folder_with_stop)).eos_id == 0


@pytest.mark.parametrize(
    "config,message",
    [
        ("{}", "has no known end token; name it as eos_token"),
        ('{"eos_token": null}', "has no known end token"),
        ('{"eos_token": "<gone>"}', "has no token '<gone>', its declared end"),
        ('{"eos_token": []}', r"tokenizer_config\.json: its eos_token must be text"),
        ('{"eos_token": {"text": "<stop>"}}', "its eos_token must be text"),
        ('{"eos_token": {"content": 7}}', "its eos_token must be text"),
        ('{"eos_token": 7}', "its eos_token must be text"),
        ("[]", r"tokenizer_config\.json: is damaged \(the whole is a list, not an object\)"),
        ("{", r"tokenizer_config\.json: is damaged"),
        ("[" * 100_000, "is damaged \\(nested too deeply"),
        ('{"a": "\xff"}', "is damaged \\(byte 7 is not UTF-8"),
    ],
)
def test_an_end_that_cannot_be_found_is_named(folder_with_stop, config, message):
    (folder_with_stop / "tokenizer_config.json").write_text(config, encoding="latin-1")
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(str(folder_with_stop))
    assert "\n" not in str(caught.value)


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
    with pytest.raises(InputError, match=r"needs the package mistral-common: .*pip install .*\[mistral\]"):
        load_tokenizer("mistral")


@pytest.mark.parametrize(("name", "meant"), [("Bytes", "bytes"), ("byte", "bytes"), ("mistal", "mistral")])
def test_a_misspelt_name_is_not_sought_on_the_hub(name, meant):
    with pytest.raises(InputError, match=f"tokenizer={name}: is none; did you mean {meant}"):
        load_tokenizer(name)


@pytest.mark.parametrize("name", ["absent.model", "absent.json", "./absent", "/absent/file"])
def test_a_missing_file_is_not_sought_on_the_hub(name):
    with pytest.raises(InputError, match="no such file"):
        load_tokenizer(name)


@pytest.mark.parametrize("content", [b"", b"\x00\x01nonsense", b"{" * 100_000, b"\n\x06\n\x01\xef\xbd\xef\x15"])
@pytest.mark.parametrize("name", ["broken.model", "broken.json"])
def test_a_broken_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: is not a readable") as caught:
        load_tokenizer(str(tmp_path / name))
    assert "\n" not in str(caught.value)


VOCABULARY = {"a": 0, "b": 1, "</s>": 2}


def word_level(**fields):
    model = tokenizers.models.WordLevel(**({"vocab": VOCABULARY, "unk_token": "[UNK]"} | fields))
    return JsonTokenizer(tokenizers.Tokenizer(model), "words", None)


@pytest.mark.parametrize("model", ["word level", "word piece", "unigram", "bpe"])
def test_a_text_that_has_no_tokens_is_named(model):
    """The library raises where neither the word nor the unknown token is in the vocabulary."""
    unknown, kinds = {"vocab": VOCABULARY, "unk_token": "[UNK]"}, tokenizers.models
    backend = tokenizers.Tokenizer(
        {
            "word level": lambda: kinds.WordLevel(**unknown),
            "word piece": lambda: kinds.WordPiece(**unknown),
            "unigram": lambda: kinds.Unigram([(token, -1.0) for token in VOCABULARY]),
            "bpe": lambda: kinds.BPE(merges=[], **unknown),
        }[model]()
    )
    with pytest.raises(InputError, match=r"^tokenizer=odd: cannot encode 'zz' \(.*\); add what it lacks, or use"):
        JsonTokenizer(backend, "odd", None).encode("zz")


def test_text_that_is_not_unicode_is_refused(any_tokenizer):
    """A lone surrogate is what Python makes of bytes that are not UTF-8."""
    with pytest.raises(InputError, match=r"text='the .udcff end': is not Unicode text"):
        any_tokenizer.encode("the \udcff end")


def test_ids_may_have_holes_but_not_of_billions():
    """What has no token is known; ids far beyond what a model has rows for are refused at once."""
    assert token_rows(word_level(vocab={"a": 0, "</s>": 3}), 6).tolist() == [True, False, False, True, False, False]
    with pytest.raises(InputError, match="tokenizer=words: has a token of id 4000000000, but models have at most"):
        word_level(vocab={"a": 0, "</s>": 4_000_000_000})


def test_more_tokens_than_rows_are_refused():
    assert token_rows(ByteTokenizer(), 264) is None
    assert token_rows(ByteTokenizer(), 266).tolist() == [True] * 264 + [False] * 2
    with pytest.raises(InputError, match=r"tokenizer=bytes: has 264 tokens but the model 263 rows \(vocab_size\)"):
        token_rows(ByteTokenizer(), 263)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_a_hub_name_without_network_is_one_line(monkeypatch):
    hub = mock.Mock(**{"from_pretrained.side_effect": Exception("cannot connect\nlong story")})
    monkeypatch.setattr(tokenizers, "Tokenizer", hub)
    with pytest.raises(InputError, match=r"^tokenizer=some/name: .*\(cannot connect\)$"):
        load_tokenizer("some/name")


def test_a_hub_name_loads(monkeypatch, json_file):
    hub = mock.Mock(**{"from_pretrained.return_value": tokenizers.Tokenizer.from_file(str(json_file))})
    monkeypatch.setattr(tokenizers, "Tokenizer", hub)
    assert load_tokenizer("some/name").decode(load_tokenizer("some/name").encode("fox")) == "fox"
