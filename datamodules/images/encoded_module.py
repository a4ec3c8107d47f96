"""What the data modules of encoded images share: how a square is made of an image, and what becomes of damaged ones."""

from typing import Any, Literal

from datamodules.base import ImageDataModule, at_least
from datamodules.images.decoding import Crop
from datamodules.images.encoded import check_image_options


class EncodedDataModule(ImageDataModule):
    """Subclasses say where the images are, and hand `options` on to their `EncodedImages`.

    Args:
        size: pixels of a side.
        channels: 3 for colour, 1 for grey.
        crop: "short_side" resizes by antialiased bicubic filtering; "adm", as ADM and DiT prepare ImageNet, halves the
            sides by a box filter before that, while the short one is at least twice the size.
        reduced_decoding: decode JPEG files of at least twice the size at a half, quarter or eighth of theirs: quicker,
            and not the same pixels.
        horizontal_flip: mirror half of the training images.
        on_corrupt: what to do with an unreadable image: "skip" warns once, and takes the next one in training, none in
            evaluation; "raise" stops.
        **loading: as in ImageDataModule.
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
        at_least("size", size, 1, "set the pixels of a side")
        check_image_options(channels=channels, on_corrupt=on_corrupt, crop=crop)
        self.size, self.channels, self.crop, self.reduced_decoding = size, channels, crop, reduced_decoding
        self.horizontal_flip, self.on_corrupt = horizontal_flip, on_corrupt

    def options(self, *, train: bool) -> dict[str, Any]:
        """The arguments of `EncodedImages` that follow from this module's own."""
        return {
            "size": self.size,
            "channels": self.channels,
            "train": train,
            "flip": train and self.horizontal_flip,
            "on_corrupt": self.on_corrupt,
            "crop": self.crop,
            "reduced_decoding": self.reduced_decoding,
        }
