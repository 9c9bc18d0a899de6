"""Tokenizers behind one small interface: bytes, sentencepiece files, and `tokenizers` files or hub names."""

import difflib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mom_jax.data.opening import one_line
from mom_jax.data.tokenizer_kinds import ByteTokenizer, JsonTokenizer, SentencePieceTokenizer
from mom_jax.errors import InputError, need
from mom_jax.files import read_json

_NAMED = ("bytes", "mistral")
_BROKEN = "\ufffd"  # stands for bytes that are no character, or not yet


class Tokenizer(Protocol):
    """Text to token ids and back. ``encode`` adds no begin or end token."""

    name: str
    """The specification it was loaded from, without folders."""
    fingerprint: str
    """Changes whenever the mapping from text to ids may."""
    vocab_size: int
    """Ids are smaller than this."""
    byte_run_ids: frozenset[int]
    """Ids whose text depends on the whole run of them in which they stand; mostly none."""
    bos_id: int | None
    eos_id: int
    pad_id: int | None

    @property
    def ids(self) -> Iterable[int]:
        """The ids that have a token: all below ``vocab_size``, or fewer."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Ids of ``text``, int32 [T].

        Raises:
            InputError: the text is not Unicode, or the tokenizer has neither tokens nor an unknown token for it.
        """
        ...

    def decode(self, ids: Sequence[int] | np.ndarray, errors: str = "replace") -> str:
        """Text of ``ids``; begin, end and padding ids give no text. ``errors`` as in `bytes.decode`."""
        ...


class StreamDecoder:
    """Turns ids that arrive one by one into text that can be printed at once.

    What it has returned is always the beginning of what prompt and continuation give when they are decoded
    at once, less the prompt's text. Held back is what a later id may still change: an unfinished character, and a
    run of byte tokens where the library reads it as a whole.

    Args:
        tokenizer: decodes.
        prompt: the ids before, whose text is shown already. A character that they leave unfinished is returned whole.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] | np.ndarray = ()):
        self._tokenizer = tokenizer
        self._ids = self._tail([int(i) for i in prompt])  # as many of the last ids as their text depends on
        self._shown = tokenizer.decode(self._ids)
        self._settled_ids = len(self._ids)  # the text of these was shown to its end

    def feed(self, token_id: int) -> str:
        """Text that ``token_id`` completes; empty while a later id may change it."""
        self._ids.append(int(token_id))
        text = self._tokenizer.decode(self._ids)
        settled = self._settled(text)
        new = self._show(settled)
        if settled == text:
            self._forget()
        return new

    def flush(self) -> str:
        """What is still held back, with U+FFFD for an unfinished character."""
        return self._show(self._tokenizer.decode(self._ids))

    def _show(self, text: str) -> str:
        pairs = zip(self._shown, text, strict=False)
        same = next((i for i, (ours, new) in enumerate(pairs) if ours != new), min(len(self._shown), len(text)))
        if same < len(text):
            self._shown = text
        return text[same:]

    def _settled(self, text: str) -> str:
        """The beginning of ``text`` that stays whatever follows."""
        ended = len(self._ids)
        while ended and self._ids[ended - 1] in self._tokenizer.byte_run_ids:
            ended -= 1
        if ended < len(self._ids):
            text = self._tokenizer.decode(self._ids[:ended])
        # The longest unfinished character has three bytes, which give at most one U+FFFD each.
        broken = min(3, len(text) - len(text.rstrip(_BROKEN)))
        return text[: len(text) - broken]

    def _forget(self) -> None:
        """Leaves out ids that the text of coming ones no longer depends on."""
        text = self._tokenizer.decode(self._ids[self._settled_ids :])
        if _stands_alone(text):
            self._ids, self._shown = self._ids[self._settled_ids :], text
        self._settled_ids = len(self._ids)

    def _tail(self, ids: list[int]) -> list[int]:
        for start in reversed(range(len(ids))):
            if ids[start] not in self._tokenizer.byte_run_ids and _stands_alone(self._tokenizer.decode([ids[start]])):
                return ids[start:]
        return ids


def _stands_alone(text: str) -> bool:
    """Whether what follows decodes as it does after all that precedes.

    The first word of a text loses its space, so there must be one; and it must not begin in the middle of a character.
    """
    return bool(text.strip()) and _BROKEN not in text


def token_rows(tokenizer: Tokenizer, rows: int, remedy: str = "name the model's own tokenizer") -> np.ndarray | None:
    """Which rows of a model's embedding have a token, bool [rows]; None where all have.

    Published tables are often longer than vocabularies.

    Raises:
        InputError: the tokenizer has more tokens than the model has rows.
    """
    check_rows(tokenizer.name, tokenizer.vocab_size, rows, remedy)
    known = np.zeros(rows, bool)
    known[np.fromiter(tokenizer.ids, np.int64)] = True
    return None if known.all() else known


def check_rows(name: str, tokens: int, rows: int, remedy: str = "name the model's own tokenizer") -> None:
    """Raises `InputError` when a tokenizer has more tokens than the model has rows."""
    if tokens > rows:
        raise InputError("tokenizer", name, f"has {tokens} tokens but the model {rows} rows (vocab_size); {remedy}")


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
    meant = difflib.get_close_matches(spec.lower(), _NAMED, n=1, cutoff=0.8)
    if meant:  # without a network the hub would be asked for half a minute
        raise InputError("tokenizer", spec, f"is none; did you mean {meant[0]}?")
    return _from_hub(spec)


def _mistral_file() -> Path:
    need("mistral_common", "mistral", "tokenizer", "mistral", "the package mistral-common")
    # Found without importing the package, whose import is slow.
    package = importlib.util.find_spec("mistral_common")
    assert package is not None and package.origin is not None
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
        raise InputError("tokenizer", path, f"is not a readable tokenizers file ({one_line(error)})") from error
    return JsonTokenizer(backend, path.name, _declared_end(path.parent))


def _declared_end(folder: Path) -> str | None:
    """``eos_token`` of the files beside a tokenizer; None where none of them names one."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            token = read_json(path, dict[str, Any], "fix or remove it", field="tokenizer").get("eos_token")
            if token is not None:
                return _token_text(token, path)
    return None


def _token_text(token: Any, path: Path) -> str:
    """A token is spelled as text, as an object with ``content``, or as a list of these, the first of which counts."""
    if isinstance(token, list) and token:
        token = token[0]
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str) or not token:
        raise InputError("tokenizer", path, "its eos_token must be text, or an object whose content is text")
    return token


def _from_hub(spec: str) -> Tokenizer:
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_pretrained(spec)
    except Exception as error:  # the library raises bare Exception
        remedy = f"neither bytes, mistral, a file, nor reachable on the Hugging Face hub ({one_line(error)})"
        raise InputError("tokenizer", spec, remedy) from error
    return JsonTokenizer(backend, spec, None)
