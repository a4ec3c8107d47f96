"""Where an export lies: on this machine, or in a repository of the Hugging Face hub."""

import re
from pathlib import Path

from asyncdiff.checkpoints.export.load import CONFIG, FILES, WEIGHTS, is_export

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME


def located(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """The folder of an export; a repository's three files are fetched into the hub's cache, and nothing else of it.

    Args:
        path_or_repo: a folder, or OWNER/NAME of the hub where there is no such path here.
        revision: branch, tag or commit of a repository; its main branch by default.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a repository, or no way to it.
        ValueError: it is something else than an export.
    """
    path = Path(path_or_repo).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision must be left out for a folder, got {revision} for {path}: it has but one")
        if path.is_file():
            raise ValueError(f"path_or_repo must be an export's folder, got the file {path}: use load_from_checkpoint")
        if not is_export(path):
            raise FileNotFoundError(
                f"path_or_repo must be an export's folder with {WEIGHTS} and {CONFIG}, got {path} without: "
                "write one by python -m asyncdiff export"
            )
        return path
    if not REPOSITORY.fullmatch(str(path_or_repo)):
        raise FileNotFoundError(
            f"path_or_repo must be an export's folder or OWNER/NAME of the hub, got {path_or_repo}: there is none"
        )
    folder = _fetched(str(path_or_repo), revision)
    if not is_export(folder):
        raise ValueError(
            f"path_or_repo must be a repository with {WEIGHTS} and {CONFIG}, got {path_or_repo}: is it another's?"
        )
    return folder


def check_repository(name: str) -> None:
    """Refuse a name of a repository that the hub would refuse, before anything is written."""
    if not REPOSITORY.fullmatch(name):
        raise ValueError(f"push_to_hub must be OWNER/NAME of a repository, got {name}: somebody/digits, say")


def published(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload the three files of an export to a repository of the hub, which is made if need be; returns its address.

    The token is that of `hf auth login`, or HF_TOKEN. Other files of the repository stay as they are.

    Args:
        folder: of an export.
        name: OWNER/NAME.
        private: whether a repository that is made is seen by its owner only.

    Raises:
        ValueError: huggingface_hub is not installed.
        OSError: the hub cannot be reached, or does not let us; the folder stays.
    """
    check_repository(name)
    try:
        from huggingface_hub import HfApi  # late: few need it
    except ImportError as error:
        raise ValueError(
            f"push_to_hub must be left out without huggingface_hub, got {name}: pip install huggingface_hub"
        ) from error
    try:
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        told = f"Export of {folder.name}"
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message=told)
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split()[:30])
        raise OSError(f"cannot upload to {name}: {told}: {folder} is complete, hf upload {name} {folder}") from error
    return str(address)


def _fetched(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download  # late: few need it
    except ImportError as error:
        raise ValueError(
            f"path_or_repo must be a folder where huggingface_hub is not installed, got {name}: "
            "pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # of whichever kind: no such repository or revision, no connection, no name
        told = " ".join(str(error).split()[:30])
        at = f" at {revision}" if revision else ""
        raise FileNotFoundError(
            f"path_or_repo must be a folder here or a repository that can be reached, got {name}{at}: {told}"
        ) from error
