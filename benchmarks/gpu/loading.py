"""Data loader: images per second from files to the device, by the number of worker processes."""

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path

from benchmarks.gpu.images import NpzImages, write_folder, write_npz
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Finding
from benchmarks.gpu.runner import Deadline, Measurement
from benchmarks.gpu.timing import synchronize
from datamodules import ImageFolder
from datamodules.base import ImageDataModule

KINDS = {"jpg": (375, 500, 256), "png": (32, 32, 32)}  # height and width of the files, and the side that is read
PRECISION = "uint8 files, float32 on the device"
SECONDS = 2.0  # of reading, after the first batch
CORES = len(os.sched_getaffinity(0))


def measurements(machine: Machine) -> Iterator[Measurement]:
    """Yield the measurements."""
    for kind in (*KINDS, "npz"):
        yield Measurement(kind, partial(read, kind, machine))


def read(kind: str, machine: Machine, deadline: Deadline) -> Finding:
    """Measure one kind of files with several numbers of workers."""
    count, rows = (64 if machine.small else 512), []
    workers = [number for number in (0, 1, 2, 4, 8, 16) if number <= (1 if machine.small else CORES)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "images")
        if kind == "npz":
            root = root.with_suffix(".npz")
            write_npz(root, 16 * count, 32)
        else:
            write_folder(root, kind, count, *KINDS[kind][:2])
        for number in workers:
            if rows and not deadline.left:
                break
            data = data_of(kind, root, batch_size=32 if machine.small else 128, workers=number)
            seconds = min(machine.largest_time, SECONDS)
            first, rate = images_per_second(data, machine, seconds)
            row = {"precision": PRECISION, "size": data.size, "batch": data.batch_size, "workers": number}
            rows.append(row | {"first batch, s": first, "images/s on the device": rate})
    return Finding(rows)


def data_of(kind: str, root: Path, *, batch_size: int, workers: int) -> ImageDataModule:
    """Return the data module of a kind of files."""
    if kind == "npz":
        return NpzImages(root, batch_size=batch_size, workers=workers)
    return ImageFolder(str(root), KINDS[kind][2], batch_size=batch_size, workers=workers)


def images_per_second(data: ImageDataModule, machine: Machine, seconds: float) -> tuple[float, float]:
    """Return the seconds to the first batch, and the images per second that are ready on the device after it."""
    data.setup("fit")
    loader = data.train_dataloader()
    start = time.perf_counter()
    batches = chain.from_iterable(repeat(loader))
    _ready(data, next(batches), machine)
    synchronize(machine.device)
    first, count = time.perf_counter() - start, 0
    start = time.perf_counter()
    for batch in batches:
        count += len(_ready(data, batch, machine)["image"])
        if time.perf_counter() - start >= seconds:
            break
    synchronize(machine.device)
    return first, count / (time.perf_counter() - start)


def _ready(data: ImageDataModule, batch: dict, machine: Machine) -> dict:
    """Return a batch on the device, as training gets it."""
    moved = data.transfer_batch_to_device(batch, machine.device, 0)
    ready: dict = data.on_after_batch_transfer(moved, 0)
    return ready
