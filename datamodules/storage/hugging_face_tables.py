"""Tables of the library `datasets`: opening them, and finding images and labels among their columns."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
UNLABELED = -1  # what the hub's data sets put where labels are kept back


def load_tables(root: str, *, config_name: str | None, revision: str | None) -> Mapping[str, Any]:
    """The splits of a data set by their names; that of `save_to_disk` without splits is "train".

    Raises:
        ImportError: datasets is not installed.
        FileNotFoundError: there is no such folder, and no data set of the hub has such a name.
        ValueError: it cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{root} needs datasets, which is not installed: pip install datasets") from error
    folder = Path(root).expanduser()
    if not folder.exists() and not HUB_NAME.fullmatch(root):
        raise FileNotFoundError(
            f"root must be a folder or a name on the hub, got {root}: no such folder; check the path"
        )
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(folder))
        else:
            place = str(folder) if folder.exists() else root
            found = datasets.load_dataset(place, config_name, revision=revision)
    except Exception as error:  # there is no telling what the library raises on damaged files, or without a network
        reason = error.__cause__ or error  # it wraps what is wrong with a file into something that says nothing
        line = " ".join(str(reason).split()) or type(reason).__name__
        raise ValueError(f"root must be a data set that can be loaded, got {root}: {line}") from error
    return found if isinstance(found, Mapping) else {"train": found}


class Table:
    """One split, its images undecoded.

    Attributes:
        classes: names of the classes, none without labels.
        labels: place in `classes` of every row, int64 (n,), 0 without labels.
        labelled: whether every row has a label.

    Args:
        place: what a person finds it by.
        data: the split as the library gives it.
        image_column: where the images are; None takes the only column of images.
        label_column: where the labels are; None takes the usual ones, an empty text none.
        train: the split to train on, which decides on columns and classes; None if this is it.

    Raises:
        ValueError: columns are missing or several come into question, or labels are none of training's.
    """

    def __init__(
        self, place: str, data: Any, *, image_column: str | None, label_column: str | None, train: "Table | None"
    ) -> None:
        import datasets

        self.place = place
        if not len(data):
            raise ValueError(f"root must hold images, got none in {place}: choose another split")
        self.image_column: str = _image_column(data, image_column, place) if train is None else train.image_column
        self.label_column: str | None = (
            _label_column(data, label_column, place) if train is None else train.label_column
        )
        for argument, name in {"image_column": self.image_column, "label_column": self.label_column}.items():
            if name is not None and name not in data.features:
                raise ValueError(
                    f"{argument} must be a column of {place} ({', '.join(data.features)}), got {name!r}: choose one"
                )
        self.classes: Sequence[str] = ()
        self.labels, self.labeled = np.zeros(len(data), np.int64), False
        if self.label_column is not None:
            self._read_labels(data, train)
        images = data.select_columns([self.image_column])
        self.data = images.cast_column(self.image_column, datasets.Image(decode=False)).with_format("arrow")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.data)

    def cell(self, row: int) -> dict[str, Any]:
        """The image of a row, "bytes" or else the "path" of its file, or neither."""
        return self.data[row].column(0)[0].as_py() or {"bytes": None, "path": None}

    def _read_labels(self, data: Any, train: "Table | None") -> None:
        """Set classes and labels."""
        feature, values = data.features[self.label_column], data.with_format("arrow")[:].column(self.label_column)
        kind = str(getattr(feature, "dtype", "structures"))
        if kind not in ("string", "large_string") and "int" not in kind:
            self._refuse("be class labels, whole numbers or texts", kind, "choose another label_column")
        if values.null_count:
            self._refuse("be there in every row", f"none in {values.null_count} of {len(data)}", "leave those rows out")
        if "int" in kind:
            self._number(values.to_numpy().astype(np.int64), getattr(feature, "names", None), train)
        else:
            self._count(values.to_pylist(), train)

    def _number(self, labels: Integers, names: Sequence[str] | None, train: "Table | None") -> None:
        """Classes and labels of numbers."""
        if (labels == UNLABELED).any() and train is not None:
            return  # whoever asked for this split decides
        if train is not None:
            self.classes = train.classes
        else:
            self.classes = names or [str(label) for label in range(int(labels.max()) + 1)]
        if labels.min() < 0 or labels.max() >= len(self.classes):
            wrong = int(labels.min() if labels.min() < 0 else labels.max())
            self._refuse(f"lie in [0, {len(self.classes)}), the classes of training", wrong, "leave those rows out")
        self.labels, self.labeled = labels, True

    def _count(self, texts: Sequence[str], train: "Table | None") -> None:
        """Classes and labels of texts."""
        self.classes = sorted(set(texts)) if train is None else train.classes
        number = {name: label for label, name in enumerate(self.classes)}
        if unknown := sorted(set(texts) - set(number)):
            self._refuse("occur in training", repr(unknown[0]), "leave those rows out")
        self.labels, self.labeled = np.array([number[text] for text in texts], np.int64), True

    def _refuse(self, rule: str, got: object, remedy: str) -> NoReturn:
        raise ValueError(f"labels of {self.place} must {rule}, got {got} in column {self.label_column!r}: {remedy}")


def _image_column(data: Any, chosen: str | None, place: str) -> str:
    """The column of images."""
    if chosen is not None:
        return chosen
    images = [name for name, feature in data.features.items() if type(feature).__name__ == "Image"]
    # Parquet files of other libraries do not say which of their bytes are images.
    images = images or [name for name, feature in data.features.items() if _holds_bytes(feature)]
    if len(images) != 1:
        raise ValueError(
            f"image_column must name the images of {place}, got {len(images)} columns that may be: choose of "
            f"{', '.join(images or data.features)}"
        )
    return images[0]


def _label_column(data: Any, chosen: str | None, place: str) -> str | None:
    """The column of labels; None for none."""
    if chosen is not None:
        return chosen or None
    if "label" in data.features:
        return "label"
    found = [name for name, feature in data.features.items() if type(feature).__name__ == "ClassLabel"]
    if len(found) > 1:
        raise ValueError(
            f"label_column must name the labels of {place}, got {len(found)} columns that may be: choose of "
            f"{', '.join(found)}, or an empty text for none"
        )
    return found[0] if found else None


def _holds_bytes(feature: Any) -> bool:
    """Whether cells may be files as bytes."""
    kind = feature.get("bytes") if isinstance(feature, Mapping) else feature
    return getattr(kind, "dtype", None) in ("binary", "large_binary")
