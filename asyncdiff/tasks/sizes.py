"""Sizes of photos in command lines and files, and how photos are fitted to them. Imports no torch."""

from collections.abc import Sequence
from typing import Literal

Fit = Literal["crop", "resize", "keep"]


def parse_size(name: str, text: str) -> tuple[int, int]:
    """Parse a size HEIGHTxWIDTH, such as 64x96; a single number means a square."""
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"{name} must be HEIGHTxWIDTH in pixels, got {text}: use 64x96, for example")
    return int(numbers[0]), int(numbers[-1])


def format_size(size: Sequence[int]) -> str:
    """Format a size as HEIGHTxWIDTH."""
    return "x".join(map(str, size))


def check_fit(fit: str, size: str | None) -> None:
    """Raise ValueError if `fit` is not a valid name, or if `size` is given although `fit` ignores it."""
    if fit not in ("crop", "resize", "keep"):
        raise ValueError(f"fit must be crop, resize or keep, got {fit}: use crop, for example")
    if fit == "keep" and size is not None:
        raise ValueError(f"size cannot be combined with fit='keep', got {size}: omit size, or use fit='crop'")
