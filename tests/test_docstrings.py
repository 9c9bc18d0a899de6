"""Every public function, class and method of the library has a docstring."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def is_public(node: Definition) -> bool:
    """Public names, and ``__call__``, which is how a layer is used; setters share their property's docstring."""
    decorators = {ast.unparse(d).rsplit(".", 1)[-1] for d in node.decorator_list}
    return (node.name == "__call__" or not node.name.startswith("_")) and not decorators & {"setter", "overload"}


def undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Names of public definitions without a docstring; classes are entered, functions are not."""
    for node in body:
        if not isinstance(node, Definition) or not is_public(node):
            continue
        if not (ast.get_docstring(node) or "").strip():
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{prefix}{node.name}.")


def test_public_names_have_docstrings():
    """Names the file and the definition of each one that lacks it."""
    files = [path for top in ("mom_jax", "pallas_kernels") for path in sorted((ROOT / top).rglob("*.py"))]
    assert len(files) > 5
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        if not any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(ROOT).parts)
        for name in undocumented(ast.parse(path.read_text(encoding="utf-8")).body)
    ]
    assert missing == []


def test_the_checker_sees():
    """It finds what lacks a docstring and nothing else."""
    source = """
def open(): pass
def _hidden(): pass
class Layer:
    def __init__(self): pass
    def __call__(self): pass
    def told(self): "Told."
class _Inner:
    def free(self): pass
"""
    assert list(undocumented(ast.parse(source).body)) == ["open", "Layer", "Layer.__call__"]
