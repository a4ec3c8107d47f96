"""The pages of an LMDB file, looked at without LMDB: it maps the file and follows whatever numbers stand in it.

A damaged page would end the process by a signal, with no word about the file. So all branches and leaves are checked
once, when the keys are indexed, and the beginning of the file every time that it is opened. Values have no checksums:
a flipped bit in one is left to what decodes it.

Layout (lmdb 0.9, 64 bits, little-endian): a page is number u64, pad u16, flags u16, lower u16, upper u16, then places
of nodes u16 up to `lower`; a node is low u16, high u16, flags u16, key's length u16, the key and what it stands for.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

PAGE = struct.Struct("<QHHHH")
META = struct.Struct("<IIQQ")  # magic, version, address, bytes of the map
TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branches, leaves, overflow pages, entries, root
LAST = struct.Struct("<QQ")  # the last page in use, and the number of the transaction
NODE = struct.Struct("<HHHH")
MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, BEGINNING = 1, 2, 8  # flags of pages
BIG = 1  # flag of a node whose value has pages of its own
NONE = (1 << 64) - 1
MAX_DEPTH = 32  # LMDB's own bound


class Beginning(NamedTuple):
    """What the newer one of the two first pages says."""

    page: int
    last: int
    root: int
    depth: int
    entries: int


def beginning(file: Path) -> Beginning:
    """The first pages of a file, checked; ValueError in words that continue "FILE cannot be read: "."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        page, first = _meta(stream, 0)
        other, second = _meta(stream, page)
    if page != other or page.bit_count() != 1 or not 512 <= page <= 1 << 16:
        raise ValueError("its two beginnings differ")
    _, last, tree, free = max(first, second)
    if (last + 1) * page > size:
        raise ValueError(f"it must have {(last + 1) * page} bytes, got {size}: it is cut off")
    for one in (tree, free):
        depth, root = one[2], one[-1]
        if depth > MAX_DEPTH or (root != NONE and root > last):
            raise ValueError("its beginning is damaged")
    if tree[1]:
        raise ValueError("it holds several values under a key, or keys of another order")
    return Beginning(page, last, tree[-1], tree[2], tree[-2])


Meta = tuple[int, int, tuple[int, ...], tuple[int, ...]]  # transaction, last page, tree of the data, tree of free pages


def _meta(stream: BinaryIO, at: int) -> tuple[int, Meta]:
    """The size of a page, and what one of the first two says."""
    stream.seek(at)
    data = stream.read(PAGE.size + META.size + 2 * TREE.size + LAST.size)
    if len(data) < PAGE.size + META.size + 2 * TREE.size + LAST.size:
        raise ValueError("it is too short")
    flags = PAGE.unpack_from(data)[2]
    magic, version, _, _ = META.unpack_from(data, PAGE.size)
    if magic != MAGIC or version != VERSION or not flags & BEGINNING:
        raise ValueError("it is no LMDB file of this version")
    start = PAGE.size + META.size
    free, tree = TREE.unpack_from(data, start), TREE.unpack_from(data, start + TREE.size)
    last, transaction = LAST.unpack_from(data, start + 2 * TREE.size)
    return free[0], (transaction, last, tree, free)


def checked_keys(file: Path) -> Iterator[bytes]:
    """All keys of a file in their order, its branches and leaves checked; ValueError as in `beginning`."""
    start, size = beginning(file), file.stat().st_size
    if start.root == NONE:
        return
    found, before = 0, b""
    with file.open("rb") as stream:
        for key in _below(stream, start, start.root, start.depth, size, set()):
            if found and key <= before:
                raise ValueError("its keys are out of order")
            found, before = found + 1, key
            yield key
    if found != start.entries:
        raise ValueError(f"it must hold {start.entries} keys, got {found}")


def _below(stream: BinaryIO, start: Beginning, number: int, depth: int, size: int, seen: set[int]) -> Iterator[bytes]:
    """The keys below a page that is so many levels above the values."""
    if not 2 <= number <= start.last or number in seen or depth < 1:
        raise ValueError(f"its tree is damaged at page {number}")
    seen.add(number)
    stream.seek(number * start.page)
    data = stream.read(start.page)
    own, _, flags, lower, upper = PAGE.unpack_from(data)
    if own != number or flags != (LEAF if depth == 1 else BRANCH) or not PAGE.size <= lower <= upper <= start.page:
        raise ValueError(f"its page {number} is damaged")
    for (place,) in struct.iter_unpack("<H", data[PAGE.size : lower - lower % 2]):
        if not upper <= place <= start.page - NODE.size:
            raise ValueError(f"its page {number} is damaged")
        low, high, kind, length = NODE.unpack_from(data, place)
        key = data[place + NODE.size : place + NODE.size + length]
        after = place + NODE.size + length
        if depth > 1:
            if after > start.page:
                raise ValueError(f"its page {number} is damaged")
            yield from _below(stream, start, low | high << 16 | kind << 32, depth - 1, size, seen)
            continue
        bytes_of_value = low | high << 16
        end = after + (8 if kind == BIG else bytes_of_value)
        if kind not in (0, BIG) or end > start.page or not length:
            raise ValueError(f"its page {number} is damaged")
        if kind == BIG:
            elsewhere = int.from_bytes(data[after:end], "little")
            if not 2 <= elsewhere <= start.last or elsewhere * start.page + PAGE.size + bytes_of_value > size:
                raise ValueError(f"its page {number} is damaged")
        yield key
