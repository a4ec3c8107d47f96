"""Where tuples are in plain containers: YAML knows lists only, and constructors may insist on what they were given."""

from collections.abc import Collection, Iterator
from typing import Any


def places(value: Any, at: str = "") -> Iterator[str]:
    """The places of all tuples in lists, tuples and dictionaries, as /key/0/key."""
    if isinstance(value, tuple):
        yield at
    if isinstance(value, (list, tuple, dict)):
        for key, item in _items(value):
            yield from places(item, f"{at}/{key}")


def restored(value: Any, tuples: Collection[str], at: str = "") -> Any:
    """The containers with tuples again in the given places."""
    if not isinstance(value, (list, tuple, dict)):
        return value
    items = {key: restored(item, tuples, f"{at}/{key}") for key, item in _items(value)}
    if isinstance(value, dict):
        return items
    return tuple(items.values()) if at in tuples else list(items.values())


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    yield from value.items() if isinstance(value, dict) else enumerate(value)
