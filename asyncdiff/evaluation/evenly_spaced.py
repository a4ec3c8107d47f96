"""Select images that are spread evenly over a split."""


def evenly_spaced(total: int, count: int | None) -> list[int]:
    """Return the indices of `count` of `total` images, spread evenly; all indices if it is None or too large.

    Files are sorted by class, so the first ones would all belong to one class.
    """
    count = total if count is None else min(count, total)
    return [i * total // count for i in range(count)]
