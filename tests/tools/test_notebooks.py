"""The tutorials as notebooks."""

import ast
import json

from tools import notebooks


def test_every_block_is_a_cell(tmp_path):
    """In order, with prose between them that names no page of the site; Python can be parsed."""
    written = notebooks.write(tmp_path)
    assert {path.stem for path in written} == {page.stem for page in notebooks.TUTORIALS.glob("*.md")}
    for path in written:
        page = (notebooks.TUTORIALS / f"{path.stem}.md").read_text(encoding="utf-8")
        found = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]
        prose = "".join("".join(cell["source"]) for cell in found if cell["cell_type"] == "markdown")
        assert len(code) == page.count("\n```python\n") + page.count("\n```sh\n")
        assert "```" not in prose and ".md)" not in prose and prose.startswith("# ")
        for text in code:
            text.startswith(("!mom-jax ", "%%sh\n")) or ast.parse(text)


def test_commands_come_line_by_line_where_they_are_all_ours():
    page = "# A\n\n```sh\nmom-jax help\nmom-jax plan\n```\nand\n\n```sh\nexport A=1\nmom-jax help\n```\n[b](c.md)"
    sources = ["".join(cell["source"]) for cell in notebooks.cells(page)]
    assert sources == ["# A", "!mom-jax help\n!mom-jax plan", "and", "%%sh\nexport A=1\nmom-jax help", "b"]
