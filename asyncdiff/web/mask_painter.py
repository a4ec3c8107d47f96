"""Painting component: a custom canvas that enlarges small images, so that pixels and patches are easy to hit.

Its value is one byte of paint per image pixel, 0 = kept .. 255 = regenerated.
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

BRUSH_LEVELS = (25, 40, 55, 70, 85, 100)  # noise levels of the brushes in percent

TEMPLATE = """
<div class="painter">
  <div class="tools">
    <span class="brushes"></span>
    <button class="eraser" data-level="0" title="remove paint">Eraser</button>
    <label>size <input class="size" type="range" min="1" max="16" value="2"></label>
    <label><input class="snap" type="checkbox" checked> whole patches</label>
    <button class="undo">Undo</button><button class="clear">Clear</button><button class="all">Paint all</button>
  </div>
  <div class="easel">
    <figure>
      <canvas class="photo" tabindex="0" role="application"
        aria-label="the image: paint with a pointer, or move with arrow keys and paint with the space bar"></canvas>
      <figcaption class="hint"></figcaption>
    </figure>
    <figure class="start">
      <canvas class="map" role="img" aria-label="noise levels at the start"></canvas>
      <figcaption>noise at the start: black = kept, white = drawn from scratch</figcaption>
    </figure>
  </div>
</div>
"""


def painter(initial_scene: str) -> gr.HTML:
    """Create the component; its value is the paint, and its property `scene` describes the photo to paint on."""
    script = files("asyncdiff.web").joinpath("painter.js").read_text()
    return gr.HTML(
        value="",
        html_template=TEMPLATE,
        js_on_load=script,
        apply_default_css=False,
        elem_id="painter",
        scene=initial_scene,
    )


def scene(photo: UInt8[Tensor, "c h w"] | None, patch: tuple[int, int], mode: str, number: int) -> str:
    """Describe the photo to paint on, as JSON.

    Args:
        photo: 8-bit pixels; None without a photo.
        patch: (height, width) of a patch in pixels.
        mode: "fill", "change", or "none" to show the photo without painting.
        number: number of the photo; a new number clears all paint.

    Returns:
        JSON for the property `scene` of the component.
    """
    description: dict[str, Any] = {
        "mode": mode,
        "number": number,
        "photo": None,
        "patch": patch,
        "levels": BRUSH_LEVELS,
    }
    if photo is not None:
        description |= {"photo": data_url(photo), "height": photo.shape[1], "width": photo.shape[2]}
    return json.dumps(description)


def decode_paint(value: str | None, photo: UInt8[Tensor, "c h w"] | None) -> UInt8[Tensor, "h w"] | None:
    """Decode the paint, or return None if there is none; raise ValueError unless it has one byte per pixel.

    Args:
        value: base64-encoded value of the component.
        photo: the photo that was painted on.

    Returns:
        Paint of every pixel, 0 = kept .. 255 = regenerated.
    """
    if photo is None or not value:
        return None
    height, width = photo.shape[1:]
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError:
        data = b""
    if len(data) != height * width:
        raise ValueError(f"the paint must be {height}x{width} bytes, got {len(data)}: reload the page")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(height, width)
