"""Base class of data modules of encoded images: arguments for cropping and for unreadable images."""

from typing import Any, Literal

from datamodules.base import ImageDataModule, at_least
from datamodules.images.decoding import Crop
from datamodules.images.encoded import check_image_options


class EncodedDataModule(ImageDataModule):
    """Data module of encoded images; subclasses pass `options` to their `EncodedImages`.

    Args:
        size: side length in pixels.
        channels: 3 for RGB, 1 for grayscale.
        crop: "short_side" resizes the short side by antialiased bicubic filtering; "adm" first halves the sides with a
            box filter while the short side is at least twice `size`, as ADM and DiT preprocess ImageNet.
        reduced_decoding: decode JPEGs whose sides are at least twice `size` at 1/2, 1/4 or 1/8 scale; faster, but the
            pixels differ slightly.
        horizontal_flip: mirror half of the training images, chosen at random in every epoch.
        on_corrupt: what to do with an unreadable image: "skip" warns once, then uses the next image in training and
            leaves it out in evaluation; "raise" stops the run.
        **loading: arguments of ImageDataModule.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: Literal[1, 3],
        crop: Crop,
        reduced_decoding: bool,
        horizontal_flip: bool,
        on_corrupt: Literal["skip", "raise"],
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        at_least("size", size, 1, "set the side length in pixels")
        check_image_options(channels=channels, on_corrupt=on_corrupt, crop=crop)
        self.size, self.channels, self.crop, self.reduced_decoding = size, channels, crop, reduced_decoding
        self.horizontal_flip, self.on_corrupt = horizontal_flip, on_corrupt

    def options(self, *, train: bool) -> dict[str, Any]:
        """Return the arguments of `EncodedImages` that follow from those of this module."""
        same = {name: getattr(self, name) for name in ("size", "channels", "on_corrupt", "crop", "reduced_decoding")}
        return {**same, "train": train, "flip": train and self.horizontal_flip}
