"""Shards of `litdata.optimize`, downloaded whole when one of their samples is needed, and memory-mapped.

litdata reads its index, downloads shards from storage and decodes samples. Its own loader is not used, because its
order depends on the number of workers; here samples are read one by one, in the order of `datamodules.order`.
"""

import hashlib
import json
import mmap
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.index_cache import cache_folder
from datamodules.order import WINDOW
from datamodules.regular_files import check_regular, is_present, open_regular
from datamodules.storage.columns import one_line

STORAGES = ("s3://", "gs://", "r2://", "azure://", "local:")
LIVE = WINDOW + 4  # shards that one process reads from at a time, and a few more
TIMEOUT = 600.0  # seconds to wait for a shard that another process downloads

ReadSample = Callable[[int], dict[str, Any]]  # from an index in a shard to the fields of the sample by name


class Field(NamedTuple):
    """Field of a sample.

    Attributes:
        name: name of the field; fields of tuples are named "0", "1", ... .
        kind: litdata's name of its data format.
    """

    name: str
    kind: str


class Shards:
    """Samples of the shards below `root`, readable in any order.

    Args:
        root: a folder, read in place, or an address in storage: s3://, gs://, r2://, azure://, or local: for another
            file system whose files are copied.
        folder: folder for downloaded shards; None uses a folder per address in the index cache.
        limit: bytes in that folder above which the least recently used shards are deleted; None keeps all.
        options: options of the storage, as litdata's `storage_options`.

    Attributes:
        sizes: number of samples of every shard, int64 (m,).
        fields: fields of a sample by name; "0", "1", ... for tuples and lists.

    Raises:
        ImportError: litdata is not installed.
        FileNotFoundError: there is no index.
        ValueError: the index is invalid, or the shards are compressed or encrypted.
    """

    def __init__(
        self,
        root: str,
        *,
        folder: Path | None = None,
        limit: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.root, self.limit, self.options = root, limit, None if options is None else dict(options)
        self.remote = root.startswith(STORAGES)
        if "://" in root and not self.remote:
            raise ValueError(
                f"root must be a folder or begin with one of {', '.join(STORAGES)}, got {root}: correct the address"
            )
        own = cache_folder() / f"shards-{hashlib.sha256(root.encode()).hexdigest()[:24]}"
        self.folder = (folder or own) if self.remote else Path(root).expanduser()
        self._litdata: tuple[int, Any, Any] | None = None  # process ID, litdata's configuration and its sample reader
        self._maps: OrderedDict[int, ReadSample] = OrderedDict()
        config, _ = self._of_process()
        index = json.loads((self.folder / "index.json").read_text())
        _check_inside(index, root)
        self.files = [self.folder / str(chunk["filename"]) for chunk in index["chunks"]]
        self.bytes = np.array([chunk["chunk_bytes"] for chunk in index["chunks"]], np.int64)
        self.sizes = np.array([chunk["chunk_size"] for chunk in index["chunks"]], np.int64)
        self.ends = np.cumsum(self.sizes)
        self.fields = _fields(config.data_format_unflattened, root)
        self._check(index["config"])

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the open files of this process."""
        return {**self.__dict__, "_litdata": None, "_maps": OrderedDict()}

    def locate(self, index: int) -> tuple[int, int]:
        """Return the shard of a sample and its index in the shard."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - int(self.ends[shard] - self.sizes[shard])

    def name(self, index: int) -> str:
        """Return what identifies a sample to a user: the file name of the shard and the index in it."""
        shard, index_in_shard = self.locate(index)
        return f"{self.files[shard].name} sample {index_in_shard}"

    def fingerprint(self) -> str:
        """Return a hash of the names and sizes of the shards."""
        text = json.dumps([[f.name for f in self.files], self.bytes.tolist(), self.sizes.tolist()])
        return hashlib.sha256(text.encode()).hexdigest()

    def require(self, indices: Iterable[int]) -> None:
        """Download and map the shards of these samples; ValueError names a shard that is unavailable or damaged."""
        for shard in sorted({self.locate(index)[0] for index in indices}):
            self._map(shard)

    def sample(self, index: int) -> dict[str, Any]:
        """Return the fields of a sample by name, decoded by litdata except for images, which stay encoded."""
        shard, index_in_shard = self.locate(index)
        return self._map(shard)(index_in_shard)

    def _map(self, shard: int) -> ReadSample:
        """Return the reader of the mapped shard, from the open maps if possible."""
        self._of_process()  # drops the maps of the parent in a forked process
        if shard not in self._maps:
            self._maps[shard] = self._download_and_map(shard)
            # A deleted file occupies the disk as long as it is mapped.
            for other in [other for other in self._maps if other != shard and not self.files[other].exists()]:
                del self._maps[other]
            while len(self._maps) > 2 * LIVE:
                self._maps.popitem(last=False)
        self._maps.move_to_end(shard)
        return self._maps[shard]

    def _download_and_map(self, shard: int) -> ReadSample:
        """Map a shard; download it first, or wait for another process that downloads it."""
        file, until = self.files[shard], time.monotonic() + TIMEOUT
        while True:
            # Another process may delete the file in the meantime to free space.
            with suppress(FileNotFoundError), open_regular(file) as stream:
                if self.remote:
                    os.utime(file)
                return self._read(shard, stream.fileno())
            if not self.remote:
                raise ValueError(f"{file} is missing, although index.json lists it: copy it again")
            if time.monotonic() > until:
                raise ValueError(
                    f"{self.root}/{file.name} was not downloaded within {TIMEOUT:.0f} s: another process is still "
                    "downloading it or has died"
                )
            self._make_room(int(self.bytes[shard]))
            try:
                self._of_process()[0].download_chunk_from_index(shard, skip_lock=True)
            except Exception as error:  # storage libraries may raise anything
                raise ValueError(f"{self.root}/{file.name} cannot be downloaded: {one_line(error)}") from error
            if not file.exists():  # another process is downloading it
                time.sleep(0.05)

    def _read(self, shard: int, descriptor: int) -> ReadSample:
        """Map a shard from an open file; raise ValueError if it is damaged."""
        reader = self._of_process()[1]
        try:
            return map_shard(
                descriptor,
                count=int(self.sizes[shard]),
                min_bytes=int(self.bytes[shard]),
                decode=lambda data: reader.load_item_from_bytes(data, shard),
            )
        except Exception as error:  # Arrow may raise anything on damaged bytes
            remedy = "delete it to download it again" if self.remote else "copy it again"
            raise ValueError(f"{self.files[shard]} is damaged: {one_line(error)}; {remedy}") from error

    def _make_room(self, needed: int) -> None:
        """Delete the least recently used shards until `needed` bytes fit below the limit."""
        if self.limit is None:
            return
        files = []
        for file in self.files:
            with suppress(FileNotFoundError):
                status = file.stat()
                files.append((status.st_mtime_ns, status.st_size, file))
        total = sum(size for _, size, _ in files) + needed
        for _, size, file in sorted(files):
            if total <= self.limit:
                return
            file.unlink(missing_ok=True)  # processes that have it mapped keep its bytes
            total -= size

    def _of_process(self) -> tuple[Any, Any]:
        """Return litdata's configuration and sample reader of this process."""
        if self._litdata is None or self._litdata[0] != os.getpid():
            self._maps = OrderedDict()
            self._litdata = (os.getpid(), *self._load_litdata())
        return self._litdata[1:]

    def _load_litdata(self) -> tuple[Any, Any]:
        """Load the index with litdata, from storage if necessary."""
        try:
            from litdata.streaming.config import ChunksConfig
            from litdata.streaming.item_loader import PyTreeLoader
            from litdata.streaming.serializers import BytesSerializer, _get_serializers
        except ImportError as error:
            raise ImportError(f"{self.root} needs litdata, which is not installed: pip install litdata") from error
        # Images stay encoded and are decoded like all others. Pickles stay bytes, because unpickling can run any code.
        serializers = _get_serializers({name: BytesSerializer() for name in ("jpeg", "image", "pickle")})
        reader = PyTreeLoader()
        if self.remote:
            self.folder.mkdir(parents=True, exist_ok=True)
        elif is_present(self.folder / "index.json"):
            check_regular(self.folder / "index.json", "index.json")
        try:
            remote = self.root if self.remote else None
            config = ChunksConfig.load(str(self.folder), serializers, remote, reader, storage_options=self.options)
        except Exception as error:  # as above
            raise ValueError(
                f"root must hold shards of litdata.optimize, got {self.root}: {one_line(error)}"
            ) from error
        if config is None:
            raise FileNotFoundError(
                f"root must hold shards of litdata.optimize, got {self.root} without index.json: check the path"
            )
        return config, reader

    def _check(self, config: Mapping[str, Any]) -> None:
        """Raise ValueError for compressed, encrypted or empty shards, or a limit that is too small."""
        for name, kind in (("compression", "compressed"), ("encryption", "encrypted")):
            if config.get(name):
                raise ValueError(
                    f"root must hold shards without compression or encryption, got {kind} ones in {self.root}: write "
                    "plain shards; encoded images hardly compress"
                )
        if not self.sizes.sum():
            raise ValueError(f"root must hold samples, got none in {self.root}: write the shards again")
        needed = LIVE * int(self.bytes.max())
        if self.limit is not None and self.limit < needed:
            raise ValueError(
                f"cache_gigabytes must hold {LIVE} shards per process, {needed / 1e9:.2g} GB for {self.root}, got "
                f"{self.limit / 1e9:.2g}: raise it, or write smaller shards"
            )


def map_shard(descriptor: int, *, count: int, min_bytes: int, decode: Callable[[bytearray], Any]) -> ReadSample:
    """Return what reads the samples of an open file: consecutive ones, or the rows of an Arrow table, as of flat dicts.

    The descriptor may be closed afterwards; bytes are copied when a sample is read. Raise ValueError if the file is
    damaged; its message continues "FILE is damaged: ".
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
    if (arrow := open_arrow_footer_reader(pages)) is not None:
        table = arrow[0].read_all()  # without compression, its buffers are the mapped pages
        table.validate(full=True)  # offsets that lead out of them would end the process
        if len(table) != count:
            raise ValueError(f"it has {len(table)} of {count} samples")
        return lambda index: table.slice(index, 1).to_pylist()[0]

    def read(index: int) -> dict[str, Any]:
        fields = decode(bytearray(pages[int(header[index + 1]) : int(header[index + 2])]))
        return dict(fields) if isinstance(fields, dict) else {str(i): field for i, field in enumerate(fields)}

    return read


def _check_inside(index: Mapping[str, Any], root: str) -> None:
    """Raise ValueError if the index names shards that would be read or downloaded outside their folder."""
    for chunk in index["chunks"]:
        parts = Path(str(chunk["filename"])).parts
        if ".." in parts or Path(str(chunk["filename"])).is_absolute() or not parts:
            raise ValueError(
                f"index.json of {root} must name files in its folder, got {chunk['filename']}: write it again"
            )


def _fields(formats: Any, root: str) -> dict[str, Field]:
    """Return the fields of a sample by name, from litdata's data format."""
    kinds = (
        formats if isinstance(formats, dict) else dict(enumerate(formats)) if isinstance(formats, list | tuple) else {}
    )
    if not kinds or not all(isinstance(kind, str) for kind in kinds.values()):
        raise ValueError(
            f'root must hold samples such as {{"image": ..., "label": ...}} or (image, label), got {formats} in '
            f"{root}: write them like this"
        )
    return {str(name): Field(str(name), kind) for name, kind in kinds.items()}
