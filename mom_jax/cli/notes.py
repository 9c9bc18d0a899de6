"""What a verb says besides its results."""

import sys

from mom_jax.terminal import printable


def note(message: str) -> None:
    """Says something in one line on stderr."""
    print(f"mom-jax: {printable(message)}", file=sys.stderr)
