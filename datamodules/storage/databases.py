"""Values in LMDB files, read in place; LMDB itself maps the file, so a damaged page would kill the process.

Layout (lmdb 0.9, 64 bits, little-endian): a page is number u64, pad u16, flags u16, lower u16, upper u16, then node
offsets u16 up to `lower`; a node is low u16, high u16, flags u16, key length u16, the key, and the value or page.
Values have no checksums: a flipped bit in a value is left to its decoder.
"""

import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datamodules.hash_split import hash_fractions
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint
from datamodules.regular_files import open_regular

# Magic number, version, size of a page; flags, depth, entries and root page of the tree; last page, transaction.
META = struct.Struct("<16xII16xI48xHH24xQQQQ")
PAGE = struct.Struct("<Q2xHH2x")  # number, flags, lower
NODE = struct.Struct("<HHHH")
MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF = 1, 2  # flags of pages
BIG = 1  # flag of a node whose value is on separate pages
MAX_DEPTH = 32  # limit of LMDB


def database_index(file: Path) -> Arrays:
    """Return where the values of a data.mdb are, in the order of their keys, from its pages or from the cache.

    Args:
        file: path of the data.mdb.

    Returns:
        `names`, the keys in hexadecimal, bytes (n,); `places`, offset and size of each value, int64 (n, 2); and
        `shares`, the hash fractions of the names, (n,).

    Raises:
        ValueError: the file is not an LMDB file, or is damaged or truncated.
    """
    return cached_arrays("lmdb", file_fingerprint(file), lambda: _build_index(file))


def _build_index(file: Path) -> Arrays:
    try:
        with open_regular(file, buffering=0) as stream:
            keys, places = [], array("q")  # a list of pairs would take 400 MB for LSUN's bedrooms
            for key, *place in _values(stream):
                keys.append(key)
                places.extend(place)
    except (ValueError, OSError, OverflowError, struct.error) as error:
        raise ValueError(f"{file} cannot be read as an LMDB file: {error}; copy or extract it again") from error
    width = max(map(len, keys), default=1)
    return {
        "names": np.fromiter((key.hex() for key in keys), f"S{2 * width}", len(keys)),
        "places": np.array(places, dtype=np.int64).reshape(-1, 2),
        "shares": hash_fractions(key.hex() for key in keys),
    }


def _values(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield key, offset and size of all values, in the order of the keys."""
    one = META.unpack(stream.read(META.size))
    stream.seek(one[2])
    other = META.unpack(stream.read(META.size))
    _, _, page, flags, depth, entries, root, last, _ = max(one, other, key=lambda meta: meta[-1])
    if not one[:3] == other[:3] == (MAGIC, VERSION, page):
        raise ValueError("it is not an LMDB file of this version")
    if flags:
        raise ValueError("it has several values per key, or another key order")
    size = os.fstat(stream.fileno()).st_size
    if (last + 1) * page > size:
        raise ValueError(f"it must have {(last + 1) * page} bytes, got {size}: it is truncated")
    count, previous = 0, b""
    for key, offset, length in _values_below(stream, page, root, depth) if entries else ():
        if key <= previous or offset + length > size:
            raise ValueError(f"its value of key {key.hex()} is damaged")
        count, previous = count + 1, key
        yield key, offset, length
    if count != entries:
        raise ValueError(f"it must hold {entries} keys, got {count}")


def _values_below(stream: BinaryIO, size: int, number: int, depth: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield key, offset and size of the values below a page of `size` bytes, `depth` levels above the values."""
    begin = number * size
    data = os.pread(stream.fileno(), size, begin)
    own, flags, lower = PAGE.unpack_from(data)
    # A page without nodes would make cycles of pages endless: keys that do not rise end all others.
    if own != number or flags != (LEAF if depth == 1 else BRANCH) or not 1 <= depth <= MAX_DEPTH or lower <= PAGE.size:
        raise ValueError(f"its page {number} is damaged")
    for (offset,) in struct.iter_unpack("<H", data[PAGE.size : lower]):
        low, high, kind, length = NODE.unpack_from(data, offset)
        value = offset + NODE.size + length
        if depth > 1:
            yield from _values_below(stream, size, low | high << 16 | kind << 32, depth - 1)
        elif kind == BIG:
            (page,) = struct.unpack_from("<Q", data, value)
            yield data[offset + NODE.size : value], page * size + PAGE.size, low | high << 16
        elif kind or value + (low | high << 16) > size:
            raise ValueError(f"its page {number} is damaged")
        else:
            yield data[offset + NODE.size : value], begin + value, low | high << 16
