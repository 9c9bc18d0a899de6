"""From the name of a memory rule to its class."""

import functools
import inspect

from mom_jax.errors import InputError
from mom_jax.importing import imported
from mom_jax.layers.rules import RULES
from mom_jax.layers.rules.published import Published, Unreadable
from mom_jax.layers.rules.rule import MemoryRule


def find_rule(name: str) -> type[MemoryRule]:
    """The class of a rule: one of ``RULES``, or any ``package.module:Class``.

    Modules are sought on Python's path, then in the current folder.

    Raises:
        InputError: no such name, module or class, or a class that lacks what a rule must declare.
    """
    place = RULES.get(name, name)
    module, _, attribute = place.partition(":")
    if not attribute:
        raise InputError("memory_rule", name, f"choose one of {', '.join(RULES)}, or package.module:Class of your own")
    rule = imported(place, "memory_rule")[1]
    if not (inspect.isclass(rule) and issubclass(rule, MemoryRule)):
        raise InputError("memory_rule", name, f"{module} has no class {attribute} derived from {MemoryRule.__name__}")
    missing = [part for part in ("primitive", "rows") if getattr(rule, part, None) is getattr(MemoryRule, part, None)]
    if missing:
        remedy = f"the class does not define {' and '.join(missing)}; see docs/your-own-rule.md"
        raise InputError("memory_rule", name, remedy)
    return rule


@functools.cache
def published_rules() -> dict[str, Published | Unreadable]:
    """The published forms of the rules that declare one, by the rules' names."""
    forms = {name: find_rule(name).published for name in RULES}
    return {name: form for name, form in forms.items() if form is not None}
