"""Draw requests: incomplete or excessive ones are refused in one line, all others become a command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asyncdiff.cli.commands.shared.command_parser import split_option
from asyncdiff.web.draw_request import DrawRequest, check, command_argv, shell_command
from asyncdiff.web.limits import Limits

PHOTO = torch.full((3, 4, 6), 9, dtype=torch.uint8)
PAINT = torch.tensor([0, 0, 60, 127, 128, 255], dtype=torch.uint8).expand(4, 6)
LIMITS = Limits(pixels=100)


@pytest.mark.parametrize(
    ("draw_request", "message"),
    [
        (DrawRequest("fill"), "choose an image first: upload one or pick an example"),
        (DrawRequest("fill", PHOTO), "nothing is painted yet: paint the parts that may change"),
        (DrawRequest("change", PHOTO, 0 * PAINT), "nothing is painted yet: paint the parts that may change"),
        (DrawRequest("fill", PHOTO, PAINT[:2]), "the paint must have the image's size, got 2x6"),
        (DrawRequest("extend", PHOTO), "all four sides are 0 pixels: move at least one slider"),
        (DrawRequest("extend", PHOTO, sides=(7, 0, 0, 7)), "the image must have at most 100 pixels, got 11x13"),
        (DrawRequest("new", size="10x11"), "the image must have at most 100 pixels, got 10x11"),
        (DrawRequest("texture", size="ten"), "size must be HEIGHTxWIDTH in pixels, got ten"),
        (DrawRequest(seed=-1), "seed must lie in"),
        (DrawRequest(count=7), r"images must lie in \[1, 6\], got 7"),
        (DrawRequest(steps=1001), r"steps must lie in \[1, 1000\], got 1001"),
        (DrawRequest(steps_per_patch=0), r"steps per patch must lie in \[1, 1000\], got 0"),
    ],
)
def test_invalid_requests_are_rejected(draw_request, message):
    with pytest.raises(ValueError, match=message):
        check(draw_request, LIMITS)


def test_requests_at_the_limits_are_accepted():
    for request in (
        DrawRequest("new", size="10x10"),
        DrawRequest("extend", PHOTO, sides=(6, 4, 0, 0)),
        DrawRequest(count=6, steps=1000),
    ):
        check(request, LIMITS)


def test_inpainting_requests_become_inpaint_commands(tmp_path):
    request = DrawRequest("fill", PHOTO, PAINT, seed=4, count=3, label=2, guidance=1.5, input_guidance=0.5, steps=7)
    given = ["--image", f"{tmp_path}/photo.png", "--fit", "keep", "--mask", f"{tmp_path}/known.png"]
    drawn = ["--steps", "7", "--seeds", "4-6", "--labels", "2", "--guidance", "1.5", "--input_guidance", "0.5"]
    assert command_argv(request, Path("last.ckpt"), tmp_path) == ["inpaint", "last.ckpt", *given, *drawn, "--gif"]
    with Image.open(tmp_path / "known.png") as known:
        assert (np.asarray(known) == (PAINT < 128).numpy() * 255).all()
    with Image.open(tmp_path / "photo.png") as photo:
        assert np.asarray(photo).shape == (4, 6, 3)


def test_ordered_edits_become_autoregress_commands(tmp_path):
    request = DrawRequest(
        "change", PHOTO, PAINT, order="snake", overlap=0.5, steps_per_patch=3, guidance=2.0, movie=False
    )
    argv = command_argv(request, Path("last.ckpt"), tmp_path)
    given = ["--image", f"{tmp_path}/photo.png", "--fit", "keep", "--levels", f"{tmp_path}/levels.png"]
    ordered = ["--order", "snake", "--overlap", "0.5", "--steps_per_patch", "3"]
    # Classifier-free guidance needs a class label.
    assert argv == ["autoregress", "last.ckpt", *given, *ordered, "--seeds", "0", "--labels", "none"]
    with Image.open(tmp_path / "levels.png") as levels:
        assert (np.asarray(levels) == PAINT.numpy()).all()


def test_the_command_is_quoted_for_a_shell():
    assert shell_command(["sample", "my run/last.ckpt"]) == "python -m asyncdiff sample 'my run/last.ckpt'"


def test_codec_options_are_kept_for_the_command():
    given = ["run", "--codec", "a.yaml", "--port", "1", "--codec.scale=2", "--codec.files", "b"]
    assert split_option(given, "--codec")[1] == ["--codec", "a.yaml", "--codec.scale=2", "--codec.files", "b"]
