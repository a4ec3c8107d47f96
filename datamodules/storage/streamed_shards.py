"""The shards of `litdata.optimize`: fetched as a whole when a sample of theirs is asked for, and then mapped.

Of litdata come the reading of its index, the download from a storage, and the decoding of samples. Its loader has an
order of its own, which depends on the number of workers; here samples are asked for one by one, in the order of
`datamodules.order`.
"""

import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.index_cache import cache_folder
from datamodules.order import WINDOW
from datamodules.storage.mapped_shards import Rows, Table, map_shard

STORAGES = ("s3://", "gs://", "r2://", "azure://", "local:")
LIVE = WINDOW + 4  # shards that the order of one process moves among, and a few to spare
PATIENCE = 600.0  # seconds to wait for a shard that another process fetches


class Field(NamedTuple):
    """A part of a sample, and litdata's word for what it is; the parts of a tuple are named "0", "1", ... ."""

    name: str
    kind: str


class Shards:
    """Samples of the shards below `root`, readable in any order.

    Args:
        root: a folder, read in place, or the address of one in a storage: s3://, gs://, r2://, azure://, or local: for
            another file system whose files are to be fetched.
        folder: where fetched shards are kept; None takes one of the address' own in the cache of indices.
        limit: bytes in that folder above which the shards not used for longest are removed; None keeps all.
        options: for the storage, as litdata's `storage_options`.

    Attributes:
        sizes: number of samples of every shard, int64 (m,).
        fields: parts of a sample by their names; of samples that are tuples or lists, "0", "1", ... .

    Raises:
        ImportError: litdata is not installed.
        FileNotFoundError: there is no index.
        ValueError: the index is none, or the shards are compressed or encrypted.
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
                f"root must be a folder or begin with one of {', '.join(STORAGES)}, got {root}: correct it"
            )
        self.folder = (folder or _own_folder(root)) if self.remote else Path(root).expanduser()
        self._open: tuple[int, Any, Any] | None = None  # process, litdata's configuration and its reader of samples
        self._maps: OrderedDict[int, Rows | Table] = OrderedDict()
        config, _ = self._opened()
        index = json.loads((self.folder / "index.json").read_text())
        _check_inside(index, root)
        self.files = [self.folder / str(chunk["filename"]) for chunk in index["chunks"]]
        self.bytes = np.array([chunk["chunk_bytes"] for chunk in index["chunks"]], np.int64)
        self.sizes = np.array([chunk["chunk_size"] for chunk in index["chunks"]], np.int64)
        self.ends = np.cumsum(self.sizes)
        self.fields = _fields(config.data_format_unflattened, root)
        self._check(index["config"])

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.sizes.sum())

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process: open files."""
        return {**self.__dict__, "_open": None, "_maps": OrderedDict()}

    def place(self, index: int) -> tuple[int, int]:
        """The shard of a sample, and the place in it."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - int(self.ends[shard] - self.sizes[shard])

    def name(self, index: int) -> str:
        """What a person finds a sample by."""
        shard, place = self.place(index)
        return f"{self.files[shard].name} sample {place}"

    def identity(self) -> str:
        """A text that differs for other shards: a hash of their names and sizes."""
        told = json.dumps([[f.name for f in self.files], self.bytes.tolist(), self.sizes.tolist()])
        return hashlib.sha256(told.encode()).hexdigest()

    def require(self, indices: Iterable[int]) -> None:
        """Fetch and map the shards of these samples; ValueError naming a shard that cannot be had or is damaged."""
        for shard in sorted({self.place(index)[0] for index in indices}):
            self._mapped(shard)

    def sample(self, index: int) -> dict[str, Any]:
        """The parts of a sample by name, each as litdata's readers give it, and images encoded as they are."""
        shard, place = self.place(index)
        return self._mapped(shard).sample(place)

    def _mapped(self, shard: int) -> Rows | Table:
        self._opened()  # in a forked process, maps are opened anew
        if shard not in self._maps:
            self._maps[shard] = self._fetched(shard)
            # A file that was removed to make room keeps its bytes on the disk as long as it is mapped.
            for other in [other for other in self._maps if other != shard and not self.files[other].exists()]:
                del self._maps[other]
            while len(self._maps) > 2 * LIVE:
                self._maps.popitem(last=False)
        self._maps.move_to_end(shard)
        return self._maps[shard]

    def _fetched(self, shard: int) -> Rows | Table:
        file = self.files[shard]
        until = time.monotonic() + PATIENCE
        while True:
            # Another process may remove the file in between, to make room.
            with suppress(FileNotFoundError), file.open("rb") as stream:
                if self.remote:
                    os.utime(file)
                return self._read(shard, stream.fileno())
            if not self.remote:
                raise ValueError(f"{file} is missing, which index.json lists: copy it again")
            if time.monotonic() > until:
                raise ValueError(
                    f"{self.root}/{file.name} did not come within {PATIENCE:.0f} s: another process fetches it, or died"
                )
            self._fetch(shard)

    def _fetch(self, shard: int) -> None:
        """Download a shard, unless another process does, for which to wait a little."""
        self._make_room(int(self.bytes[shard]))
        try:
            self._opened()[0].download_chunk_from_index(shard, skip_lock=True)
        except Exception as error:  # there is no telling what a storage's library raises
            line = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.root}/{self.files[shard].name} cannot be fetched: {line}") from error
        if not self.files[shard].exists():
            time.sleep(0.05)

    def _read(self, shard: int, descriptor: int) -> Rows | Table:
        reader = self._opened()[1]
        try:
            return map_shard(
                descriptor,
                count=int(self.sizes[shard]),
                least=int(self.bytes[shard]),
                decode=lambda data: reader.load_item_from_bytes(data, shard),
            )
        except ValueError as error:
            remedy = "remove it, to have it fetched again" if self.remote else "copy it again"
            raise ValueError(f"{self.files[shard]} is damaged: {error}; {remedy}") from error

    def _make_room(self, needed: int) -> None:
        """Remove the shards that were not used for longest, as far as the limit asks for it."""
        if self.limit is None:
            return
        found = []
        for file in self.files:
            with suppress(FileNotFoundError):
                status = file.stat()
                found.append((status.st_mtime_ns, status.st_size, file))
        total = sum(size for _, size, _ in found) + needed
        for _, size, file in sorted(found):
            if total <= self.limit:
                return
            file.unlink(missing_ok=True)  # whoever has it mapped keeps its bytes
            total -= size

    def _opened(self) -> tuple[Any, Any]:
        """litdata's configuration and reader of samples, of this process."""
        if self._open is None or self._open[0] != os.getpid():
            self._maps = OrderedDict()
            self._open = (os.getpid(), *self._of_litdata())
        return self._open[1:]

    def _of_litdata(self) -> tuple[Any, Any]:
        try:
            from litdata.streaming.config import ChunksConfig
            from litdata.streaming.item_loader import PyTreeLoader
            from litdata.streaming.serializers import BytesSerializer, _get_serializers
        except ImportError as error:
            raise ImportError(f"{self.root} needs litdata, which is not installed: pip install litdata") from error
        self.folder.mkdir(parents=True, exist_ok=True) if self.remote else None
        # Images stay encoded, to be decoded as all others are. A pickle, which runs code when it is read, stays bytes.
        kept = {name: BytesSerializer() for name in ("jpeg", "image", "pickle")}
        reader = PyTreeLoader()
        try:
            config = ChunksConfig.load(
                str(self.folder),
                _get_serializers(kept),
                self.root if self.remote else None,
                reader,
                storage_options=self.options,
            )
        except Exception as error:  # nor here
            line = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"root must hold shards of litdata.optimize, got {self.root}: {line}") from error
        if config is None:
            raise FileNotFoundError(
                f"root must hold shards of litdata.optimize, got {self.root} without index.json: check the path"
            )
        return config, reader

    def _check(self, config: Mapping[str, Any]) -> None:
        if config.get("compression") or config.get("encryption"):
            what = "compressed" if config.get("compression") else "encrypted"
            raise ValueError(
                f"root must hold shards as they are, got {what} ones in {self.root}: write them without; encoded "
                "images do not get smaller"
            )
        if not len(self):
            raise ValueError(f"root must hold samples, got none in {self.root}: write them again")
        needed = LIVE * int(self.bytes.max())
        if self.limit is not None and self.limit < needed:
            raise ValueError(
                f"cache_gigabytes must hold {LIVE} shards per process, {needed / 1e9:.2g} GB for {self.root}, got "
                f"{self.limit / 1e9:.2g}: raise it, or write smaller shards"
            )


def _check_inside(index: Mapping[str, Any], root: str) -> None:
    """Refuse an index whose shards would be read, or written when they are fetched, outside of their folder."""
    for chunk in index["chunks"]:
        parts = Path(str(chunk["filename"])).parts
        if ".." in parts or Path(str(chunk["filename"])).is_absolute() or not parts:
            raise ValueError(
                f"index.json of {root} must name files in its folder, got {chunk['filename']}: write it anew"
            )


def _own_folder(root: str) -> Path:
    return cache_folder() / f"shards-{hashlib.sha256(root.encode()).hexdigest()[:24]}"


def _fields(formats: Any, root: str) -> dict[str, Field]:
    """Parts by name."""
    named = formats if isinstance(formats, dict) else dict(enumerate(formats)) if _is_row(formats) else None
    if named is None or not all(isinstance(kind, str) for kind in named.values()):
        raise ValueError(
            f'root must hold samples such as {{"image": ..., "label": ...}} or (image, label), got {formats} in '
            f"{root}: write them so"
        )
    return {str(name): Field(str(name), kind) for name, kind in named.items()}


def _is_row(formats: Any) -> bool:
    return isinstance(formats, (list, tuple)) and len(formats) > 0
