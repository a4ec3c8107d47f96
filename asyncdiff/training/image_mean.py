"""Means of what is logged over all images of all processes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric


class ImageMean(MeanMetric):
    """The mean over images, each counted once: update it with one value per image.

    In float32 also inside a module that is cast to half precision, and NaN as soon as one value is. Lightning's own
    mean of logged values rounds the number of images down where processes hold unequal numbers.
    """

    def __init__(self) -> None:
        # The other strategies drop NaNs and wait for the device at every update; this one ignores weights.
        super().__init__(nan_strategy="disable")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> nn.Module:
        device = fn(torch.empty(0, device=self.device)).device
        return super()._apply(lambda tensor: tensor.to(device), exclude_state)
