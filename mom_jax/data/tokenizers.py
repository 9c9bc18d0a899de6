"""Tokenizers behind one small interface: bytes, sentencepiece files, and `tokenizers` files or hub names."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mom_jax.errors import InputError

_END_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")


class Tokenizer(Protocol):
    """Text to token ids and back. ``encode`` adds no begin or end token."""

    name: str
    """The specification it was loaded from, without folders."""
    fingerprint: str
    """Changes whenever the mapping from text to ids may."""
    vocab_size: int
    """Ids are smaller than this."""
    bos_id: int | None
    eos_id: int
    pad_id: int | None

    def encode(self, text: str) -> np.ndarray:
        """Ids of ``text``, int32 [T]."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray, errors: str = "replace") -> str:
        """Text of ``ids``; begin, end and padding ids give no text. ``errors`` as in `bytes.decode`."""
        ...


def _checked_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    array = np.asarray(ids, np.int64).reshape(-1)
    bad = array[(array < 0) | (array >= vocab_size)]
    if bad.size:
        raise InputError("token id", int(bad[0]), f"must lie between 0 and {vocab_size - 1}, the tokenizer's last id")
    return array


class ByteTokenizer:
    """Ids 0-255 are the UTF-8 bytes, 256 begins, 257 ends, 258 pads, 259-263 are reserved."""

    name: str = "bytes"
    fingerprint: str = "bytes-v1"
    vocab_size: int = 264
    bos_id: int | None = 256
    eos_id: int = 257
    pad_id: int | None = 258

    def encode(self, text: str) -> np.ndarray:
        """The UTF-8 bytes of ``text``, int32 [T]."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray, errors: str = "replace") -> str:
        """Text of the byte ids; the other ids give none."""
        array = _checked_ids(ids, self.vocab_size)
        return array[array < 256].astype(np.uint8).tobytes().decode(errors=errors)


class SentencePieceTokenizer:
    """A sentencepiece ``*.model`` file."""

    def __init__(self, path: Path, name: str | None = None):
        import sentencepiece  # imported here: the byte tokenizer needs none of its start-up time

        try:
            blob = path.read_bytes()
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=blob)
            self.vocab_size = len(self._pieces)
        except (OSError, RuntimeError) as error:
            raise InputError(
                "tokenizer", path, f"is not a readable sentencepiece model ({_one_line(error)})"
            ) from error
        if self._pieces.eos_id() < 0:
            raise InputError("tokenizer", path, "has no end-of-sentence piece; train it with one")
        self.name = name or path.name
        self.fingerprint = hashlib.sha256(blob).hexdigest()[:32]
        self.bos_id = _id_or_none(self._pieces.bos_id())
        self.eos_id = self._pieces.eos_id()
        self.pad_id = _id_or_none(self._pieces.pad_id())

    def encode(self, text: str) -> np.ndarray:
        """Piece ids of ``text``, int32 [T]."""
        return np.asarray(self._pieces.encode(text), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray, errors: str = "replace") -> str:
        """Text of piece ids. Broken UTF-8 from byte pieces becomes U+FFFD whatever ``errors`` says."""
        return self._pieces.decode(_checked_ids(ids, self.vocab_size).tolist())


class JsonTokenizer:
    """A tokenizer of the library `tokenizers`, from its JSON or from the Hugging Face hub."""

    def __init__(self, backend, name: str, eos_token: str | None):
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # text that spells a control token stays text
        self._backend = backend
        self.name = name
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()[:32]
        # Ids may have holes: the table must reach the largest one.
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos_id = self._first_id(("<s>", "<|begin_of_text|>", "<bos>", "[CLS]"))
        self.pad_id = self._first_id(("<pad>", "[PAD]", "<|pad|>"))
        eos_id = self._first_id((eos_token,) if eos_token else _END_NAMES)
        if eos_id is None:
            raise InputError(
                "tokenizer", name, "has no known end token; name it as eos_token in a tokenizer_config.json beside it"
            )
        self.eos_id = eos_id

    def _first_id(self, names: Sequence[str]) -> int | None:
        ids = (self._backend.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    def encode(self, text: str) -> np.ndarray:
        """Token ids of ``text`` without special tokens, int32 [T]."""
        return np.asarray(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray, errors: str = "replace") -> str:
        """Text of token ids. Broken UTF-8 becomes U+FFFD whatever ``errors`` says."""
        return self._backend.decode(_checked_ids(ids, self.vocab_size).tolist())


class StreamDecoder:
    """Turns ids that arrive one by one into text that can be printed at once.

    Holds back an unfinished UTF-8 sequence, and decodes each new id together with the few before it,
    because many tokenizers spell a token's leading space only when another token precedes it.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # the ids whose text has been returned
        self._context = 0  # decoding starts here

    def feed(self, token_id: int) -> str:
        """Text that ``token_id`` completes; empty while a character is unfinished."""
        self._ids.append(int(token_id))
        text = self._new_text()
        # Four bytes are the longest character: what is still broken after them is broken for good.
        if text.endswith("\ufffd") and len(self._ids) - self._shown < 4:
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return text

    def flush(self) -> str:
        """What is still held back, with U+FFFD for an unfinished character."""
        text = self._new_text() if self._shown < len(self._ids) else ""
        self._context = self._shown = len(self._ids)
        return text

    def _new_text(self) -> str:
        old = self._tokenizer.decode(self._ids[self._context : self._shown])
        return self._tokenizer.decode(self._ids[self._context :])[len(old) :]


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer that ``spec`` names.

    Args:
        spec: ``bytes``; ``mistral`` (the 32,000 pieces of Mistral v1, from the package mistral-common);
            a sentencepiece ``*.model`` file; a `tokenizers` ``*.json`` file or a folder that holds a
            ``tokenizer.json`` or ``tokenizer.model``; else a name on the Hugging Face hub.

    Raises:
        InputError: nothing of that name, an unreadable file, or no network for a hub name.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if spec == "mistral":
        return SentencePieceTokenizer(_mistral_file(), name="mistral")
    path = Path(os.path.expanduser(spec))
    if path.is_dir():
        path = _file_in_folder(path)
    if path.is_file():
        return _from_json(path) if path.suffix == ".json" else SentencePieceTokenizer(path)
    if path.suffix in (".json", ".model") or path.is_absolute() or spec.startswith((".", "~")):
        raise InputError("tokenizer", spec, "no such file")
    return _from_hub(spec)


