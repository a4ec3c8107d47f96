"""Objects as plain containers and back, so that a checkpoint says how to rebuild its model and nothing in it is code.

The convention behind it: every constructor argument is kept as an attribute of the same name.
"""

import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch

from asyncdiff.checkpoints.old_names import current

PLAIN = (bool, int, float, str, type(None))
# Packages of ours that run what they are told: no file may name a class of theirs.
PROGRAMS = ("asyncdiff.__main__", "asyncdiff.ablation", "asyncdiff.cli", "asyncdiff.web")


def describe(value: Any) -> Any:
    """`value` as numbers, strings, lists and {"class_path", "init_args"} dictionaries, as in the YAML files."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(describe(item) for item in value)
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    kind: Any = _kind(value)
    if isinstance(value, torch.Tensor):
        raise TypeError("a tensor cannot be described in a recipe: give numbers or lists to the constructor")
    if hasattr(value, "_orig_mod"):
        raise TypeError("a compiled network cannot be described: compile in place, network.compile(), after building")
    if kind.__init__ is object.__init__:
        return {"class_path": class_path(kind), "init_args": {}}
    arguments = {name: describe(_kept(value, name)) for name in _parameters(kind)}
    return {"class_path": class_path(kind), "init_args": arguments}


def class_path(kind: type) -> str:
    """Return the dotted path by which files name a class: the shortest package that offers it, or its module.

    A file that says `asyncdiff.noise.Shared` survives when the class moves to another module of the package.
    """
    parts = kind.__module__.split(".")
    for count in range(1, len(parts)):
        package = ".".join(parts[:count])
        if getattr(sys.modules.get(package), kind.__qualname__, None) is kind:
            return f"{package}.{kind.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def spell(value: Any) -> str:
    """The constructor call that makes `value`, without what it sets anyway; an object given first is always told."""
    if isinstance(value, PLAIN):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(spell(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {spell(item)}' for key, item in value.items())}}}"
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
    usual = kind(**required)
    told = []
    for name, item in kept.items():
        if name == names[0] and not isinstance(item, PLAIN):
            told.append(spell(item))
        elif name in required or describe(item) != describe(_kept(usual, name)):
            told.append(f"{name}={spell(item)}")
    return f"{kind.__name__}({', '.join(told)})"


def build(recipe: Any, allow: Sequence[str] = ("asyncdiff",)) -> Any:
    """The object that `describe` described; only classes of the packages in `allow` are imported."""
    recipe = current(recipe)
    if isinstance(recipe, (list, tuple)):
        return type(recipe)(build(item, allow) for item in recipe)
    if not isinstance(recipe, dict):
        return recipe
    arguments = {name: build(item, allow) for name, item in recipe.get("init_args", recipe).items()}
    return resolve(recipe["class_path"], allow)(**arguments) if "class_path" in recipe else arguments


def resolve(class_path: str, allow: Sequence[str] = ("asyncdiff",)) -> type:
    """The class of a dotted path, refused unless its package is in `allow`: importing a module runs its code."""
    package = class_path.partition(".")[0]
    if package not in allow:
        raise ValueError(
            f"class_path must lie in one of the packages {', '.join(allow)}, got {class_path}: "
            f"if you trust it, pass allow=({', '.join(map(repr, [*allow, package]))}), or to a command "
            f"--allow-class-paths {package}"
        )
    module, _, name = class_path.rpartition(".")
    if _runs(module):
        raise ValueError(f"class_path must name a part of a model, got {class_path}, a program: do not use this file")
    found = getattr(importlib.import_module(module), name, None)
    if not isinstance(found, type) or found.__module__.partition(".")[0] not in allow or _runs(found.__module__):
        raise ValueError(f"class_path must name a class of its package, got {class_path}: was it renamed since?")
    return found


def _runs(module: str) -> bool:
    return any(module == program or module.startswith(f"{program}.") for program in PROGRAMS)


def packages(recipe: Any) -> set[str]:
    """The packages whose classes a recipe names."""
    if isinstance(recipe, (list, tuple)):
        return set().union(*map(packages, recipe))
    if not isinstance(recipe, dict):
        return set()
    own = {recipe["class_path"].partition(".")[0]} if "class_path" in recipe else set()
    return own.union(*map(packages, recipe.values()))


def _kind(value: Any) -> type[Any]:
    """The class that `value` was made of: PyTorch's `fully_shard` gives it another one that is derived from it."""
    kind = type(value)
    sharding = kind.__bases__[:1] and kind.__bases__[0].__name__ == "FSDPModule"
    return kind.__bases__[1] if sharding else kind


def _parameters(kind: type) -> list[str]:
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if unnamed := [str(p) for p in parameters if p.kind not in named]:
        raise TypeError(
            f"{kind.__name__} must have named constructor arguments only, got {', '.join(unnamed)}: "
            "a checkpoint could not say what they were"
        )
    return [p.name for p in parameters]


def _kept(value: Any, name: str) -> Any:
    if not hasattr(value, name):
        raise TypeError(
            f"{type(value).__name__} must keep its constructor argument {name!r} as an attribute of that name, "
            "so that a checkpoint can say how to rebuild it"
        )
    return getattr(value, name)
