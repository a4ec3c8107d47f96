"""The directory of a run: the one that its config.yaml lies in, wherever that is. Imports no torch.

In a config.yaml that a run writes, trainer.default_root_dir is THIS_FOLDER, so that the run can be moved or copied.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from asyncdiff.checks import is_first_process
from asyncdiff.yaml_files import read_yaml

CONFIG = "config.yaml"
THIS_FOLDER = "<this folder>"  # value of trainer.default_root_dir, which means the folder of the file
CONFIG_OPTION = "--config"
OPTION = "--trainer.default_root_dir"
# Keys at the top level of every config.yaml that a run has written; files of users lack most of them.
WRITTEN_KEYS = {"vars", "auto_resume", "ckpt_path", "data", "model", "trainer"}
RUN_FILES = ("checkpoints/*.ckpt", "hpc_ckpt_*.ckpt", "events.out.tfevents.*")


def run_directory(default_root_dir: Any) -> Path:
    """Return the run directory as the trainer interprets it: by default, the current directory."""
    if default_root_dir == THIS_FOLDER:
        raise ValueError(
            f"trainer.default_root_dir must be a directory, got {THIS_FOLDER}, which is for the {CONFIG} of a run: add "
            f"{OPTION} runs/NAME"
        )
    return Path(default_root_dir).expanduser() if default_root_dir else Path.cwd()


def run_of_config(file: Path, content: Any) -> Path | None:
    """Return the run to which a YAML file belongs, None if it is not the config.yaml of a run.

    Earlier versions wrote the directory as it was named then. Their files belong to the run in whose folder they lie.
    """
    if not isinstance(content, dict) or not isinstance(trainer := content.get("trainer"), dict):
        return None
    folder = file.parent
    if file.is_symlink() and not _contains_run(folder):
        file = file.resolve()
        folder = file.parent
    if file.name != CONFIG:
        return None
    of_earlier_version = content.keys() >= WRITTEN_KEYS and _contains_run(folder)
    return folder if trainer.get("default_root_dir") == THIS_FOLDER or of_earlier_version else None


def with_run_directory(argv: Sequence[str]) -> list[str]:
    """Return a command line of train.py that sets the run directory if it names the config.yaml of a run.

    An option `--trainer.default_root_dir` in the command line decides, wherever it stands. `-c` becomes `--config`.
    """
    argv = [re.sub("^-c(?==|$)", CONFIG_OPTION, argument) for argument in argv]
    if chosen := list(_values(argv, OPTION)):
        of_runs = (run_of_config(Path(file), _read(file)) for _, file in _values(argv, CONFIG_OPTION))
        return [*argv, OPTION, chosen[-1][1]] if any(of_runs) else list(argv)
    result: list[str] = []
    start = 0
    for end, name in _values(argv, CONFIG_OPTION):
        file, content = Path(name), _read(name)
        result += argv[start:end]
        start = end
        if run := run_of_config(file, content):
            result += [OPTION, str(run)]
            _report_other_directory(file, content, run)
        else:
            _warn_of_original(file, content)
    return [*result, *argv[start:]]


def _values(argv: Sequence[str], option: str) -> Iterator[tuple[int, str]]:
    """Yield each value of an option in a command line, and the position after it."""
    for i, (argument, following) in enumerate(pairwise([*argv, ""])):
        name, equals, value = argument.partition("=")
        if name == option and (equals or i + 1 < len(argv)):
            yield (i + 1, value) if equals else (i + 2, following)


def make_portable(value: Any, root: str) -> Any:
    """Return a configuration with paths in the run directory expressed by ${trainer.default_root_dir}.

    Args:
        value: the configuration, or a part of it.
        root: the run directory as written in the configuration.
    """
    if isinstance(value, dict):
        return {key: item if key == "default_root_dir" else make_portable(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [make_portable(item, root) for item in value]
    below = _path_below(value, root) if isinstance(value, str) else None
    return value if below is None else "${trainer.default_root_dir}" + below


def _path_below(path: str, root: str) -> str | None:
    """Return the rest of a path that names the run directory or something in it, from the separator on, or None."""
    root = root.rstrip("/") or "/"
    if path == root or (path.startswith(f"{root}/") and ".." not in path.split("/")):
        rest = path.removeprefix(root).strip("/")
        return f"/{rest}" if rest else ""
    # Other spellings. A text without separator is a name rather than a path.
    if "/" not in path or "://" in path or "\n" in path:
        return None
    folder = os.path.abspath(os.path.expanduser(root))
    relative = not path.startswith(("/", "~"))
    if relative and f"{os.getcwd()}/".startswith(f"{folder}/".replace("//", "/")):
        return None  # every relative path lies in the run directory, also a tag such as train/loss
    for resolve in (os.path.abspath, os.path.realpath):
        full, above = resolve(os.path.expanduser(path)), resolve(folder)
        if full == above or full.startswith(f"{above}/"):
            return full.removeprefix(above)
    return None


def _contains_run(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in RUN_FILES)


def _read(file: str) -> Any:
    """Return the content of a YAML file, or None if it cannot be read, which the parser explains."""
    try:
        return read_yaml(Path(file), dumped=True)
    except (OSError, ValueError):
        return None


def _report_other_directory(file: Path, content: dict[str, Any], run: Path) -> None:
    """Say which directory is used if a file of an earlier version names another one."""
    written = content["trainer"].get("default_root_dir")
    if written != THIS_FOLDER and run_directory(written).resolve() != run.resolve():
        _print(f"{file} belongs to the run {run}, which is used: trainer.default_root_dir in it is {written}")


def _warn_of_original(file: Path, content: Any) -> None:
    """Warn that a copy of a config.yaml of an earlier version, without its run, names the original run."""
    if not isinstance(content, dict) or not content.keys() >= WRITTEN_KEYS or not isinstance(content["trainer"], dict):
        return
    written = content["trainer"].get("default_root_dir")
    if not written or written == THIS_FOLDER or not _contains_run(run := run_directory(written)):
        return
    if not ((run / CONFIG).exists() and file.samefile(run / CONFIG)):
        _print(f"warning: {file} is a copy of a run's config, and names {run}: add {OPTION} for another run")


def _print(line: str) -> None:
    if is_first_process():
        print(line, file=sys.stderr)
