"""The examples in the docstrings of samplers and networks run and print what they say."""

import doctest
import importlib

import pytest

MODULES = ["networks.dit", "networks.unet", "sampling.adaptive", "sampling.samplers", "sampling.tiling"]


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    result = doctest.testmod(importlib.import_module(f"asyncdiff.{module}"))
    assert result.attempted
    assert not result.failed
