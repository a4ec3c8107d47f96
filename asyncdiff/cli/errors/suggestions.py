"""The right name next to a wrong one: of a key, an argument or a class."""

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Iterator
from contextlib import suppress

from asyncdiff.checkpoints.object_config import PROGRAMS
from asyncdiff.cli.trusted_packages import may_be_imported

OURS = ("asyncdiff", "datamodules")


def near(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The name most like another, whatever its capitals; empty if none is."""
    spelt = {known.lower(): known for known in names}
    return next((spelt[match] for match in difflib.get_close_matches(name.lower(), spelt, 1, cutoff)), "")


def did_you_mean(name: str) -> str:
    """The end of a complaint; empty without a name to suggest."""
    return f"; did you mean {name}?" if name else ""


def find_class(class_path: str) -> type | None:
    """The class of a dotted path, if there is one."""
    module, _, name = class_path.rpartition(".")
    if not may_be_imported(class_path):
        return None
    with suppress(ImportError, ValueError):
        found = getattr(importlib.import_module(module), name, None)
        return found if isinstance(found, type) else None
    return None


def installed(class_path: str) -> bool:
    """Whether there is a package of this name; nothing of it is imported."""
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(class_path.partition(".")[0]) is not None
    return False


def near_class(path: str) -> str:
    """The dotted path of the class meant: the same name elsewhere, then a like one in the same module, then any."""
    module, _, name = path.rpartition(".")
    known = known_classes()
    same = [entry for entry in known if entry.endswith(f".{name}")]
    siblings = public_classes(module)
    everywhere = {entry.rpartition(".")[2]: entry for entry in known}
    if close := near(path, same, 0.0):
        return close
    if close := near(name, siblings):
        return f"{module}.{close}"
    return everywhere.get(near(name, everywhere, 0.75), "")  # of any kind: it has to be very like


def known_classes() -> dict[str, type]:
    """Every class that an experiment may name, ours first, by the shortest path to it."""
    paths: dict[type, str] = {}
    for module in _modules():
        for name, found in public_classes(module).items():
            paths[found] = min(f"{module}.{name}", paths.get(found, f"{module}.{name}"), key=len)
    return {path: found for found, path in paths.items()}


def public_classes(module: str) -> dict[str, type]:
    """The classes that a module defines or exports, by name; none if it cannot be imported, or may not be."""
    if not may_be_imported(module):
        return {}
    with suppress(ImportError, ValueError):
        loaded = importlib.import_module(module)
        exported = getattr(loaded, "__all__", ())
        offered = vars(loaded) | {name: getattr(loaded, name) for name in exported}  # some are imported on first use
        return {
            name: found
            for name, found in offered.items()
            if isinstance(found, type) and not name.startswith("_") and (name in exported or found.__module__ == module)
        }
    return {}


def _modules() -> Iterator[str]:
    for package in OURS:
        yield package
        home = importlib.import_module(package).__path__
        modules = pkgutil.walk_packages(home, f"{package}.", onerror=lambda name: None)
        yield from (module.name for module in modules if not module.name.startswith(PROGRAMS))
    yield from ("lightning.pytorch.callbacks", "lightning.pytorch.loggers")
