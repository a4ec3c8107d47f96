"""Record the evaluation protocol and the result card of the callback `Frechet`."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from asyncdiff.callbacks.ema import EMA
from asyncdiff.checkpoints import object_config
from asyncdiff.evaluation.features.base import Features
from asyncdiff.evaluation.result_card import make_card, software
from asyncdiff.noise.masks import Mask
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.training.lightning_module import AsyncDiffusion


def frechet_protocol(
    trainer: Trainer,
    module: AsyncDiffusion,
    features: Features,
    *,
    count: int,
    first_seed: int,
    sampler: ImageSampler | None,
    mask: Mask | None,
) -> dict[str, Any]:
    """Return the evaluation protocol of the callback `Frechet`.

    Args:
        trainer: trainer with the data module.
        module: model that generates the images.
        features: feature extractor, already prepared.
        count: number of generated images.
        first_seed: seed of the first generated image.
        sampler: sampler of the images; None means the model's own.
        mask: known pixels of inpainted images; None means that no images are inpainted.

    Returns:
        The protocol as plain dicts and lists.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    samples = {
        "count": count,
        "seeds": [first_seed, first_seed + count - 1],
        "labels": f"{module.classes} classes in turn" if module.classes else None,
        "sampler": _object_config(sampler or module.sampler),
        "codec": None if module.codec is None else module.codec.fingerprint(),
        "rounding": None,  # only inside the features
    }
    return {
        "measurement": "run",
        "precision": str(trainer.precision),
        "weights": "ema" if any(isinstance(callback, EMA) for callback in _callbacks(trainer)) else "raw",
        "features": features.fingerprint(),
        "reference": {"data": object_config.class_path(type(data)), "split": "train", **_training_data(data)},
        "samples": samples,
        "mask": None if mask is None else _object_config(mask),
        **software(module.device),
    }


def log_protocol(trainer: Trainer, name: str, protocol: dict[str, Any]) -> None:
    """Log the protocol to TensorBoard as the text protocol/NAME."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            text = "\n".join(f"    {line}" for line in json.dumps(protocol, indent=2).splitlines())
            logger.experiment.add_text(f"protocol/{name}", text, trainer.global_step)


def write_result_card(trainer: Trainer, name: str, protocol: dict[str, Any], metrics: dict[str, float]) -> None:
    """Write the protocol and the metrics to evaluation/frechet_NAME.json in the trainer's default_root_dir."""
    folder = Path(trainer.default_root_dir) / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    card = make_card({**protocol, "step": trainer.global_step}, metrics)
    (folder / f"frechet_{name}.json").write_text(json.dumps(card, indent=2))


def _callbacks(trainer: Trainer) -> list[Any]:
    return list(getattr(trainer, "callbacks", []))


def _training_data(data: Any) -> dict[str, Any]:
    """Return the number and the fingerprint of the training images, as far as the data module provides them."""
    if not hasattr(data, "dataset"):
        return {}
    images = data.dataset("train").plain()
    return {"count": len(images), "fingerprint": images.fingerprint() if hasattr(images, "fingerprint") else None}


def _object_config(value: Any) -> Any:
    """Return the object config of a value, or only its class if it does not store its arguments."""
    try:
        return object_config.describe(value)
    except TypeError:
        return {"class_path": object_config.class_path(type(value))}
