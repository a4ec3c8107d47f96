"""Find exports on this machine or on the Hugging Face hub, and upload them there."""

import re
from pathlib import Path

from asyncdiff.checkpoints.export.load import CONFIG, FILES, WEIGHTS, is_export

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME


def locate_export(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """Return the folder of an export, downloading the three files of a repository into the hub's cache.

    Args:
        path_or_repo: a folder, or OWNER/NAME on the hub if no such path exists.
        revision: branch, tag or commit of a repository; its main branch by default.

    Returns:
        A local folder.

    Raises:
        FileNotFoundError: neither such a folder nor such a repository exists, or the hub cannot be reached.
        ValueError: it is not an export.
    """
    path = Path(path_or_repo).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision must be left out for a folder, got {revision} for {path}: folders have none")
        if path.is_file():
            raise ValueError(f"path_or_repo must be an export's folder, got the file {path}: use load_from_checkpoint")
        if not is_export(path):
            raise FileNotFoundError(
                f"path_or_repo must be an export's folder with {WEIGHTS} and {CONFIG}, got {path} without: "
                "write one with python -m asyncdiff export"
            )
        return path
    if not REPOSITORY.fullmatch(str(path_or_repo)):
        raise FileNotFoundError(
            f"path_or_repo must be an export's folder or OWNER/NAME of the hub, got {path_or_repo}: no such path"
        )
    folder = _download(str(path_or_repo), revision)
    if not is_export(folder):
        raise ValueError(
            f"path_or_repo must be a repository with {WEIGHTS} and {CONFIG}, got {path_or_repo}: it is not an export"
        )
    return folder


def check_repository(name: str) -> None:
    """Raise ValueError unless `name` is a valid name of a repository, before anything is written."""
    if not REPOSITORY.fullmatch(name):
        raise ValueError(
            f"push_to_hub must be OWNER/NAME of a repository, got {name}: use somebody/digits, for example"
        )


def upload_export(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload the three files of an export to a repository of the hub, which is created if it does not exist.

    The token is that of `hf auth login`, or HF_TOKEN. Other files of the repository are left unchanged.

    Args:
        folder: folder of the export.
        name: OWNER/NAME of the repository.
        private: make a newly created repository visible to its owner only.

    Returns:
        URL of the repository.

    Raises:
        ValueError: huggingface_hub is not installed.
        OSError: the hub cannot be reached or refuses the upload; the folder is unchanged.
    """
    check_repository(name)
    try:
        from huggingface_hub import HfApi  # optional dependency
    except ImportError as error:
        raise ValueError(
            f"push_to_hub must be left out without huggingface_hub, got {name}: pip install huggingface_hub"
        ) from error
    try:
        api = HfApi()
        url = api.create_repo(name, private=private, exist_ok=True)
        message = f"Export of {folder.name}"
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message=message)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()[:30])
        raise OSError(
            f"cannot upload to {name}: {reason}: {folder} is complete; upload it with hf upload {name} {folder}"
        ) from error
    return str(url)


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download  # optional dependency
    except ImportError as error:
        raise ValueError(
            f"path_or_repo must be a folder unless huggingface_hub is installed, got {name}: "
            "pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # no such repository or revision, no connection, no valid name
        reason = " ".join(str(error).split()[:30])
        at = f" at {revision}" if revision else ""
        raise FileNotFoundError(
            f"path_or_repo must be a folder here or a repository that can be reached, got {name}{at}: {reason}"
        ) from error
