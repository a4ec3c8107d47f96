"""Photos of every kind become the pixels that they show, and what is unknown of them leaves no trace."""

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from asyncdiff.tasks.arguments import parse_size, photo_files
from asyncdiff.tasks.photos import (
    PhotoWarning,
    check_same_shape,
    collect_warnings,
    fit_photo,
    fit_photo_and_mask,
    plan_fit,
    read_levels,
    read_mask,
    read_photo,
    read_pixels,
    save_png,
    to_bytes,
    to_model,
)

PATCH = (4, 4)


def noise(c, h, w, seed=0):
    return torch.randint(0, 256, (c, h, w), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def saved(array, file, **plan):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(file, **plan)
    return file


# Bytes


@pytest.mark.parametrize("channels", [1, 3])
def test_all_256_values_survive_conversion_and_a_file(channels, tmp_path):
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(channels, -1, -1)
    back = to_bytes(to_model(pixels))
    assert torch.equal(back, pixels)
    save_png(back, tmp_path / "deep" / "a.png")
    assert torch.equal(read_photo(tmp_path / "deep" / "a.png", channels), pixels)


def test_values_beyond_the_range_are_clipped():
    assert to_bytes(torch.tensor([[[-1.7, -1.0, 0.0, 1.0, 2.0]]])).flatten().tolist() == [0, 0, 128, 255, 255]


# Reading


def test_a_photo_is_turned_upright(tmp_path):
    upright = noise(3, 4, 6)
    turned = Image.fromarray(upright.permute(1, 2, 0).numpy()).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    turned.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_photo(tmp_path / "a.png", 3), upright)


