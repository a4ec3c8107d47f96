"""What tests of random maps share: statistics of draws, copies of objects, and the three noise processes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats

from asyncdiff.checkpoints import object_config
from asyncdiff.noise.processes import CosineVP, LinearVP, RectifiedFlow

every_process = pytest.mark.parametrize(
    "process", [RectifiedFlow(), CosineVP(), LinearVP()], ids=lambda p: type(p).__name__
)


def off(values: torch.Tensor, expected: float) -> float:
    """Largest distance of the means of `values` (n, ...) from their expectation, in standard errors."""
    values = values.double()
    error = values.std(0) / math.sqrt(len(values))
    return ((values.mean(0) - expected).abs() / error).max().item()


def p_value(values: torch.Tensor, cdf: str | Callable) -> float:
    """Smallest p-value of the Kolmogorov-Smirnov tests that the columns of `values` (n, ...) come from `cdf`."""
    columns = values.reshape(len(values), -1).T.numpy()
    return min(stats.kstest(column, cdf).pvalue for column in columns)


def rebuilt(thing: Any) -> Any:
    """Copy of an object, built from its description as in a checkpoint."""
    return object_config.build(object_config.describe(thing))


def grid_name(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"
