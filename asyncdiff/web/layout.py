"""Layout of the page: components and texts. `asyncdiff.web.page` handles their events."""

from typing import Any, NamedTuple

import gradio as gr

from asyncdiff.tasks.image_tasks import ORDERS
from asyncdiff.web.draw_request import KINDS, TOGETHER, Limits
from asyncdiff.web.image_encoding import EMPTY
from asyncdiff.web.mask_painter import painter
from asyncdiff.web.model_info import ModelInfo

NO_CLASS = -1
CHOICES = {
    "fill": "Fill in",
    "change": "Change",
    "new": "New image",
    "extend": "Extend",
    "texture": "Texture",
}
DESCRIPTIONS = {
    "fill": "**Redraw part of an image.** Paint over that part; everything else stays the same, pixel for pixel.",
    "change": "**Choose how much each part may change.** Your paint is the noise that each patch starts with: a dark "
    "brush changes details, a bright one keeps only the rough shape, and 100 draws the patch from scratch. "
    "Unpainted parts stay the same.",
    "new": "**Draw a new image** from a seed, and from a class if you choose one.",
    "extend": "**Extend the image beyond its edges**; the image itself stays the same.",
    "texture": "**Grow a texture of any size** from the center of an image, or from scratch without an image.",
}
ORDER_NAMES = {
    TOGETHER: "all patches together",
    "raster": "row by row",
    "snake": "row by row, back and forth",
    "spiral": "a spiral from the center",
    "center_out": "rings from the center",
    "wavefront": "a wave from one corner",
    "shuffled": "in random order",
}
PICK_EXAMPLE = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button.example");
  if (button) trigger("click", { index: Number(button.dataset.index) });
});
"""


class Layout(NamedTuple):
    """Components of the page."""

    kind: gr.Radio
    description: gr.Markdown
    photo_column: gr.Column
    upload: gr.UploadButton
    remove: gr.Button
    note: gr.HTML
    examples: gr.HTML
    painter: gr.HTML
    sides: tuple[gr.Slider, ...]
    sides_row: gr.Row
    size: gr.Textbox
    tileable: gr.Checkbox
    label: gr.Dropdown
    seed: gr.Number
    new_seed: gr.Button
    image_count: gr.Slider
    order: gr.Dropdown
    overlap: gr.Slider
    steps: gr.Slider
    steps_per_patch: gr.Slider
    guidance: gr.Slider
    input_guidance: gr.Slider
    movie: gr.Checkbox
    draw: gr.Button
    stop: gr.Button
    message: gr.HTML
    view: gr.HTML
    reuse: gr.Button
    command: gr.Textbox


def layout(info: ModelInfo, limits: Limits, examples: str, scene: str) -> Layout:
    """Create the components in the current `gr.Blocks`.

    Args:
        info: facts about the model.
        limits: limits on requests.
        examples: HTML with one button per example.
        scene: initial scene of the painter.

    Returns:
        The components.
    """
    gr.Markdown(f"# asyncdiff\n{info.describe()}", elem_id="about")
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=420):
            inputs = _image_inputs(info, limits, examples, scene) | _sampling_inputs(info, limits.steps)
        with gr.Column(scale=5, min_width=380, elem_id="right"):
            outputs = _outputs()
    return Layout(**inputs, **outputs)


def _image_inputs(info: ModelInfo, limits: Limits, examples: str, scene: str) -> dict[str, Any]:
    height, width = info.size
    kind = gr.Radio([(CHOICES[k], k) for k in CHOICES if k in KINDS], value="fill", label="What to do")
    description = gr.Markdown(DESCRIPTIONS["fill"], elem_id="description")
    with gr.Column(elem_id="easel") as photo_column:
        with gr.Row():
            # No file type filter: the browser would silently ignore other files instead of showing an error.
            upload = gr.UploadButton(f"Upload an image (up to {limits.megabytes} MB)", size="sm", elem_id="upload")
            remove = gr.Button("Remove", size="sm", visible=False, elem_id="remove")
        note = gr.HTML("", elem_id="note", apply_default_css=False)
        example_row = gr.HTML(examples, js_on_load=PICK_EXAMPLE, visible=bool(examples), elem_id="examples")
        paint_canvas = painter(scene)
    with gr.Row(visible=False) as sides_row:
        names = ("above", "right", "below", "left")
        most_added = 4 * max(info.size)
        sides = tuple(gr.Slider(0, most_added, value=0, step=1, label=n, min_width=240) for n in names)
    size = gr.Textbox(
        label="Size",
        info="HEIGHTxWIDTH in pixels; new images look best at the model's own size",
        placeholder=f"{height}x{width}",
        visible=False,
        max_length=20,
        elem_id="size",
    )
    tileable = gr.Checkbox(label="tileable (opposite edges match)", visible=False)
    with gr.Row():
        classes = [("any", NO_CLASS), *((str(k), k) for k in range(info.classes))]
        label = gr.Dropdown(classes, value=NO_CLASS, label="Class", visible=bool(info.classes), elem_id="class")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
        image_count = gr.Slider(1, limits.images, value=1, step=1, label="Images")
    return {
        "kind": kind,
        "description": description,
        "photo_column": photo_column,
        "upload": upload,
        "remove": remove,
        "note": note,
        "examples": example_row,
        "painter": paint_canvas,
        "sides": sides,
        "sides_row": sides_row,
        "size": size,
        "tileable": tileable,
        "label": label,
        "seed": seed,
        "image_count": image_count,
    }


def _sampling_inputs(info: ModelInfo, max_steps: int) -> dict[str, Any]:
    with gr.Accordion("Sampling settings", open=False, elem_id="settings"):
        order = gr.Dropdown(
            [(ORDER_NAMES.get(k, k), k) for k in (TOGETHER, *ORDERS)],
            value=TOGETHER,
            label="Order",
            info="the order in which patches are drawn",
        )
        with gr.Row():
            overlap = gr.Slider(
                0, 0.95, value=0.75, step=0.05, label="Overlap", visible=False,
                info="0: each patch waits for the previous one; higher: they overlap in time",
            )  # fmt: skip
            steps_per_patch = gr.Slider(1, max_steps, value=16, step=1, label="Steps per patch", visible=False)
            steps = gr.Slider(
                1, max_steps, value=min(info.steps or 50, max_steps), step=1, label="Steps",
                visible=info.steps is not None, info="from noise to image; more steps are finer and slower",
                elem_id="steps",
            )  # fmt: skip
        with gr.Row():
            guidance = gr.Slider(
                1, 6, value=1, step=0.25, label="Class guidance", visible=bool(info.classes),
                interactive=False, info="1 is off; needs a class",
            )  # fmt: skip
            input_guidance = gr.Slider(
                0, 4, value=0, step=0.25, label="Input guidance",
                info="0 is off; higher follows the kept parts more closely",
            )  # fmt: skip
        movie = gr.Checkbox(info.movie, label="Record a GIF", info="of the image and its noise levels")
    return {
        "order": order,
        "overlap": overlap,
        "steps": steps,
        "steps_per_patch": steps_per_patch,
        "guidance": guidance,
        "input_guidance": input_guidance,
        "movie": movie,
    }


def _outputs() -> dict[str, Any]:
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="draw")
        stop = gr.Button("Cancel", interactive=False, elem_id="stop")
    message = gr.HTML("", elem_id="message", apply_default_css=False)
    view = gr.HTML(EMPTY, elem_id="view", apply_default_css=False)
    with gr.Row():
        new_seed = gr.Button("New seed", size="sm", elem_id="new_seed")
        reuse = gr.Button("Paint on the result", size="sm", interactive=False, elem_id="reuse")
    command = gr.Textbox(
        label="Equivalent command", lines=3, max_lines=8, interactive=False, buttons=["copy"],
        elem_id="command", placeholder="The equivalent command appears here.",
    )  # fmt: skip
    return {
        "draw": draw,
        "stop": stop,
        "message": message,
        "view": view,
        "new_seed": new_seed,
        "reuse": reuse,
        "command": command,
    }
