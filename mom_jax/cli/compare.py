"""``mom-jax compare --reference DIR``."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from mom_jax.cli.parsing import Place, parse
from mom_jax.errors import InputError, need
from mom_jax.evals.reference.install import RELEASE, choose_kernels, installed_versions
from mom_jax.fields import Count, Name, Range, Seed, check_fields
from mom_jax.files import finite, write_atomically, write_json
from mom_jax.paths import local_path, output_folder

DESCRIPTION = """Runs a checkpoint in the PyTorch reference (flash-linear-attention) and here, on the same tokens, and
prints by how much they differ: hidden states, router logits and memory choices by layer, logits, losses, the gradient
of every parameter, decoding, a greedy continuation. Ends with status 1 if something exceeds its tolerance. Needs
the extra parity (pip install -e '.[parity]' in the source folder); docs/parity.md explains the tables.

Example: mom-jax compare --reference checkpoints/mom-340m --tokens 2x128 --out runs/parity"""


# On a GPU the reference's kernels multiply in TF32, with 10 bits where float32 has 23.
LOOSE = {"triton": 1e3, "interpreter": 1.0, "naive": 1.0}


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """What to compare, and on which tokens."""

    reference: Place
    """Folder with config.json and safetensors, as the PyTorch library writes it."""
    tokens: str = "2x80"
    """Rows x tokens per row."""
    text: Place | None = None
    """Take the tokens from this text file instead of at random."""
    tokenizer: Name | None = None
    """Tokenizer of the text (as --data.tokenizer of train); default: the one in the folder."""
    seed: Seed = 0
    """Seed of the tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """float32 compares the two; bfloat16 compares the error that each makes against float32."""
    draws: Count = 5
    """Batches of tokens over which bfloat16 errors are averaged."""
    new_tokens: Annotated[int, Range(least=0, most=2**24)] = 64
    """Length of the greedy continuation; 0 leaves it out."""
    tolerance: Annotated[float, Range(above=0)] | None = None
    """Largest difference allowed, relative to a quantity's largest value; default: see docs/parity.md."""
    kernels: Literal["auto", "triton", "interpreter", "naive"] = "auto"
    """The reference's operators: Triton kernels on a GPU; on a CPU naive PyTorch, or those kernels interpreted."""
    out: Place | None = None
    """Folder for compare.json and compare.png."""

    def __post_init__(self):
        check_fields(self)
        for field, dtype in (("draws", "bfloat16"), ("new_tokens", "float32"), ("tolerance", "float32")):
            if self.dtype != dtype and getattr(self, field) != getattr(type(self), field):
                raise InputError(field, getattr(self, field), f"goes only with --dtype {dtype}")
        match = re.fullmatch(r"([0-9]{1,7})x([0-9]{1,7})", self.tokens)
        if not match or int(match[1]) < 1 or int(match[2]) < 4:
            raise InputError("tokens", self.tokens, "must be ROWSxTOKENS with at least 4 tokens, for example 2x80")
        if self.dtype == "bfloat16" and self.kernels == "interpreter":
            raise InputError("kernels", self.kernels, "is wrong in bfloat16 (Triton's interpreter); use naive")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, tokens)."""
        rows, _, length = self.tokens.partition("x")
        return int(rows), int(length)


def main(args: Sequence[str]) -> int:
    """Parses the arguments, runs both sides, prints and writes the result."""
    arguments = parse(CompareConfig, args, prog="mom-jax compare", description=DESCRIPTION)
    versions = installed_versions()
    need("matplotlib", "report", "reference", arguments.reference)
    # PyTorch and JAX load only now, after the arguments have proved sound.
    import jax

    from mom_jax.cli.runs import console
    from mom_jax.drawing import picture
    from mom_jax.interop.published import read_config
    from mom_jax.terminal import print_table

    out = console()
    config, layout = read_config(local_path(arguments.reference, "reference"))
    if layout != "mom":
        remedy = "the reference reads only mom; load_pretrained and save_pretrained make one of this folder"
        raise InputError("model_type", layout, remedy)
    draw = _tokens(arguments, config)
    draw(0)  # a bad text or place shows before the models load
    folder = None if arguments.out is None else output_folder(arguments.out)
    with jax.default_matmul_precision("highest"):
        result, tables, figure, about = _run(arguments, config, draw)
    out.print(_header(arguments, versions, about))
    for table in tables:
        out.print(table) if isinstance(table, str) else print_table(table, out)
    if folder is not None:
        write_json(folder / "compare.json", finite({"settings": about | versions, **result.to_dict()}), indent=2)
        write_atomically(folder / "compare.png", picture(figure))
        out.print(f"written: {folder}/compare.json and compare.png")
    out.print("everything is within its tolerance" if result.ok else "something exceeds its tolerance")
    return 0 if result.ok else 1


def _tokens(arguments: CompareConfig, config: Any) -> Callable[[int], Any]:
    from mom_jax.evals.compare.tokens import random_tokens, text_tokens

    def draw(number: int):
        if arguments.text is None:
            return random_tokens(config, *arguments.shape, arguments.seed + number)
        tokenizer = arguments.tokenizer or arguments.reference
        return text_tokens(arguments.text, tokenizer, config, *arguments.shape, arguments.seed + number)

    return draw


def _run(arguments: CompareConfig, config: Any, draw: Callable[[int], Any]) -> tuple[Any, list[Any], Callable, dict]:
    """The result, what to print, how to draw it, and how it came about."""
    from mom_jax.evals.compare.budget import error_budget
    from mom_jax.evals.compare.comparison import compare, tolerances
    from mom_jax.evals.compare.ours import Ours
    from mom_jax.evals.compare.picture import budget_figure, comparison_figure
    from mom_jax.evals.compare.tables import budget_table, comparison_tables
    from mom_jax.evals.reference.model import Reference, gpu_available, running
    from mom_jax.interop.pretrained import load_pretrained

    kernels = choose_kernels(arguments.kernels, gpu_available())
    about = {**dataclasses.asdict(arguments), "kernels": kernels}
    folder = local_path(arguments.reference, "reference")
    model = load_pretrained(folder)
    with running(kernels, config.num_memories):
        if arguments.dtype == "bfloat16":
            exact = Reference(folder, rounded=True)
            sides = Ours(model, "bfloat16", rounded=True), Reference(folder, "bfloat16")
            budget = error_budget(*sides, exact, map(draw, range(arguments.draws)))
            return budget, [budget_table(budget)], lambda: budget_figure(budget), about
        limits = tolerances(LOOSE[kernels], arguments.tolerance)
        result = compare(Ours(model), Reference(folder), draw(0), arguments.new_tokens, limits)
        return result, list(comparison_tables(result)), lambda: comparison_figure(result), about


def _header(arguments: CompareConfig, versions: dict[str, str], about: dict[str, Any]) -> str:
    how = {
        "triton": "its Triton kernels on the GPU",
        "interpreter": "its Triton kernels, interpreted on the CPU",
        "naive": "naive PyTorch operators in place of its Triton kernels",
    }
    release = versions["flash-linear-attention"]
    written_for = "" if release == RELEASE else f" (this comparison is written for {RELEASE})"
    source = "at random" if arguments.text is None else f"from {arguments.text}"
    return "\n".join(
        [
            "reference: " + ", ".join(f"{package} {version}" for package, version in versions.items()) + written_for,
            f"runs with {how[about['kernels']]}; its sort is made stable",
            f"{arguments.reference}: {arguments.tokens} tokens {source}, seed {arguments.seed}, {arguments.dtype}",
        ]
    )
