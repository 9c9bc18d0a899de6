"""Values of a run in a file: YAML, of which JSON is a part."""

import json
import re
from typing import Any, ClassVar

import yaml

from mom_jax.errors import InputError
from mom_jax.files import read_text
from mom_jax.paths import local_path
from mom_jax.training.config import TrainConfig, with_fields

_REMEDY = "give a YAML or JSON file of values, such as a run's config.json"


# Words and numbers of YAML 1.2, as in JSON. For PyYAML, which knows 1.1, 1e-3 is text, 010 is 8, 1:30 is 90, `no` is
# false, and a day is no text.
_MEANINGS = {
    "merge": "<<",
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]{1,400}",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuses a name that stands twice, of which PyYAML takes the last."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            if name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name.value!r} occurs twice", name.start_mark)
            seen.add(name.value)
        return node


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: ClassVar[dict] = {}


for _kind, _pattern in _MEANINGS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"({_pattern})\Z"), None)


def _whole_number(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_config(place: str, base: TrainConfig) -> TrainConfig:
    """``base`` with the values of a file.

    Raises:
        InputError: no such file, not YAML, a field that does not exist, or a bad value.
    """
    text = read_text(local_path(place, "config"), _REMEDY, "config")
    try:
        fields: Any = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError("config", place, f"is not YAML (line {line}: {error.problem}); {_REMEDY}") from error
    except (yaml.YAMLError, ValueError) as error:  # no characters of YAML, or a value that is not of its tag
        raise InputError("config", place, f"is not YAML ({error}); {_REMEDY}") from error
    except RecursionError as error:
        raise InputError("config", place, f"is nested too deeply; {_REMEDY}") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise InputError("config", place, f"holds no names with values; {_REMEDY}")
    _check_nesting(place, fields)
    try:
        return with_fields(base, fields)
    except InputError as error:
        raise InputError(error.field, error.value, f"{error.remedy} (in {place})") from error


def _check_nesting(place: str, fields: dict[str, Any]) -> None:
    """Raises `InputError` for names as on a command line, such as ``optimizer.learning-rate``."""
    for name, value in fields.items():
        if "." in name:
            nested = name.replace("-", "_").replace(".", ": {") + f": {json.dumps(value)}" + "}" * name.count(".")
            raise InputError("config", name, f"is the form of an option; in a file write {nested} (in {place})")


def as_yaml(config: TrainConfig) -> str:
    """All values of a run, as such a file."""
    values = json.loads(json.dumps(config.to_dict()))  # of JSON's types alone
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
