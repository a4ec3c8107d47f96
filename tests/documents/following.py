"""Doing what a document says: commands run, with fewer steps and images, or are read to their end."""

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import ROOT, Block, words_of
from workplace import SMALLER

from asyncdiff import __main__ as asyncdiff_main
from asyncdiff.cli import train as cli
from asyncdiff.cli.errors import ReportingParser
from asyncdiff.cli.errors.suggestions import find_class

# Words that make a command small; the last one of a kind counts.
FEWER = {
    "levels": ["--images", "64", "--no-gif"],
    "--likelihood": ["--images", "4", "--points", "2"],
    "--samples": ["--count", "20", "--reference_count", "60"],
    "texture": ["--size", "64x72"],
    "fit": SMALLER,
    "test": ["--trainer.limit_test_batches", "2", "--trainer.accelerator", "cpu"],
    "predict": ["--model.predict_count", "2", "--trainer.accelerator", "cpu"],
}
LAUNCHERS = ("torchrun", "srun")  # start processes of what follows
ENDLESS = ("serve",)


class Parsed(BaseException):
    """A command was read to its end."""


def follow(line: str, *, needs: bool) -> str:
    """Run or check one command; "run" or "checked"."""
    program, *words = words_of(line)
    if program == "asyncdiff":
        program, words = "python", ["-m", "asyncdiff", *words]
    if program == "python" and words[:2] == ["-m", "pip"]:
        program, words = "pip", words[2:]
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif program == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[0] == "install"
        ours = [word for word in words[1:] if word.startswith(".")]  # this repository, with extras
        assert {extra for one in ours for extra in re.findall(r"[a-z]+", one)} <= set(known), line
        others = set(words[1:]) - {"-e", *ours}
        assert {re.split(r"[><=]", one)[0] for extra in known.values() for one in extra} >= others, line
    elif program == "python" and words[:2] == ["-m", "venv"]:
        assert words[2:] == ["venv", "&&", "source", "venv/bin/activate"], line
    elif program in LAUNCHERS:
        read(launched(words))
    elif program == "python" and words[0] == "-m" and words[1].startswith("benchmarks."):
        assert (ROOT / words[1].replace(".", "/")).with_suffix(".py").is_file(), line
    elif program == "python" and (needs or words[2] in ENDLESS):
        read(words)
    elif program == "python":
        start(words)
        return "run"
    else:
        raise AssertionError(f"{program} is no program that documents may use: {line}")
    return "checked"


def launched(words: list[str]) -> list[str]:
    """What a launcher starts, as it would follow `python`."""
    first = next(place for place, word in enumerate(words) if word in ("-m", "train.py"))
    return words[first:]


def start(words: list[str]) -> None:
    """Run what follows `python`, made small; it must end well."""
    words = smaller(words)
    with ended_well(words):
        if words[0] == "train.py":
            cli.main(words[1:])
        else:
            asyncdiff_main.main(words[2:])


def smaller(words: list[str]) -> list[str]:
    """The words of a command with those that make it small."""
    extra = [more for word, more in FEWER.items() if word in words]
    if words[1:2] == ["fit"] and "last" in words:
        extra.append(["--trainer.max_steps", "3"])  # one more
    return [*words, *(word for more in extra for word in more)]


@contextmanager
def ended_well(words: list[str]) -> Iterator[None]:
    """Commands may end the interpreter, with success."""
    try:
        yield
    except SystemExit as stopped:
        if stopped.code:
            raise AssertionError(f"{words} ended with {stopped.code}") from stopped


def read(words: list[str]) -> None:
    """Read what follows `python`: every word and every file of it, to the class paths and arguments of the last."""
    if words[0] == "train.py" or words[2] in asyncdiff_main.TRAINING:
        config = cli.parse_config(words[1:] if words[0] == "train.py" else words[2:])
        assert config["model"]["network"]["class_path"]
        return
    assert words[:2] == ["-m", "asyncdiff"], words
    parse = ReportingParser.parse_args

    def parse_and_stop(self: ReportingParser, *args: Any, **how: Any) -> Any:
        options = parse(self, *args, **how)
        raise Parsed(options)

    with pytest.MonkeyPatch.context() as patched, suppress(Parsed):
        patched.setattr(ReportingParser, "parse_args", parse_and_stop)
        asyncdiff_main.main(words[2:])
        raise AssertionError(f"{words} read nothing")


def follow_python(block: Block, names: dict[str, object]) -> str:
    """Run a block, or check that it compiles and that what it imports can be called as it is; "run" or "checked"."""
    code = compile("\n" * block.line + block.text, str(block.file), "exec")
    check_calls(ast.parse(block.text))
    if block.missing:
        return "checked"
    exec(code, names)
    return "run"


def check_calls(tree: ast.Module) -> None:
    """Imports work, and calls of what is imported name arguments that there are."""
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            known |= {
                alias.name: getattr(importlib.import_module(str(node.module)), alias.name) for alias in node.names
            }
        elif isinstance(node, ast.Import):
            known |= {alias.name: importlib.import_module(alias.name) for alias in node.names if not alias.asname}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called, names = call.func, [word.arg for word in call.keywords]
        found = known.get(called.id) if isinstance(called, ast.Name) else None
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id in known:
            found = getattr(known[called.value.id], called.attr)
        with suppress(ValueError):  # some of C have no signature
            if found is not None:
                inspect.signature(found).bind_partial(**dict.fromkeys(filter(None, names)))


def check_yaml(block: Block) -> None:
    """Every class of a YAML block is there and takes the arguments; sections of an experiment are read as a layer."""
    held = yaml.safe_load(block.text)
    for class_path, arguments in classes(held):
        kind = find_class(class_path)
        assert kind is not None, f"{block}: {class_path}"
        assert set(arguments) <= set(inspect.signature(kind).parameters), f"{block}: {class_path} {arguments}"
    if isinstance(held, dict) and {*held} & {"model", "trainer"} and {*held} <= {"data", "model", "trainer", "vars"}:
        layer = Path("layer_of_a_document.yaml")
        layer.write_text(block.text)
        others = ["--allow-class-paths", "mine"] if "mine." in block.text else []  # the package of a reader
        base = str(ROOT / "experiments" / "digits_dit_async.yaml")
        cli.parse_config(["fit", "--config", base, "--config", str(layer), *others])


def classes(held: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    """Class paths with their arguments, at any depth."""
    if isinstance(held, dict) and "class_path" in held:
        yield held["class_path"], held.get("init_args") or {}
    for value in held.values() if isinstance(held, dict) else held if isinstance(held, list) else ():
        yield from classes(value)
