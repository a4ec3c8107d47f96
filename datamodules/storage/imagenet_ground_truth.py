"""Classes of ImageNet's validation images, which have no class folders, from ground truth files."""

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from datamodules.regular_files import is_present
from datamodules.storage.imagenet_classes import BY_NUMBER, SORTED

DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
# Paths of ground truth files to look for in the folder of the data set.
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
    """Return the ground truth file in a folder, by its default names; None if there is none."""
    return next((root / name for name in DEFAULT_NAMES if is_present(root / name)), None)


def classes_of(names: Sequence[str], file: Path) -> list[str]:
    """Return the WordNet ID of every image.

    Args:
        names: sorted paths of the images.
        file: one line per image, in the order of their names: a WordNet ID, or the challenge's number from 1 to 1000
            (the development kit's list, or its .tar.gz that contains the list). Or lines of an image name and its
            WordNet ID (Kaggle's .csv), or its index into the sorted IDs, from 0 (Caffe's val.txt).

    Returns:
        One WordNet ID per image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is invalid, or images and lines do not match.
    """
    lines = [re.split(r"[,\s]+", line.strip()) for line in _text(file).splitlines() if line.strip()]
    if lines and lines[0][0] == "ImageId":  # Kaggle's header line
        del lines[0]
    if not lines:
        raise ValueError(f"ground_truth must have a line per image, got {file} without any: check the file")
    stems = [PurePosixPath(name).stem for name in names]
    if len(lines[0]) > 1:
        padded = ([*line, ""] for line in lines)  # a line without a class is refused
        classes = {PurePosixPath(name).stem: _class(text, SORTED, 0, file) for name, text, *_ in padded}
        if missing := next((name for name, stem in zip(names, stems, strict=True) if stem not in classes), None):
            raise ValueError(f"ground_truth must name every image, got {file} without {missing}: check the file")
        return [classes[stem] for stem in stems]
    ordered = [_class(line[0], BY_NUMBER, 1, file) for line in lines]
    if len(ordered) == len(names):
        return ordered
    numbers = [int(match[1]) if (match := NUMBERED.fullmatch(stem)) else 0 for stem in stems]  # of a part of the images
    if min(numbers) < 1 or max(numbers) > len(ordered):
        raise ValueError(
            f"ground_truth must have a line per image, got {len(ordered)} in {file} for {len(names)} images: check both"
        )
    return [ordered[number - 1] for number in numbers]


def _class(text: str, order: Sequence[str], first: int, file: Path) -> str:
    """Return the WordNet ID that a text is, or whose number in `order` it is, counted from `first`."""
    if WNID.fullmatch(text):
        return text
    if text.isdecimal() and first <= int(text) < first + len(order):
        return order[int(text) - first]
    raise ValueError(
        f"ground_truth must hold WordNet IDs or numbers from {first} to {first + len(order) - 1}, got {text!r} in "
        f"{file}: check the file"
    )


def _text(file: Path) -> str:
    """Read the text of the file, or of the list in the archive of the development kit."""
    if not file.is_file():
        raise FileNotFoundError(f"ground_truth must be a file, got {file}: no such file; check the path")
    try:
        if not file.name.endswith((".tar", ".tar.gz", ".tgz")):
            return file.read_text()
        with tarfile.open(file) as archive:
            for member in archive:
                if PurePosixPath(member.name).name == DEVKIT and (stream := archive.extractfile(member)):
                    return stream.read().decode()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"ground_truth {file} cannot be read: {error}; copy it again") from error
    raise ValueError(f"ground_truth must hold {DEVKIT}, got {file} without it: set ground_truth to the list itself")
