"""The folder that prepared shards go into: whose it is, and what it says of itself."""

from pathlib import Path

from mom_jax.data.plan import Plan
from mom_jax.data.shards import (
    FORMAT,
    SPLITS,
    VERSION,
    Index,
    ShardName,
    is_prepared,
    read_index,
    token_dtype,
    write_index,
)
from mom_jax.data.tokenizers import Tokenizer
from mom_jax.errors import InputError
from mom_jax.files import remove_leftovers
from mom_jax.paths import check_folder_name


def index_of(planned: Plan, keys: list[str], tokenizer: Tokenizer) -> Index:
    """What the folder says of itself before its shards are there; ``keys`` are those of the plan's units."""
    named: dict[str, list[ShardName]] = {split: [] for split in SPLITS}
    for unit, key in zip(planned.units, keys, strict=True):
        for side, name in unit.shards.items():
            named[side].append({"name": name, "key": key})
    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "splits": named,
        "rule": planned.split.rule,
    }


def claim_folder(out: Path, index: Index) -> bool:
    """Makes ``out`` this data's folder, or checks that it is already; tells whether it was made now."""
    if out.exists() and not out.is_dir():
        raise InputError("out", out, "is a file; give a folder")
    check_folder_name(out, "out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("out", out, f"cannot be created ({error.strerror}); give another folder") from error
    remove_leftovers(out)
    if is_prepared(out):
        if read_index(out) != index:
            remedy = "holds shards of other text, another tokenizer or split; delete it or give another folder"
            raise InputError("out", out, remedy)
        return False
    if any(not path.name.endswith(".tmp") for path in out.iterdir()):
        raise InputError("out", out, "is not empty and holds no shards; delete it or give another folder")
    write_index(out, index)
    return True


def discard(folder: Path) -> None:
    """Removes a folder that this call made."""
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
