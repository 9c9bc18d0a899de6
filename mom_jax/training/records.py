"""Records of a run, a line of JSON each: read with care, for a crash or a full disk may have cut or spoilt some."""

import logging
from pathlib import Path
from typing import TypeVar

from mom_jax.files import read_json_lines

T = TypeVar("T")
_log = logging.getLogger(__name__)


def read_records(path: Path, form: type[T]) -> tuple[list[T], int]:
    """The records in order, and how many lines hold none of this form; these are logged as a warning and left out.

    A last line that was cut short counts as never written, a missing file as an empty one.
    """
    if not path.is_file():
        return [], 0
    records, complaints = read_json_lines(path, form)
    if complaints:
        more = f" and {len(complaints) - 1} more" if len(complaints) > 1 else ""
        _log.warning("%s%s: left out", complaints[0], more)
    return records, len(complaints)
