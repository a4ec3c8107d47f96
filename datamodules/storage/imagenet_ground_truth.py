"""The classes of ImageNet's validation images, which come without class folders, from the files that tell them."""

import io
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from datamodules.storage.imagenet_classes import BY_NUMBER, SORTED

DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
# Where such files usually lie in the folder of the data.
DEFAULT_NAMES = (
    DEVKIT,
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val.txt",
    f"ILSVRC2012_devkit_t12/data/{DEVKIT}",
    "ILSVRC2012_devkit_t12.tar.gz",
)
WNID = re.compile(r"n\d{8}")
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")


def find_ground_truth(root: Path) -> Path | None:
    """The file in a folder that tells the classes, by its usual names; None if there is none."""
    return next((root / name for name in DEFAULT_NAMES if (root / name).is_file()), None)


def classes_of(names: Sequence[str], file: Path) -> list[str]:
    """The WordNet id of every image.

    Args:
        names: the images' paths, sorted.
        file: one line per image, in the order of their names: a WordNet id, or the challenge's number from 1 to 1000
            (the development kit's list, or its .tar.gz with the list in it). Or lines of an image's name and its
            WordNet id (Kaggle's .csv) or its class as caffe's val.txt counts, from 0 through the sorted ids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line cannot be understood, or images and lines do not fit each other.
    """
    lines = [re.split(r"[,\s]+", line.strip()) for line in _text(file).splitlines() if line.strip()]
    if lines and lines[0][0] == "ImageId":  # Kaggle's head
        del lines[0]
    if not lines:
        raise ValueError(f"ground_truth must have a line per image, got {file} without any: check the file")
    if len(lines[0]) == 1:
        return _in_order(names, [_class(line[0], BY_NUMBER, 1, file) for line in lines], file)
    stems = [_stem(line[0]) for line in lines]
    told = {stem: _class(line[1] if line[1:] else "", SORTED, 0, file) for stem, line in zip(stems, lines, strict=True)}
    if missing := next((name for name in names if _stem(name) not in told), None):
        raise ValueError(f"ground_truth must name every image, got {file} without {missing}: check the file")
    return [told[_stem(name)] for name in names]


def _in_order(names: Sequence[str], told: list[str], file: Path) -> list[str]:
    """The class of every image from those of all in order; the numbers in their names tell which some are."""
    if len(told) == len(names):
        return told
    numbers = [int(found[1]) if (found := NUMBERED.fullmatch(_stem(name))) else 0 for name in names]
    if min(numbers) < 1 or max(numbers) > len(told):
        raise ValueError(
            f"ground_truth must have a line per image, got {len(told)} in {file} for {len(names)} images: check both"
        )
    return [told[number - 1] for number in numbers]


def _class(word: str, order: Sequence[str], first: int, file: Path) -> str:
    """A WordNet id from itself or from its number in an order, counted from `first`."""
    if WNID.fullmatch(word):
        return word
    if word.isdecimal() and first <= int(word) < first + len(order):
        return order[int(word) - first]
    raise ValueError(
        f"ground_truth must give WordNet ids or numbers from {first} to {first + len(order) - 1}, got {word!r} in "
        f"{file}: check the file"
    )


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def _text(file: Path) -> str:
    """What the file says; of the packed development kit, its list."""
    if not file.is_file():
        raise FileNotFoundError(f"ground_truth must be a file, got {file}: no such file; check the path")
    try:
        if not file.name.endswith((".tar", ".tar.gz", ".tgz")):
            return file.read_text()
        with tarfile.open(file) as archive:
            for member in archive:
                if os.path.basename(member.name) == DEVKIT and (stream := archive.extractfile(member)):
                    return io.TextIOWrapper(stream).read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"ground_truth {file} cannot be read: {error}; copy it anew") from error
    raise ValueError(f"ground_truth must hold {DEVKIT}, got {file} without: name the list itself")
