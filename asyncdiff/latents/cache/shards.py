"""Which shards a cache consists of, what each depends on, and whether one that lies there is it."""

import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.old_names import current
from asyncdiff.checks import at_least
from asyncdiff.latents import Codec
from datamodules.storage.latent_shards import (
    REMEDY,
    SUFFIX,
    VERSION,
    DamagedError,
    Header,
    check_bytes,
    check_shard,
    layout_in,
    read_header,
    shard_name,
    written,
)

SPLITS = ("train", "val", "test")
SHARD_BYTES = 2**28  # at most, by default
# Arguments of data modules that change no pixel of an image that is read in file order.
LOADING = ("batch_size", "eval_batch_size", "workers", "seed", "horizontal_flip", "on_corrupt")
OF_A_SPLIT = ("split", "source", "classes")
OF_A_SHARD = ("first", "last")


@dataclass(frozen=True)
class Settings:
    """What the user chooses of a cache.

    Attributes:
        splits: of the data; all that it has by default. One that is the same as another is not written twice.
        dtype: of the latents on disk.
        flip: store the latents of the mirrored images, too.
        shard_size: images per shard; by default a power of two that makes at most 256 MB.
    """

    splits: tuple[str, ...] = SPLITS
    dtype: Literal["float16", "float32"] = "float16"
    flip: bool = True
    shard_size: int | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.splits if name not in SPLITS]:
            raise ValueError(f"--splits must be some of {', '.join(SPLITS)}, got {unknown[0]}: separate them by commas")
        if self.shard_size is not None:
            at_least("--shard_size", self.shard_size, 1, "leave it out for shards of at most 256 MB")

    @property
    def views(self) -> int:
        """Latents of every image."""
        return 2 if self.flip else 1

    def images(self, channels: int, side: int) -> int:
        """Images per shard, for latents of that shape."""
        if self.shard_size is not None:
            return self.shard_size
        row = 2 * self.views * channels * side**2 * (2 if self.dtype == "float16" else 4)
        return 1 << max(0, int(math.log2(SHARD_BYTES / row)))


@dataclass(frozen=True)
class Shard:
    """A file of the cache.

    Attributes:
        file: where it lies.
        depends: all that its tensors depend on, in plain containers.
    """

    file: Path
    depends: dict[str, Any]

    @property
    def split(self) -> str:
        """What part of the data it belongs to."""
        return str(self.depends["split"])

    @property
    def rows(self) -> range:
        """Indices in the split."""
        return range(self.depends["first"], self.depends["last"] + 1)

    @property
    def metadata(self) -> dict[str, str]:
        """What is written with it: what it depends on, and a hash of that."""
        text = written(self.depends)
        return {"settings": text, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def plan(data: Any, codec: Codec, out: Path, settings: Settings) -> list[Shard]:
    """All shards of a cache, split after split."""
    size = settings.images(codec.channels, data.size // codec.factor)
    common = {
        "version": VERSION,
        "codec": codec.identity(),
        "precision": getattr(codec, "dtype", "float32"),
        "data": {
            "class_path": object_config.class_path(type(data)),
            "init_args": {k: v for k, v in arguments(data) if k not in paths(data)},
        },
        "dtype": settings.dtype,
        "views": settings.views,
        "shard_size": size,
    }
    shards = []
    for split, source in sources(data, settings.splits).items():
        own = {"split": split, "source": source.fingerprint(), "classes": source.classes}
        starts = range(0, len(source), size)
        for number, first in enumerate(starts):
            depends = {**common, **own, "first": first, "last": min(first + size, len(source)) - 1}
            shards.append(Shard(out / shard_name(split, number, len(starts)), depends))
    return shards


def sources(data: Any, splits: tuple[str, ...] = SPLITS) -> dict[str, Any]:
    """The datasets of the splits without augmentation, each once: what is tested on may be what is validated on."""
    found: dict[int, str] = {}
    for split in SPLITS:
        if split in splits:
            found.setdefault(id(data.dataset(split)), split)
    return {split: data.dataset(split).plain() for split in found.values()}


def arguments(data: Any) -> Iterator[tuple[str, Any]]:
    """A data module's constructor arguments, in plain containers, but for how it is loaded."""
    for name in inspect.signature(type(data)).parameters:
        if name not in LOADING:
            value = getattr(data, name)
            yield name, str(value) if isinstance(value, Path) else object_config.describe(value)


def paths(data: Any) -> set[str]:
    """Arguments that say where the data lies, which may move: what is there is in the datasets' fingerprints."""
    return {name for name in inspect.signature(type(data)).parameters if isinstance(getattr(data, name), Path)}


def refuse_others(out: Path, shards: list[Shard]) -> None:
    """Raise ValueError if the folder has shards that depend on anything else. Splits beside these may be there."""
    expected = {shard.file.name: shard for shard in shards}
    of_split = {shard.split: shard for shard in reversed(shards)}
    for file in sorted(out.glob(f"*{SUFFIX}")):
        depends = depends_on(file)
        if depends is None:
            if file.name not in expected:  # whose turn would it be?
                raise DamagedError(f"{file} is damaged, and no part of this cache: {REMEDY}")
            continue
        shard = expected.get(file.name) or of_split.get(depends.get("split", ""), shards[0])
        besides: tuple[str, ...] = () if file.name in expected else OF_A_SHARD
        if depends.get("split") != shard.split:
            besides += OF_A_SPLIT
        differing = next(differences(depends, shard.depends, besides), None)
        if differing is None and file.name not in expected and depends.get("split") in of_split:
            differing = "number of shards"
        if differing is not None:
            raise ValueError(
                f"--out must be a new folder or a cache of the same settings, got {file} with another {differing}: "
                "choose another --out; nothing was changed"
            )


def differences(old: Any, new: Any, besides: tuple[str, ...] = (), prefix: str = "") -> Iterator[str]:
    """What differs between two containers: dotted keys, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new} - set(besides)):
            yield from differences(old.get(key), new.get(key), prefix=f"{prefix}.{key}".lstrip("."))
    elif old != new:
        if prefix == "source":
            yield "set of images: names or labels have changed since"
        else:
            yield f"{prefix}, {_short(old)} where {_short(new)} is asked for"


def depends_on(file: Path) -> dict[str, Any] | None:
    """What a shard that lies there depends on; None if it is damaged."""
    try:
        metadata = read_header(file).metadata
        text = metadata["settings"]
        if hashlib.sha256(text.encode()).hexdigest() != metadata["fingerprint"]:
            return None
        return dict(current(json.loads(text)))
    except (DamagedError, KeyError, ValueError, FileNotFoundError):
        return None


def check_whole(file: Path) -> Header:
    """The header of a shard of which all is as it was written; DamagedError otherwise. Reads all of the file."""
    header = read_header(file)
    check_shard(file, layout_in(file, header), header)
    check_bytes(file, header)
    if depends_on(file) is None:
        raise DamagedError(f"{file} is damaged, its settings cannot be read: {REMEDY}")
    return header


def _short(value: Any) -> str:
    """A value in few words; long hashes by their beginning."""
    text = value if isinstance(value, str) else written(value)
    return text if len(text) <= 60 else f"{text[:24]}..."
