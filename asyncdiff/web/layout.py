"""What is on the page, in its places; what happens there is the page's affair."""

from typing import Any, NamedTuple

import gradio as gr

from asyncdiff.tasks.tasks import ORDERS
from asyncdiff.web.draw_request import KINDS, TOGETHER, Limits
from asyncdiff.web.image_encoding import EMPTY
from asyncdiff.web.mask_painter import painter
from asyncdiff.web.model_info import About

NO_CLASS = -1
CHOICES = {
    "fill": "Fill in",
    "change": "Change",
    "new": "New picture",
    "extend": "Extend",
    "texture": "Texture",
}
TOLD = {
    "fill": "**Draw a part anew.** Paint over it; everything else stays as it is, pixel by pixel.",
    "change": "**Say how much each part may change.** Each patch starts with as much noise as you paint on it: a dark "
    "brush changes details, a bright one keeps the rough shape alone, 100 draws anew. What is bare stays.",
    "new": "**Draw from nothing** but a seed, and a class if you tell one.",
    "extend": "**Continue the picture beyond its edges**; the picture itself stays as it is.",
    "texture": "**Grow a texture of any size** from the middle of a picture, or from nothing if none is chosen.",
}
ORDER_NAMES = {
    TOGETHER: "all patches together",
    "raster": "row by row",
    "snake": "row by row, to and fro",
    "spiral": "a spiral from the centre",
    "centre_out": "rings from the centre",
    "wavefront": "a wave from one corner",
    "shuffled": "in random order",
}
PICK = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button.example");
  if (button) trigger("click", { index: Number(button.dataset.index) });
});
"""


class Layout(NamedTuple):
    """The components of the page."""

    kind: gr.Radio
    told: gr.Markdown
    easel: gr.Column
    upload: gr.UploadButton
    remove: gr.Button
    note: gr.HTML
    examples: gr.HTML
    painter: gr.HTML
    sides: tuple[gr.Slider, ...]
    around: gr.Row
    size: gr.Textbox
    tileable: gr.Checkbox
    label: gr.Dropdown
    seed: gr.Number
    another: gr.Button
    pictures: gr.Slider
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
    again: gr.Button
    line: gr.Textbox


def layout(about: About, limits: Limits, examples: str, scene: str) -> Layout:
    """The components, in the Blocks that are open.

    Args:
        about: the model.
        limits: of wishes.
        examples: HTML with a button for each.
        scene: what is painted on at first.
    """
    gr.Markdown(f"# asyncdiff\n{about.told()}", elem_id="about")
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=420):
            wanted = _what_to_draw(about, limits, examples, scene) | _how_to_draw(about, limits.steps)
        with gr.Column(scale=5, min_width=380, elem_id="right"):
            result = _result()
    return Layout(**wanted, **result)


def _what_to_draw(about: About, limits: Limits, examples: str, scene: str) -> dict[str, Any]:
    height, width = about.size
    kind = gr.Radio([(CHOICES[k], k) for k in CHOICES if k in KINDS], value="fill", label="What to do")
    told = gr.Markdown(TOLD["fill"], elem_id="told")
    with gr.Column(elem_id="easel") as easel:
        with gr.Row():
            # Of any type: the browser would pass others over without a word.
            upload = gr.UploadButton(f"Upload a picture (up to {limits.megabytes} MB)", size="sm", elem_id="upload")
            remove = gr.Button("Remove it", size="sm", visible=False, elem_id="remove")
        note = gr.HTML("", elem_id="note", apply_default_css=False)
        picked = gr.HTML(examples, js_on_load=PICK, visible=bool(examples), elem_id="examples")
        canvas = painter(scene)
    with gr.Row(visible=False) as around:
        names = ("above", "right", "below", "left")
        most_added = 4 * max(about.size)
        sides = tuple(gr.Slider(0, most_added, value=0, step=1, label=n, min_width=240) for n in names)
    size = gr.Textbox(
        label="Size",
        info="HEIGHTxWIDTH in pixels; whole pictures come out best at the model's own",
        placeholder=f"{height}x{width}",
        visible=False,
        max_length=20,
        elem_id="size",
    )
    tileable = gr.Checkbox(label="tileable: its edges fit each other", visible=False)
    with gr.Row():
        classes = [("not told", NO_CLASS), *((str(k), k) for k in range(about.classes))]
        label = gr.Dropdown(classes, value=NO_CLASS, label="Class", visible=bool(about.classes), elem_id="class")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
        pictures = gr.Slider(1, limits.pictures, value=1, step=1, label="Pictures")
    return {
        "kind": kind,
        "told": told,
        "easel": easel,
        "upload": upload,
        "remove": remove,
        "note": note,
        "examples": picked,
        "painter": canvas,
        "sides": sides,
        "around": around,
        "size": size,
        "tileable": tileable,
        "label": label,
        "seed": seed,
        "pictures": pictures,
    }


def _how_to_draw(about: About, most: int) -> dict[str, Any]:
    with gr.Accordion("How it is drawn", open=False, elem_id="settings"):
        order = gr.Dropdown(
            [(ORDER_NAMES.get(k, k), k) for k in (TOGETHER, *ORDERS)],
            value=TOGETHER,
            label="Order",
            info="which patches move when",
        )
        with gr.Row():
            overlap = gr.Slider(
                0, 0.95, value=0.75, step=0.05, label="Overlap", visible=False,
                info="0: a patch waits until the one before is done; more: they move together",
            )  # fmt: skip
            steps_per_patch = gr.Slider(1, most, value=16, step=1, label="Steps per patch", visible=False)
            steps = gr.Slider(
                1, most, value=min(about.steps or 50, most), step=1, label="Steps",
                visible=about.steps is not None, info="from noise to picture; more are finer and slower",
                elem_id="steps",
            )  # fmt: skip
        with gr.Row():
            guidance = gr.Slider(
                1, 6, value=1, step=0.25, label="Class guidance", visible=bool(about.classes),
                interactive=False, info="1 is off; needs a class",
            )  # fmt: skip
            input_guidance = gr.Slider(
                0, 4, value=0, step=0.25, label="Input guidance",
                info="0 is off; more holds closer to what is given",
            )  # fmt: skip
        movie = gr.Checkbox(about.movie, label="record a GIF", info="of the picture and its noise levels")
    return {
        "order": order,
        "overlap": overlap,
        "steps": steps,
        "steps_per_patch": steps_per_patch,
        "guidance": guidance,
        "input_guidance": input_guidance,
        "movie": movie,
    }


def _result() -> dict[str, Any]:
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="draw")
        stop = gr.Button("Cancel", interactive=False, elem_id="stop")
    message = gr.HTML("", elem_id="message", apply_default_css=False)
    view = gr.HTML(EMPTY, elem_id="view", apply_default_css=False)
    with gr.Row():
        another = gr.Button("New seed", size="sm", elem_id="another")
        again = gr.Button("Paint on the result", size="sm", interactive=False, elem_id="again")
    line = gr.Textbox(
        label="The same on the command line", lines=3, max_lines=8, interactive=False, buttons=["copy"],
        elem_id="line", placeholder="The command that draws the same appears here.",
    )  # fmt: skip
    return {
        "draw": draw,
        "stop": stop,
        "message": message,
        "view": view,
        "another": another,
        "again": again,
        "line": line,
    }