def _mistral_file() -> Path:
    # Found without importing the package, whose import is slow.
    package = importlib.util.find_spec("mistral_common")
    if package is None or package.origin is None:
        raise InputError("tokenizer", "mistral", "needs the package mistral-common: pip install 'mom-jax[mistral]'")
    return Path(package.origin).parent / "data" / "tokenizer.model.v1"


def _file_in_folder(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return folder / name
    raise InputError("tokenizer", folder, "the folder holds no tokenizer.json or tokenizer.model")


def _from_json(path: Path) -> Tokenizer:
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError("tokenizer", path, f"is not a readable tokenizers file ({_one_line(error)})") from error
    return JsonTokenizer(backend, path.name, _declared_end(path.parent / "tokenizer_config.json"))


def _declared_end(path: Path) -> str | None:
    """``eos_token`` of a ``tokenizer_config.json``, a string or an object with ``content``."""
    if not path.is_file():
        return None
    try:
        token = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError("tokenizer", path, f"is not readable JSON ({_one_line(error)})") from error
    return token.get("content") if isinstance(token, dict) else token


def _from_hub(spec: str) -> Tokenizer:
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_pretrained(spec)
    except Exception as error:  # the library raises bare Exception
        remedy = f"neither bytes, mistral, a file, nor reachable on the Hugging Face hub ({_one_line(error)})"
        raise InputError("tokenizer", spec, remedy) from error
    return JsonTokenizer(backend, spec, None)


def _id_or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
