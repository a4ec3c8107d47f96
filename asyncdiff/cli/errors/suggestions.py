"""Suggestions for misspelled keys, arguments and class paths."""

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Iterator
from contextlib import suppress

from asyncdiff.checkpoints.object_config import PROGRAMS
from asyncdiff.cli.trusted_packages import may_be_imported

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
    if not may_be_imported(class_path):
        return None
    with suppress(ImportError, ValueError):
        value = getattr(importlib.import_module(module), name, None)
        return value if isinstance(value, type) else None
    return None


def is_installed(class_path: str) -> bool:
    """Return whether the package of a class path exists, without importing it."""
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(class_path.partition(".")[0]) is not None
    return False


def nearest_class_path(path: str) -> str:
    """Return the public path of the class that was probably meant, or an empty string.

    A class of the same name in another module is preferred, then one of a similar name in the same module, then any
    class of a very similar name.
    """
    module, _, name = path.rpartition(".")
    known = known_classes()
    same_name = [entry for entry in known if entry.endswith(f".{name}")]
    if close := nearest_name(path, same_name, 0.0):
        return close
    siblings = public_classes(module)
    if close := nearest_name(name, siblings):
        public = {kind: entry for entry, kind in known.items()}
        return public.get(siblings[close], f"{module}.{close}")
    by_name = {entry.rpartition(".")[2]: entry for entry in known}
    return by_name.get(nearest_name(name, by_name, 0.75), "")


def known_classes() -> dict[str, type]:
    """Return every class that an experiment may name, by its shortest path; classes of this project come first."""
    paths: dict[type, str] = {}
    for module in _modules():
        for name, kind in public_classes(module).items():
            paths[kind] = min(f"{module}.{name}", paths.get(kind, f"{module}.{name}"), key=len)
    return {path: kind for kind, path in paths.items()}


def public_classes(module: str) -> dict[str, type]:
    """Return the classes that a module defines or exports, by name; empty if it cannot or may not be imported."""
    if not may_be_imported(module):
        return {}
    with suppress(ImportError, ValueError):
        imported = importlib.import_module(module)
        exported = getattr(imported, "__all__", ())
        named = vars(imported) | {
            name: getattr(imported, name) for name in exported
        }  # getattr because exports may be lazy
        return {
            name: value
            for name, value in named.items()
            if isinstance(value, type) and not name.startswith("_") and (name in exported or value.__module__ == module)
        }
    return {}


def _modules() -> Iterator[str]:
    for package in PACKAGES:
        yield package
        folders = importlib.import_module(package).__path__
        modules = pkgutil.walk_packages(folders, f"{package}.", onerror=lambda name: None)
        yield from (module.name for module in modules if not module.name.startswith(PROGRAMS))
    yield from ("lightning.pytorch.callbacks", "lightning.pytorch.loggers")
