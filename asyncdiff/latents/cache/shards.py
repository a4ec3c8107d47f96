"""Plan the shards of a cache, record the settings of each, and compare existing shards with the plan."""

import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.compare import abbreviate, differences, value_at
from asyncdiff.checkpoints.old_names import update_names
from asyncdiff.checks import at_least
from asyncdiff.latents import Codec
from datamodules.hidden_names import is_hidden
from datamodules.storage.latent_shards import (
    REMEDY,
    SUFFIX,
    VERSION,
    DamagedError,
    canonical_json,
    read_header,
    shard_name,
)

SPLITS = ("train", "val", "test")
SHARD_BYTES = 2**28  # default maximum size
# Arguments of data modules that do not change the pixels of images read in file order.
LOADING = ("batch_size", "eval_batch_size", "workers", "seed", "horizontal_flip", "on_corrupt")
SPLIT_KEYS = ("split", "source", "classes")
SHARD_KEYS = ("first", "last")


@dataclass(frozen=True)
class Settings:
    """User settings of a cache.

    Attributes:
        splits: splits to encode; a split with the same images as an earlier one is not written again.
        dtype: data type of the latents on disk.
        flip: whether to also store the latents of the mirrored images.
        shard_size: number of images per shard; by default the largest power of two that keeps shards within 256 MB.
        precision: how a codec of dtype float32 computes: "tf32" rounds the inputs of its products to 10 bits on GPUs.
    """

    splits: tuple[str, ...] = SPLITS
    dtype: Literal["float16", "float32"] = "float16"
    flip: bool = True
    shard_size: int | None = None
    precision: Literal["float32", "tf32"] = "float32"

    def __post_init__(self) -> None:
        if unknown := [name for name in self.splits if name not in SPLITS]:
            raise ValueError(
                f"--splits must be among {', '.join(SPLITS)}, got {unknown[0]}: separate several by commas"
            )
        if self.shard_size is not None:
            at_least("--shard_size", self.shard_size, 1, "omit it for shards of at most 256 MB")

    @property
    def views(self) -> int:
        """Number of latents per image."""
        return 2 if self.flip else 1

    def images(self, channels: int, side: int) -> int:
        """Return the number of images per shard, for latents of shape (channels, side, side)."""
        if self.shard_size is not None:
            return self.shard_size
        row = 2 * self.views * channels * side**2 * (2 if self.dtype == "float16" else 4)
        return 1 << max(0, int(math.log2(SHARD_BYTES / row)))


@dataclass(frozen=True)
class Shard:
    """One file of the cache.

    Attributes:
        file: path of the shard.
        depends: all settings that determine the shard's tensors, as plain dicts and lists.
    """

    file: Path
    depends: dict[str, Any]

    @property
    def split(self) -> str:
        """Name of the shard's split."""
        return str(self.depends["split"])

    @property
    def rows(self) -> range:
        """Indices of the shard's images in the split."""
        return range(self.depends["first"], self.depends["last"] + 1)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the file."""
        text = canonical_json(self.depends)
        return {"settings": text, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def plan(data: Any, codec: Codec, out: Path, settings: Settings) -> list[Shard]:
    """Return all shards of a cache, ordered by split."""
    size = settings.images(codec.channels, data.size // codec.factor)
    dtype = getattr(codec, "dtype", "float32")
    common = {
        "version": VERSION,
        "codec": codec.fingerprint(),
        "precision": settings.precision if dtype == "float32" else dtype,
        "data": {
            "class_path": object_config.class_path(type(data)),
            "init_args": {k: v for k, v in data_arguments(data) if k not in path_arguments(data)},
        },
        "dtype": settings.dtype,
        "views": settings.views,
        "shard_size": size,
    }
    shards = []
    for split, source in distinct_splits(data, settings.splits).items():
        own = {"split": split, "source": source.fingerprint(), "classes": source.classes}
        starts = range(0, len(source), size)
        for number, first in enumerate(starts):
            depends = {**common, **own, "first": first, "last": min(first + size, len(source)) - 1}
            shards.append(Shard(out / shard_name(split, number, len(starts)), depends))
    return shards


def distinct_splits(data: Any, splits: tuple[str, ...] = SPLITS) -> dict[str, Any]:
    """Return the unaugmented dataset of each split, without splits that share the dataset of an earlier one."""
    first: dict[int, str] = {}
    for split in SPLITS:
        if split in splits:
            first.setdefault(id(data.dataset(split)), split)
    return {split: data.dataset(split).plain() for split in first.values()}


def data_arguments(data: Any) -> Iterator[tuple[str, Any]]:
    """Yield a data module's constructor arguments as plain values, except those in LOADING."""
    for name in inspect.signature(type(data)).parameters:
        if name not in LOADING:
            value = getattr(data, name)
            yield name, str(value) if isinstance(value, Path) else object_config.describe(value)


def path_arguments(data: Any) -> set[str]:
    """Return the names of path arguments, which are not compared: the fingerprint identifies data that moved."""
    return {name for name in inspect.signature(type(data)).parameters if isinstance(getattr(data, name), Path)}


def check_existing_shards(out: Path, shards: list[Shard]) -> None:
    """Raise ValueError if the folder has shards with other settings; shards of additional splits are allowed."""
    expected = {shard.file.name: shard for shard in shards}
    first_of_split = {shard.split: shard for shard in reversed(shards)}
    for file in sorted(file for file in out.glob(f"*{SUFFIX}") if not is_hidden(file.name)):
        depends = depends_on(file)
        if depends is None:
            if file.name not in expected:  # an expected one will be encoded again
                raise DamagedError(f"{file} is damaged and not part of this cache: {REMEDY}")
            continue
        shard = expected.get(file.name) or first_of_split.get(depends.get("split", ""), shards[0])
        ignored: tuple[str, ...] = () if file.name in expected else SHARD_KEYS
        if depends.get("split") != shard.split:
            ignored += SPLIT_KEYS
        keys = [key for key in differences(depends, shard.depends) if key.split(".")[0] not in ignored]
        differing = describe_difference(keys[0], depends, shard.depends) if keys else None
        if differing is None and file.name not in expected and depends.get("split") in first_of_split:
            differing = "number of shards"
        if differing is not None:
            raise ValueError(
                f"--out must be a new folder or a cache with the same settings, got {file} with another {differing}: "
                "choose another --out; nothing was changed"
            )


def describe_difference(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return a difference of the settings for an error message: the dotted key and both values."""
    if key.split(".")[0] == "source":
        return "set of images (names or labels have changed)"
    return f"{key}, {abbreviate(value_at(old, key))} instead of {abbreviate(value_at(new, key))}"


def depends_on(file: Path) -> dict[str, Any] | None:
    """Return the settings of an existing shard, or None if it is damaged."""
    try:
        metadata = read_header(file).metadata
        text = metadata["settings"]
        if hashlib.sha256(text.encode()).hexdigest() != metadata["fingerprint"]:
            return None
        return dict(update_names(json.loads(text)))
    except (DamagedError, KeyError, ValueError, FileNotFoundError):
        return None
