"""Models on the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mom_jax.errors import InputError

# What of a repository is a model: no weights of other libraries.
_FILES = ("*.json", "*.safetensors", "tokenizer.model", "README.md", "*.png")


def prepare_upload(repo: str, private: bool) -> None:
    """Makes the repository if there is none, which shows whether it can be written to.

    Raises:
        InputError: no network, no login, or not the user's to write.
    """
    from huggingface_hub import HfApi

    with _complaints(repo, "log in (hf auth login, or HF_TOKEN) as somebody who may write there"):
        HfApi().create_repo(repo, private=private, exist_ok=True)


def upload(folder: Path, repo: str, message: str) -> str:
    """Uploads a folder as one commit, and returns its address.

    Raises:
        InputError: as `prepare_upload`; the hub keeps what it had.
    """
    from huggingface_hub import HfApi

    with _complaints(repo, "run the same command again"):
        return HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url


def download(repo: str, revision: str, folder: Path) -> None:
    """Fetches the files of a model into ``folder``, which exists.

    Raises:
        InputError: no network, no such repository or revision, or one that this user may not read.
    """
    from huggingface_hub import snapshot_download

    with _complaints(repo, "check the name and --revision, and log in (hf auth login) where it is private"):
        snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=list(_FILES))


@contextmanager
def _complaints(repo: str, remedy: str) -> Iterator[None]:
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # what goes wrong reaches us as exceptions
    disable_progress_bars()
    try:
        yield
    except Exception as error:  # the hub's errors and those of its transport share no base class
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError("repository", repo, f"the Hugging Face hub gave: {said}; {remedy}") from error
