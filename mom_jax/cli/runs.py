"""What several verbs say; imports JAX."""

import logging

from rich.console import Console

from mom_jax import terminal
from mom_jax.training.processes import is_first


def console() -> Console:
    """Where verbs print, the first of several processes alone.

    The checkpoint library's own log is kept out of it, for its errors reach us as exceptions.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return terminal.console(quiet=not is_first())
