"""What several verbs say; imports JAX."""

import logging

from rich.console import Console

from mom_jax import terminal
from mom_jax.training.processes import is_first


def console() -> Console:
    """Where verbs print that write results, the first of several processes alone."""
    logging.getLogger("absl").setLevel(logging.WARNING)  # of Orbax
    return terminal.console(quiet=not is_first(), outlives_reader=True)
