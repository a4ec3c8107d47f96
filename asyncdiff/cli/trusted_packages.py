"""Restrict which classes a file or command line may name, since importing a module runs its code.

Modules of other packages must be allowed with `--allow-class-paths PACKAGE[,PACKAGE]` on the command line, and only
there: a file that could allow itself would be as dangerous as a program. For every value that jsonargparse imports
(class path, bare class name, function or type), the path is checked before the import and the actual module after it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings

from asyncdiff.checkpoints.object_config import PROGRAMS

OPTION = "--allow-class-paths"
# Packages whose classes experiments use. PyTorch is not among them: it has functions that load and compile anything.
ALLOWED = (
    "asyncdiff",
    "datamodules",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lightning.fabric.accelerators",
    "lightning.fabric.loggers",
    "lightning.fabric.plugins",
    "lightning.fabric.strategies",
)
# Parts of these packages that run programs, call arbitrary functions, or read checkpoints as pickles.
REFUSED = (
    *PROGRAMS,
    "lightning.pytorch.callbacks.LambdaCallback",
    "lightning.pytorch.callbacks.lambda_function",
    "lightning.pytorch.plugins.io",
    "lightning.pytorch.strategies.deepspeed",
    "lightning.pytorch.strategies.launchers",
    "lightning.fabric.plugins.io",
    "lightning.fabric.strategies.deepspeed",
    "lightning.fabric.strategies.launchers",
)
ALLOWED_DESCRIPTION = "asyncdiff, datamodules and Lightning's callbacks, loggers, plugins, profilers and strategies"

_user_trusted: ContextVar[tuple[str, ...] | None] = ContextVar("user_trusted", default=None)


@contextmanager
def restrict_imports(argv: Sequence[str] = ()) -> Iterator[list[str]]:
    """Allow only trusted packages to be imported for values inside the context; yield argv without the option.

    A nested context adds its packages to those of the outer one.
    """
    rest, added = split_option(argv)
    trusted = (*(_user_trusted.get() or ()), *added)
    before = {name: parsing_settings[name] for name in ("import_path_verdicts", "import_paths_enforced")}
    set_parsing_settings(import_path_denylist=["*", *REFUSED], import_path_allowlist=[*ALLOWED, *trusted])
    token = _user_trusted.set(trusted)
    try:
        yield rest
    finally:
        _user_trusted.reset(token)
        parsing_settings.update(before)


def split_option(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split argv into the arguments without the option and the listed packages; raise ValueError for invalid names."""
    rest: list[str] = []
    packages: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") != OPTION:
            rest.append(argument)
            continue
        for package in (value if equals else next(arguments, "")).split(","):
            if not all(part.isidentifier() for part in package.split(".")) or package.startswith("jsonargparse"):
                raise ValueError(
                    f"{OPTION} must list packages, got {package or 'nothing'}: use mylab,other.networks, for example"
                )
            packages.append(package)
    return rest, packages


def user_trusted() -> tuple[str, ...]:
    """Return the additional packages that the command line allows."""
    return _user_trusted.get() or ()


def of_models() -> list[str]:
    """Return the packages whose classes a model in a checkpoint may have."""
    return ["asyncdiff", *user_trusted()]


def option_argv() -> list[str]:
    """Return the arguments that make a subprocess trust the same additional packages."""
    return [OPTION, ",".join(user_trusted())] if user_trusted() else []


def may_be_imported(path: str) -> bool:
    """Return whether a dotted path may be imported; outside `restrict_imports`, every path may."""
    if _user_trusted.get() is None:
        return True
    listed = {**dict.fromkeys(REFUSED, False), **dict.fromkeys([*ALLOWED, *user_trusted()], True)}
    parts = path.split(".")
    return next((listed[p] for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in listed), False)


def refusal_message(path: str) -> str:
    """Return the error message for a class path that is not allowed: the rule, the path and the remedy."""
    package, module = path.partition(".")[0], path.rpartition(".")[0]
    partly_allowed = any(known.partition(".")[0] == package for known in ALLOWED)
    trusted = module if partly_allowed else package
    return (
        f"must name a class of {ALLOWED_DESCRIPTION}, got {path}: if you trust its code, add {OPTION} {trusted or path}"
    )
