"""The tutorials as Jupyter notebooks: ``python -m tools.notebooks [FOLDER]``. The site has them beside their pages."""

import json
import re
import sys
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).resolve().parents[1] / "docs/tutorials"
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[([^]]*)\]\((?!https?:)[^)]*\)")  # leads nowhere outside of the site


def cells(page: str) -> list[dict[str, Any]]:
    """A page's cells: prose as it stands, but for links into the site; programs; commands line by line."""
    prose, *rest = _BLOCK.split(page)
    found = [_cell("markdown", prose)]
    for kind, code, then in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        found += [_cell("code", code if kind == "python" else _commands(code)), _cell("markdown", then)]
    return [cell | {"id": f"cell-{number}"} for number, cell in enumerate(found) if "".join(cell["source"])]


def _commands(block: str) -> str:
    """What a notebook runs in a shell; commands of ours by themselves, so that their lines come as they are printed."""
    lines = block.splitlines()
    return "\n".join(f"!{line}" for line in lines) if all(x.startswith("mom-jax ") for x in lines) else f"%%sh\n{block}"


def _cell(kind: str, text: str) -> dict[str, Any]:
    source = text if kind == "code" else _LINK.sub(r"\1", text).strip()
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True), **code}


def write(folder: Path) -> list[Path]:
    """Writes a notebook for each tutorial into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    written = []
    for page in sorted(TUTORIALS.glob("*.md")):
        notebook = {"cells": cells(page.read_text(encoding="utf-8")), "metadata": {"kernelspec": kernel}}
        written.append(folder / f"{page.stem}.ipynb")
        written[-1].write_text(json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5}, indent=1), encoding="utf-8")
    return written


if __name__ == "__main__":
    for notebook in write(Path(sys.argv[1] if len(sys.argv) > 1 else "build/notebooks")):
        print(notebook)
