"""HTML pages that load nothing from elsewhere: templates, in one style for light and dark."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mom_jax.reports.tables import Table


def render(template: Path, **values: Any) -> str:
    """A page from a template, which may ``{% include "style.css" %}`` and is given values, escaped."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda part: isinstance(part, Table)
    return environment.get_template(template.name).render(**values)
