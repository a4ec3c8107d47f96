from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images import decoding
from datamodules.images.decoding import center_square, halve, read_pixels

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet_sample" / "train"


def smooth(height: int, width: int) -> np.ndarray:
    """An RGB image without sharp edges."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = (np.sin(3 * x + 1), np.cos(4 * y), np.sin(2 * (x + y)))
    return np.stack([(127.5 + 110 * wave).round() for wave in waves], -1).astype(np.uint8)


def pixels(path: Path, image: Image.Image, **options: Any) -> torch.Tensor:
    image.save(path, **options)
    return read_pixels(path)


def load_square(path: Path, *, size: int, channels: int) -> torch.Tensor:
    return decoding.load_square(np.fromfile(path, dtype=np.uint8), size=size, channels=channels)


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (31, 31), (20, 24), (37, 111)])
def test_result_is_the_center_of_pillows_resized_image(tmp_path: Path, shape: tuple[int, int]) -> None:
    pillow_image = Image.fromarray(smooth(*shape))
    pillow_image.save(tmp_path / "a.png")
    ours = load_square(tmp_path / "a.png", size=31, channels=3)
    height, width = (round(side * 31 / min(shape)) for side in shape)
    resized = np.asarray(pillow_image.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    top, left = (height - 31) // 2, (width - 31) // 2
    theirs = resized[top : top + 31, left : left + 31]
    assert ours.shape == (3, 31, 31)
    assert np.abs(ours.permute(1, 2, 0).numpy() - theirs).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_fast_path_equals_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, options: dict[str, Any]
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth(90, 70)).save(path, **options)
    fast = load_square(path, size=32, channels=channels).int()
    monkeypatch.setattr(decoding, "decode_jpeg", None)
    slow = load_square(path, size=32, channels=channels).int()
    assert (fast - slow).abs().max() <= 1


def test_fast_path_is_taken_for_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "pillow_pixels", lambda image: pytest.fail("Pillow decoded it"))
    for mode in ("L", "RGB"):
        assert pixels(tmp_path / "a.jpg", Image.new(mode, (8, 8))).shape == (len(mode), 8, 8)


@pytest.mark.parametrize("top", [1, 255])
def test_float_tiff_spans_the_full_range(tmp_path: Path, top: int) -> None:
    ramp = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    read = pixels(tmp_path / "a.tif", Image.fromarray(ramp))
    assert read.flatten().tolist() == list(range(256))


@pytest.mark.parametrize("value", [-0.5, 256.0, float("nan"), float("inf")])
def test_other_floats_are_refused(tmp_path: Path, value: float) -> None:
    values = np.full((4, 4), 0.5, dtype=np.float32)
    values[1, 2] = value
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\] or \[0, 255\]"):
        pixels(tmp_path / "a.tif", Image.fromarray(values))


def test_black_and_white_spans_the_full_range(tmp_path: Path) -> None:
    pillow_image = Image.fromarray(np.array([[True, False]]))
    assert pixels(tmp_path / "a.png", pillow_image).flatten().tolist() == [255, 0]


def test_gray_and_rgb_convert_into_each_other(tmp_path: Path) -> None:
    Image.fromarray(smooth(16, 16)[..., 0]).save(tmp_path / "gray.jpg")
    read = load_square(tmp_path / "gray.jpg", size=16, channels=3)
    assert read.shape == (3, 16, 16)
    assert torch.equal(read[0], read[1])
    pillow_image = Image.fromarray(smooth(16, 16))
    pillow_image.save(tmp_path / "color.png")
    luma = load_square(tmp_path / "color.png", size=16, channels=1)[0].numpy().astype(int)
    assert np.abs(luma - np.asarray(pillow_image.convert("L"))).max() <= 1


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("a.png", "a.jpg"):
        with pytest.raises(Image.DecompressionBombError):
            pixels(tmp_path / name, Image.new("RGB", (15, 14)))
    with pytest.raises(ValueError, match="too unequal"):
        center_square(torch.zeros(3, 1, 40_000, dtype=torch.uint8), 256)


def by_pillow(pillow_image: Image.Image, size: int, *, halving: bool) -> np.ndarray:
    """Resize the short side with Pillow, after ADM's halving if `halving`, and crop the center."""
    while halving and min(pillow_image.size) >= 2 * size:
        pillow_image = pillow_image.resize((pillow_image.width // 2, pillow_image.height // 2), Image.Resampling.BOX)
    scale = size / min(pillow_image.size)
    width, height = round(pillow_image.width * scale), round(pillow_image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    resized = np.asarray(pillow_image.resize((width, height), Image.Resampling.BICUBIC))
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize("channels", [1, 3])
def test_halving_is_pillows_box_filter(channels: int) -> None:
    random = np.random.default_rng(0)
    off, wrong, count = 0, 0, 0
    for height, width in random.integers(4, 90, (80, 2)).tolist():
        pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        pillow_image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        theirs = np.asarray(pillow_image.resize((width // 2, height // 2), Image.Resampling.BOX)).astype(int)
        ours = halve(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        difference = np.abs(ours.reshape(theirs.shape) - theirs)
        off, wrong, count = max(off, difference.max()), wrong + difference.sum(), count + difference.size
    assert off <= 1
    assert wrong / count < 0.02  # where a height is odd, of noise; of even sides every pixel is the same


def test_even_sides_are_halved_to_the_last_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 90, 3), dtype=np.uint8)
    theirs = Image.fromarray(pixels).resize((45, 32), Image.Resampling.BOX)
    assert np.array_equal(halve(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy(), np.asarray(theirs))


@pytest.mark.parametrize("halving", [False, True])
@pytest.mark.parametrize("size", [7, 31, 64, 150])
def test_crops_are_those_of_pillow(size: int, halving: bool) -> None:
    for shape in [(150, 201), (333, 250), (256, 256), (301, 600)]:
        pillow_image = Image.fromarray(smooth(*shape))
        pixels = torch.from_numpy(np.array(pillow_image)).permute(2, 0, 1)
        ours = center_square(pixels, size, "adm" if halving else "short_side").permute(1, 2, 0).numpy()
        difference = np.abs(ours.astype(int) - by_pillow(pillow_image, size, halving=halving))
        assert difference.max() <= 2
        assert difference.mean() < 0.05


def test_reduced_decoding_is_for_jpegs_of_at_least_twice_the_size(tmp_path: Path) -> None:
    Image.fromarray(smooth(64, 96)).save(tmp_path / "a.jpg", quality=95)
    data = np.fromfile(tmp_path / "a.jpg", dtype=np.uint8)
    sides = {least: tuple(decoding.decode(data, min_side=least).shape) for least in (33, 32, 17, 16, 9, 8, 1)}
    assert sides == {
        33: (3, 64, 96), 32: (3, 32, 48), 17: (3, 32, 48), 16: (3, 16, 24), 9: (3, 16, 24), 8: (3, 8, 12), 1: (3, 8, 12)
    }  # fmt: skip
    Image.fromarray(smooth(64, 96)).save(tmp_path / "a.png")
    assert decoding.decode(np.fromfile(tmp_path / "a.png", dtype=np.uint8), min_side=8).shape == (3, 64, 96)
    for size in (8, 16, 32):
        exact, quick = (decoding.load_square(data, size=size, channels=3, reduced=r).int() for r in (False, True))
        assert quick.shape == (3, size, size)
        assert (exact - quick).abs().float().mean() < 2


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="sample photographs are not here")
@pytest.mark.parametrize("crop", ["short_side", "adm"])
def test_photographs_are_within_a_hundredth_of_a_gray_level_of_pillows(crop: Any) -> None:
    differences = []
    for file in sorted(PHOTOGRAPHS.glob("*/*.JPEG"))[::40]:
        data = np.fromfile(file, dtype=np.uint8)
        ours = decoding.load_square(data, size=64, channels=3, crop=crop).permute(1, 2, 0).numpy().astype(int)
        with Image.open(file) as image:
            theirs = by_pillow(image.convert("RGB"), 64, halving=crop == "adm")
        differences.append(np.abs(ours - theirs))
    assert np.mean(differences) < 0.01
    assert np.max(differences) <= 2
