"""The photo that is painted on: a canvas of our own, since pixels and patches of small images must be seen to be met.

What is painted comes back as one byte per pixel of the picture, 0 = stays as it is .. 255 = drawn anew.
"""

import base64
import json
from importlib.resources import files
from typing import Any

import gradio as gr
import torch
from jaxtyping import UInt8
from torch import Tensor

from asyncdiff.web.image_encoding import data_url

LEVELS = (25, 40, 55, 70, 85, 100)  # per cent, of the brushes

TEMPLATE = """
<div class="painter">
  <div class="tools">
    <span class="brushes"></span>
    <button class="eraser" data-level="0" title="take paint away">Eraser</button>
    <label>size <input class="size" type="range" min="1" max="16" value="2"></label>
    <label><input class="whole" type="checkbox" checked> whole patches</label>
    <button class="undo">Undo</button><button class="clear">Clear</button><button class="all">Paint all</button>
  </div>
  <div class="easel">
    <figure>
      <canvas class="photo" tabindex="0" role="application"
        aria-label="the picture: paint with a pointer, or move with arrow keys and paint with the space bar"></canvas>
      <figcaption class="hint"></figcaption>
    </figure>
    <figure class="start">
      <canvas class="map" role="img" aria-label="noise levels at the start"></canvas>
      <figcaption>noise at the start: black = kept, white = drawn anew</figcaption>
    </figure>
  </div>
</div>
"""


def painter(first: str) -> gr.HTML:
    """The component; its value is what is painted, its `scene` what it is painted on, at first `first`."""
    script = files("asyncdiff.web").joinpath("painter.js").read_text()
    return gr.HTML(
        value="",
        html_template=TEMPLATE,
        js_on_load=script,
        apply_default_css=False,
        elem_id="painter",
        scene=first,
    )


def scene(photo: UInt8[Tensor, "c h w"] | None, patch: tuple[int, int], mode: str, number: int) -> str:
    """What is painted on, as JSON.

    Args:
        photo: None for an empty easel.
        patch: (height, width) of a patch in pixels.
        mode: "fill", "change", or "none" to look only.
        number: of the photo; another number takes all paint away.
    """
    described: dict[str, Any] = {"mode": mode, "number": number, "photo": None, "patch": patch, "levels": LEVELS}
    if photo is not None:
        described |= {"photo": data_url(photo), "height": photo.shape[1], "width": photo.shape[2]}
    return json.dumps(described)


def painted(value: str | None, photo: UInt8[Tensor, "c h w"] | None) -> UInt8[Tensor, "h w"] | None:
    """What is painted on the photo; None where nothing is, ValueError for what no painter says."""
    if photo is None or not value:
        return None
    height, width = photo.shape[1:]
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError:
        data = b""
    if len(data) != height * width:
        raise ValueError(f"what is painted must be {height}x{width} bytes, got {len(data)}: load the page anew")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(height, width)
