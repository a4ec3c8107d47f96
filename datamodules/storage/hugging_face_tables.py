"""Tables of the library `datasets`: loading them and finding the columns of images and labels."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
UNLABELED = -1  # label of images whose label is withheld, in data sets of the Hub


def load_tables(root: str, *, config_name: str | None, revision: str | None) -> Mapping[str, Any]:
    """Load the splits of a data set by name; a single split of `save_to_disk` is named "train".

    Args:
        root: folder, or name of a data set on the Hub.
        config_name: configuration of a data set that has several.
        revision: branch, tag or commit on the Hub.

    Returns:
        The splits by name.

    Raises:
        ImportError: datasets is not installed.
        FileNotFoundError: there is no such folder, and the name is not valid on the Hub.
        ValueError: the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{root} needs datasets, which is not installed: pip install datasets") from error
    folder = Path(root).expanduser()
    if not folder.exists() and not HUB_NAME.fullmatch(root):
        raise FileNotFoundError(
            f"root must be a folder or a name on the Hub, got {root}: no such folder; check the path"
        )
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            splits = datasets.load_from_disk(str(folder))
        else:
            place = str(folder) if folder.exists() else root
            splits = datasets.load_dataset(place, config_name, revision=revision)
    except Exception as error:  # the library may raise anything on damaged files or without a network
        reason = error.__cause__ or error  # it wraps the error of a file into a generic one
        line = " ".join(str(reason).split()) or type(reason).__name__
        raise ValueError(f"root must be a data set that can be loaded, got {root}: {line}") from error
    return splits if isinstance(splits, Mapping) else {"train": splits}


class Table:
    """One split of a data set, without decoding its images.

    Attributes:
        classes: names of the classes, empty without labels.
        labels: index into `classes` of every row, int64 (n,), 0 without labels.
        labeled: whether every row has a label.

    Args:
        place: data set and split, for messages.
        data: the split as loaded by the library.
        image_column: column of the images; None takes the only column of images.
        label_column: column of the labels; None takes the default column, an empty string means no labels.
        train: the training split, which determines columns and classes; None if this is it.

    Raises:
        ValueError: columns are missing or ambiguous, or labels do not occur in training.
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
        return len(self.data)

    def cell(self, row: int) -> dict[str, Any]:
        """Return the image of a row: its "bytes" or the "path" of its file, or None for both."""
        return self.data[row].column(0)[0].as_py() or {"bytes": None, "path": None}

    def _read_labels(self, data: Any, train: "Table | None") -> None:
        """Set `classes`, `labels` and `labeled` from the label column."""
        feature, values = data.features[self.label_column], data.with_format("arrow")[:].column(self.label_column)
        kind = str(getattr(feature, "dtype", "structures"))
        if kind not in ("string", "large_string") and "int" not in kind:
            self._raise_label_error("be class labels, integers or strings", kind, "choose another label_column")
        if values.null_count:
            self._raise_label_error(
                "exist in every row", f"none in {values.null_count} of {len(data)}", "remove those rows"
            )
        if "int" in kind:
            self._set_integer_labels(values.to_numpy().astype(np.int64), getattr(feature, "names", None), train)
        else:
            self._set_string_labels(values.to_pylist(), train)

    def _set_integer_labels(self, labels: Integers, names: Sequence[str] | None, train: "Table | None") -> None:
        """Set classes and labels from integers."""
        if (labels == UNLABELED).any() and train is not None:
            return  # unlabeled: the caller decides whether to use this split
        if train is not None:
            self.classes = train.classes
        else:
            self.classes = names or [str(label) for label in range(int(labels.max()) + 1)]
        if labels.min() < 0 or labels.max() >= len(self.classes):
            wrong = int(labels.min() if labels.min() < 0 else labels.max())
            self._raise_label_error(
                f"lie in [0, {len(self.classes)}), the classes of training", wrong, "remove those rows"
            )
        self.labels, self.labeled = labels, True

    def _set_string_labels(self, texts: Sequence[str], train: "Table | None") -> None:
        """Set classes and labels from strings."""
        self.classes = sorted(set(texts)) if train is None else train.classes
        number = {name: label for label, name in enumerate(self.classes)}
        if unknown := sorted(set(texts) - set(number)):
            self._raise_label_error("occur in training", repr(unknown[0]), "remove those rows")
        self.labels, self.labeled = np.array([number[text] for text in texts], np.int64), True

    def _raise_label_error(self, rule: str, got: object, remedy: str) -> NoReturn:
        raise ValueError(f"labels of {self.place} must {rule}, got {got} in column {self.label_column!r}: {remedy}")


def _image_column(data: Any, name: str | None, place: str) -> str:
    """Return the column of images, by its name or as the only one."""
    if name is not None:
        return name
    images = [column for column, feature in data.features.items() if type(feature).__name__ == "Image"]
    # Parquet files of other libraries do not declare which of their bytes are images.
    images = images or [column for column, feature in data.features.items() if _holds_bytes(feature)]
    if len(images) != 1:
        raise ValueError(
            f"image_column must name the images of {place}, got {len(images)} possible columns: choose from "
            f"{', '.join(images or data.features)}"
        )
    return images[0]


def _label_column(data: Any, name: str | None, place: str) -> str | None:
    """Return the column of labels, by its name, "label" or the only one of class labels; None without labels."""
    if name is not None:
        return name or None
    if "label" in data.features:
        return "label"
    columns = [column for column, feature in data.features.items() if type(feature).__name__ == "ClassLabel"]
    if len(columns) > 1:
        raise ValueError(
            f"label_column must name the labels of {place}, got {len(columns)} possible columns: choose from "
            f"{', '.join(columns)}, or set an empty string for no labels"
        )
    return columns[0] if columns else None


def _holds_bytes(feature: Any) -> bool:
    """Whether the cells of a column may be image files as bytes."""
    kind = feature.get("bytes") if isinstance(feature, Mapping) else feature
    return getattr(kind, "dtype", None) in ("binary", "large_binary")
