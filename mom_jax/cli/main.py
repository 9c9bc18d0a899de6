"""The command ``mom-jax``: finds the verb, and turns every mistake into one line and an exit status."""

import difflib
import importlib
import logging
import sys
from collections.abc import Sequence

from mom_jax import __version__, importing
from mom_jax.cli import huge_pages
from mom_jax.cli.failures import complain
from mom_jax.compilation_cache import OFF, keep_programs
from mom_jax.errors import InputError
from mom_jax.terminal import prepare_streams

# verb: (module with main(args), what it does). A module is loaded only when its verb is called; that is also how
# experiments and benchmarks, a floor above, come to have verbs.
VERBS = {
    "train": ("mom_jax.cli.train", "train a model, or resume a run"),
    "eval": ("mom_jax.cli.evaluate", "score a run on held-out text or on benchmark tasks"),
    "generate": ("mom_jax.cli.generate", "continue a prompt with the model of a run"),
    "inspect": ("mom_jax.cli.inspect", "show which memories the tokens of a text go to, and more, as an HTML page"),
    "convert": ("mom_jax.cli.convert", "convert published PyTorch models to runs, and back"),
    "push": ("mom_jax.cli.push", "publish a run's model, with a card, on the Hugging Face hub"),
    "pull": ("mom_jax.cli.pull", "fetch a model from the Hugging Face hub"),
    "data": ("mom_jax.cli.data", "prepare token shards (mom-jax data prepare)"),
    "compare": ("mom_jax.cli.compare", "compare a checkpoint's numbers with the PyTorch reference"),
    "plan": ("mom_jax.cli.plan", "count parameters, state and FLOPs of a model and baselines"),
    "experiment": ("mom_jax.experiments.command", "run an experiment of the paper, or list all with their status"),
    "bench": ("mom_jax.benchmarks.command", "measure speed and memory on this machine"),
    "report": ("mom_jax.experiments.report.command", "write an HTML page of runs and sweeps, beside the paper"),
    "completion": ("mom_jax.cli.shell", "print a script that completes verbs and options in a shell"),
    "demo": ("mom_jax.cli.demo", "train mom-tiny for at most two and a half minutes, evaluate it, write a report"),
}


def usage() -> str:
    """The text of ``mom-jax --help``."""
    verbs = "\n".join(f"  {verb:<12}{text}" for verb, (_, text) in VERBS.items())
    return f"""usage: mom-jax VERB ...

Train, evaluate and sample Mixture-of-Memories language models in JAX.

example: mom-jax train mom-tiny --steps 200 --run-dir runs/first

verbs:
{verbs}

mom-jax help VERB explains a verb; mom-jax --version tells the version.
Compiled programs are kept in the user's cache folder, at most 2 GiB; {OFF} turns that off for any verb.
"""


def dispatch(args: Sequence[str]) -> int:
    """Runs a verb and returns its exit status; mistakes leave it as exceptions."""
    verb, *rest = keep_programs(args) or ["--help"]
    if verb == "help" and rest:
        verb, *rest = *rest, "--help"
    if verb in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if verb in ("--version", "-V"):
        print(f"mom-jax {__version__}")
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS) or list(VERBS)
        raise InputError("verb", verb or "''", f"unknown; did you mean {' or '.join(close)}?")
    if importing.in_command and verb in huge_pages.VERBS:
        huge_pages.use_huge_pages()
    with importing.loading():
        module = importlib.import_module(VERBS[verb][0])
    return module.main(rest)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the command.

    Returns:
        The exit status: 0, or one of `mom_jax.cli.failures` with one line on stderr.
    """
    prepare_streams()
    logging.basicConfig(format="mom-jax: %(message)s")  # of warnings, on stderr
    importing.in_command = args is None
    try:
        status = _run(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 (nobody after us can say it in a line)
        return complain(error)
    return status


def _run(args: Sequence[str]) -> int:
    try:
        return dispatch(args)
    except SystemExit as end:  # the help text was printed
        return end.code if isinstance(end.code, int) else int(end.code is not None)


if __name__ == "__main__":
    sys.exit(main())
