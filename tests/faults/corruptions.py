"""Damage to the bytes of a file, drawn by a seed: what disks, networks and interrupted programs do."""

import random
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]


def bit(data: bytes, choose: random.Random) -> bytes:
    """One bit flipped."""
    at = choose.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << choose.randrange(8)]) + data[at + 1 :]


def bits(data: bytes, choose: random.Random) -> bytes:
    """A byte of a hundred replaced, at least two."""
    changed = bytearray(data)
    for _ in range(max(2, len(data) // 100)):
        changed[choose.randrange(len(data))] = choose.randrange(256)
    return bytes(changed)


def beginning(data: bytes, choose: random.Random) -> bytes:
    """One of the first 64 bytes replaced: there are headers."""
    at = choose.randrange(min(64, len(data)))
    return data[:at] + bytes([choose.randrange(256)]) + data[at + 1 :]


def cut(data: bytes, choose: random.Random) -> bytes:
    """Cut off at any place."""
    return data[: choose.randrange(len(data))]


def zeros(data: bytes, choose: random.Random) -> bytes:
    """A run of zeros, as of blocks that were never written."""
    at = choose.randrange(len(data))
    length = min(choose.choice([16, 512, 4096]), len(data) - at)
    return data[:at] + bytes(length) + data[at + length :]


def swapped(data: bytes, choose: random.Random) -> bytes:
    """Two blocks in each other's place."""
    size = max(1, min(512, len(data) // 4))
    one = choose.randrange(0, len(data) // 2 - size + 1)
    two = choose.randrange(len(data) // 2, len(data) - size + 1)
    middle = data[one + size : two]
    return data[:one] + data[two : two + size] + middle + data[one : one + size] + data[two + size :]


def appended(data: bytes, choose: random.Random) -> bytes:
    """Bytes of something else behind it."""
    return data + choose.randbytes(choose.choice([1, 100, 5000]))


def other(data: bytes, choose: random.Random) -> bytes:
    """Another kind of file under its name."""
    return choose.choice([b"", b"<html>404 Not Found</html>", choose.randbytes(300), bytes(len(data)), b"{}", b"[]"])


ALL: tuple[Damage, ...] = (bit, bits, beginning, cut, zeros, swapped, appended, other)
