"""Convert objects to plain dicts and lists and back, so that a checkpoint describes its model without any code.

Convention: a class stores every constructor argument as an attribute of the same name.
"""

import importlib
import inspect
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from asyncdiff.checkpoints.old_names import update_names
from asyncdiff.checkpoints.plain_values import check_extent

PLAIN = (bool, int, float, str, type(None))
# Packages of asyncdiff that run commands: files must not name their classes.
PROGRAMS = ("asyncdiff.__main__", "asyncdiff.ablation", "asyncdiff.cli", "asyncdiff.web")


def describe(value: Any) -> Any:
    """Describe an object by numbers, strings, lists and {"class_path", "init_args"} dictionaries, as YAML files do."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, range):  # such as seeds
        return list(value)
    if isinstance(value, (list, tuple)):
        return type(value)(describe(item) for item in value)
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    kind: Any = _unsharded_class(value)
    if "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor):  # this file imports no PyTorch
        raise TypeError("a tensor cannot be described in a checkpoint: pass numbers or lists to the constructor")
    if hasattr(value, "_orig_mod"):
        raise TypeError(
            "a network compiled by torch.compile cannot be described: compile it in place with network.compile()"
        )
    arguments = {name: describe(_argument(value, name)) for name in _argument_names(kind)}
    return {"class_path": class_path(kind), "init_args": arguments}


def describe_or_class(value: Any) -> Any:
    """Return the description of a value, or only its class if it does not store its arguments."""
    try:
        return describe(value)
    except TypeError:
        return {"class_path": class_path(type(value))}


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


def class_path_of(value: Any) -> str | None:
    """Return the dotted path of the class of an object, None for None.

    For a module sharded by PyTorch's `fully_shard`, it is the class that the module had before.
    """
    return None if value is None else class_path(_unsharded_class(value))


def has_argument(value: Any, name: str) -> bool:
    """Return whether the class of an object has a constructor argument of this name, and the object stores it."""
    return name in inspect.signature(_unsharded_class(value).__init__).parameters and hasattr(value, name)


def format_call(value: Any) -> str:
    """Return the constructor call of `value`, such as Sampler(steps=50), without arguments that equal their defaults.

    A first argument that is an object is always shown, without its name.
    """
    if isinstance(value, PLAIN):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(format_call(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {format_call(item)}' for key, item in value.items())}}}"
    try:
        return _format_constructor(value)
    except TypeError:  # a class that does not store its arguments
        return type(value).__name__


def _format_constructor(value: Any) -> str:
    kind = type(value)
    names = _argument_names(kind)
    values = {name: _argument(value, name) for name in names}
    defaults = inspect.signature(kind).parameters
    required = {name: item for name, item in values.items() if defaults[name].default is inspect.Parameter.empty}
    default = kind(**required)
    arguments = []
    for name, item in values.items():
        if name == names[0] and not isinstance(item, PLAIN):
            arguments.append(format_call(item))
        elif name in required or describe(item) != describe(_argument(default, name)):
            arguments.append(f"{name}={format_call(item)}")
    return f"{kind.__name__}({', '.join(arguments)})"


def build(config: Any, allow: Sequence[str] = ("asyncdiff",)) -> Any:
    """Build an object from the result of `describe`; only classes of the packages in `allow` are imported.

    Args:
        config: the description: dictionaries, lists, strings and numbers.
        allow: packages whose classes may be imported.

    Returns:
        The object.

    Raises:
        ValueError: a class is not allowed, cannot be built from its arguments, or the config is too large or too deep.
    """
    check_extent(config, "the object config")
    return _build(update_names(config), allow)


def _build(config: Any, allow: Sequence[str]) -> Any:
    if isinstance(config, (list, tuple)):
        return type(config)(_build(item, allow) for item in config)
    if not isinstance(config, dict):
        return config
    if "class_path" not in config:
        return {name: _build(item, allow) for name, item in config.items()}
    if not is_object_config(config | {"init_args": config.get("init_args", {})}):
        raise ValueError(f"an object config must name a class and its arguments, got {config}: use another file")
    arguments = {name: _build(item, allow) for name, item in config.get("init_args", {}).items()}
    own = config["class_path"].partition(".")[0] == "asyncdiff"
    from asyncdiff.checkpoints.build_limits import unlimited  # imported late: it imports PyTorch

    with nullcontext() if own else unlimited():  # others may load networks that the file does not contain
        return _construct(resolve(config["class_path"], allow), arguments)


def _construct(kind: type, arguments: dict[str, Any]) -> Any:
    """Build an object; what goes wrong with arguments from a file, which nobody has checked, becomes a ValueError."""
    try:
        return kind(**arguments)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError) as error:
        line = (str(error) or type(error).__name__).split("\n")[0].rpartition("DefaultCPUAllocator: ")[2]
        raise ValueError(
            f"{class_path(kind)} cannot be built as the file describes it, {line}: use the version of the class that "
            "wrote the file"
        ) from error


def resolve(class_path: str, allow: Sequence[str] = ("asyncdiff",)) -> type:
    """Import a class by its dotted path; raise ValueError unless its package is in `allow`, since imports run code."""
    package = class_path.partition(".")[0]
    if package not in allow:
        raise ValueError(
            f"class_path {class_path} is not in the allowed packages ({', '.join(allow)}): "
            f"if you trust it, pass allow=({', '.join(map(repr, [*allow, package]))}) in Python, or "
            f"--allow-class-paths {package} to a command"
        )
    module, _, name = class_path.rpartition(".")
    if _runs_commands(module):
        raise ValueError(
            f"class_path {class_path} belongs to a command, not to a model: do not use this file, it may be malicious"
        )
    try:
        kind = getattr(importlib.import_module(module), name, None)  # noqa: TID251  its package is allowed
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # a package that the module itself needs
        kind = None
    if not isinstance(kind, type) or kind.__module__.partition(".")[0] not in allow or _runs_commands(kind.__module__):
        raise ValueError(
            f"class_path {class_path} does not name a class of the package {package}: check the spelling; the class "
            "may have been renamed"
        )
    return kind


def _runs_commands(module: str) -> bool:
    return any(module == program or module.startswith(f"{program}.") for program in PROGRAMS)


def is_object_config(value: Any) -> bool:
    """Return whether a value has the form of a described object: class_path and init_args."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_path"), str)
        and isinstance(value.get("init_args"), dict)
    )


