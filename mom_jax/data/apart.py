"""Parts of a mixture must not share text: each has held-out text of its own, on which another one would train."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from mom_jax.data.config import DataConfig
from mom_jax.data.remote import with_local_copies
from mom_jax.data.shards import is_prepared
from mom_jax.data.sources import find_sources, place_of
from mom_jax.errors import InputError


def check_apart(config: DataConfig) -> None:
    """Raises `InputError` for a file, a folder of shards or a data set that belongs to two parts of the mixture."""
    owners: dict[str, str] = {}
    for part in config.parts:
        for place in _places(dataclasses.replace(config, path=part.path, mixture=None)):
            owner = owners.setdefault(place, part.name)
            if owner != part.name:
                remedy = f"is text of {owner} and of {part.name}, and what one holds out the other may train on"
                raise InputError("mixture", place, f"{remedy}; leave it in one of them, with more weight")


def _places(config: DataConfig) -> Iterator[str]:
    config = with_local_copies(config)
    folder = os.path.expanduser(config.path)
    if config.path.startswith("hf:"):  # is not asked for here
        yield config.path
    elif config.path != "stdlib" and is_prepared(Path(folder)):
        yield os.path.realpath(folder)
    else:
        yield from map(place_of, find_sources(config).sources)
