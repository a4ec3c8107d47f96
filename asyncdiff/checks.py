"""Refusals of arguments in one line: the argument, the rule, the value, the remedy."""

import math


def at_least(name: str, value: float, minimum: float, remedy: str) -> None:
    """Raise ValueError if `value` is below `minimum`, or not finite."""
    if value == math.inf:
        raise ValueError(f"{name} must be finite, got {value}: {remedy}")
    if not value >= minimum:  # NaN is refused, too
        raise ValueError(f"{name} must be at least {minimum}, got {value}: {remedy}")


def within(name: str, value: float, low: float, high: float, remedy: str) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], got {value}: {remedy}")
