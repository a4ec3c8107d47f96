"""Which classes a file or a command line may name: importing a module runs its code, so others' modules need a word.

That word is `--allow-class-paths PACKAGE[,PACKAGE]` on the command line, and nowhere else: a file that could allow
itself would be no different from a program. Everything that jsonargparse imports for a value, be it a class path, a
short name, a function or a type, passes here before it is imported, and once more as what it turns out to be.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings

from asyncdiff.checkpoints.object_config import PROGRAMS

OPTION = "--allow-class-paths"
# What experiments are made of. PyTorch is not: it has functions that load and compile whatever they are given.
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
# Parts of these that run programs, call whatever they are given, or read checkpoints as pickles.
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
NAMED = "asyncdiff, datamodules and Lightning's callbacks, loggers, plugins, profilers and strategies"

_extra: ContextVar[tuple[str, ...] | None] = ContextVar("extra", default=None)


@contextmanager
def gate(words: Sequence[str] = ()) -> Iterator[list[str]]:
    """The words of a command line without the option; within, only what is allowed may be imported for a value.

    A gate inside of another one adds to what is allowed.
    """
    left, more = taken(words)
    extra = (*(_extra.get() or ()), *more)
    before = {name: parsing_settings[name] for name in ("import_path_verdicts", "import_paths_enforced")}
    set_parsing_settings(import_path_denylist=["*", *REFUSED], import_path_allowlist=[*ALLOWED, *extra])
    token = _extra.set(extra)
    try:
        yield left
    finally:
        _extra.reset(token)
        parsing_settings.update(before)


def taken(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without the option, and the packages that it names; ValueError where they are none."""
    left: list[str] = []
    packages: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name.replace("_", "-") != OPTION:
            left.append(word)
            continue
        for package in (value if equals else next(waiting, "")).split(","):
            if not all(part.isidentifier() for part in package.split(".")) or package.startswith("jsonargparse"):
                raise ValueError(f"{OPTION} must name packages, got {package or 'nothing'}: mylab,other.networks, say")
            packages.append(package)
    return left, packages


def extra() -> tuple[str, ...]:
    """The packages that the command line allows besides."""
    return _extra.get() or ()


def option() -> list[str]:
    """The words that give a further process of this command the same leave."""
    return [OPTION, ",".join(extra())] if extra() else []


def may_be_imported(path: str) -> bool:
    """Whether a dotted path lies in what is allowed; where no gate is open, nothing is refused."""
    if _extra.get() is None:
        return True
    listed = {**dict.fromkeys(REFUSED, False), **dict.fromkeys([*ALLOWED, *extra()], True)}
    parts = path.split(".")
    return next((listed[p] for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in listed), False)


def refusal(path: str) -> str:
    """What to tell of a class path that is not allowed: the rule, the path and the remedy."""
    package, module = path.partition(".")[0], path.rpartition(".")[0]
    ours = any(known.partition(".")[0] == package for known in ALLOWED)
    trusted = module if ours else package
    return f"must name a class of {NAMED}, got {path}: if you trust its code, add {OPTION} {trusted or path}"
