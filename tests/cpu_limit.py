"""Limit of the processor time of tests that are not marked slow, counted so that a busy machine fails no test."""

import os
from collections.abc import Generator

import pytest


def processor_seconds() -> float:
    """Return the processor time of this process and of its finished children."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "processor seconds that a test without the marker slow may take; also the most of its setup"
    parser.addoption("--cpu-limit", type=float, metavar="SECONDS", help=help_text)


def _timed(item: pytest.Item, phase: str) -> Generator[None, object, object]:
    begin = processor_seconds()
    result = yield
    seconds = processor_seconds() - begin
    item.user_properties.append((f"{phase}_cpu_seconds", round(seconds, 2)))
    limit = item.config.getoption("--cpu-limit")
    if limit and seconds > limit and not item.get_closest_marker("slow"):
        pytest.fail(f"{phase} took {seconds:.1f} processor seconds, at most {limit:g}: make it cheaper or mark it slow")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _timed(item, "setup"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _timed(item, "call"))
