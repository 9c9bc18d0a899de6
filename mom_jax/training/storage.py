"""Orbax, which writes and reads arrays: called by names that it can take, its failures told in one line."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from mom_jax.errors import InputError, in_a_line
from mom_jax.models.structure import dotted

Keys = tuple[Any, ...]  # on the way to an array

# Files are filled in memory before they are written; small ones bound what a large model takes besides itself.
SMALL_FILE_BYTES = 2**23

# Orbax globs paths without escaping them, takes "\" for "/" and "gs:/" for a bucket, and wants UTF-8.
_PLAIN = re.compile(r"[\w./+=@, -]+", re.ASCII)


@contextmanager
def plain_name(folder: Path) -> Iterator[Path]:
    """``folder``, or a link to it where its name is one that Orbax misreads.

    Raises:
        InputError: the folder for temporary files has such a name too.
    """
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mom-jax-") as place:
        if not _PLAIN.fullmatch(place):
            raise InputError("TMPDIR", repr(place), "must be a path of letters, digits and -_. only")
        link = Path(place) / "checkpoints"
        link.symlink_to(folder)
        yield link


@contextmanager
def full_disk_as_oserror(folder: Path) -> Iterator[None]:
    """Tells a full disk by its exception's type: a background write surfaces as one of several, known by text alone."""
    try:
        yield
    except Exception as error:
        if "No space left" not in str(error):
            raise
        for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)  # the torso only takes up room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


@contextmanager
def _opened(item: Path) -> Iterator[epath.Path]:
    """The folder of one item of a checkpoint; what is wrong with it becomes an `InputError`."""
    try:
        with plain_name(item) as folder:
            yield epath.Path(folder)
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):  # of these the checkpoint is innocent
        raise
    except Exception as error:
        remedy = f"cannot be read ({in_a_line(error)}); rename {item.parent} to use the one before"
        raise InputError("checkpoint", item, remedy) from error


def read_tree(item: Path, target: Any) -> Any:
    """The arrays of an item, in the shapes, dtypes and shardings of ``target``."""
    with _opened(item) as folder:
        return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(target))


def read_leaves(item: Path, target: Any) -> Any:
    """As `read_tree`, a few arrays at a time: what is in the air besides them then never adds to the whole model.

    Args:
        item: of a checkpoint.
        target: a nested dictionary.

    Raises:
        InputError: an array is not there.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(target)
    restored: dict[Keys, jax.Array] = {}
    with _opened(item) as folder:
        handler = ocp.PyTreeCheckpointHandler()
        for group in _groups(leaves):
            part = traverse_util.unflatten_dict(group)
            arguments = ocp.checkpoint_utils.construct_restore_args(part)
            request = ocp.args.PyTreeRestore(part, restore_args=arguments, partial_restore=True)
            restored |= traverse_util.flatten_dict(handler.restore(folder, args=request))
    for path, _ in leaves:
        if not isinstance(restored[_keys(path)], jax.Array):  # what is not stored comes back as it was asked for
            remedy = "lacks a parameter of the model; use the version of mom-jax that wrote it"
            raise InputError("checkpoint", item.parent, f"{remedy}: {dotted(path)}")
    return jax.tree.unflatten(tree, [restored[_keys(path)] for path, _ in leaves])


def _groups(leaves: list[tuple[Any, Any]]) -> Iterator[dict[Keys, Any]]:
    """The leaves by their keys, large ones first, and as many together as are not larger than the largest."""
    leaves = sorted(leaves, key=lambda leaf: -leaf[1].size)
    group, room = {}, 0
    for path, leaf in leaves:
        if leaf.size > room:
            if group:
                yield group
            group, room = {}, leaves[0][1].size
        group[_keys(path)] = leaf
        room -= leaf.size
    yield group


def _keys(path: tuple[Any, ...]) -> Keys:
    return tuple(key.key for key in path)


def check_readable(item: Path) -> None:
    """Finds every array of an item and reads what describes it, not its values; raises `InputError` if it cannot."""
    with _opened(item) as folder:
        ocp.PyTreeCheckpointHandler().metadata(folder)