def test_transparent_pixels_are_white_with_a_warning(tmp_path):
    colours = np.zeros((2, 2, 4), np.uint8)
    colours[0, 0] = (10, 20, 30, 255)
    saved(colours, tmp_path / "a.png")
    with pytest.warns(PhotoWarning, match="3 transparent pixels are blended with white"):
        pixels = read_photo(tmp_path / "a.png", 3)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert (pixels.flatten(1)[:, 1:] == 255).all()
    saved(np.full((2, 2, 4), 255), tmp_path / "opaque.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_photo(tmp_path / "opaque.png", 3)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert torch.equal(read_photo(tmp_path / "a.png", 1)[0], torch.arange(256).reshape(16, 16).to(torch.uint8))


def test_channels_are_converted_for_the_model(tmp_path):
    saved(np.tile(np.uint8([[[255, 0, 0]]]), (2, 2, 1)), tmp_path / "red.png")
    assert (read_photo(tmp_path / "red.png", 1) == 76).all()  # 0.299 of 255
    saved(np.full((2, 2), 9), tmp_path / "grey.png")
    assert torch.equal(read_photo(tmp_path / "grey.png", 3), torch.full((3, 2, 2), 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="photos must have 1 or 3 channels, but the model has 4"):
        read_photo(tmp_path / "grey.png", 4)


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    frames = [Image.fromarray(np.full((2, 2), value, np.uint8)) for value in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(PhotoWarning, match="only the first of its 2 frames is used"):
        assert (read_photo(tmp_path / "a.gif", 1) == 0).all()


def test_a_file_that_is_not_an_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.png"):
        read_photo(tmp_path / "a.png", 3)


def test_folders_and_patterns_list_their_files(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    assert [f.name for f in photo_files("image", str(tmp_path))] == ["a.JPG", "b.png"]
    assert [f.name for f in photo_files("image", str(tmp_path / "*.png"))] == ["b.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"image must contain image files .* got the folder"):
        photo_files("image", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="exemplar must be an image file, a folder or a pattern"):
        photo_files("exemplar", str(tmp_path / "none.png"))


# Masks


def test_white_is_known_unless_mask_is_unknown(tmp_path):
    mask = np.uint8([[255, 0], [0, 255]])
    deep = np.array(mask // 255, np.uint16)  # values 0 and 1 of any depth are black and white
    for name, values in (("l", mask), ("ones", mask // 255), ("deep", deep), ("rgb", np.stack([mask] * 3, -1))):
        file = tmp_path / f"{name}.png"
        Image.fromarray(values).save(file)
        assert read_mask(file).tolist() == [[True, False], [False, True]]
        assert read_mask(file, mask_is_unknown=True).tolist() == [[False, True], [True, False]]


def test_gray_mask_pixels_are_thresholded_with_one_warning(tmp_path):
    file = saved([[0, 127, 128, 255]], tmp_path / "a.png")
    with pytest.warns(PhotoWarning) as reported:
        assert read_mask(file).tolist() == [[False, False, True, True]]
    assert len(reported) == 1
    assert "2 of 4 pixels are neither black nor white" in str(reported[0].message)


def test_a_jpeg_mask_equals_the_mask_that_was_saved(tmp_path):
    drawn = torch.zeros(32, 32, dtype=torch.bool)
    drawn[5:20, 9:27] = True
    file = saved(drawn.numpy() * 255, tmp_path / "a.jpg", quality=60)
    with pytest.warns(PhotoWarning, match="neither black nor white"):
        assert torch.equal(read_mask(file), drawn)


def test_a_transparent_mask_is_refused(tmp_path):
    file = saved(np.zeros((2, 2, 4)), tmp_path / "a.png")
    with pytest.raises(ValueError, match="mask must be opaque, got 4 transparent pixels in "):
        read_mask(file)


# Painted files: masks and level maps are read by one rule

GRAY = [[0, 255], [102, 51]]
BITS = [[0, 255], [255, 0]]


def painted_files(folder):
    """Files of the same gray values, and of the same black and white, in every form that programs save."""
    gray, bits = np.uint8(GRAY), np.uint8(BITS)
    palette = Image.fromarray(gray, "P")
    palette.putpalette([v for k in range(256) for v in (k, k, k)])
    numbered = Image.fromarray(bits // 255, "P")  # class 1 is white
    numbered.putpalette([0, 0, 0, 255, 255, 255])
    yield from {
        "gray8.png": (Image.fromarray(gray), GRAY),
        "rgb.png": (Image.fromarray(np.stack([gray] * 3, -1)), GRAY),
        "opaque.png": (Image.fromarray(np.dstack([gray, gray, gray, np.full_like(gray, 255)])), GRAY),
        "palette.png": (palette, GRAY),
        "deep.png": (Image.fromarray(np.uint16(gray) * 257), GRAY),
        "shallow.png": (Image.fromarray(np.uint16(gray)), GRAY),  # 8 bits in a file of 16
        "unit.tif": (Image.fromarray(np.float32(gray) / 255), GRAY),
        "float.tif": (Image.fromarray(np.float32(gray)), GRAY),
        "integers.tif": (Image.fromarray(np.int32(gray)), GRAY),
        "cmyk.tif": (Image.fromarray(bits).convert("RGB").convert("CMYK"), BITS),
        "bit.png": (Image.fromarray(bits).convert("1"), BITS),
        "numbered.png": (numbered, BITS),
        "ones8.png": (Image.fromarray(bits // 255), BITS),
        "ones16.png": (Image.fromarray(np.uint16(bits // 255)), BITS),
        "ones.tif": (Image.fromarray(np.float32(bits // 255)), BITS),
        "ones.rgb.png": (Image.fromarray(np.stack([bits // 255] * 3, -1)), BITS),
        "black.png": (Image.fromarray(np.zeros_like(bits)), np.zeros_like(bits).tolist()),
        "white.png": (Image.fromarray(np.ones_like(bits)), np.full_like(bits, 255).tolist()),
    }.items()


def test_masks_and_levels_are_read_by_one_rule(tmp_path):
    for name, (image, expected) in painted_files(tmp_path):
        image.save(tmp_path / name)
        values = torch.tensor(expected)
        assert torch.equal(read_levels(tmp_path / name), values / 255), name
        with collect_warnings():
            assert torch.equal(read_mask(tmp_path / name), values > 127), name


@pytest.mark.parametrize(
    ("pixels", "readers", "message"),
    [
        (np.tile(np.uint8([255, 0, 0]), (2, 2, 1)), "mask levels", "must be gray, got 4 colored pixels in"),
        (
            np.uint8([[0, 1], [2, 3]]),
            "mask levels",
            r"must be gray from 0 \(black\) to 255 \(white\), got values of at",
        ),
        (np.uint16([[0, 1], [2, 3]]), "mask levels", "got values of at most 3 in"),
        (np.uint8([[0, 20], [0, 100]]), "mask", "mask must be black and white, got values of at most 100 of 255"),
        (np.float32([[0, -1], [0, 1]]), "mask levels", "gray values must lie in"),
    ],
)
def test_ambiguous_painted_files_are_refused(pixels, readers, message, tmp_path):
    file = tmp_path / ("a.tif" if pixels.dtype == np.float32 else "a.png")
    Image.fromarray(pixels).save(file)
    for reader in readers.split():
        with pytest.raises(ValueError, match=message) as caught:
            {"mask": read_mask, "levels": read_levels}[reader](file)
        assert str(caught.value).startswith(reader)


def test_a_named_pipe_is_refused_as_photo_and_mask(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for reader in (read_mask, read_levels, read_pixels):
        with pytest.raises(ValueError, match=r"^image file must be a regular file, got \S+, a named pipe"):
            reader(tmp_path / "a.png")


# Sizes


@pytest.mark.parametrize("original", [(37, 200), (200, 37), (64, 64), (5, 7), (1, 1), (33, 32)])
@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_a_crop_covers_the_size_and_keeps_the_shape(original, size):
    plan = plan_fit(original, size, "crop", PATCH)
    scale = max(size[0] / original[0], size[1] / original[1])
    assert plan.size == size
    for whole, part, side in zip(plan.resized, size, original, strict=True):
        assert whole >= part
        assert abs(whole - scale * side) <= 0.5
    assert any(whole == part for whole, part in zip(plan.resized, size, strict=True))
    assert tuple(fit_photo(noise(3, *original), plan).shape) == (3, *size)


def test_resize_and_keep_give_the_expected_sizes():
    assert plan_fit((30, 50), (16, 16), "resize", PATCH).resized == (16, 16)
    kept = plan_fit((30, 50), (16, 16), "keep", PATCH)
    assert (kept.resized, kept.size) == ((30, 50), (28, 48))
    pixels = noise(3, 30, 50)
    assert torch.equal(fit_photo(pixels, kept), pixels[:, 1:29, 1:49])
    assert kept.describe() == "30x50 pixels, cropped to its center 28x48"
    with pytest.raises(
        ValueError, match="photos must contain at least one patch of 4x4 pixels with fit='keep', got 3x50"
    ):
        plan_fit((3, 50), (16, 16), "keep", PATCH)
    with pytest.raises(ValueError, match="aspect ratio is too far from that of 512x512"):
        plan_fit((1, 5000), (512, 512), "crop", PATCH)


def test_a_photo_of_the_right_size_is_unchanged():
    pixels, known = noise(3, 16, 24), noise(1, 16, 24, seed=1)[0] > 99
    plan = plan_fit((16, 24), (16, 24), "crop", PATCH)
    assert torch.equal(fit_photo(pixels, plan), pixels)
    same, mask = fit_photo_and_mask(pixels, known, plan)
    assert torch.equal(same * known, pixels * known)
    assert torch.equal(mask, known)


@pytest.mark.parametrize("original", [(128, 160), (70, 53), (12, 9)])
def test_no_unknown_pixel_is_mixed_into_a_known_one(original):
    h, w = original
    known = torch.ones(h, w, dtype=torch.bool)
    known[h // 3 : h // 2, w // 4 : 2 * w // 3] = False
    plan = plan_fit(original, (32, 32), "crop", PATCH)
    flat = torch.full((3, h, w), 200, dtype=torch.uint8)
    once, mask = fit_photo_and_mask(torch.where(known, flat, 0), known, plan)
    again, _ = fit_photo_and_mask(torch.where(known, flat, 255), known, plan)
    assert 0.5 < mask.float().mean() < 0.98
    assert torch.equal(once * mask, again * mask)
    assert ((once.int() - 200).abs() * mask).max() == 0  # what is flat stays flat up to the edge
    plain = fit_photo(torch.where(known, flat, 0), plan)
    assert ((plain.int() - 200).abs() * mask).max() > 5  # as it would not by resizing alone


def test_a_one_pixel_scratch_survives_downsizing():
    known = torch.ones(256, 256, dtype=torch.bool)
    known[:, 100] = False
    _, mask = fit_photo_and_mask(noise(1, 256, 256), known, plan_fit((256, 256), (32, 32), "crop", PATCH))
    assert not mask[:, 12].any()
    assert mask[:, 13:].all()


def test_a_mask_may_have_another_resolution_than_its_photo(tmp_path):
    check_same_shape(tmp_path, (375, 500), tmp_path, (750, 1000))
    check_same_shape(tmp_path, (375, 500), tmp_path, (48, 64))
    for size in ((500, 375), (375, 502), (32, 32)):
        with pytest.raises(ValueError, match=f"got .* of {size[0]}x{size[1]} for .* of 375x500"):
            check_same_shape(tmp_path, (375, 500), tmp_path, size)


@pytest.mark.parametrize(("text", "size"), [("64x96", (64, 96)), ("64", (64, 64)), ("8X4", (8, 4))])
def test_sizes_are_rows_by_columns(text, size):
    assert parse_size("size", text) == size


@pytest.mark.parametrize("text", ["", "64x", "0x4", "4x4x4", "-4", "a"])
def test_invalid_sizes_are_refused(text):
    with pytest.raises(ValueError, match="to must be HEIGHTxWIDTH in pixels"):
        parse_size("to", text)
