"""Chooses an implementation of a primitive by name."""

from collections.abc import Callable, Mapping

from mom_jax.errors import InputError


def select(impl: str, implementations: Mapping[str, Callable], auto: str) -> Callable:
    """The implementation called ``impl``; ``"auto"`` stands for ``auto``, which works everywhere.

    Raises:
        InputError: the name is unknown, with the names that exist.
    """
    name = auto if impl == "auto" else impl
    if name not in implementations:
        raise InputError("impl", impl, f"choose one of auto, {', '.join(implementations)}")
    return implementations[name]
