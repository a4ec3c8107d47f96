"""Memory-mapped shards of `litdata.optimize`: consecutive samples, or an Arrow table, as litdata writes dicts."""

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Decode = Callable[[bytearray], Any]


class Rows:
    """A memory-mapped shard of consecutive samples.

    Args:
        pages: mapped bytes of the shard.
        offsets: boundaries of the samples, int64 (n + 1,).
        decode: litdata's function that decodes the bytes of a sample.
    """

    def __init__(self, pages: memoryview, offsets: npt.NDArray[np.int64], decode: Decode) -> None:
        self.pages, self.offsets, self.decode = pages, offsets, decode

    def sample(self, index: int) -> dict[str, Any]:
        """Return the fields of a sample by name."""
        fields = self.decode(bytearray(self.pages[int(self.offsets[index]) : int(self.offsets[index + 1])]))
        return dict(fields) if isinstance(fields, dict) else {str(i): field for i, field in enumerate(fields)}


class Table:
    """A memory-mapped shard whose samples are the rows of an Arrow table, as litdata writes flat dicts.

    Args:
        batches: record batches of the table, whose cells are copied on access only.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches, self.ends = batches, np.cumsum([len(batch) for batch in batches])

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.ends[-1])

    def sample(self, index: int) -> dict[str, Any]:
        """Return the cells of a row by name."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        batch = self.batches[number]
        first = int(self.ends[number]) - len(batch)
        row: dict[str, Any] = batch.slice(index - first, 1).to_pylist()[0]
        return row


def map_shard(descriptor: int, *, count: int, min_bytes: int, decode: Decode) -> Rows | Table:
    """Map the samples of an open file.

    Args:
        descriptor: descriptor of the file; may be closed afterwards.
        count: expected number of samples.
        min_bytes: minimum size of the file.
        decode: litdata's function that decodes the bytes of a sample.

    Returns:
        The samples.

    Raises:
        ValueError: the file is damaged; the message continues "FILE is damaged: ".
    """
    from litdata.streaming.item_loader import open_arrow_footer_reader

    size = os.fstat(descriptor).st_size
    if size < max(min_bytes, 4 * (count + 2)):
        raise ValueError(f"it has {size} of {min_bytes} bytes")
    pages = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    # A file starts with the number of samples and their boundaries, all uint32.
    header = np.frombuffer(pages, np.uint32, count + 2).astype(np.int64)
    if header[0] != count or header[1] < 4 * (count + 2) or (np.diff(header[1:]) < 0).any() or header[-1] > size:
        raise ValueError(f"it does not start with the offsets of {count} samples")
    if (reader := open_arrow_footer_reader(pages)) is None:
        return Rows(pages, header[1:], decode)
    arrow, in_batches = reader
    table = Table([arrow.get_batch(i) for i in range(arrow.num_record_batches)] if in_batches else list(arrow))
    if len(table) != count:
        raise ValueError(f"it has {len(table)} of {count} samples")
    return table
