"""Every public method has a docstring or overrides a documented one, and the examples in docstrings run."""

import ast
import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncdiff
import datamodules


def classes() -> Iterator[type]:
    for package in (asyncdiff, datamodules):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.startswith("asyncdiff.web"):  # needs gradio
                continue
            for kind in vars(importlib.import_module(module.name)).values():
                if isinstance(kind, type) and kind.__module__ == module.name and not kind.__name__.startswith("_"):
                    yield kind


@pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_public_methods_are_documented_where_they_are_first_declared(kind):
    for name, member in vars(kind).items():
        method = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        is_method = inspect.isfunction(method) and method.__name__ != "<lambda>"  # a lambda is a default of a dataclass
        if name.startswith("_") or not (is_method or isinstance(member, property)):
            continue
        overridden = any(name in vars(base) for base in kind.__mro__[1:])
        assert method is None or method.__doc__ or overridden, name


ROOT = Path(asyncdiff.__file__).parents[1]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def examples() -> Iterator[doctest.DocTest]:
    """Parse the examples from the source: at run time, type-checked functions hide their docstrings from doctest."""
    for file in sorted(file for package in ("asyncdiff", "datamodules") for file in (ROOT / package).rglob("*.py")):
        if ">>>" not in (source := file.read_text()):
            continue
        dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, DOCUMENTED) and ">>>" in (docstring := ast.get_docstring(node) or ""):
                name = f"{dotted}.{getattr(node, 'name', '__doc__')}"
                variables = dict(vars(importlib.import_module(dotted)))
                yield doctest.DocTestParser().get_doctest(docstring, variables, name, str(file), 0)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_examples_in_docstrings_run(example):
    printed: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
    assert results.attempted
    assert not results.failed, "".join(printed)
