"""Checks for constructor arguments; their one-line errors state the argument, the rule, the value and the remedy."""

import math
import os
from collections.abc import Sequence
from numbers import Integral, Real

MAX_SEED = 2**32 - 1  # the largest seed of NumPy, and therefore of Lightning's seed_everything
MAX_SIDE = 65_535  # the longest side of a JPEG file
# More processes than a few per core only wait; files written on a large machine also run on a small one.
MAX_WORKERS = max(64, 4 * (os.cpu_count() or 1))


def at_least(name: str, value: int, minimum: int, remedy: str, maximum: int = 2**63 - 1) -> None:
    """Raise ValueError unless an argument is an integer from `minimum` to `maximum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer, got {'null' if value is None else repr(value)}: {remedy}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}: {remedy}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}: {remedy}")


def positive(name: str, value: float, remedy: str) -> None:
    """Raise ValueError unless an argument is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:  # also rejects NaN
        raise ValueError(f"{name} must be positive and finite, got {'null' if value is None else value}: {remedy}")


def one_of(name: str, value: object, values: Sequence[object]) -> None:
    """Raise ValueError unless an argument has one of the values."""
    if value not in values:
        listed = f"{', '.join(map(str, values[:-1]))} or {values[-1]}"
        raise ValueError(f"{name} must be {listed}, got {value!r}: choose one of these")
