"""A text file in two: what is trained on, and its end, which is held out."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Passage:
    """One side of a text file that is cut before its last ``share``: behind a line, else a word, else a letter."""

    share: float
    held_out: bool

    def of(self, blob: bytes) -> bytes:
        """This side of the file's bytes; of a single letter all is trained on."""
        at = _cut(blob, self.share)
        return blob[at:] if self.held_out else blob[:at]


def _cut(blob: bytes, share: float) -> int:
    target = max(min(int((1 - share) * len(blob)), len(blob.rstrip()) - 1), 1)
    between_letters = next((at for at in range(target, 0, -1) if blob[at : at + 1] and blob[at] & 0xC0 != 0x80), 0)
    places = [*(blob.find(sign, target - 1) + 1 for sign in (b"\n", b" ")), between_letters]
    return next((at for at in places if at and blob[at:].strip() and blob[:at].strip()), len(blob))
