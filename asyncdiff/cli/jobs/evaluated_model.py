"""Load the model and the data of the run that `evaluate` evaluates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asyncdiff.checkpoints import choose_weights, read_checkpoint
from asyncdiff.checkpoints.locate import weight_file
from asyncdiff.checkpoints.select_weights import WeightKind
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.evaluate import Run
from asyncdiff.cli.commands.shared.experiment_file import Experiment
from asyncdiff.cli.commands.shared.options import with_codec
from asyncdiff.evaluation.features.weights import file_sha256
from asyncdiff.evaluation.likelihood_by_path import check_labels
from asyncdiff.evaluation.result_card import software
from asyncdiff.model import DiffusionModel
from asyncdiff.shapes import Image


@dataclass(frozen=True)
class EvaluatedModel:
    """Model of a run, with what a protocol records about its checkpoint.

    Attributes:
        model: model with the weights and the codec that the options select.
        run: run of the model.
        checkpoint: file or export that the model was loaded from.
        step: number of optimizer steps of training.
        weights: kind of the weights.
        dtype: data type of the weights in the file.
        label_dropout: label dropout that the model was trained with; None if the checkpoint does not record it.
    """

    model: DiffusionModel
    run: Run
    checkpoint: Path
    step: int
    weights: WeightKind
    dtype: str
    label_dropout: float | None

    @classmethod
    def load(cls, run: Run, device: torch.device | str) -> "EvaluatedModel":
        """Read the checkpoint of a run once, and load its model to a device."""
        file, options = run.find_checkpoint(), run.options
        contents = read_checkpoint(file, device)
        allow = trusted_packages.of_models()
        model = DiffusionModel.from_checkpoint(contents, file, device, weights=options.weights, allow=allow)
        return cls(
            with_codec(model, options),
            run,
            file,
            contents.get("global_step", 0),
            choose_weights(contents, options.weights, file)[1],
            next(str(v.dtype) for v in contents["state_dict"].values() if v.is_floating_point()),
            contents["recipe"]["init_args"].get("label_dropout"),
        )

    def check(self, data: Any, *, labels: bool) -> None:
        """Raise ValueError unless the model can be evaluated on the data, with or without labels."""
        check_labels(self.model, getattr(data, "classes", None), conditioned=labels, label_dropout=self.label_dropout)

    def protocol(self, data: Any) -> dict[str, Any]:
        """Return the part of the protocol that all evaluations share: checkpoint, data and software."""
        options = self.run.options
        return {
            "checkpoint": str(self.checkpoint),
            "checkpoint_sha256": file_sha256(weight_file(self.checkpoint)),
            "step": self.step,
            "weights": self.weights,
            "data": type(data).__name__,
            "split": options.split,
            "seed": options.seed,
            "dtype": self.dtype,
            **software(options.device),
        }


def load_data(run: Run) -> Any:
    """Build the data module of a run."""
    return Experiment(run.find_config()).data()


def check_shape(model: DiffusionModel, images: Image) -> None:
    """Raise ValueError unless images (n, c, h, w) have the model's shape."""
    if tuple(images.shape[1:]) != model.shape:
        raise ValueError(
            f"images must have the model's shape {model.shape}, got {tuple(images.shape[1:])}: "
            "use the data that the model was trained on"
        )
