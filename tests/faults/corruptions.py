"""Random damage to the bytes of a file, as caused by disks, networks and interrupted programs."""

import random
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]


def bit(data: bytes, choose: random.Random) -> bytes:
    """Flip one bit."""
    at = choose.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << choose.randrange(8)]) + data[at + 1 :]


def bits(data: bytes, choose: random.Random) -> bytes:
    """Replace one percent of the bytes, at least two."""
    changed = bytearray(data)
    for _ in range(max(2, len(data) // 100)):
        changed[choose.randrange(len(data))] = choose.randrange(256)
    return bytes(changed)


def header(data: bytes, choose: random.Random) -> bytes:
    """Replace one of the first 64 bytes, where headers are."""
    at = choose.randrange(min(64, len(data)))
    return data[:at] + bytes([choose.randrange(256)]) + data[at + 1 :]


def truncated(data: bytes, choose: random.Random) -> bytes:
    """Truncate at a random position."""
    return data[: choose.randrange(len(data))]


def zeros(data: bytes, choose: random.Random) -> bytes:
    """Overwrite a range with zeros, like blocks that were never written."""
    at = choose.randrange(len(data))
    length = min(choose.choice([16, 512, 4096]), len(data) - at)
    return data[:at] + bytes(length) + data[at + length :]


def swapped(data: bytes, choose: random.Random) -> bytes:
    """Swap two blocks."""
    size = max(1, min(512, len(data) // 4))
    one = choose.randrange(0, len(data) // 2 - size + 1)
    two = choose.randrange(len(data) // 2, len(data) - size + 1)
    middle = data[one + size : two]
    return data[:one] + data[two : two + size] + middle + data[one : one + size] + data[two + size :]


def appended(data: bytes, choose: random.Random) -> bytes:
    """Append random bytes."""
    return data + choose.randbytes(choose.choice([1, 100, 5000]))


def replaced(data: bytes, choose: random.Random) -> bytes:
    """Replace the content by that of another kind of file."""
    return choose.choice([b"", b"<html>404 Not Found</html>", choose.randbytes(300), bytes(len(data)), b"{}", b"[]"])


ALL: tuple[Damage, ...] = (bit, bits, header, truncated, zeros, swapped, appended, replaced)
