"""Where the training text comes from and how it is cut: a frozen dataclass that doubles as the command line.

Importing this module imports neither JAX nor Grain.
"""

import dataclasses
import os
from typing import Annotated, Literal, Self

from mom_jax.data.mixture import Part, parse_mixture
from mom_jax.data.remote import check_address, is_address
from mom_jax.errors import InputError
from mom_jax.fields import Check, Name, Range, Seed, check_fields
from mom_jax.paths import absolute, cache_folder, check_local

TokenizerName = Annotated[Name, Check(check_local)]  # its own, of a file or folder, or the hub's


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Source, tokenizer and split of the text, and how it lies in shards (see `mom_jax.data.prepare`)."""

    path: Name = "stdlib"
    """Text, JSON, parquet or Arrow file, also compressed; a folder or glob of them; prepared shards;
    `hf:OWNER/NAME[:config][:split]`, a Hugging Face dataset; an address (gs://, s3://, hf://, https://), which is
    copied; or `stdlib`, Python's standard library."""
    held_out_path: Name | None = None
    """Held-out text, given in the same ways as path. Without it names such as valid.jsonl or test/ decide, or else a
    share of path's text is held out."""
    held_out_fraction: Annotated[float, Range(above=0, below=1)] = 0.05
    """Share of the text that is held out, by whole files where they are many, else by documents; of few text
    files by their ends."""
    tokenizer: TokenizerName = "bytes"
    """`bytes`, `mistral`, a sentencepiece *.model, a `tokenizers` *.json or its folder, or a Hugging Face name."""
    text_field: Name = "text"
    """Field (jsonl) or column (parquet, Hugging Face) that holds a document's text."""
    exclude: tuple[Name, ...] = ()
    """Patterns of names of files and folders below path that are left out, as in '*.md' 'drafts'."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about a broken file or document: stop, or leave it out and count it (skip)."""
    shard_bytes: Annotated[int, Range(least=1, most=2**40)] = 64 * 2**20
    """Source bytes per shard (as stored, so compressed where files are): the unit of work when preparing."""

    def __post_init__(self):
        check_fields(self)
        for field in ("path", "held_out_path"):
            if getattr(self, field) is not None:
                check_text(getattr(self, field), field)


@dataclasses.dataclass(frozen=True)
class DataConfig(TextConfig):
    """Source, tokenizer, split and windows of the data.

    Text is tokenised once into shards; training and evaluation read windows of ``sequence_length`` tokens from them.
    """

    mixture: Name | None = None
    """Several texts in the place of path, each with its share of the training windows:
    'books=0.7:books/*.jsonl,code=0.3:code'."""
    sequence_length: Annotated[int, Range(least=1, most=2**24)] = 512
    """Tokens per window, T."""
    batch_size: Annotated[int, Range(least=1, most=2**20)] = 8
    """Windows per optimiser step over all processes, B."""
    seed: Seed = 0
    """Seed of the order of the training windows."""
    cache_dir: Name = dataclasses.field(default_factory=lambda: str(cache_folder()))
    """Where shards go when path is text rather than a prepared folder."""

    def __post_init__(self):
        super().__post_init__()
        check_local(self.cache_dir, "cache_dir")
        for part in self.parts:
            check_text(part.path, "mixture")
        if self.mixture is not None and self.held_out_path is not None:
            remedy = "does not go with a mixture, each part of which has its own; names in it may decide (docs/data.md)"
            raise InputError("held_out_path", self.held_out_path, remedy)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of all windows of an optimiser step, B * T."""
        return self.batch_size * self.sequence_length

    @property
    def parts(self) -> list[Part]:
        """Of the mixture; none without one."""
        return [] if self.mixture is None else parse_mixture(self.mixture)

    def anchored(self) -> Self:
        """The same data with paths that mean the same from every folder, which is what a run keeps."""
        places = {field: _anchor(getattr(self, field), field) for field in ("path", "held_out_path", "cache_dir")}
        is_file = self.tokenizer not in ("bytes", "mistral") and os.path.exists(os.path.expanduser(self.tokenizer))
        tokenizer = absolute(self.tokenizer, "tokenizer") if is_file else self.tokenizer
        parts = [dataclasses.replace(part, path=_anchor(part.path, "mixture")) for part in self.parts]
        mixture = ",".join(map(str, parts)) or None
        return dataclasses.replace(self, **places, tokenizer=tokenizer, mixture=mixture)


def check_text(place: str, field: str) -> None:
    """Raises `InputError` where ``place`` is neither a local path nor an address that can be read from here."""
    if is_address(place):
        check_address(place, field)
    else:
        check_local(place, field)


def _anchor(place: str | None, field: str) -> str | None:
    if place is None or place == "stdlib" or is_address(place) or place.startswith("hf:"):
        return place
    return absolute(place, field)
