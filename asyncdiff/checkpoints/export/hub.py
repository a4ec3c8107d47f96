"""Locate exports in local folders or on the Hugging Face Hub, and upload them to the Hub."""

import re
from pathlib import Path

from asyncdiff.checkpoints.export.files import FILES, WEIGHTS
from asyncdiff.checkpoints.locate import is_export

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME


def locate_export(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """Return the local folder of an export, after downloading it into the Hub's cache if it is a repository.

    Args:
        path_or_repo: a folder, or OWNER/NAME on the Hugging Face Hub if no such path exists.
        revision: branch, tag or commit of a repository; None means its main branch.

    Returns:
        Path of the folder.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a repository, or the Hub cannot be reached.
        ValueError: the folder or the repository is not an export, or a revision is given for a folder.
    """
    path = folder = Path(path_or_repo).expanduser()
    if not path.exists():
        folder = _download(str(path_or_repo), revision)
    elif revision is not None:
        raise ValueError(
            f"revision applies to Hub repositories, got {revision} for the local path {path}: omit revision"
        )
    if not is_export(folder):
        raise ValueError(
            f"{path_or_repo} is not an export, it has no {WEIGHTS}: choose a folder or a repository written by python "
            "-m asyncdiff export, or load checkpoints with load_from_checkpoint"
        )
    return folder


def check_repository(name: str) -> None:
    """Raise ValueError unless `name` has the form OWNER/NAME of a repository."""
    if not REPOSITORY.fullmatch(name):
        raise ValueError(f"--push_to_hub must be a repository OWNER/NAME, got {name}: use somebody/digits, for example")


def upload_export(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload the files of an export to a repository on the Hugging Face Hub, creating it if it does not exist.

    Authenticates with the token from `hf auth login` or HF_TOKEN. Other files of the repository are left unchanged.

    Args:
        folder: folder of the export.
        name: OWNER/NAME of the repository.
        private: make a newly created repository visible to its owner only.

    Returns:
        URL of the repository.

    Raises:
        OSError: the Hub cannot be reached or rejects the upload; the folder is unchanged.
    """
    from huggingface_hub import HfApi  # imported late, as it is in `_download`: few need the Hub

    check_repository(name)
    try:
        url = HfApi().create_repo(name, private=private, exist_ok=True)
        message = f"Export of {folder.name}"
        HfApi().upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message=message)
    except Exception as error:  # also those of the library's HTTP client
        raise OSError(
            f"cannot upload to {name}, {_first_words(error)}: the export in {folder} is complete, upload it later with "
            f"hf upload {name} {folder}"
        ) from error
    return str(url)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if not REPOSITORY.fullmatch(name):
        raise FileNotFoundError(
            f"{name} is neither an existing folder nor a repository OWNER/NAME on the Hugging Face Hub: check the path"
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # no such repository or revision, no valid name, those of the library's HTTP client
        at = f" at {revision}" if revision else ""
        raise FileNotFoundError(
            f"{name}{at} is not a local folder and cannot be downloaded from the Hugging Face Hub: "
            f"{_first_words(error)}"
        ) from error


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split()[:30])
