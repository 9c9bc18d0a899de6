"""Puts the experiments inside the package when a wheel is built; an editable install finds them in the source tree."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # pyright: ignore[reportMissingImports]


class ExperimentsHook(BuildHookInterface):
    """Called by hatchling, as pyproject.toml says."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the folder to a wheel (``version`` is ``standard`` or ``editable``)."""
        if version == "standard":
            build_data["force_include"]["experiments"] = "mom_jax/experiments"
