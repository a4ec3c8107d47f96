"""Compare nested dicts, such as protocols and settings, by dotted keys."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MISSING = object()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two dicts differ, in the order of the first one.

    A list is compared as one value. A key that only one of them has counts as a difference.
    """
    return list(_differences(before, now, ""))


def value_at(content: Any, key: str) -> Any:
    """Return the value at a dotted key of nested dicts, None if it is missing; names may contain dots themselves."""
    if not isinstance(content, Mapping):
        return None
    if key in content:
        return content[key]
    heads = [key[:i] for i, letter in enumerate(key) if letter == "." and key[:i] in content]
    values = (value_at(content[head], key[len(head) + 1 :]) for head in heads)
    return next((value for value in values if value is not None), None)


def abbreviate(value: Any) -> str:
    """Return a value as text of at most 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _differences(before: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(before.get(key, _MISSING), now.get(key, _MISSING), f"{name}.{key}".lstrip("."))
    elif before is _MISSING or now is _MISSING or _json_value(before) != _json_value(now):
        yield name


def _json_value(value: Any) -> Any:
    """Return a value as JSON reads it back, with lists in place of tuples."""
    return json.loads(json.dumps(value, default=str))
