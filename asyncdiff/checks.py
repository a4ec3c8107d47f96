"""Checks for numbers and labels; their one-line errors state the argument, the rule, the value and the remedy."""

import math
from collections.abc import Sequence


def at_least(name: str, value: float, minimum: float, remedy: str) -> None:
    """Raise ValueError unless `value` is finite and at least `minimum`."""
    if value == math.inf:
        raise ValueError(f"{name} must be finite, got {value}: {remedy}")
    if not value >= minimum:  # also rejects NaN
        raise ValueError(f"{name} must be at least {minimum}, got {value}: {remedy}")


def positive(name: str, value: float, remedy: str) -> None:
    """Raise ValueError unless `value` is above 0."""
    if not value > 0:  # also rejects NaN
        raise ValueError(f"{name} must be positive, got {value}: {remedy}")


def within(name: str, value: float, low: float, high: float, remedy: str) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:  # also rejects NaN
        raise ValueError(f"{name} must lie in [{low}, {high}], got {value}: {remedy}")


def below_one(name: str, value: float, remedy: str) -> None:
    """Raise ValueError unless 0 <= value < 1."""
    if not 0 <= value < 1:  # also rejects NaN
        raise ValueError(f"{name} must lie in [0, 1), got {value}: {remedy}")


def check_labels(labels: Sequence[int] | None, classes: int) -> None:
    """Raise ValueError unless the labels are classes of a model; None means no labels."""
    if labels is None:
        return
    if not classes:
        raise ValueError(
            f"labels need a model trained with classes, got {list(labels)} for an unconditional one: omit labels"
        )
    if invalid := [label for label in labels if not 0 <= int(label) < classes]:
        raise ValueError(f"labels must lie in 0 .. {classes - 1}, got {invalid[0]}")
