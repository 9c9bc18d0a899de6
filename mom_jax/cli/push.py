"""``mom-jax push RUN OWNER/NAME``."""

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mom_jax.cli.parsing import OfRun, Place, parse
from mom_jax.errors import InputError, named_as
from mom_jax.fields import Name, check_fields
from mom_jax.importing import loading
from mom_jax.paths import local_path
from mom_jax.training.run_places import at_hand

DESCRIPTION = """Publishes a checkpoint of a run (or a published model's folder) on the Hugging Face hub: weights
as the PyTorch library loads them, the tokenizer, and a card with configuration, text, tokens, curves and scores. Log in
first (hf auth login, or HF_TOKEN). With --out the folder is only written, for a look before.

Example: mom-jax push runs/mine me/mom-tiny-python --license apache-2.0

Example: mom-jax push runs/mine me/mom-tiny-python --out published/mine"""

REPO = re.compile(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w-]*(\.[\w-]+)*")


def check_repo(repo: str) -> None:
    """Raises `InputError` for what is not OWNER/NAME."""
    if not REPO.fullmatch(repo) or "--" in repo or any(len(part) > 96 for part in repo.split("/")):
        raise InputError("repository", repo, "must be OWNER/NAME, of letters, digits, -, _ and single dots")


@dataclasses.dataclass(frozen=True)
class PushConfig(OfRun):
    """What to publish, and where."""

    repository: Annotated[Name, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """The repository on the hub; it is made if there is none."""
    license: Name = "apache-2.0"
    """Licence of the weights, as the hub spells it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which parameters are stored."""
    private: bool = False
    """Only you can see a repository that is made."""
    out: Place | None = None
    """Write the folder here instead of uploading it; it must not exist, or be empty."""

    def __post_init__(self):
        check_fields(self)
        check_repo(self.repository)


def main(args: Sequence[str]) -> int:
    """Parses the arguments, makes the folder, uploads it."""
    arguments = parse(PushConfig, args, prog="mom-jax push", description=DESCRIPTION)
    with at_hand(arguments.run, arguments.step) as run:
        return _push(local_path(run, "run"), arguments)


def _push(run: Path, arguments: PushConfig) -> int:
    if not run.is_dir():
        raise InputError("run", arguments.run, "no such folder")
    # JAX loads only now, after the arguments have proved sound.
    with loading():
        from mom_jax.cli.runs import console
        from mom_jax.interop.hub import prepare_upload, upload

    out = console()
    if arguments.out is not None:
        make_folder(run, local_path(arguments.out, "out"), arguments)
        out.print(f"written: {arguments.out}; nothing was uploaded", highlight=False, soft_wrap=True, markup=False)
        return 0
    prepare_upload(arguments.repository, arguments.private)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        make_folder(run, folder, arguments)
        address = upload(folder, arguments.repository, "Publish with mom-jax")
    out.print(f"published: {address}", highlight=False, soft_wrap=True, markup=False)
    return 0


def make_folder(run: Path, folder: Path, arguments: PushConfig) -> None:
    """Writes what is published into ``folder``, which then exists whole or not at all.

    Raises:
        InputError: no run there, or the folder is not empty.
    """
    from mom_jax.interop.folders import check_empty, in_place_of
    from mom_jax.interop.pretrained import MAX_SHARD_BYTES
    from mom_jax.interop.published import is_published, read_config
    from mom_jax.reports.card import write_card
    from mom_jax.runs import one_device
    from mom_jax.training.checkpoint import Choice
    from mom_jax.training.config import CONFIG_FILE, TrainConfig
    from mom_jax.training.conversion import run_to_published

    check_empty(folder.absolute(), "out")
    with in_place_of(folder.absolute()) as temporary, named_as("run", "directory", "run_dir"):
        if is_published(run):
            _check_options(arguments)
            config, model = None, read_config(run)[0]
            shutil.copytree(run, temporary, dirs_exist_ok=True)
        else:
            config = TrainConfig.from_file(run / CONFIG_FILE)
            model = config.model
            sizes = {"dtype": arguments.dtype, "max_shard_bytes": MAX_SHARD_BYTES}
            run_to_published(run, temporary, one_device(), choice=Choice(arguments.step, arguments.ema), **sizes)
        write_card(temporary, arguments.repository, arguments.license, run, config, model)


def _check_options(arguments: PushConfig) -> None:
    """Raises `InputError` for what a published model has no choice of."""
    for field in ("step", "ema", "dtype"):
        if getattr(arguments, field) != getattr(PushConfig, field):
            raise InputError(field, getattr(arguments, field), "goes with a run; this folder is published as it is")
