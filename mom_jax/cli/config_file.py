"""Values of a run in a file: YAML, of which JSON is a part."""

import json
import re
from typing import Any

import yaml

from mom_jax.errors import InputError
from mom_jax.files import read_text
from mom_jax.paths import local_path
from mom_jax.training.config import TrainConfig, with_fields

_REMEDY = "give a YAML or JSON file of values, such as a run's config.json"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e-3 is one, which for PyYAML is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)"), list("-+.0123456789")
)


def read_config(place: str, base: TrainConfig) -> TrainConfig:
    """``base`` with the values of a file.

    Raises:
        InputError: no such file, not YAML, a field that does not exist, or a bad value.
    """
    path = local_path(place, "config")
    try:
        fields: Any = yaml.load(read_text(path, _REMEDY, "config"), _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise InputError("config", place, f"is not YAML{line}; {_REMEDY}") from error
    except RecursionError as error:
        raise InputError("config", place, f"is nested too deeply; {_REMEDY}") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise InputError("config", place, f"holds no names with values; {_REMEDY}")
    try:
        return with_fields(base, fields)
    except InputError as error:
        raise InputError(error.field, error.value, f"{error.remedy} (in {place})") from error


def as_yaml(config: TrainConfig) -> str:
    """All values of a run, as such a file."""
    return yaml.safe_dump(json.loads(json.dumps(config.to_dict())), sort_keys=False, allow_unicode=True)
