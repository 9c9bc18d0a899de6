"""The tokenizer that travels with a model: its files, or the name of one that needs none."""

import shutil
from pathlib import Path
from typing import TypedDict

from mom_jax.errors import InputError
from mom_jax.files import read_json, write_json

_NAMED = ("bytes", "mistral")  # need no file, even if one of that name lies around
_VOCABULARIES = ("tokenizer.json", "tokenizer.model")
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
_NAME_FILE = "mom_jax.json"  # names a tokenizer that has no file, such as bytes


class _Name(TypedDict):
    """What that file says."""

    tokenizer: str


def find_tokenizer(folder: Path) -> str | None:
    """The tokenizer of a published model: its folder if the files are there, a name, or None."""
    if any((folder / name).is_file() for name in _VOCABULARIES):
        return str(folder.absolute())
    path = folder / _NAME_FILE
    if not path.is_file():
        return None
    return read_json(path, _Name, "write or remove it", field="tokenizer")["tokenizer"]


def files_of(tokenizer: str) -> Path | None:
    """The file or folder that a tokenizer is, None for a name.

    Raises:
        InputError: nothing is there, but what was given cannot be a name.
    """
    path = Path(tokenizer).expanduser()
    if tokenizer in _NAMED or path.exists():
        return None if tokenizer in _NAMED else path
    if path.is_absolute() or path.suffix in (".json", ".model") or tokenizer.startswith("."):
        raise InputError("tokenizer", tokenizer, "no such file; name the tokenizer with --tokenizer")
    return None


def put_tokenizer(tokenizer: str, folder: Path) -> None:
    """Copies a tokenizer's files into ``folder``, or notes its name there if it has none.

    Args:
        tokenizer: as `mom_jax.data.tokenizers.load_tokenizer` takes it.
        folder: an existing folder.
    """
    path = files_of(tokenizer)
    if path is None:
        write_json(folder / _NAME_FILE, _Name(tokenizer=tokenizer))
    elif path.is_dir():
        for name in (*_VOCABULARIES, *_BESIDE):
            if (path / name).is_file():
                shutil.copyfile(path / name, folder / name)
    else:
        shutil.copyfile(path, folder / f"tokenizer{path.suffix}")
        if (path.parent / _BESIDE[0]).is_file():
            shutil.copyfile(path.parent / _BESIDE[0], folder / _BESIDE[0])
