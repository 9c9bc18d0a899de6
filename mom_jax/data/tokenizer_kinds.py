"""The three kinds of tokenizers; `mom_jax.data.tokenizers` says what they have in common."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.data.opening import one_line
from mom_jax.errors import InputError, need

_END_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
_MOST_IDS = 2**26  # a model has a row for each id; the library hangs over vocabularies with ids far beyond


class ByteTokenizer:
    """Ids 0-255 are the UTF-8 bytes, 256 begins, 257 ends, 258 pads, 259-263 are reserved."""

    name: str = "bytes"
    fingerprint: str = "bytes-v1"
    vocab_size: int = 264
    ids: Iterable[int] = range(264)
    byte_run_ids: frozenset[int] = frozenset()
    bos_id: int | None = 256
    eos_id: int = 257
    pad_id: int | None = 258

    def encode(self, text: str) -> np.ndarray:
        """The UTF-8 bytes of ``text``, int32 [T]."""
        return np.frombuffer(_encoded(str.encode, text, self.name), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray, errors: str = "replace") -> str:
        """Text of the byte ids; the other ids give none."""
        array = _checked_ids(ids, self.vocab_size)
        return array[array < 256].astype(np.uint8).tobytes().decode(errors=errors)


class SentencePieceTokenizer:
    """A sentencepiece ``*.model`` file."""

    def __init__(self, path: Path, name: str | None = None):
        need("sentencepiece", "text", "tokenizer", path)
        import sentencepiece  # imported here: the byte tokenizer needs none of its start-up time

        try:
            blob = path.read_bytes()
            if not blob:
                raise ValueError("it is empty")
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=blob)
            self.vocab_size = len(self._pieces)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError("tokenizer", path, f"is not a readable sentencepiece model ({one_line(error)})") from error
        if self._pieces.eos_id() < 0:
            raise InputError("tokenizer", path, "has no end-of-sentence piece; train it with one")
        self.name = name or path.name
        self.fingerprint = hashlib.sha256(blob).hexdigest()[:32]
        self.ids = range(self.vocab_size)
        self.byte_run_ids: frozenset[int] = frozenset()
        self.bos_id = _id_or_none(self._pieces.bos_id())
        self.eos_id = self._pieces.eos_id()
        self.pad_id = _id_or_none(self._pieces.pad_id())

    def encode(self, text: str) -> np.ndarray:
        """Piece ids of ``text``, int32 [T]."""
        return np.asarray(_encoded(self._pieces.encode, text, self.name), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray, errors: str = "replace") -> str:
        """Text of piece ids. Broken UTF-8 from byte pieces becomes U+FFFD whatever ``errors`` says."""
        return self._pieces.decode(_checked_ids(ids, self.vocab_size).tolist())


class JsonTokenizer:
    """A tokenizer of the library `tokenizers`.

    Args:
        backend: what the library made of a file.
        name: what errors call it.
        eos_token: its end token, where that is declared; otherwise one of the usual names.
    """

    def __init__(self, backend: Any, name: str, eos_token: str | None):
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # text that spells a control token stays text
        self._backend = backend
        self.name = name
        self.ids = sorted(set(backend.get_vocab(with_added_tokens=True).values()))
        # Ids may have holes: the table must reach the largest one.
        self.vocab_size = 1 + max(self.ids, default=-1)
        if self.vocab_size > _MOST_IDS:
            remedy = f"has a token of id {self.vocab_size - 1}, but models have at most {_MOST_IDS} rows; renumber it"
            raise InputError("tokenizer", name, remedy)
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()[:32]
        self.byte_run_ids = self._bytes_in_runs()
        self.bos_id = self._first_id(("<s>", "<|begin_of_text|>", "<bos>", "[CLS]"))
        self.pad_id = self._first_id(("<pad>", "[PAD]", "<|pad|>"))
        eos_id = self._first_id((eos_token,) if eos_token else _END_NAMES)
        if eos_id is None:
            missing = f"has no token {eos_token!r}, its declared end" if eos_token else "has no known end token"
            remedy = f"{missing}; name it as eos_token in a tokenizer_config.json beside it"
            raise InputError("tokenizer", name, remedy)
        self.eos_id = eos_id

    def _first_id(self, names: Sequence[str]) -> int | None:
        ids = (self._backend.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    def _bytes_in_runs(self) -> frozenset[int]:
        """The library turns a run of ``<0xE6>``-like tokens into text as a whole, special tokens left out."""
        ids = [self._backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        if ids[0x41] is None or self._backend.decode([ids[0x41]]) != "A":
            return frozenset()
        special = (i for i, token in self._backend.get_added_tokens_decoder().items() if token.special)
        return frozenset([*(i for i in ids if i is not None), *special])

    def encode(self, text: str) -> np.ndarray:
        """Token ids of ``text`` without special tokens, int32 [T]."""
        return np.asarray(_encoded(lambda t: self._backend.encode(t, add_special_tokens=False).ids, text, self.name),
                          np.int32)  # fmt: skip

    def decode(self, ids: Sequence[int] | np.ndarray, errors: str = "replace") -> str:
        """Text of token ids. Broken UTF-8 becomes U+FFFD whatever ``errors`` says."""
        return self._backend.decode(_checked_ids(ids, self.vocab_size).tolist())


def _encoded(encode: Callable[[str], Any], text: str, name: str) -> Any:
    try:
        return encode(text)
    except Exception as error:  # the libraries raise bare Exception
        try:
            text.encode()
        except UnicodeEncodeError as broken:
            remedy = "is not Unicode text (a lone surrogate, as of bytes that are not UTF-8); fix or remove it"
            raise InputError("text", repr(text[max(0, broken.start - 20) : broken.end + 20]), remedy) from broken
        remedy = f"cannot encode {text[:40]!r} ({one_line(error)}); add what it lacks, or use another tokenizer"
        raise InputError("tokenizer", name, remedy) from error


def _checked_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    array = np.asarray(ids, np.int64).reshape(-1)
    bad = array[(array < 0) | (array >= vocab_size)]
    if bad.size:
        raise InputError("token id", int(bad[0]), f"must lie between 0 and {vocab_size - 1}, the tokenizer's last id")
    return array


def _id_or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None