def named_packages(config: Any) -> set[str]:
    """Return the top-level packages of the classes in an object config."""
    if isinstance(config, (list, tuple)):
        return set().union(*map(named_packages, config))
    if not isinstance(config, dict):
        return set()
    own = {config["class_path"].partition(".")[0]} if "class_path" in config else set()
    return own.union(*map(named_packages, config.values()))


def _unsharded_class(value: Any) -> type[Any]:
    """Return the class of `value`; for a module sharded by PyTorch's `fully_shard`, the class that it had before."""
    kind = type(value)
    sharded = kind.__bases__[:1] and kind.__bases__[0].__name__ == "FSDPModule"
    return kind.__bases__[1] if sharded else kind


def _argument_names(kind: type) -> list[str]:
    if kind.__init__ is object.__init__:  # type: ignore[misc]
        return []
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if unnamed := [str(p) for p in parameters if p.kind not in named]:
        raise TypeError(
            f"all constructor arguments of {kind.__name__} must have names, got {', '.join(unnamed)}: "
            "replace them, since a checkpoint cannot describe them"
        )
    return [p.name for p in parameters]


def _argument(value: Any, name: str) -> Any:
    if not hasattr(value, name):
        raise TypeError(
            f"{type(value).__name__} must store its constructor argument {name!r} as an attribute of that name, "
            "so that a checkpoint can describe how to rebuild it"
        )
    return getattr(value, name)
