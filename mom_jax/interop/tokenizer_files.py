"""The tokenizer that travels with a model: its files, or the name of one that needs none."""

import shutil
from pathlib import Path
from typing import TypedDict

from mom_jax.errors import InputError
from mom_jax.files import read_json, write_atomically, write_json
from mom_jax.paths import local_path

_BYTES = "bytes"
_NAMED = (_BYTES, "mistral")  # need no file, even if one of that name lies around
_VOCABULARIES = ("tokenizer.json", "tokenizer.model")
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
_NAME_FILE = "mom_jax.json"  # names a tokenizer that has no file, such as bytes


class _Name(TypedDict):
    """What that file says."""

    tokenizer: str


def find_tokenizer(folder: Path) -> str | None:
    """The tokenizer of a published model: its folder if the files are there, a name, or None.

    Raises:
        InputError: the name is written in a file that cannot be read, or is another one than that of the files.
    """
    path = folder / _NAME_FILE
    named = read_json(path, _Name, "write or remove it", field="tokenizer")["tokenizer"] if path.is_file() else None
    if named == _BYTES:  # the file beside it is for others
        return named
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return named
    if named is not None:
        raise InputError("tokenizer", named, f"so {path} says, but a tokenizer lies beside it; remove one of the two")
    return str(folder.absolute())


def files_of(tokenizer: str) -> Path | None:
    """The file or folder that a tokenizer is, None for a name.

    Raises:
        InputError: nothing is there, but what was given cannot be a name.
    """
    path = local_path(tokenizer, "tokenizer")
    if tokenizer in _NAMED or path.exists():
        return None if tokenizer in _NAMED else path
    if path.is_absolute() or path.suffix in (".json", ".model") or tokenizer.startswith("."):
        raise InputError("tokenizer", tokenizer, "no such file; name the tokenizer with --tokenizer")
    return None


def _put_bytes(folder: Path) -> None:
    """The tokenizer of bytes as files that Hugging Face's libraries read: the same ids, and nothing is ever joined."""
    import tokenizers

    # Byte-level vocabularies write a byte as itself where it can be seen, the others from U+0100 on, in order.
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    letters = {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letters[byte]: byte for byte in range(256)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>", "<pad>", *(f"<reserved-{i}>" for i in range(5))])
    write_atomically(folder / _VOCABULARIES[0], made.to_str(pretty=True))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    write_json(folder / _BESIDE[0], about | {"clean_up_tokenization_spaces": False})


def put_tokenizer(tokenizer: str, folder: Path) -> None:
    """Copies a tokenizer's files into ``folder``, or notes its name there if it has none.

    Args:
        tokenizer: as `mom_jax.data.tokenizers.load_tokenizer` takes it.
        folder: an existing folder.
    """
    path = files_of(tokenizer)
    if path is None:
        write_json(folder / _NAME_FILE, _Name(tokenizer=tokenizer))
        if tokenizer == _BYTES:
            _put_bytes(folder)
    elif path.is_dir():
        for name in (*_VOCABULARIES, *_BESIDE):
            if (path / name).is_file():
                shutil.copyfile(path / name, folder / name)
    else:
        shutil.copyfile(path, folder / f"tokenizer{path.suffix}")
        if (path.parent / _BESIDE[0]).is_file():
            shutil.copyfile(path.parent / _BESIDE[0], folder / _BESIDE[0])
