"""One shard of `litdata.optimize`, mapped: samples in a row, or a table of Arrow's, as litdata writes flat dicts."""

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Decode = Callable[[bytearray], Any]


class Rows:
    """A mapped shard whose samples lie one after the other.

    Args:
        pages: its bytes, mapped.
        offsets: where samples begin and end, int64 (n + 1,).
        decode: litdata's function from the bytes of a sample.
    """

    def __init__(self, pages: memoryview, offsets: npt.NDArray[np.int64], decode: Decode) -> None:
        self.pages, self.offsets, self.decode = pages, offsets, decode

    def sample(self, place: int) -> dict[str, Any]:
        """The parts of a sample by name."""
        found = self.decode(bytearray(self.pages[int(self.offsets[place]) : int(self.offsets[place + 1])]))
        return dict(found) if isinstance(found, dict) else {str(i): part for i, part in enumerate(found)}


class Table:
    """A mapped shard whose samples are the rows of an Arrow table, as litdata writes flat dicts.

    Args:
        batches: parts of the table, whose cells are not copied before they are asked for.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches, self.ends = batches, np.cumsum([len(batch) for batch in batches])

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.ends[-1])

    def sample(self, place: int) -> dict[str, Any]:
        """The cells of a row by name."""
        number = int(np.searchsorted(self.ends, place, side="right"))
        batch = self.batches[number]
        first = int(self.ends[number]) - len(batch)
        row: dict[str, Any] = batch.slice(place - first, 1).to_pylist()[0]
        return row


def map_shard(descriptor: int, *, count: int, least: int, decode: Decode) -> Rows | Table:
    """The samples of an open file.

    Args:
        descriptor: the file's; may be closed afterwards.
        count: number of samples that the file should have.
        least: number of bytes that it should have at least.
        decode: litdata's function from the bytes of a sample.

    Raises:
        ValueError: it has other samples, in words that continue "FILE is damaged: ".
    """
    from litdata.streaming.item_loader import open_arrow_footer_reader

    size = os.fstat(descriptor).st_size
    if size < max(least, 4 * (count + 2)):
        raise ValueError(f"it has {size} of {least} bytes")
    pages = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    # A file begins with the number of samples, and where they begin and end, all uint32.
    header = np.frombuffer(pages, np.uint32, count + 2).astype(np.int64)
    if header[0] != count or header[1] < 4 * (count + 2) or (np.diff(header[1:]) < 0).any() or header[-1] > size:
        raise ValueError(f"it does not begin with the places of {count} samples")
    if (found := open_arrow_footer_reader(pages)) is None:
        return Rows(pages, header[1:], decode)
    arrow, in_parts = found
    table = Table([arrow.get_batch(i) for i in range(arrow.num_record_batches)] if in_parts else list(arrow))
    if len(table) != count:
        raise ValueError(f"it has {len(table)} of {count} samples")
    return table
