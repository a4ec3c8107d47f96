"""Every public method has a docstring, or overrides one that has."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

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


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_public_methods_are_documented_where_they_are_first_declared(kind):
    for name, member in vars(kind).items():
        method = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if name.startswith("_") or not (inspect.isfunction(method) or isinstance(member, property)):
            continue
        overridden = any(name in vars(base) for base in kind.__mro__[1:])
        assert method is None or method.__doc__ or overridden, name
