"""Bounds on nested containers from files, which are checked before anything calls itself for each of them."""

from typing import Any

MAX_DEPTH = 100  # containers in containers; real object configs have about 10
MAX_VALUES = 2**18  # as many as fit into the largest YAML file; real object configs have some hundred


def check_extent(value: Any, name: str) -> None:
    """Raise ValueError if nested dicts, lists and tuples have too many values or are too deep.

    Values that are contained several times count several times, as every reader visits them.

    Args:
        value: contents of a file.
        name: what it is, with the file if it is known, for the message.
    """
    waiting, count = [(value, 0)], 1
    while waiting:
        item, depth = waiting.pop()
        if not isinstance(item, dict | list | tuple):
            continue
        count += len(item)
        if depth >= MAX_DEPTH or count > MAX_VALUES:
            rule = f"be nested at most {MAX_DEPTH} deep" if depth >= MAX_DEPTH else f"have at most {MAX_VALUES} values"
            raise ValueError(f"{name} must {rule}, got more: do not use this file, it may be malicious")
        waiting += [(below, depth + 1) for below in (item.values() if isinstance(item, dict) else item)]
