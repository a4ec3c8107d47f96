"""Suggestions for misspelled keys, arguments and class paths."""

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from asyncdiff.checkpoints.object_config import PROGRAMS
from asyncdiff.cli.trusted_packages import may_be_imported, refusal_message

PACKAGES = ("asyncdiff", "datamodules")


def nearest_name(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the most similar name, ignoring case, or an empty string if the similarity is below `cutoff`."""
    spelling = {known.lower(): known for known in names}
    return next((spelling[match] for match in difflib.get_close_matches(name.lower(), spelling, 1, cutoff)), "")


def did_you_mean(name: str) -> str:
    """Return a suggestion to append to an error message; empty without a name."""
    return f"; did you mean {name}?" if name else ""


def find_class(class_path: str) -> type | None:
    """Return the class at a dotted path, or None if it does not exist or may not be imported."""
    module, _, name = class_path.rpartition(".")
    value = getattr(_import(module), name, None) if may_be_imported(class_path) else None
    return value if isinstance(value, type) else None


def load_class(path: str, bases: Iterable[type]) -> tuple[type | None, str]:
    """Return the class at a path, or a subclass of `bases` with that name; None and what is wrong if there is none."""
    is_file = path.endswith((".yaml", ".yml", ".json"))
    if is_file or not all(part.isidentifier() for part in path.split(".")):
        reason = "there is no such file" if is_file else "it is neither"
        return None, f"must be a class path or a YAML file with one, got {path or 'nothing'}: {reason}"
    if "." in path and not may_be_imported(path) and _is_installed(path.partition(".")[0]):
        return None, refusal_message(path)
    try:
        if "." in path and may_be_imported(path):
            importlib.import_module(path.rpartition(".")[0])  # noqa: TID251  its package is allowed
        kind = find_class(path) if "." in path else _subclass(path, bases)
    except ImportError as error:
        if error.name and not path.startswith(error.name):
            return None, f"{path} needs the package {error.name}, which is not installed"
        kind = None
    if kind is not None and not may_be_imported(f"{kind.__module__}.{kind.__qualname__}"):
        return None, refusal_message(f"{kind.__module__}.{kind.__qualname__}")
    return kind, f"there is no class {path}{did_you_mean(nearest_class_path(path))}"


def _is_installed(package: str) -> bool:
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(package) is not None
    return False


def _subclass(name: str, bases: Iterable[type]) -> type | None:
    """Return an imported subclass with a name."""
    for base in bases:
        if base.__name__ == name:
            return base
        if (found := _subclass(name, type.__subclasses__(base))) is not None:
            return found
    return None


def nearest_class_path(path: str) -> str:
    """Return the public path of the class that was probably meant, or an empty string.

    A class of the same name in another module is preferred, then one of a similar name in the same module.
    """
    known = known_classes()
    module, _, name = path.rpartition(".")
    names = {entry.rpartition(".")[2] for entry in known}
    siblings = {e.rpartition(".")[2] for e, kind in known.items() if module in (e.rpartition(".")[0], kind.__module__)}
    if name not in names:
        name = nearest_name(name, siblings) or nearest_name(name, names, 0.75 if module else 0.6)
    return nearest_name(path, [entry for entry in known if name and entry.endswith(f".{name}")], 0.0)


def known_classes() -> dict[str, type]:
    """Return every class that an experiment may name, by its shortest path; classes of this project come first."""
    paths: dict[type, str] = {}
    for module in _modules():
        imported = _import(module)
        exported = getattr(imported, "__all__", ())
        for name in {**vars(imported), **dict.fromkeys(exported)} if imported else ():
            kind = getattr(imported, name)  # exports may be lazy
            if isinstance(kind, type) and name[0] != "_" and (name in exported or kind.__module__ == module):
                paths[kind] = min(f"{module}.{name}", paths.get(kind, f"{module}.{name}"), key=len)
    return {path: kind for kind, path in paths.items()}


def _import(module: str) -> Any:
    """Return a module, or None if it cannot or may not be imported."""
    try:
        return importlib.import_module(module) if may_be_imported(module) else None  # noqa: TID251
    except (ImportError, ValueError):
        return None


def _modules() -> Iterator[str]:
    for package in PACKAGES:
        yield package
        folders = importlib.import_module(package).__path__  # noqa: TID251  our own packages
        modules = pkgutil.walk_packages(folders, f"{package}.", onerror=lambda name: None)
        yield from (module.name for module in modules if not module.name.startswith(PROGRAMS))
    yield from ("lightning.pytorch.callbacks", "lightning.pytorch.loggers")
