"""Average a logged value over all images of all processes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric


class ImageMean(MeanMetric):
    """Mean over images, each counted once: update it with one value per image.

    It stays in float32 inside a module that is cast to half precision, and is NaN if any value is NaN. Lightning's own
    mean of logged values is wrong if processes have unequal numbers of images, because it rounds their number down.
    """

    def __init__(self) -> None:
        # Other strategies drop NaNs and synchronize with the device at every update; this one ignores weights.
        super().__init__(nan_strategy="disable")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> nn.Module:
        device = fn(torch.empty(0, device=self.device)).device
        return super()._apply(lambda tensor: tensor.to(device), exclude_state)
