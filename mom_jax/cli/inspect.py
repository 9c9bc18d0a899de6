"""``mom-jax inspect RUN``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from mom_jax.cli.parsing import OfRun, Place, parse
from mom_jax.errors import InputError, need
from mom_jax.fields import Name, Range, check_fields
from mom_jax.files import read_text, write_atomically
from mom_jax.importing import loading
from mom_jax.paths import local_path, output_folder
from mom_jax.training.run_places import at_hand

DESCRIPTION = """Shows what a checkpoint of a run does with a text, as one HTML page: the text coloured by memory,
layer by layer; the load of each memory; how long memories keep what was written; whose keys are nearest to a query.
With --against the routing of another text is set beside it. A published model's folder serves as a run.

Example: mom-jax inspect runs/mine --text 'def main(argv):'

Example: mom-jax inspect runs/mine --file story.txt --against notes.txt --out story.html"""


@dataclasses.dataclass(frozen=True)
class InspectConfig(OfRun):
    """What to look at."""

    text: Name | None = None
    """The text."""
    file: Place | None = None
    """File of the text (UTF-8), instead of --text."""
    against: Place | None = None
    """File of a text whose routing is set beside it."""
    max_tokens: Annotated[int, Range(least=2, most=2**16)] = 512
    """Tokens of each text that are read."""
    out: Place | None = None
    """The page (.html); default: inspect.html in the run's folder."""

    def __post_init__(self):
        check_fields(self)
        if (self.text is None) == (self.file is None):
            raise InputError("text", self.text or "''", "give either --text TEXT or --file FILE")


def main(args: Sequence[str]) -> int:
    """Parses the arguments, looks into the model, prints a table and writes the page."""
    arguments = parse(InspectConfig, args, prog="mom-jax inspect", description=DESCRIPTION)
    need("jinja2", "report", "run", arguments.run)
    texts = [_read(arguments.file, "file") if arguments.text is None else arguments.text]
    texts += [] if arguments.against is None else [_read(arguments.against, "against")]
    with at_hand(arguments.run, arguments.step) as run:
        return _inspect(dataclasses.replace(arguments, run=run), texts)


def _inspect(arguments: InspectConfig, texts: list[str]) -> int:
    out = _page(arguments)
    # JAX loads only now, after the arguments have proved sound.
    with loading():
        from mom_jax.cli.runs import console
        from mom_jax.cli.tables import print_results
        from mom_jax.data.tokenizers import check_rows, load_tokenizer
        from mom_jax.inspection import inspect
        from mom_jax.reports.inspection import inspection_page, inspection_table, token_texts
        from mom_jax.runs import one_device, opened_run
        from mom_jax.training.checkpoint import Choice

    terminal = console()
    with opened_run(arguments.run, one_device(), Choice(arguments.step, arguments.ema)) as (config, model, step):
        tokenizer = load_tokenizer(config.data.tokenizer)
        remedy = "put back the tokenizer it was trained with"
        check_rows(config.data.tokenizer, tokenizer.vocab_size, config.model.vocab_size, remedy)
        fields = ("text" if arguments.file is None else "file", "against")
        ids = [_tokens(tokenizer, text, name, arguments.max_tokens) for text, name in zip(texts, fields, strict=False)]
        found, *others = [inspect(model, some) for some in ids]
    against = others[0] if others else None
    facts = [("model", f"{arguments.run}, step {step}"), ("tokens", f"{len(ids[0]):,}")]
    facts += [("beside", f"{arguments.against}, {len(ids[1]):,} tokens")] if against else []
    title = f"{Path(arguments.run).name}: where tokens go"
    page = inspection_page(found, token_texts(tokenizer, ids[0]), title, against, facts)
    write_atomically(out, page.encode(errors="backslashreplace"))
    print_results(inspection_table(found, against), terminal)
    terminal.print(f"page: {out}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _read(place: str | None, field: str) -> str:
    return read_text(local_path(place or "", field), "give a file of UTF-8 text", field)


def _page(arguments: InspectConfig) -> Path:
    """Where the page goes, tried before the work begins."""
    if arguments.out is None:
        folder = local_path(arguments.run, "run")
        if not folder.is_dir():
            raise InputError("run", arguments.run, "no such folder")
        return output_folder(folder) / "inspect.html"
    path = local_path(arguments.out, "out")
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError("out", arguments.out, "must be the name of a page, such as inspect.html")
    return output_folder(path.parent) / path.name


def _tokens(tokenizer: Any, text: str, field: str, most: int) -> Any:
    ids = tokenizer.encode(text)[:most]
    if len(ids) < 2:
        raise InputError(field, repr(text[:40]), "has fewer than two tokens")
    return ids
