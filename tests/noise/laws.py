"""What tests of random maps share: statistics, rebuilt objects, refusals, denoisers and the noise processes."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats

from asyncdiff.checkpoints import object_config
from asyncdiff.denoising.denoiser import Prediction
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


class Stub:
    """Denoiser on 4x4 patches whose velocity and log-variance are functions of x_t and t."""

    process = RectifiedFlow()

    def __init__(self, v: Callable, logvar: Callable = lambda x_t, t: None, patches: tuple[int, int] = (4, 4)):
        self.v, self.logvar, self.patches = v, logvar, patches

    def grid(self, size):
        return self.patches

    def __call__(self, x_t, t, label=None):
        return Prediction(self.process, x_t, t, self.v(x_t, t), self.logvar(x_t, t))


def grid_name(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def refusals(cases: dict[str, Callable[[], object]]) -> Callable:
    """Test that every call raises a ValueError with the text that it is listed under."""

    @pytest.mark.parametrize("text", cases)
    def test(text):
        with pytest.raises(ValueError, match=re.escape(text)):
            cases[text]()

    return test
