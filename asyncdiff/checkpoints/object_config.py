"""Convert objects to plain containers and back, so that a checkpoint describes its model without any code in it.

Convention: a class keeps every constructor argument as an attribute of the same name.
"""

import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch

from asyncdiff.checkpoints.old_names import update_names

PLAIN = (bool, int, float, str, type(None))
# Packages of asyncdiff that run commands: no file may name a class of theirs.
PROGRAMS = ("asyncdiff.__main__", "asyncdiff.ablation", "asyncdiff.cli", "asyncdiff.web")


def describe(value: Any) -> Any:
    """Describe an object by numbers, strings, lists and {"class_path", "init_args"} dictionaries, as in YAML files."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(describe(item) for item in value)
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    kind: Any = _kind(value)
    if isinstance(value, torch.Tensor):
        raise TypeError("a tensor cannot be described in a checkpoint: pass numbers or lists to the constructor")
    if hasattr(value, "_orig_mod"):
        raise TypeError("a compiled network cannot be described: compile in place, network.compile(), after building")
    if kind.__init__ is object.__init__:
        return {"class_path": class_path(kind), "init_args": {}}
    arguments = {name: describe(_kept(value, name)) for name in _parameters(kind)}
    return {"class_path": class_path(kind), "init_args": arguments}


def class_path(kind: type) -> str:
    """Return the dotted path by which files name a class.

    Classes of `asyncdiff` and `datamodules` go by the shortest package that exports them, so that a file that names
    `asyncdiff.noise.Shared` stays valid when the class moves to another module of `noise`; others by their module.
    """
    parts = kind.__module__.split(".")
    for count in range(1, len(parts)) if parts[0] in ("asyncdiff", "datamodules") else ():
        package = ".".join(parts[:count])
        if getattr(sys.modules.get(package), kind.__qualname__, None) is kind:
            return f"{package}.{kind.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def format_call(value: Any) -> str:
    """Format the constructor call that makes `value`, without defaults; a first argument that is an object is kept."""
    if isinstance(value, PLAIN):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(format_call(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {format_call(item)}' for key, item in value.items())}}}"
    try:
        return _call(value)
    except TypeError:  # a class that does not keep its arguments
        return type(value).__name__


def _call(value: Any) -> str:
    kind = type(value)
    names = [] if kind.__init__ is object.__init__ else _parameters(kind)
    kept = {name: _kept(value, name) for name in names}
    defaults = inspect.signature(kind).parameters
    required = {name: item for name, item in kept.items() if defaults[name].default is inspect.Parameter.empty}
    default = kind(**required)
    arguments = []
    for name, item in kept.items():
        if name == names[0] and not isinstance(item, PLAIN):
            arguments.append(format_call(item))
        elif name in required or describe(item) != describe(_kept(default, name)):
            arguments.append(f"{name}={format_call(item)}")
    return f"{kind.__name__}({', '.join(arguments)})"


def build(config: Any, allow: Sequence[str] = ("asyncdiff",)) -> Any:
    """Build the object that `describe` described; only classes of the packages in `allow` are imported."""
    config = update_names(config)
    if isinstance(config, (list, tuple)):
        return type(config)(build(item, allow) for item in config)
    if not isinstance(config, dict):
        return config
    arguments = {name: build(item, allow) for name, item in config.get("init_args", config).items()}
    return resolve(config["class_path"], allow)(**arguments) if "class_path" in config else arguments


def resolve(class_path: str, allow: Sequence[str] = ("asyncdiff",)) -> type:
    """Import the class of a dotted path; ValueError unless its package is in `allow`, as imports run code."""
    package = class_path.partition(".")[0]
    if package not in allow:
        raise ValueError(
            f"class_path must lie in one of the packages {', '.join(allow)}, got {class_path}: "
            f"if you trust it, pass allow=({', '.join(map(repr, [*allow, package]))}) in Python, or "
            f"--allow-class-paths {package} to a command"
        )
    module, _, name = class_path.rpartition(".")
    if _runs(module):
        raise ValueError(
            f"class_path must name a part of a model, got {class_path}, which runs commands: do not use this file"
        )
    kind = getattr(importlib.import_module(module), name, None)
    if not isinstance(kind, type) or kind.__module__.partition(".")[0] not in allow or _runs(kind.__module__):
        raise ValueError(
            f"class_path must name a class of its package, got {class_path}: it may be misspelled or renamed"
        )
    return kind


def _runs(module: str) -> bool:
    return any(module == program or module.startswith(f"{program}.") for program in PROGRAMS)


def named_packages(config: Any) -> set[str]:
    """Return the top-level packages whose classes an object config names."""
    if isinstance(config, (list, tuple)):
        return set().union(*map(named_packages, config))
    if not isinstance(config, dict):
        return set()
    own = {config["class_path"].partition(".")[0]} if "class_path" in config else set()
    return own.union(*map(named_packages, config.values()))


def _kind(value: Any) -> type[Any]:
    """Return the class of `value`, before PyTorch's `fully_shard` replaced it by a derived class."""
    kind = type(value)
    sharding = kind.__bases__[:1] and kind.__bases__[0].__name__ == "FSDPModule"
    return kind.__bases__[1] if sharding else kind


def _parameters(kind: type) -> list[str]:
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if unnamed := [str(p) for p in parameters if p.kind not in named]:
        raise TypeError(
            f"{kind.__name__} must have named constructor arguments only, got {', '.join(unnamed)}: "
            "a checkpoint cannot describe others"
        )
    return [p.name for p in parameters]


def _kept(value: Any, name: str) -> Any:
    if not hasattr(value, name):
        raise TypeError(
            f"{type(value).__name__} must keep its constructor argument {name!r} as an attribute of that name, "
            "so that a checkpoint can describe how to rebuild it"
        )
    return getattr(value, name)
