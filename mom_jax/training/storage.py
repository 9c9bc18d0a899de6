"""Orbax, which writes and reads arrays: called by names that it can take, its failures told in one line."""

import errno
import functools
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

from mom_jax.errors import InputError
from mom_jax.models.structure import dotted

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
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        remedy = f"cannot be read ({why}); rename {item.parent} to use the one before"
        raise InputError("checkpoint", item, remedy) from error


def read_tree(item: Path, target: Any) -> Any:
    """The arrays of an item, in the shapes, dtypes and shardings of ``target``."""
    with _opened(item) as folder:
        return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(target))


def read_leaves(item: Path, target: Any) -> Any:
    """As `read_tree`, array by array: what is in the air besides them then never adds to the whole model.

    Raises:
        InputError: an array is not there.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(target)
    restored: dict[int, jax.Array] = {}
    with _opened(item) as folder:
        handler = ocp.PyTreeCheckpointHandler()
        for i, (path, leaf) in sorted(enumerate(leaves), key=lambda entry: -entry[1][1].size):  # large ones first
            part = functools.reduce(lambda inner, key: {key.key: inner}, reversed(path), leaf)
            arguments = ocp.checkpoint_utils.construct_restore_args(part)
            request = ocp.args.PyTreeRestore(part, restore_args=arguments, partial_restore=True)
            (restored[i],) = jax.tree.leaves(handler.restore(folder, args=request))
            if not isinstance(restored[i], jax.Array):  # what is not stored comes back as it was asked for
                remedy = "lacks a parameter of the model; use the version of mom-jax that wrote it"
                raise InputError("checkpoint", item.parent, f"{remedy}: {dotted(path)}")
    return jax.tree.unflatten(tree, [restored[i] for i in range(len(leaves))])


def check_readable(item: Path) -> None:
    """Finds every array of an item and reads what describes it, not its values; raises `InputError` if it cannot."""
    with _opened(item) as folder:
        ocp.PyTreeCheckpointHandler().metadata(folder)
