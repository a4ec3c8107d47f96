"""Follow a document: run its commands with fewer steps and images, or only parse them."""

import ast
import importlib
import inspect
import re
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import ROOT, Block, split_command
from workplace import SMALLER

from asyncdiff import __main__ as asyncdiff_main
from asyncdiff.cli import train as cli
from asyncdiff.cli.commands.shared.command_parser import CommandLine
from asyncdiff.cli.errors.suggestions import find_class
from asyncdiff.cli.jobs.encode_latents import expand_sections

# Options that make a command small; the last occurrence of an option takes effect.
SMALLER_BY_COMMAND = {
    "levels": ["--images", "64", "--no-gif"],
    "--likelihood": ["--images", "4", "--points", "2"],
    "--samples": ["--count", "20", "--reference_count", "60"],
    "texture": ["--size", "64x72"],
    "fit": SMALLER,
    "test": ["--trainer.limit_test_batches", "2", "--trainer.accelerator", "cpu"],
    "predict": ["--model.predict.count", "2", "--trainer.accelerator", "cpu"],
}
LAUNCHERS = ("torchrun", "srun")  # programs that start other programs
ENDLESS = ("serve",)


class Parsed(BaseException):
    """Raised when a command has parsed its options."""


def follow(line: str, *, needs: bool) -> str:
    """Run or check one command; return "run" or "checked"."""
    program, *words = split_command(line)
    if program == "asyncdiff":
        program, words = "python", ["-m", "asyncdiff", *words]
    if program == "python" and words[:2] == ["-m", "pip"]:
        program, words = "pip", words[2:]
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif program == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[0] == "install"
        own = [word for word in words[1:] if word.startswith(".")]  # this repository, with extras
        assert {extra for one in own for extra in re.findall(r"[a-z]+", one)} <= set(known), line
        others = set(words[1:]) - {"-e", *own}
        assert {re.split(r"[><=]", one)[0] for extra in known.values() for one in extra} >= others, line
    elif program == "python" and words[:2] == ["-m", "venv"]:
        assert words[2:] == ["venv", "&&", "source", "venv/bin/activate"], line
    elif program == "tensorboard":
        assert words[:-1] == ["--logdir"], line
    elif program == "cp":
        assert words[0] == "-r", line
        shutil.copytree(*words[1:])
        return "run"
    elif program in LAUNCHERS:
        parse(launched_program(words))
    elif program == "python" and words[0] == "-m" and words[1].startswith("benchmarks."):
        module = ROOT / words[1].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), line
    elif program == "python" and (needs or words[2] in ENDLESS):
        parse(words)
    elif program == "python":
        run(words)
        return "run"
    else:
        raise AssertionError(f"documents must not use the program {program}: {line}")
    return "checked"


def launched_program(words: list[str]) -> list[str]:
    """Return the arguments after those of the launcher, as they would follow `python`."""
    first = next(index for index, word in enumerate(words) if word in ("-m", "train.py"))
    return words[first:]


def run(words: list[str]) -> None:
    """Run the arguments of `python` with fewer steps and images; it must succeed."""
    words = make_smaller(words)
    with require_success(words):
        if words[0] == "train.py":
            cli.main(words[1:])
        else:
            asyncdiff_main.main(words[2:])


def make_smaller(words: list[str]) -> list[str]:
    """Append the options that make a command small, except if it only prints help."""
    if any(word.endswith(".help") for word in words):
        return words
    extra = [more for word, more in SMALLER_BY_COMMAND.items() if word in words]
    if words[1:2] == ["fit"] and "last" in words:
        extra.append(["--trainer.max_steps", "3"])  # one more than before
    return [*words, *(word for more in extra for word in more)]


@contextmanager
def require_success(words: list[str]) -> Iterator[None]:
    """Allow commands to exit, but only with code 0."""
    try:
        yield
    except SystemExit as stopped:
        if stopped.code:
            raise AssertionError(f"{words} exited with code {stopped.code}") from stopped


def parse(words: list[str]) -> None:
    """Parse the arguments of `python` and all files they name, including all class paths and arguments."""
    if words[0] == "train.py" or words[2] in asyncdiff_main.TRAINING:
        config = cli.parse_config(words[1:] if words[0] == "train.py" else words[2:])
        assert config["model"]["network"]["class_path"]
        return
    assert words[:2] == ["-m", "asyncdiff"], words

    def parse_and_stop(line: CommandLine) -> Any:
        argv = expand_sections(line.argv) if line.command == "cache-latents" else line.argv
        raise Parsed(line._parser(imports_classes=True).parse_args(list(argv)))

    with pytest.MonkeyPatch.context() as patched, suppress(Parsed):
        patched.setattr(CommandLine, "plain", property(parse_and_stop))  # what every command reads first
        asyncdiff_main.main(words[2:])
        raise AssertionError(f"{words} parsed nothing")


def follow_python(block: Block, names: dict[str, object]) -> str:
    """Run a block, or check that it compiles and calls its imports correctly; return "run" or "checked"."""
    code = compile("\n" * block.line + block.text, str(block.file), "exec")
    check_calls(ast.parse(block.text))
    if block.missing:
        return "checked"
    exec(code, names)
    return "run"


def check_calls(tree: ast.Module) -> None:
    """Check that imports work, and that calls of imported functions use existing argument names."""
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
        with suppress(ValueError):  # some C functions have no signature
            if found is not None:
                inspect.signature(found).bind_partial(**dict.fromkeys(filter(None, names)))


def check_yaml(block: Block) -> None:
    """Check that every class of a YAML block exists and takes the arguments; parse experiment sections as a layer."""
    content = yaml.safe_load(block.text)
    for class_path, arguments in classes(content):
        kind = find_class(class_path)
        assert kind is not None, f"{block}: {class_path}"
        assert set(arguments) <= set(inspect.signature(kind).parameters), f"{block}: {class_path} {arguments}"
    sections = {*content} if isinstance(content, dict) else set()
    if sections & {"model", "trainer"} and sections <= {"data", "model", "trainer", "vars"}:
        layer = Path("layer_of_a_document.yaml")
        layer.write_text(block.text)
        others = ["--allow-class-paths", "mine"] if "mine." in block.text else []  # a package of the reader
        base = str(ROOT / "experiments" / "digits_dit_async.yaml")
        cli.parse_config(["fit", "--config", base, "--config", str(layer), *others])


def classes(node: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield all class paths with their arguments, at any depth."""
    if isinstance(node, dict) and "class_path" in node:
        yield node["class_path"], node.get("init_args") or {}
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from classes(value)
