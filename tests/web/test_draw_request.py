"""Wishes: what is too much or not enough is refused in one line, the rest are words of the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asyncdiff.cli.commands.serve import _codec_words
from asyncdiff.web.draw_request import DrawRequest, Limits, check, line, words

PHOTO = torch.full((3, 4, 6), 9, dtype=torch.uint8)
PAINTED = torch.tensor([0, 0, 60, 127, 128, 255], dtype=torch.uint8).expand(4, 6)
LIMITS = Limits(pixels=100)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (DrawRequest("fill"), "a picture must be chosen first, got none: upload one or pick an example"),
        (DrawRequest("fill", PHOTO), "something must be painted, got nothing: paint what may change"),
        (DrawRequest("change", PHOTO, 0 * PAINTED), "something must be painted, got nothing"),
        (DrawRequest("fill", PHOTO, PAINTED[:2]), "what is painted must have the picture's size, got 2x6"),
        (DrawRequest("extend", PHOTO), "the sides must grow by some pixels, got 0 on all"),
        (DrawRequest("extend", PHOTO, sides=(7, 0, 0, 7)), "the picture must have at most 100 pixels, got 11x13"),
        (DrawRequest("new", size="10x11"), "the picture must have at most 100 pixels, got 10x11"),
        (DrawRequest("texture", size="ten"), "size must be HEIGHTxWIDTH in pixels, got ten"),
        (DrawRequest(seed=-1), "seed must lie in"),
        (DrawRequest(count=7), r"pictures must lie in \[1, 6\], got 7"),
        (DrawRequest(steps=1001), r"steps must lie in \[1, 1000\], got 1001"),
        (DrawRequest(steps_per_patch=0), r"steps per patch must lie in \[1, 1000\], got 0"),
    ],
)
def test_what_is_refused(wish, message):
    with pytest.raises(ValueError, match=message):
        check(wish, LIMITS)


def test_what_is_at_the_limit_is_not_refused():
    for wish in (
        DrawRequest("new", size="10x10"),
        DrawRequest("extend", PHOTO, sides=(6, 4, 0, 0)),
        DrawRequest(count=6, steps=1000),
    ):
        check(wish, LIMITS)


def test_the_words_of_a_filling(tmp_path):
    wish = DrawRequest("fill", PHOTO, PAINTED, seed=4, count=3, label=2, guidance=1.5, input_guidance=0.5, steps=7)
    given = ["--image", f"{tmp_path}/photo.png", "--fit", "keep", "--mask", f"{tmp_path}/known.png"]
    drawn = ["--steps", "7", "--seeds", "4-6", "--labels", "2", "--guidance", "1.5", "--input_guidance", "0.5"]
    assert words(wish, Path("last.ckpt"), tmp_path) == ["inpaint", "last.ckpt", *given, *drawn, "--gif"]
    with Image.open(tmp_path / "known.png") as known:
        assert (np.asarray(known) == (PAINTED < 128).numpy() * 255).all()
    with Image.open(tmp_path / "photo.png") as photo:
        assert np.asarray(photo).shape == (4, 6, 3)


def test_the_words_of_a_change_in_order(tmp_path):
    wish = DrawRequest(
        "change", PHOTO, PAINTED, order="snake", overlap=0.5, steps_per_patch=3, guidance=2.0, movie=False
    )
    said = words(wish, Path("last.ckpt"), tmp_path)
    given = ["--image", f"{tmp_path}/photo.png", "--fit", "keep", "--levels", f"{tmp_path}/levels.png"]
    ordered = ["--order", "snake", "--overlap", "0.5", "--steps_per_patch", "3"]
    # Without a class there is nothing for its guidance to follow.
    assert said == ["autoregress", "last.ckpt", *given, *ordered, "--seeds", "0", "--labels", "none"]
    with Image.open(tmp_path / "levels.png") as levels:
        assert (np.asarray(levels) == PAINTED.numpy()).all()


def test_a_line_can_be_typed_into_a_shell():
    assert line(["sample", "my run/last.ckpt"]) == "python -m asyncdiff sample 'my run/last.ckpt'"


def test_the_words_of_a_codec_are_kept_for_the_line():
    given = ["run", "--codec", "a.yaml", "--port", "1", "--codec.scale=2", "--codec.files", "b"]
    assert _codec_words(given) == ["--codec", "a.yaml", "--codec.scale=2", "--codec.files", "b"]
