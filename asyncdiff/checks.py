"""Checks for numbers and labels; their one-line errors state the argument, the rule, the value and the remedy."""

import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

MAX_SEED = 2**32 - 1  # the largest seed of NumPy, and therefore of Lightning's seed_everything
MAX_INTEGER = 2**63 - 1  # the largest integer of a tensor
MAX_SIDE = 65_535  # pixels of a side of an image, as in JPEG files
MAX_GUIDANCE = 10**6  # scale of guidance; predictions times this fit into 32-bit floats
MAX_IMAGES = 10**7  # images that are evaluated or sampled together; a synthetic ImageNet has 1.3 million
MAX_SEEDS = 10**5  # seeds of one call that writes images; its record, which lists them, has a megabyte
MAX_STEPS = 2**23  # steps of one image; 32-bit levels between 0.5 and 1 of more steps would not differ
# Numbers of a process, by torchrun, Lightning, SLURM, LSF and MPI; the first one has 0, or none, in each of these.
RANKS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"),
    *("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"),
)


def at_least(name: str, value: Any, minimum: float, remedy: str, maximum: float | None = None) -> None:
    """Raise ValueError unless `value` is finite, at least `minimum`, and at most `maximum` if there is one."""
    check_number(name, value, remedy)
    if not value >= minimum:  # also rejects NaN
        raise ValueError(f"{name} must be at least {minimum}, got {value}: {remedy}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}: {remedy}")
    finite(name, value, remedy)


def positive(name: str, value: Any, remedy: str) -> None:
    """Raise ValueError unless `value` is finite and above 0."""
    check_number(name, value, remedy)
    if not value > 0:  # also rejects NaN
        raise ValueError(f"{name} must be positive, got {value}: {remedy}")
    finite(name, value, remedy)


def within(name: str, value: Any, low: float, high: float, remedy: str) -> None:
    """Raise ValueError unless low <= value <= high."""
    check_number(name, value, remedy)
    if not low <= value <= high:  # also rejects NaN
        raise ValueError(f"{name} must lie in [{low}, {high}], got {value}: {remedy}")


def below_one(name: str, value: Any, remedy: str) -> None:
    """Raise ValueError unless 0 <= value < 1."""
    check_number(name, value, remedy)
    if not 0 <= value < 1:  # also rejects NaN
        raise ValueError(f"{name} must lie in [0, 1), got {value}: {remedy}")


def finite(name: str, value: Any, remedy: str) -> None:
    """Raise ValueError unless `value` is a number of any sign, neither NaN nor infinite nor an integer of 64 bits."""
    check_number(name, value, remedy)
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}: {remedy}")
    if isinstance(value, Integral) and int(value) > MAX_INTEGER:
        raise ValueError(f"{name} must be below 2**63, got {value}: {remedy}")


def check_number(name: str, value: object, remedy: str) -> None:
    """Raise ValueError unless `value` is a number, or a tensor or array of one; True and False are not."""
    if isinstance(value, bool | str) or not (isinstance(value, Real) or getattr(value, "ndim", None) == 0):
        raise ValueError(f"{name} must be a number, got {'null' if value is None else repr(value)}: {remedy}")


def check_seeds(name: str, seeds: Iterable[Any]) -> None:
    """Raise ValueError unless all seeds lie in the one range that all seeds have, 0 .. 2**32 - 1."""
    ends = [*seeds[:1], *seeds[-1:]] if isinstance(seeds, range) else seeds
    for seed in ends:
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed <= MAX_SEED:
            value = "null" if seed is None else seed
            raise ValueError(f"{name} must be an integer from 0 to {MAX_SEED}, got {value}: use 0, for example")


def is_first_process() -> bool:
    """Return whether this is the first process of a run, or its only one; all run the same command."""
    return all(os.environ.get(name) in (None, "", "0") for name in RANKS)


def environment_integer(name: str) -> int:
    """Return the value of an environment variable that job managers set to a non-negative integer; 0 if it is unset."""
    text = os.environ.get(name) or "0"
    if not (text.isascii() and text.isdigit() and len(text) < len(str(MAX_INTEGER))):
        raise ValueError(f"the environment variable {name} must be a non-negative integer, got {text}: unset it")
    return int(text)


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
