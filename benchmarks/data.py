"""Speed of reading images, and time to the first batch of a large data set.

    python -m benchmarks.data photos --root PHOTOS            # ImageFolder and torchvision's, 256x256
    python -m benchmarks.data small                           # 32x32 images in memory or memory-mapped
    python -m benchmarks.data start --root PHOTOS             # 1.3 million hard-linked files in 1000 folders

Variants are interleaved in one process with one thread, use the data loader of training and no worker processes; tables
show medians over the rounds, in images per second on one core. PHOTOS is any folder of JPEG files; `photos` first
writes copies with a short side of 375 pixels, the size of most ImageNet images.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision import transforms as tv

from asyncdiff.markdown import markdown_table
from datamodules import ImageFolder
from datamodules.base import ImageDataModule, ImageDataset
from datamodules.images.pixel_arrays import PixelArray
from datamodules.storage.file_lists import list_images

BATCH = 64
GRAY = 127.5  # gray levels per unit of [-1, 1]

Variant = Callable[[], Iterable[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["photos", "small", "start", "first-batch"])
    parser.add_argument("--root", type=Path, help="a folder of JPEG files")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--short-side", type=int, default=375, help="short side of the copies, in pixels")
    parser.add_argument("--images", type=int, default=256, help="number of copies to read in every round")
    parser.add_argument("--files", type=int, default=1_300_000, help="number of files for `start`")
    parser.add_argument("--workers", type=int, default=2, help="worker processes for `start`")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    if options.what != "small" and options.root is None:
        parser.error("--root must name a folder of JPEG files")
    {"photos": photos, "small": small, "start": start, "first-batch": first_batch}[options.what](options)


# Photos


def photos(options: argparse.Namespace) -> None:
    """Compare ImageFolder with torchvision's: speed and pixel differences."""
    with tempfile.TemporaryDirectory() as folder:
        write_copies(options.root, Path(folder), count=options.images, short_side=options.short_side)
        variants = photo_variants(Path(folder), options.size)
        rates = measure_rates(variants, options.rounds)
        base = rates["torchvision, bicubic"]
        reference = {crop: list(read_with_pillow(Path(folder), options.size, crop)) for crop in ("short_side", "adm")}
        print(f"| {options.size}x{options.size} | images/s | ratio | gray levels from Pillow |\n|---|---|---|---|")
        for name, variant in variants.items():
            expected = reference["adm" if "adm" in name.lower() else "short_side"]
            error = mean_difference(variant(), expected)
            print(f"| {name} | {rates[name]:.0f} | {rates[name] / base:.2f} | {error:.4f} |")


def write_copies(root: Path, folder: Path, *, count: int, short_side: int) -> None:
    """Write JPEG files with the requested short side and quality 90 into one class folder."""
    (folder / "photos").mkdir()
    for at, name in enumerate(list_images(root)[:count]):
        with Image.open(root / name) as image:
            scale = short_side / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
            resized.save(folder / "photos" / f"{at:05d}.jpg", quality=90)


def photo_variants(folder: Path, size: int) -> dict[str, Variant]:
    def torchvision_folder(how: tv.InterpolationMode) -> Variant:
        steps = [tv.Resize(size, how), tv.CenterCrop(size), tv.ToTensor(), tv.Normalize([0.5] * 3, [0.5] * 3)]
        data = datasets.ImageFolder(str(folder), tv.Compose(steps))
        return lambda: (images for images, _ in DataLoader(data, BATCH))

    def image_folder(**options: object) -> Variant:
        data = ImageFolder(str(folder), size, val_root=str(folder), **options)  # type: ignore[arg-type]
        return lambda: (batch["image"] for batch in data.images("train", BATCH))

    return {
        "torchvision, bilinear": torchvision_folder(tv.InterpolationMode.BILINEAR),
        "torchvision, bicubic": torchvision_folder(tv.InterpolationMode.BICUBIC),
        "Pillow, ADM's crop": lambda: read_with_pillow(folder, size, "adm"),
        "ImageFolder": image_folder(),
        "ImageFolder, crop: adm": image_folder(crop="adm"),
        "ImageFolder, reduced_decoding": image_folder(reduced_decoding=True),
    }


def read_with_pillow(folder: Path, size: int, crop: str) -> Iterator[Tensor]:
    """Yield batches read with Pillow only: bicubic resizing, after ADM's repeated halving if `crop` is "adm"."""
    files = sorted((folder / "photos").iterdir())
    for first in range(0, len(files), BATCH):
        images = [crop_square(Image.open(file).convert("RGB"), size, crop) for file in files[first : first + BATCH]]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        yield pixels.permute(0, 3, 1, 2).float().div_(GRAY).sub_(1)


def crop_square(image: Image.Image, size: int, crop: str) -> Image.Image:
    while crop == "adm" and min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def mean_difference(images: Iterable[Tensor], reference: Iterable[Tensor]) -> float:
    """Return the mean absolute difference in gray levels."""
    pairs = [(a - b).abs().mean().item() for a, b in zip(images, reference, strict=True)]
    return GRAY * statistics.fmean(pairs)


