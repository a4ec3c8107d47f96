"""Record which sequences are tuples: YAML only has lists, but constructors may require tuples."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any


def tuple_paths(value: Any, at: str = "") -> Iterator[str]:
    """Yield the paths of all tuples in nested lists, tuples and dictionaries, such as /key/0/key."""
    if isinstance(value, tuple):
        yield at
    for key, item in _items(value):
        yield from tuple_paths(item, f"{at}/{key}")


def restore_tuples(value: Any, tuples: Collection[str], at: str = "") -> Any:
    """Return a copy of nested containers in which the lists at the paths `tuples` are tuples again."""
    items = {key: restore_tuples(item, tuples, f"{at}/{key}") for key, item in _items(value)}
    if isinstance(value, (list, tuple)):
        return tuple(items.values()) if at in tuples else list(items.values())
    return items if isinstance(value, dict) else value


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()
