"""``mom-jax pull OWNER/NAME [DST]``."""

import dataclasses
import shutil
from collections.abc import Sequence
from typing import Annotated

import tyro

from mom_jax.cli.parsing import Place, parse
from mom_jax.cli.push import check_repo
from mom_jax.errors import InputError
from mom_jax.fields import Name, check_fields
from mom_jax.paths import local_path

DESCRIPTION = """Fetches a model from the Hugging Face hub: one of mom-jax push, or of the PyTorch library. The folder
serves as a run for eval, generate and inspect; mom-jax convert makes a run of it that train goes on from.

Example: mom-jax pull me/mom-tiny-python runs/tiny"""


@dataclasses.dataclass(frozen=True)
class PullConfig:
    """What to fetch, and where to."""

    repository: Annotated[Name, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """The repository on the hub."""
    dst: Annotated[Place | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DST]")] = None
    """The folder to write; it must not exist, or be empty. Default: runs/NAME."""
    revision: Name = "main"
    """Branch, tag or commit."""

    def __post_init__(self):
        check_fields(self)
        check_repo(self.repository)


def main(args: Sequence[str]) -> int:
    """Parses the arguments, fetches the files, says what they are good for."""
    arguments = parse(PullConfig, args, prog="mom-jax pull", description=DESCRIPTION)
    place = arguments.dst or f"runs/{arguments.repository.partition('/')[2]}"
    folder = local_path(place, "dst").absolute()
    from mom_jax.interop.folders import check_empty, in_place_of
    from mom_jax.interop.hub import download
    from mom_jax.interop.published import is_published, read_config

    check_empty(folder, "dst")
    with in_place_of(folder) as temporary:
        download(arguments.repository, arguments.revision, temporary)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the hub's notes about the download
        if not is_published(temporary):
            raise InputError("repository", arguments.repository, "holds no model (config.json and safetensors files)")
        read_config(temporary)  # complains of a model of another kind
    print(f"model: {place}; try mom-jax generate {place} --prompt 'Once'")
    return 0
