"""Load the model and the data of the run that `evaluate` evaluates."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from asyncdiff.checkpoints import choose_weights, read_checkpoint
from asyncdiff.checkpoints.label_meaning import check_same_labels, label_fingerprint
from asyncdiff.checkpoints.locate import weight_file
from asyncdiff.checkpoints.select_weights import WeightKind
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.evaluate import Run
from asyncdiff.cli.commands.shared.options import with_codec
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.evaluation.features.weights import file_sha256
from asyncdiff.evaluation.likelihood_by_path import check_labels
from asyncdiff.evaluation.result_card import software
from asyncdiff.model import DiffusionModel
from asyncdiff.shapes import Image, Latents


@dataclass(frozen=True)
class EvaluatedModel:
    """Model and data of a run, with what a protocol records about the checkpoint.

    Attributes:
        run: run of the model.
        data: data module of the run.
        model: model with the weights and the codec that the options select.
        checkpoint: file or export that the model was loaded from.
        step: number of optimizer steps of training.
        weights: kind of the weights.
        dtype: data type of the weights in the file.
    """

    run: Run
    data: Any
    model: DiffusionModel
    checkpoint: Path
    step: int
    weights: WeightKind
    dtype: str

    @classmethod
    def load(cls, run: Run, data: Any, device: torch.device | str) -> "EvaluatedModel":
        """Read a run's checkpoint once, and load its model to a device; raise ValueError if the data does not fit."""
        file, options = run.find_checkpoint(), run.options
        contents = read_checkpoint(file, device)
        allow = trusted_packages.of_models()
        model = DiffusionModel.from_checkpoint(
            contents, file, device, weights=options.weights, precision=options.precision, allow=allow
        )
        dropout = contents["recipe"]["init_args"].get("label_dropout")
        check_labels(model, getattr(data, "classes", None), conditioned=options.labels, label_dropout=dropout)
        if options.labels and model.classes:
            here = label_fingerprint(getattr(data, "label_names", None))
            check_same_labels(here, contents.get("labels"), file, "use the data that the model was trained on")
        weights = choose_weights(contents, options.weights, file)[1]
        dtype = next(str(v.dtype) for v in contents["state_dict"].values() if v.is_floating_point())
        return cls(run, data, with_codec(model, options), file, contents.get("global_step", 0), weights, dtype)

    def decode_exactly(self, x: Latents) -> Image:
        """Decode real images in float32, whatever the precision of sampling: statistics of them may be stored."""
        return replace(self.model, precision="float32").decode(x)

    def protocol(self) -> dict[str, Any]:
        """Return the part of the protocol that all evaluations share: checkpoint, data and software."""
        options = self.run.options
        return {
            "checkpoint": str(self.checkpoint),
            "checkpoint_sha256": file_sha256(weight_file(self.checkpoint)),
            "step": self.step,
            "weights": self.weights,
            "data": type(self.data).__name__,
            "split": options.split,
            "seed": options.seed,
            "dtype": self.dtype,
            "precision": self.model.precision,
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
