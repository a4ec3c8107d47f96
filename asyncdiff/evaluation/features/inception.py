"""The features of published Fréchet distances: those of one port of one Inception network."""

import io
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.evaluation.features.base import FeatureRows, Features, own_randomness, to_uint8
from asyncdiff.evaluation.features.weights import published_hash, read_weights, weight_file
from asyncdiff.shapes import Image


class InceptionFeatures(Features):
    """The 2048 pooled features of the Inception that published FIDs use, with its own resize to 299x299.

    torch-fidelity's port of the TensorFlow graph of 2015-12-05 (arXiv:1706.08500). Images are rounded to 8 bits first,
    as if they had been saved; grey images are given three equal channels.

    Args:
        weights: local weight file; without it, torch-fidelity's file in $TORCH_HOME/hub/checkpoints, fetched if absent.
        sha256: first 8 to 64 hex digits of the file's SHA-256, in place of those in the name of the published file.

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError: there is no file and none can be fetched.
        ValueError: the file is another one than its hash says.
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
        state = read_weights(weight_file(weights, url=url), sha256=sha256)
        # The extractor insists on un-pickling a file: it gets one that we wrote, of nothing but checked tensors.
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        with own_randomness(0):  # its layers draw initial weights, which the file then replaces
            self.extractor = inception.FeatureExtractorInceptionV3(self.name, ["2048"], file)
        self.weights, self.sha256 = weights, sha256

    def forward(self, images: Image) -> FeatureRows:
        """One row of 2048 features per image of 1 or 3 channels."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}: decode latents to pixels first")
        return self.extractor(to_uint8(images).expand(-1, 3, -1, -1))[0]

    def logits(self, images: Image) -> Float[Tensor, "b 1008"]:
        """The class scores that the published Inception score is of: without the bias, as in the TensorFlow graph."""
        return self.logits_of(self(images))

    def logits_of(self, rows: FeatureRows) -> Float[Tensor, "b 1008"]:
        """The same, of features."""
        return rows @ self.extractor.fc.weight.T

    def preparation(self) -> dict[str, Any]:
        """Rounded to 8 bits and enlarged as TensorFlow 1 did, which is not what other libraries call bilinear."""
        size = self.extractor.INPUT_IMAGE_SIZE
        resize = "bilinear of TensorFlow 1, without antialiasing"
        return {"rounding": "8 bits", "resize": resize, "size": [size, size], "range": "(levels - 128) / 128"}
