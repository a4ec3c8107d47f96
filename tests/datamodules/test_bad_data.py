"""Odd image files: each is read as documented in `datamodules.images.decoding`, or refused by name."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolder
from datamodules.images.decoding import pillow_pixels, read_pixels

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

RED = (255, 0, 0)
Made = tuple[str, bytes]  # name of a file and its content


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int = 12, width: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png16(values: np.ndarray, kind: int, **chunks: bytes) -> bytes:
    """Encode 16-bit values (h, w, c) as PNG of a color type: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    parts += [chunk(name.encode(), data) for name, data in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def ycck(red: int, green: int, blue: int) -> bytes:
    """Encode a JPEG of four components: luma and chroma of the inverted color, and black, as Adobe programs do."""
    inverted = Image.new("RGB", (16, 16), (255 - red, 255 - green, 255 - blue))
    luma, blueness, redness = inverted.convert("YCbCr").getpixel((0, 0))
    # Pillow writes the components of CMYK inverted and says that they are not transformed: let it say that they are.
    plain = encoded(Image.new("CMYK", (16, 16), (255 - luma, 255 - blueness, 255 - redness, 0)), "jpeg", quality=100)
    marker = plain.index(b"Adobe")
    assert plain[marker + 11] == 0
    return plain[: marker + 11] + b"\2" + plain[marker + 12 :]


JPEG = encoded(noise(), "jpeg", quality=95)
UNREADABLE: dict[str, Made] = {
    "truncated JPEG": ("bad.jpg", JPEG[: len(JPEG) * 2 // 3]),
    **{
        f"half of a {kind}": ("bad.jpg", (lambda data: data[: len(data) // 2])(encoded(noise(64, 64), kind)))
        for kind in ("jpeg", "png", "webp", "bmp", "tiff", "gif")
    },
    "JPEG without its last bytes": ("bad.jpg", JPEG[:-40]),
    "truncated progressive JPEG": ("bad.jpg", encoded(noise(), "jpeg", progressive=True)[:-60]),
    "text": ("bad.jpg", b"<html>404 Not Found</html>"),
    "zero bytes": ("bad.jpg", b""),
    "only zeros": ("bad.jpg", bytes(len(JPEG))),
    "header only": ("bad.png", encoded(noise(), "png")[:40]),
    "PNG with a flipped bit": ("bad.png", (lambda d: d[:100] + bytes([d[100] ^ 4]) + d[101:])(encoded(noise(), "png"))),
    "floats beyond any range": ("bad.tif", encoded(Image.fromarray(np.full((8, 8), 1e4, np.float32)), "tiff")),
    "far too unequal sides": ("bad.png", encoded(Image.new("L", (1, 60_000)), "png")),
}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., ImageFolder]:
    """Write a folder of two valid training images, two valid validation images and one odd validation file."""

    def made(name: str | None = None, content: bytes = b"", size: int = 8, **options: Any) -> ImageFolder:
        for at in range(4):
            file = tmp_path / ("train", "val")[at % 2] / f"good{at}.png"
            file.parent.mkdir(exist_ok=True)
            noise().save(file)
        if name is not None:
            (tmp_path / "val" / name).write_bytes(content)
        return ImageFolder(str(tmp_path), size, batch_size=2, **options)

    return made


def check_left_out(data: ImageFolder, name: str, reason: str = ".+") -> None:
    """Check that the odd file is left out with a warning that names it."""
    with pytest.warns(UserWarning, match=rf"cannot read .*{name}: {reason}; it is left out"):
        assert sum(len(batch["image"]) for batch in data.val_dataloader()) == 2


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_files_are_left_out_or_raise_one_line(folder: Callable[..., ImageFolder], kind: str) -> None:
    size = 200 if kind == "far too unequal sides" else 8
    name, content = UNREADABLE[kind]
    reason = {"text": "its 26 bytes are not an image.*", "zero bytes": "its 0 bytes are not an image.*"}.get(kind, ".+")
    check_left_out(folder(name, content, size=size), name, reason)
    with pytest.raises(ValueError, match=rf"cannot read .*{name}: {reason}; replace the file") as caught:
        list(folder(name, content, size=size, on_corrupt="raise").val_dataloader())
    assert "\n" not in str(caught.value)


def test_reduced_decoding_refuses_a_truncated_jpeg_too(folder: Callable[..., ImageFolder]) -> None:
    big = encoded(noise(64, 64), "jpeg")
    data = folder("bad.jpg", big[: len(big) // 2], reduced_decoding=True, on_corrupt="raise")
    with pytest.raises(ValueError, match=r"cannot read .*bad\.jpg"):
        list(data.val_dataloader())


@pytest.mark.parametrize("target", ["nowhere", "link.png"])
def test_a_broken_link_is_left_out_with_a_warning(
    folder: Callable[..., ImageFolder], tmp_path: Path, target: str
) -> None:
    data = folder()
    (tmp_path / "val" / "link.png").symlink_to(tmp_path / "val" / target)
    check_left_out(data, "link.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_left_out(folder: Callable[..., ImageFolder], tmp_path: Path) -> None:
    data = folder("closed.png", encoded(noise(), "png"))
    (tmp_path / "val" / "closed.png").chmod(0)
    check_left_out(data, "closed.png", ".*Permission denied.*")


def pixels(tmp_path: Path, content: bytes) -> torch.Tensor:
    (tmp_path / "odd").write_bytes(content)  # the suffix does not matter
    return read_pixels(tmp_path / "odd")


def color(tmp_path: Path, content: bytes) -> list[int]:
    return pixels(tmp_path, content)[:, 0, 0].tolist()


def test_sixteen_bits_are_scaled_to_eight_within_one_gray_level(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32, 1)
    full = np.full_like(ramp, 65535)
    made = {
        "gray": (png16(ramp, 0), 0.5),
        "gray TIFF": (encoded(Image.fromarray(ramp[..., 0]), "tiff"), 0.5),
        "color": (png16(np.concatenate([ramp, ramp[::-1], ramp], -1), 2), 0.75),
        "gray and alpha": (png16(np.concatenate([ramp, full], -1), 4), 0.75),
        "color and alpha": (png16(np.concatenate([ramp, ramp, ramp, full], -1), 6), 0.75),
    }
    for kind, (content, tolerance) in made.items():
        read = pixels(tmp_path, content)[0].numpy() / 255 - ramp[..., 0] / 65535
        assert np.abs(read).max() * 255 <= tolerance + 1e-4, kind
        assert abs(read.mean()) * 255 < 1e-3, kind  # no darker and no brighter


def test_transparency_of_every_kind_is_composited_over_white(tmp_path: Path) -> None:
    clear = np.zeros((2, 2, 4), np.uint16)
    assert color(tmp_path, png16(clear, 6)) == [255, 255, 255]
    assert color(tmp_path, png16(clear[..., :2], 4)) == [255, 255, 255]
    gray = np.full((2, 2, 1), 4660, np.uint16)
    assert color(tmp_path, png16(gray, 0, tRNS=struct.pack(">H", 4660))) == [255]
    assert color(tmp_path, png16(gray, 0, tRNS=struct.pack(">H", 4661))) == [18]
    assert color(tmp_path, encoded(Image.new("L", (2, 2), 7), "png", transparency=7)) == [255, 255, 255]
    assert color(tmp_path, encoded(Image.new("RGB", (2, 2), RED), "png", transparency=RED)) == [255, 255, 255]
    assert color(tmp_path, encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "webp", lossless=True)) == [255] * 3
    assert color(tmp_path, encoded(Image.new("P", (2, 2), 0), "gif", transparency=0)) == [255, 255, 255]
    assert color(tmp_path, encoded(Image.new("RGBA", (2, 2), (*RED, 255)), "png")) == [*RED]


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_alpha_of_every_mode_is_composited_over_white(mode: str) -> None:
    """Some modes only occur in TIFF files that Pillow cannot write."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    assert pillow_pixels(Image.new(mode, (2, 2), (0,) * bands))[:, 0, 0].tolist() == [255, 255, 255]
    half = (0,) * (bands - 1) + (128,)
    image = Image.new(mode, (2, 2), half)
    if mode == "PA":
        image.putpalette([0, 0, 0])
    assert pillow_pixels(image)[:, 0, 0].tolist() == pytest.approx([127] * 3, abs=1)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    for kind in ("jpeg", "tiff"):
        red = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind)
        assert color(tmp_path, red) == pytest.approx(RED, abs=3)
    assert color(tmp_path, encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "jpeg")) == pytest.approx([0] * 3, abs=3)
    assert color(tmp_path, ycck(200, 30, 90)) == pytest.approx([200, 30, 90], abs=4)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    palette = Image.new("RGB", (4, 4), (250, 128, 3)).convert("P", palette=Image.Palette.ADAPTIVE)
    for kind in ("png", "gif", "bmp"):
        assert color(tmp_path, encoded(palette, kind)) == [250, 128, 3]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff", "mpo"])
def test_the_first_of_several_frames_is_used(tmp_path: Path, kind: str) -> None:
    others = [Image.new("RGB", (8, 8), (0, 0, 255)), Image.new("RGB", (8, 8), (0, 255, 0))]
    content = encoded(Image.new("RGB", (8, 8), RED), kind, save_all=True, append_images=others)
    assert color(tmp_path, content)[:3] == pytest.approx(RED, abs=3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("crop", ["short_side", "adm"])
def test_lines_of_one_pixel_are_enlarged(folder: Callable[..., ImageFolder], shape: tuple[int, int], crop: Any) -> None:
    content = encoded(Image.new("RGB", shape, RED), "png")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        batches = list(folder("odd.png", content, crop=crop).images("val", 2))
    image = torch.cat([batch["image"] for batch in batches])[2]  # behind good1 and good3
    assert (image[0] == 1).all()
    assert (image[1:] == -1).all()


@pytest.mark.parametrize(("kind", "reduced"), [("jpeg", False), ("jpeg", True), ("png", False), ("webp", False)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied(
    folder: Callable[..., ImageFolder], orientation: int, kind: str, reduced: bool
) -> None:
    """The upper left quarter of the upright image is white."""
    upright = np.zeros((64, 64), np.uint8)
    upright[:32, :32] = 255
    # The inverse of what each orientation asks a viewer to do.
    stored = [
        lambda x: x,
        np.fliplr,
        lambda x: np.rot90(x, 2),
        np.flipud,
        np.transpose,
        lambda x: np.rot90(x, 1),
        lambda x: np.rot90(x, 2).T,
        lambda x: np.rot90(x, 3),
    ][orientation - 1](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)).convert("RGB"), kind, exif=exif)
    data = folder("odd.jpg", content, reduced_decoding=reduced)
    image = torch.cat([batch["image"] for batch in data.images("val", 2)])[2, 0]
    assert image[:3, :3].min() > 0.8
    assert max(image[:3, 5:].max(), image[5:].max()) < -0.8
