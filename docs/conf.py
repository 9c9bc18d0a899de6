"""The site of these guides: ``make docs`` builds it into ``build/site``, with the API reference from the docstrings."""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mom_jax  # noqa: E402
from tools import notebooks  # noqa: E402

project, author, release = "mom-jax", "The mom-jax authors", mom_jax.__version__
copyright = "The mom-jax authors, Apache License 2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.apidoc", "sphinx_copybutton"]
exclude_patterns = ["results/models", "api/*/modules.rst"]

html_theme = "sphinx_book_theme"
html_title = "mom-jax"
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": False,
    "navbar_persistent": [],  # one field for searching is enough
}
html_static_path, html_css_files = ["site.css"], ["site.css"]
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp"

myst_heading_anchors = 4  # as GitHub gives them

apidoc_modules = [
    {
        "path": f"../{package}",
        "destination": f"api/{package}",
        "separate_modules": True,
        "module_first": True,
        # They run PyTorch and the evaluation harness.
        "exclude_patterns": ["../mom_jax/evals/reference", "../mom_jax/evals/harness"],
    }
    for package in ("mom_jax", "pallas_kernels")
]
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
# What a machine that builds the site need not have.
autodoc_mock_imports = ["torch", "fla", "transformers", "triton", "jax_triton", "umap", "lm_eval", "datasets"]
napoleon_google_docstring, napoleon_numpy_docstring, napoleon_use_ivar = True, False, True
default_role = "py:obj"  # names in docstrings become links where there is something to link to
python_maximum_signature_line_length = 100
suppress_warnings = ["ref.python"]  # a name in backticks that several modules have leads to one of them
add_module_names = False
maximum_signature_line_length = 100


def skipped(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out fields of named tuples, which their class's signature shows with shapes."""
    return True if type(value).__name__ == "_tuplegetter" else None


def plain(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are prose with names in backticks: a star or a bar outside of them is itself, not markup."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        lines[number] = "".join(part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts)


def write_notebooks(app: Any) -> None:
    """Each tutorial as a notebook, for `offer_notebook` to link to."""
    notebooks.write(Path(app.srcdir, "api/notebooks"))


def offer_notebook(app: Any, name: str, source: list[str]) -> None:
    """A link to itself as a notebook below the title of a tutorial."""
    folder, _, page = name.rpartition("/")
    if folder == "tutorials":
        title, rest = source[0].split("\n", 1)
        source[0] = f"{title}\n\n{{download}}`This page as a notebook </api/notebooks/{page}.ipynb>`\n{rest}"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_notebooks)
    app.connect("source-read", offer_notebook)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skipped)
