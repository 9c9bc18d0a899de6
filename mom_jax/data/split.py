"""Which text is held out: what names say, else a share of the text, chosen by hashes: the same on every machine."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

from mom_jax.data.config import DataConfig
from mom_jax.data.documents import error_handler
from mom_jax.data.file_kinds import kind
from mom_jax.data.passages import Passage
from mom_jax.data.shares import HashRange, TooFewItems, choose_range, fixed_range, stable_hash
from mom_jax.data.sources import FileSource, Source, Sources, find_sources, place_of
from mom_jax.errors import InputError

Rule = Literal["held_out_path", "names", "files", "ends", "documents"]

# The words of the library `datasets`, and names of held-out text that other corpora have. `datasets` looks for them
# between "-._ 0-9"; here whatever is no letter may stand around them (split=test, valid(1).txt), capitals are the same
# as small letters, and `set` may follow.
_WORDS = {
    "test": "test|testing|eval|evaluation",
    "validation": "validation|valid|dev|val|held[-_ ]?out|hold[-_ ]?out",
    "train": "train|training",
}
_LETTER = r"[^\W\d_]"
_SPLIT_NAMES = {
    split: re.compile(rf"(?<!{_LETTER})(?:{words})(?:[-_ ]?set)?(?!{_LETTER})", re.IGNORECASE)
    for split, words in _WORDS.items()
}
# A share by whole files is taken if it is as near to the wanted one as this.
_NEAR = (0.8, 1.25)
# Up to so many stored bytes the documents are read twice: once to measure them, so that the share is exact.
_MEASURED_UP_TO = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Split:
    """The sources of both sides: the same ones where the rule is ``documents``."""

    rule: Rule
    train: list[Source]
    held_out: list[Source]
    notes: list[str]  # what was left out, one line each


def named_split(name: str) -> str | None:
    """The split that a file's name under the root says: train, validation or test; None where it says none.

    Folders come before the file, as in the library `datasets`. Of several words, test counts before validation
    before train.
    """
    *folders, file = PurePath(name).parts
    for parts in (folders, [file]):
        for split, pattern in _SPLIT_NAMES.items():
            if any(pattern.search(part) for part in parts):
                return split
    return None


def split(config: DataConfig) -> Split:
    """Finds the text and divides it.

    Raises:
        InputError: no text to train on, or none to hold out.
    """
    source_list = find_sources(config)
    if config.held_out_path is not None:
        return _by_path(config, source_list)
    sides = _by_names(config, source_list)
    notes = source_list.left_out.lines()
    if sides["held_out"]:
        return Split("names", sides["train"], sides["held_out"], notes)
    sources = sides["train"]
    files, share = _by_files(sources, config.held_out_fraction)
    if _NEAR[0] <= share / config.held_out_fraction <= _NEAR[1]:
        return Split("files", *files, notes)
    texts = [s for s in sources if isinstance(s, FileSource) and kind(s.name) == "text"]
    if len(texts) < len(sources):
        return Split("documents", sources, sources, notes)
    train, held_out = (_passages(texts, config.held_out_fraction, side) for side in (False, True))
    return Split("ends", train, held_out, notes)


def _by_path(config: DataConfig, source_list: Sources) -> Split:
    sides = _by_names(config, source_list)
    other = find_sources(config, "held_out_path")
    named = _grouped_by_name(other)
    held_out = (named["validation"] or named["test"] if named["train"] else []) or other.sources
    places = {place_of(source) for source in held_out}
    if any(place_of(source) in places for source in sides["train"]):
        remedy = "overlaps path: held-out text must not be trained on"
        raise InputError("held_out_path", config.held_out_path, remedy)
    for source in sides["held_out"]:
        if place_of(source) not in places:
            source_list.left_out.add("held-out text beside held_out_path", source.name)
    return Split("held_out_path", sides["train"], held_out, source_list.left_out.lines() + other.left_out.lines())


def _grouped_by_name(source_list: Sources) -> dict[str | None, list[Source]]:
    groups: dict[str | None, list[Source]] = {"train": [], "validation": [], "test": [], None: []}
    for source in source_list.sources:
        groups[named_split(source.name) if source_list.names_count else None].append(source)
    return groups


def _by_names(config: DataConfig, source_list: Sources) -> dict[str, list[Source]]:
    """Both sides as names say; nothing is held out where no name does."""
    groups = _grouped_by_name(source_list)
    held_out = groups["validation"] or groups["test"]
    train = groups["train"] if groups["train"] and held_out else groups["train"] + groups[None]
    unused = {
        "test text": groups["test"] if groups["validation"] else [],
        "beside files whose names say what they are": groups[None] if train is groups["train"] else [],
    }
    for why, sources in unused.items():
        for source in sources:
            source_list.left_out.add(why, source.name)
    if not train:
        some = ", ".join(source.name for source in held_out[:3])
        remedy = f"gives only held-out text, going by the file names ({some}); give the folder of the training text"
        raise InputError("path", config.path, remedy)
    return {"train": sorted(train, key=lambda source: source.name), "held_out": held_out}


def _by_files(sources: Sequence[Source], fraction: float) -> tuple[tuple[list[Source], list[Source]], float]:
    """Both sides by whole files, and the share of the text that is held out so: 0 of one file."""
    weighed = [(source, stable_hash(source.name), source.size or 1) for source in sources]
    if len(sources) < 2:
        return (list(sources), []), 0.0
    chosen = choose_range([(value, size) for _, value, size in weighed], fraction)
    train = [source for source, value, _ in weighed if value not in chosen]
    held_out = [source for source, value, _ in weighed if value in chosen]
    share = sum(size for _, value, size in weighed if value in chosen) / sum(size for *_, size in weighed)
    return (train, held_out), share


def _passages(texts: Sequence[FileSource], fraction: float, held_out: bool) -> list[Source]:
    return [dataclasses.replace(source, passage=Passage(fraction, held_out)) for source in texts]


def held_out_documents(sides: Split, config: DataConfig) -> HashRange | None:
    """The hashes of the documents that are held out, where the rule is ``documents``. Small texts are read for it.

    Raises:
        InputError: fewer than two different documents.
    """
    if sides.rule != "documents":
        return None
    if sum(_MEASURED_UP_TO + 1 if source.size is None else source.size for source in sides.train) > _MEASURED_UP_TO:
        return fixed_range(config.held_out_fraction)
    on_error = error_handler(config.on_error)
    texts = (text for source in sides.train for text in source.documents(config.text_field, on_error))
    try:
        return choose_range(((stable_hash(text), len(text.encode())) for text in texts), config.held_out_fraction)
    except TooFewItems as error:
        remedy = "has fewer than two different documents, so none can be held out; give more text, or held_out_path"
        raise InputError("path", config.path, remedy) from error