# Small images


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Common implementation: array in memory, with a Pillow image and transforms per sample."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels.transpose(0, 2, 3, 1)
        self.steps = tv.Compose([tv.RandomHorizontalFlip(), tv.ToTensor(), tv.Normalize([0.5] * 3, [0.5] * 3)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.steps(Image.fromarray(self.pixels[index])), 0


class Small(ImageDataModule):
    """The same array as a data module, in memory or memory-mapped."""

    channels = 3

    def __init__(self, pixels: np.ndarray, size: int) -> None:
        super().__init__(batch_size=256)
        self.pixels, self.size = pixels, size

    def build(self) -> dict[str, ImageDataset]:  # type: ignore[override]
        data = PixelArray(self.pixels, np.zeros(len(self.pixels), np.int64), classes=1, flip=True)
        return {"train": data, "val": data, "test": data}


def small(options: argparse.Namespace) -> None:
    """Compare CIFAR-size images with mirroring, one by one and as a data module, up to floats in [-1, 1]."""
    size, count = 32, 50_000
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/pixels.npy", pixels)
        mapped = np.load(f"{folder}/pixels.npy", mmap_mode="r")

        def data_module(array: np.ndarray) -> Variant:
            data = Small(array, size)
            finish = data.dataset("train").finish
            return lambda: (finish(batch)["image"] for batch in data.train_dataloader())

        some = OneByOne(pixels[: count // 10])  # a tenth is enough: it is slow
        variants: dict[str, Variant] = {
            "Pillow and transforms, one by one": lambda: (x for x, _ in DataLoader(some, 256, shuffle=True)),
            "data module, in memory": data_module(pixels),
            "data module, memory-mapped": data_module(mapped),
        }
        rates = measure_rates(variants, options.rounds)
    print(rates_table(f"{size}x{size}, mirrored, batches of 256", "images/s", rates))


# A large data set


def start(options: argparse.Namespace) -> None:
    """Measure the time to the first batch and the memory of each process for many files, in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_links(options.root, Path(folder) / "images", options.files)
        print(f"{options.files} files written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.data", "first-batch", "--root", f"{folder}/images"]
        command += ["--workers", str(options.workers), "--size", str(options.size)]
        environment = os.environ | {"ASYNCDIFF_CACHE": f"{folder}/cache"}
        print("| | listing and splitting, s | first batch, s | process, MB | worker, private MB | shared |")
        print("|---|---|---|---|---|---|")
        for name in ("first start", "second start", "third start"):
            process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            result = json.loads(process.stdout.splitlines()[-1])
            numbers = f"{result['setup']:.2f} | {result['first']:.2f} | {result['main']:.0f} | {result['workers']}"
            print(f"| {name} | {numbers} |")


def write_links(root: Path, folder: Path, count: int, classes: int = 1000) -> None:
    """Create `count` hard links to the JPEG files below `root`, in class folders, with a small validation split."""
    sources = [os.fspath(root / name) for name in list_images(root)]
    files = []
    (folder.parent / "sources").mkdir()
    for at, source in enumerate(sources):  # copied first, since hard links do not cross file systems
        files.append(os.fspath(folder.parent / "sources" / f"{at}.jpg"))
        Path(files[-1]).write_bytes(Path(source).read_bytes())
    for part, number in (("train", count), ("val", 10 * classes)):
        for label in range(classes):
            class_folder = folder / part / f"n{label:08d}"
            class_folder.mkdir(parents=True)
            for at in range(label, number, classes):
                os.link(files[at % len(files)], f"{class_folder}/n{label:08d}_{at}.JPEG")


def first_batch(options: argparse.Namespace) -> None:
    """Run one process of `start` and print its results as JSON."""
    started = time.perf_counter()
    data = ImageFolder(str(options.root), options.size, batch_size=BATCH, workers=options.workers)
    data.setup("fit")
    ready = time.perf_counter()
    batches = iter(data.train_dataloader())
    next(batches)
    first = time.perf_counter()
    next(batches)
    workers = [memory_mb(child) for child in children()]
    own = " / ".join(f"{private:.0f}" for private, _ in workers)
    shared = " / ".join(f"{shared:.0f}" for _, shared in workers)
    result = {"setup": ready - started, "first": first - started, "main": sum(memory_mb(os.getpid()))}
    print(json.dumps(result | {"workers": f"{own} | {shared}"}))


def children() -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout.split()
    return [pid for pid in map(int, listed) if Path(f"/proc/{pid}/smaps_rollup").exists()]


def memory_mb(pid: int) -> tuple[float, float]:
    """Return the MB of private and of shared memory of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return private / 1024, (kilobytes["Rss"] - private) / 1024


# Measurements


def measure_rates(variants: dict[str, Variant], rounds: int) -> dict[str, float]:
    """Return the images per second of every variant: medians over interleaved rounds."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, variant in variants.items():
            started, count = time.perf_counter(), 0
            for images in variant():
                count += len(images)
            if number:  # the first round warms up
                rates[name].append(count / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def rates_table(title: str, unit: str, rates: Mapping[str, float]) -> str:
    """Return a Markdown table of the rates of variants, and their ratio to the first one."""
    base = next(iter(rates.values()))
    rows = [[name, f"{rate:.0f}", f"{rate / base:.1f}"] for name, rate in rates.items()]
    return markdown_table([title, unit, "ratio"], rows)


if __name__ == "__main__":
    main()
