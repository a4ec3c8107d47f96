"""How fast shards of litdata are read in random order: by `datamodules.Streamed` and by litdata's own loader.

    python -m benchmarks.streaming --root PHOTOS

PHOTOS is any folder of JPEG files; copies with a short side of 375 pixels are written into shards of 4 MB, as pairs
(JPEG, label), litdata's row format, and as dicts of bytes, its Arrow tables. Variants run in turn in one process on one
thread, without worker processes: medians of the rounds, in images per second of one core.
"""

import argparse
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
from litdata.streaming import Cache
from litdata.streaming.serializers import BytesSerializer
from PIL import Image
from torch import Tensor

from benchmarks.data import BATCH, Variant, copies, measured
from datamodules import Streamed
from datamodules.images.decoding import center_square, load_square, to_channels
from datamodules.order import ShuffledShard
from datamodules.streamed import StreamedImages

SHARD_BYTES = 4 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies(options.root, folder, count=options.images, short_side=375)
        files = [(folder / "photos" / f.name).read_bytes() for f in sorted((folder / "photos").iterdir())]
        written(folder / "pairs", [(Image.open(io.BytesIO(data)), 0) for data in files])
        written(folder / "dicts", [{"image": data, "label": 0} for data in files])
        variants = reading(folder) | decoding(folder, options.size)
        rates = measured(variants, options.rounds)
    print(f"| {len(files)} photographs in shards of 4 MB, random order | images/s |\n|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} |")


def written(place: Path, samples: Sequence[Any]) -> None:
    place.mkdir()
    writer = Cache(str(place), chunk_bytes=SHARD_BYTES)
    for index, sample in enumerate(samples):
        writer[index] = sample
    writer.done()
    writer.merge()


def reading(folder: Path) -> dict[str, Variant]:
    """Encoded images only."""

    def theirs(form: str) -> Variant:
        kept = {"jpeg": BytesSerializer()}
        data = litdata.StreamingDataset(str(folder / form), shuffle=True, serializers=kept)
        return lambda: ([sample] for sample in data)  # type: ignore[misc]

    def ours(form: str) -> Variant:
        data = streamed(folder / form, 64).dataset("train")
        assert isinstance(data, StreamedImages)
        return lambda: batches(data)  # type: ignore[return-value]

    def batches(data: StreamedImages) -> Iterator[list[Any]]:
        indices = [index for index, _ in ShuffledShard(data)]
        for first in range(0, len(indices), BATCH):
            yield [data.fetch(index) for index in indices[first : first + BATCH]]

    return pairs_and_dicts("bytes only", theirs, ours)


def decoding(folder: Path, size: int) -> dict[str, Variant]:
    """Squares of the wanted size, the same code making the square."""

    def square(sample: Any) -> Tensor:
        if isinstance(sample, dict):
            return load_square(np.frombuffer(bytearray(sample["image"]), np.uint8), size=size, channels=3)
        return to_channels(center_square(sample[0], size), 3)

    def theirs(form: str) -> Variant:
        data = litdata.StreamingDataset(str(folder / form), shuffle=True, transform=square)
        return lambda: litdata.StreamingDataLoader(data, batch_size=BATCH)

    def ours(form: str) -> Variant:
        data = streamed(folder / form, size)
        return lambda: (batch["image"] for batch in data.train_dataloader())

    return pairs_and_dicts(f"decoded to {size}x{size}", theirs, ours)


def streamed(root: Path, size: int) -> Streamed:
    return Streamed(str(root), size, val_root=str(root), batch_size=BATCH, horizontal_flip=False)


def pairs_and_dicts(what: str, theirs: Callable[[str], Variant], ours: Callable[[str], Variant]) -> dict[str, Variant]:
    forms = {"pairs": "(JPEG, label)", "dicts": "dicts of bytes"}
    return {
        f"{what}, {told}: {who}": make(form)
        for form, told in forms.items()
        for who, make in (("litdata's loader", theirs), ("ours", ours))
    }


if __name__ == "__main__":
    main()
