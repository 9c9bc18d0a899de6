"""The command ``mom-jax``: finds the verb, and turns every mistake into one line and an exit status."""

import difflib
import errno
import importlib
import sys
from collections.abc import Sequence

from mom_jax import __version__
from mom_jax.errors import InputError

# verb: (module with main(args), what it does). A module is loaded only when its verb is called; that is also how
# experiments and benchmarks, a floor above, come to have verbs.
VERBS = {
    "train": ("mom_jax.cli.train", "train a model, or resume a run"),
    "eval": ("mom_jax.cli.evaluate", "held-out loss, perplexity and bits per byte of a run; or benchmark tasks"),
    "generate": ("mom_jax.cli.generate", "continue a prompt with the model of a run"),
    "convert": ("mom_jax.cli.convert", "published PyTorch models to runs, and back"),
    "data": ("mom_jax.cli.data", "prepare token shards (mom-jax data prepare)"),
    "compare": ("mom_jax.cli.compare", "our numbers beside the PyTorch reference's, from one checkpoint"),
    "plan": ("mom_jax.cli.plan", "parameters, state and FLOPs of a model, beside its baselines"),
    "experiment": ("experiments.command", "run an experiment of the paper, or list all with their status"),
    "bench": ("benchmarks.command", "speed and memory on this machine"),
    "report": ("experiments.report.command", "one HTML page of finished runs and sweeps, beside the paper's numbers"),
    "demo": ("mom_jax.cli.demo", "train mom-tiny for about three minutes, evaluate it and write a report"),
}


def usage() -> str:
    """The text of ``mom-jax --help``."""
    verbs = "\n".join(f"  {verb:<12}{text}" for verb, (_, text) in VERBS.items())
    return f"""usage: mom-jax VERB ...

Train, evaluate and sample Mixture-of-Memories language models in JAX.

verbs:
{verbs}

mom-jax VERB --help explains a verb; mom-jax --version tells the version.

example: mom-jax train mom-tiny --steps 200 --run-dir runs/first
"""


def dispatch(args: Sequence[str]) -> int:
    """Runs a verb and returns its exit status; mistakes leave it as exceptions."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if args[0] == "--version":
        print(f"mom-jax {__version__}")
        return 0
    verb = args[0]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS) or list(VERBS)
        raise InputError("verb", verb, f"unknown; did you mean {' or '.join(close)}?")
    return importlib.import_module(VERBS[verb][0]).main(list(args[1:]))


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the command.

    Returns:
        0, or 2 after a user's mistake, 1 after a failure of the machine (a full disk, say), 130 after Ctrl-C;
        each but the last with one line on stderr.
    """
    try:
        return dispatch(sys.argv[1:] if args is None else args)
    except InputError as error:
        return _complain(str(error), 2)
    except BrokenPipeError:
        # The reader of our output (head, less) has left: nothing more to say, and nothing to flush at exit.
        sys.stdout = None  # type: ignore[assignment]
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENOSPC:
            return _complain(f"{where}the disk is full; free some space and run the same command again", 1)
        return _complain(f"{where}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(message: str, status: int) -> int:
    print("mom-jax: " + " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
