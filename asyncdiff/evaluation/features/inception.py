"""Inception features for FIDs comparable with published ones, from torch-fidelity's port of the network."""

import io
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.evaluation.features.base import FeatureArray, Features, as_rgb, isolated_rng, to_uint8
from asyncdiff.evaluation.features.weights import published_hash, read_tensors, weight_file
from asyncdiff.shapes import Image


class InceptionFeatures(Features):
    """The 2048 pooled features of the Inception network that published FIDs use, with its own resize to 299x299.

    The network is torch-fidelity's port of the TensorFlow graph from 2015-12-05 (arXiv:1706.08500). Images are first
    rounded to 8 bits, as if they had been saved to files; gray images are repeated over three channels.

    Args:
        weights: local weight file (default: torch-fidelity's file in $TORCH_HOME/hub/checkpoints, downloaded if
            absent).
        sha256: first 8 to 64 hex digits of the file's SHA-256 (default: those in the name of the published file).

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError: the weight file does not exist and cannot be downloaded.
        ValueError: the file does not have the expected SHA-256.
    """

    name = "inception"
    dim = 2048

    def __init__(self, weights: str | None = None, *, sha256: str | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as inception
        except ImportError as error:
            raise ImportError(
                "InceptionFeatures needs the package torch-fidelity: pip install torch-fidelity"
            ) from error
        url = inception.URL_INCEPTION_V3
        sha256 = published_hash(url) if sha256 is None else sha256
        state = read_tensors(weight_file(weights, url=url), sha256=sha256)
        # The extractor reads weights only from a file: save the checked tensors to a buffer that it can load.
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        with isolated_rng(0):  # the layers draw initial weights before they are loaded
            self.extractor = inception.FeatureExtractorInceptionV3(self.name, ["2048"], file)
        self.weights, self.sha256 = weights, sha256

    def forward(self, images: Image) -> FeatureArray:
        return self.extractor(to_uint8(as_rgb(images)))[0]

    def logits(self, images: Image) -> Float[Tensor, "b 1008"]:
        """Return the class scores for the published Inception score, without the bias, as in the TensorFlow graph."""
        return self.logits_of(self(images))

    def logits_of(self, features: FeatureArray) -> Float[Tensor, "b 1008"]:
        """Return what `logits` returns, given the features of the images."""
        return features @ self.extractor.fc.weight.T

    def preprocessing(self) -> dict[str, Any]:
        size = self.extractor.INPUT_IMAGE_SIZE
        resize = "bilinear of TensorFlow 1, without antialiasing"
        return {"rounding": "8 bits", "resize": resize, "size": [size, size], "range": "(levels - 128) / 128"}
