"""Tables of the library `datasets`: loading them and finding the columns of images and labels."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.hidden_names import is_hidden
from datamodules.storage.columns import choose_column, one_line

Integers = npt.NDArray[np.int64]
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
UNLABELED = -1  # label of images whose label is withheld, in data sets of the Hub


def load_tables(root: str, *, config_name: str | None, revision: str | None) -> Mapping[str, Any]:
    """Return the splits of a data set by name, from a folder or the Hub; a single split is named "train".

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
    _check_no_system_folders(folder)
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            splits = datasets.load_from_disk(str(folder))
        else:
            place = str(folder) if folder.exists() else root
            splits = datasets.load_dataset(place, config_name, revision=revision)
    except Exception as error:  # the library may raise anything on damaged files or without a network
        reason = error.__cause__ or error  # it wraps the error of a file into a generic one
        raise ValueError(f"root must be a data set that can be loaded, got {root}: {one_line(reason)}") from error
    return splits if isinstance(splits, Mapping) else {"train": splits}


def _check_no_system_folders(root: Path) -> None:
    """Raise ValueError for folders such as @eaDir, which the library reads, unlike those that begin with . or __."""
    for folder, folders, _ in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        if system := next((name for name in folders if is_hidden(name)), None):
            raise ValueError(
                f"root must not contain the folder {system} of an operating system, got it in {folder}: remove it, or "
                "use datamodules.ImageFolder, which leaves it out"
            )


class Table:
    """One split of a data set, without decoding its images.

    Attributes:
        classes: names of the classes, empty without labels.
        label_names: the same, empty for integers whose classes the data set does not name.
        labels: index into `classes` of every row, int64 (n,), 0 without labels.
        labeled: whether every row has a label.

    Args:
        place: data set and split, for messages.
        data: the split as loaded by the library.
        image_column: column of the images; None takes the only one.
        label_column: column of the labels; None takes the default column, an empty string means no labels.
        classes: names of the classes of training; None if this is the training split.

    Raises:
        ValueError: data is damaged, columns are missing or ambiguous, or labels do not occur in training.
    """

    def __init__(
        self,
        place: str,
        data: Any,
        *,
        image_column: str | None,
        label_column: str | None,
        classes: Sequence[str] | None,
    ) -> None:
        import datasets

        if not len(data):
            raise ValueError(f"root must hold images, got none in {place}: choose another split")
        self.place = place
        self.classes: Sequence[str] = ()
        self.label_names: Sequence[str] = ()
        self.image_column = _image_column(data.features, image_column, place)
        self.label_column = _label_column(data.features, label_column, place)
        data = data.select_columns([column for column in (self.image_column, self.label_column) if column])
        try:
            data.data.validate(full=True)  # offsets that lead out of the data would end the process
        except ValueError as error:
            raise ValueError(f"{place} is damaged: {one_line(error)}; write or download it again") from error
        self.labels, self.labeled = np.zeros(len(data), np.int64), False
        if self.label_column:
            self._read_labels(data, classes)
        images = data.select_columns([self.image_column])
        self.data = images.cast_column(self.image_column, datasets.Image(decode=False)).with_format("arrow")

    def __len__(self) -> int:
        return len(self.data)

    def cell(self, row: int) -> dict[str, Any]:
        """Return the image of a row: its "bytes" or the "path" of its file, or None for both."""
        return self.data[row].column(0)[0].as_py() or {"bytes": None, "path": None}

    def _read_labels(self, data: Any, classes: Sequence[str] | None) -> None:
        """Set `classes`, `labels` and `labeled`; leave them if some labels of an evaluation split are withheld."""
        import pyarrow as pa
        from pyarrow.compute import index_in

        values = data.select_columns([self.label_column]).with_format("arrow")[:].column(0)
        integers = pa.types.is_integer(values.type)
        if not (integers or pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise self._label_error("be class labels, integers or strings", values.type, "choose another label_column")
        if values.null_count:
            raise self._label_error("exist in every row", f"none in {values.null_count} of {len(data)}")
        if integers:
            labels = values.to_numpy().astype(np.int64)
            if classes is not None and (labels == UNLABELED).any():
                return
            self.label_names = list(getattr(data.features[self.label_column], "names", None) or ())
            self.classes = classes or self.label_names or [str(label) for label in range(int(labels.max()) + 1)]
        else:
            self.label_names = self.classes = classes or sorted(values.unique().to_pylist())
            labels = index_in(values, pa.array(self.classes, values.type)).fill_null(-1).to_numpy().astype(np.int64)
        wrong = (labels < 0) | (labels >= len(self.classes))
        if wrong.any():
            rule = f"lie in [0, {len(self.classes)}), the classes of training" if integers else "occur in training"
            raise self._label_error(rule, repr(values[int(wrong.argmax())].as_py()))
        self.labels, self.labeled = labels, True

    def _label_error(self, rule: str, got: object, remedy: str = "remove those rows") -> ValueError:
        return ValueError(f"labels of {self.place} must {rule}, got {got} in column {self.label_column!r}: {remedy}")


def _image_column(features: Mapping[str, Any], name: str | None, place: str) -> str:
    """Return the column of images, by its name or as the only one."""
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    # Parquet files of other libraries do not declare which of their bytes are images.
    images = images or [column for column, feature in features.items() if _holds_bytes(feature)]
    remedy = "choose one of these" if images else f"choose from {', '.join(features)}"
    return choose_column("image_column", name, images if name is None else features, place, remedy)


def _label_column(features: Mapping[str, Any], name: str | None, place: str) -> str:
    """Return the column of labels, by its name, "label" or the only one of class labels; empty without labels."""
    if name is None and "label" in features:
        return "label"
    columns = [column for column, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if name == "" or (name is None and not columns):
        return ""
    remedy = "choose one, or set an empty string for no labels"
    return choose_column("label_column", name, columns if name is None else features, place, remedy)


def _holds_bytes(feature: Any) -> bool:
    """Whether the cells of a column may be image files as bytes."""
    kind = feature.get("bytes") if isinstance(feature, Mapping) else feature
    return getattr(kind, "dtype", None) in ("binary", "large_binary")
