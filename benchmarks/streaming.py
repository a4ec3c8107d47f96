"""Speed of reading litdata shards in random order, with `datamodules.Streamed` and with litdata's own loader.

    python -m benchmarks.streaming --root PHOTOS

PHOTOS is any folder of JPEG files; copies with a short side of 375 pixels are written into shards of 4 MB, as (JPEG,
label) pairs in litdata's row format, and as dicts of bytes in its Arrow tables. Variants are interleaved in one process
with one thread and no worker processes; the table shows medians over the rounds, in images per second on one core.
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

from benchmarks.data import BATCH, Variant, measure_rates, write_copies
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
        write_copies(options.root, folder, count=options.images, short_side=375)
        files = [(folder / "photos" / f.name).read_bytes() for f in sorted((folder / "photos").iterdir())]
        write_shards(folder / "pairs", [(Image.open(io.BytesIO(data)), 0) for data in files])
        write_shards(folder / "dicts", [{"image": data, "label": 0} for data in files])
        variants = reading_variants(folder) | decoding_variants(folder, options.size)
        rates = measure_rates(variants, options.rounds)
    print(f"| {len(files)} photos in shards of 4 MB, random order | images/s |\n|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} |")


def write_shards(folder: Path, samples: Sequence[Any]) -> None:
    folder.mkdir()
    writer = Cache(str(folder), chunk_bytes=SHARD_BYTES)
    for index, sample in enumerate(samples):
        writer[index] = sample
    writer.done()
    writer.merge()


def reading_variants(folder: Path) -> dict[str, Variant]:
    """Return variants that read only the encoded images."""

    def litdata_loader(form: str) -> Variant:
        serializers = {"jpeg": BytesSerializer()}
        data = litdata.StreamingDataset(str(folder / form), shuffle=True, serializers=serializers)
        return lambda: ([sample] for sample in data)  # type: ignore[misc]

    def streamed(form: str) -> Variant:
        data = data_module(folder / form, 64).dataset("train")
        assert isinstance(data, StreamedImages)
        return lambda: batches(data)  # type: ignore[return-value]

    def batches(data: StreamedImages) -> Iterator[list[Any]]:
        indices = [index for index, _ in ShuffledShard(data)]
        for first in range(0, len(indices), BATCH):
            yield [data.fetch(index) for index in indices[first : first + BATCH]]

    return pairs_and_dicts("bytes only", litdata_loader, streamed)


def decoding_variants(folder: Path, size: int) -> dict[str, Variant]:
    """Return variants that decode, crop and resize images, with the same code."""

    def square(sample: Any) -> Tensor:
        if isinstance(sample, dict):
            return load_square(np.frombuffer(bytearray(sample["image"]), np.uint8), size=size, channels=3)
        return to_channels(center_square(sample[0], size), 3)

    def litdata_loader(form: str) -> Variant:
        data = litdata.StreamingDataset(str(folder / form), shuffle=True, transform=square)
        return lambda: litdata.StreamingDataLoader(data, batch_size=BATCH)

    def streamed(form: str) -> Variant:
        data = data_module(folder / form, size)
        return lambda: (batch["image"] for batch in data.train_dataloader())

    return pairs_and_dicts(f"decoded to {size}x{size}", litdata_loader, streamed)


def data_module(root: Path, size: int) -> Streamed:
    return Streamed(str(root), size, val_root=str(root), batch_size=BATCH, horizontal_flip=False)


def pairs_and_dicts(
    name: str, litdata_loader: Callable[[str], Variant], streamed: Callable[[str], Variant]
) -> dict[str, Variant]:
    forms = {"pairs": "(JPEG, label)", "dicts": "dicts of bytes"}
    return {
        f"{name}, {form_name}: {reader}": make(form)
        for form, form_name in forms.items()
        for reader, make in (("litdata's loader", litdata_loader), ("Streamed", streamed))
    }


if __name__ == "__main__":
    main()
