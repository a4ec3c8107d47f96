"""Validation of the pages of an LMDB file without LMDB, which maps the file and follows any offset in it.

A damaged page would kill the process by a signal, without a message that names the file. Therefore all branch and leaf
pages are checked once, when the keys are indexed, and the meta pages every time the file is opened. Values have no
checksums: a flipped bit in a value is left to its decoder.

Layout (lmdb 0.9, 64 bits, little-endian): a page is number u64, pad u16, flags u16, lower u16, upper u16, then node
offsets u16 up to `lower`; a node is low u16, high u16, flags u16, key length u16, the key, and the value or page.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

PAGE = struct.Struct("<QHHHH")
META = struct.Struct("<IIQQ")  # magic, version, address, size of the map
TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branches, leaves, overflow pages, entries, root
LAST = struct.Struct("<QQ")  # last page in use, and number of the transaction
NODE = struct.Struct("<HHHH")
MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, META_PAGE = 1, 2, 8  # page flags
BIG = 1  # flag of a node whose value is on separate pages
NONE = (1 << 64) - 1
MAX_DEPTH = 32  # limit of LMDB


class FileHeader(NamedTuple):
    """Content of the newer of the two meta pages.

    Attributes:
        page: bytes of a page.
        last: number of the last page in use.
        root: number of the root page of the tree.
        depth: levels of the tree.
        entries: number of keys.
    """

    page: int
    last: int
    root: int
    depth: int
    entries: int


def read_file_header(file: Path) -> FileHeader:
    """Read and check the meta pages of a file; raise a ValueError that continues "FILE cannot be read: "."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        page, first = _read_meta_page(stream, 0)
        other, second = _read_meta_page(stream, page)
    if page != other or page.bit_count() != 1 or not 512 <= page <= 1 << 16:
        raise ValueError("its two meta pages differ")
    _, last, tree, free = max(first, second)
    if (last + 1) * page > size:
        raise ValueError(f"it must have {(last + 1) * page} bytes, got {size}: it is truncated")
    for record in (tree, free):
        depth, root = record[2], record[-1]
        if depth > MAX_DEPTH or (root != NONE and root > last):
            raise ValueError("its meta page is damaged")
    if tree[1]:
        raise ValueError("it has several values per key, or another key order")
    return FileHeader(page, last, tree[-1], tree[2], tree[-2])


MetaPage = tuple[int, int, tuple[int, ...], tuple[int, ...]]  # transaction, last page, data tree, tree of free pages


def _read_meta_page(stream: BinaryIO, offset: int) -> tuple[int, MetaPage]:
    """Return the page size and the content of the meta page at an offset."""
    stream.seek(offset)
    data = stream.read(PAGE.size + META.size + 2 * TREE.size + LAST.size)
    if len(data) < PAGE.size + META.size + 2 * TREE.size + LAST.size:
        raise ValueError("it is too short")
    flags = PAGE.unpack_from(data)[2]
    magic, version, _, _ = META.unpack_from(data, PAGE.size)
    if magic != MAGIC or version != VERSION or not flags & META_PAGE:
        raise ValueError("it is not an LMDB file of this version")
    start = PAGE.size + META.size
    free, tree = TREE.unpack_from(data, start), TREE.unpack_from(data, start + TREE.size)
    last, transaction = LAST.unpack_from(data, start + 2 * TREE.size)
    return free[0], (transaction, last, tree, free)


def checked_keys(file: Path) -> Iterator[bytes]:
    """Yield all keys of a file in order, checking its branches and leaves; ValueError as in `read_file_header`."""
    header, size = read_file_header(file), file.stat().st_size
    if header.root == NONE:
        return
    count, previous = 0, b""
    with file.open("rb") as stream:
        for key in _keys_below(stream, header, header.root, header.depth, size, set()):
            if count and key <= previous:
                raise ValueError("its keys are out of order")
            count, previous = count + 1, key
            yield key
    if count != header.entries:
        raise ValueError(f"it must hold {header.entries} keys, got {count}")


def _keys_below(
    stream: BinaryIO, header: FileHeader, number: int, depth: int, size: int, seen: set[int]
) -> Iterator[bytes]:
    """Yield the keys below a page at `depth` levels above the values."""
    if not 2 <= number <= header.last or number in seen or depth < 1:
        raise ValueError(f"its tree is damaged at page {number}")
    seen.add(number)
    stream.seek(number * header.page)
    data = stream.read(header.page)
    own, _, flags, lower, upper = PAGE.unpack_from(data)
    if own != number or flags != (LEAF if depth == 1 else BRANCH) or not PAGE.size <= lower <= upper <= header.page:
        raise ValueError(f"its page {number} is damaged")
    for (offset,) in struct.iter_unpack("<H", data[PAGE.size : lower - lower % 2]):
        if not upper <= offset <= header.page - NODE.size:
            raise ValueError(f"its page {number} is damaged")
        low, high, kind, length = NODE.unpack_from(data, offset)
        key = data[offset + NODE.size : offset + NODE.size + length]
        after = offset + NODE.size + length
        if depth > 1:
            if after > header.page:
                raise ValueError(f"its page {number} is damaged")
            yield from _keys_below(stream, header, low | high << 16 | kind << 32, depth - 1, size, seen)
            continue
        bytes_of_value = low | high << 16
        end = after + (8 if kind == BIG else bytes_of_value)
        if kind not in (0, BIG) or end > header.page or not length:
            raise ValueError(f"its page {number} is damaged")
        if kind == BIG:
            page = int.from_bytes(data[after:end], "little")
            if not 2 <= page <= header.last or page * header.page + PAGE.size + bytes_of_value > size:
                raise ValueError(f"its page {number} is damaged")
        yield key
