"""A text file in two: what is trained on, and its end, which is held out."""

import dataclasses
from pathlib import Path

from mom_jax.data.opening import UNREADABLE, open_unpacked


@dataclasses.dataclass(frozen=True)
class Passage:
    """One side of a text file that is cut before its last ``share``, behind the end of a line if there is one."""

    share: float
    held_out: bool

    def of(self, blob: bytes) -> bytes:
        """This side of the file's bytes; all is trained on where there is no place to cut."""
        at = _cut(blob, self.share)
        return blob[at:] if self.held_out else blob[:at]


def can_cut(path: Path, share: float) -> bool:
    """Whether a text file has an end that can be held out. A file that cannot be read has one: reading it will tell."""
    try:
        with open_unpacked(path) as stream:
            return bool(Passage(share, held_out=True).of(stream.read()))
    except UNREADABLE:
        return True


def _cut(blob: bytes, share: float) -> int:
    wanted = max(int((1 - share) * len(blob)), 1)
    for sign in (b"\n", b" "):
        at = blob.find(sign, wanted - 1) + 1
        if at and blob[at:].strip() and blob[:at].strip():
            return at
    return len(blob)
