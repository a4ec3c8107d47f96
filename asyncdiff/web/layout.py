"""Layout of the page: components and texts. `asyncdiff.web.page` handles their events."""

import gradio as gr

from asyncdiff.noise.orders import ORDERS
from asyncdiff.web.draw_request import TOGETHER
from asyncdiff.web.image_encoding import EMPTY
from asyncdiff.web.limits import Limits
from asyncdiff.web.mask_painter import painter
from asyncdiff.web.model_info import ModelInfo

NO_CLASS = -1
CHOICES = {"fill": "Fill in", "change": "Change", "new": "New image", "extend": "Extend", "texture": "Texture"}
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


class Layout:
    """Components of the page, created in the current `gr.Blocks`.

    Args:
        info: facts about the model.
        limits: limits on requests.
        examples: HTML with one button per example.
        scene: initial scene of the painter.
        largest: note on the largest images that fit into the limits.
    """

    def __init__(self, info: ModelInfo, limits: Limits, examples: str, scene: str, largest: str = ""):
        gr.Markdown(f"# asyncdiff\n{info.describe()}", elem_id="about")
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=420):
                self._image_inputs(info, limits, examples, scene, largest)
                self._sampling_inputs(info, limits.steps)
            with gr.Column(scale=5, min_width=380, elem_id="right"):
                self._outputs()

    def _image_inputs(self, info: ModelInfo, limits: Limits, examples: str, scene: str, largest: str) -> None:
        height, width = info.size
        self.kind = gr.Radio([(name, kind) for kind, name in CHOICES.items()], value="fill", label="What to do")
        self.description = gr.Markdown(DESCRIPTIONS["fill"], elem_id="description")
        with gr.Column(elem_id="easel") as self.photo_column:
            with gr.Row():
                # No file type filter: the browser would silently ignore other files instead of showing an error.
                upload = f"Upload an image (up to {limits.megabytes} MB)"
                self.upload = gr.UploadButton(upload, size="sm", elem_id="upload")
                self.remove = gr.Button("Remove", size="sm", visible=False, elem_id="remove")
            self.note = gr.HTML("", elem_id="note", apply_default_css=False)
            self.examples = gr.HTML(examples, js_on_load=PICK_EXAMPLE, visible=bool(examples), elem_id="examples")
            self.painter = painter(scene)
        with gr.Row(visible=False) as self.sides_row:
            most = 4 * max(info.size)
            names = ("above", "right", "below", "left")
            self.sides = [gr.Slider(0, most, value=0, step=1, label=name, min_width=240) for name in names]
        self.size = gr.Textbox(
            label="Size",
            info=f"HEIGHTxWIDTH in pixels; new images look best at the model's own size{largest}",
            placeholder=f"{height}x{width}",
            visible=False,
            max_length=20,
            elem_id="size",
        )
        self.tileable = gr.Checkbox(label="tileable (opposite edges match)", visible=False)
        with gr.Row():
            classes = [("any", NO_CLASS), *((str(k), k) for k in range(info.classes))]
            self.label = gr.Dropdown(
                classes, value=NO_CLASS, label="Class", visible=bool(info.classes), elem_id="class"
            )  # fmt: skip
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
            self.image_count = gr.Slider(1, limits.images, value=1, step=1, label="Images")

    def _sampling_inputs(self, info: ModelInfo, most: int) -> None:
        with gr.Accordion("Sampling settings", open=False, elem_id="settings"):
            self.order = gr.Dropdown(
                [(ORDER_NAMES.get(k, k), k) for k in (TOGETHER, *ORDERS)], value=TOGETHER, label="Order",
                info="the order in which patches are drawn",
            )  # fmt: skip
            with gr.Row():
                self.overlap = gr.Slider(
                    0, 0.95, value=0.75, step=0.05, label="Overlap", visible=False,
                    info="0: each patch waits for the previous one; higher: they overlap in time",
                )  # fmt: skip
                self.steps_per_patch = gr.Slider(1, most, value=16, step=1, label="Steps per patch", visible=False)
                self.steps = gr.Slider(
                    1, most, value=min(info.steps or 50, most), step=1, label="Steps",
                    visible=info.steps is not None, info="from noise to image; more steps are finer and slower",
                    elem_id="steps",
                )  # fmt: skip
            with gr.Row():
                self.guidance = gr.Slider(
                    1, 6, value=1, step=0.25, label="Class guidance", visible=bool(info.classes),
                    interactive=False, info="1 is off; needs a class",
                )  # fmt: skip
                self.input_guidance = gr.Slider(
                    0, 4, value=0, step=0.25, label="Input guidance",
                    info="0 is off; higher follows the kept parts more closely",
                )  # fmt: skip
            self.movie = gr.Checkbox(info.movie, label="Record a GIF", info="of the image and its noise levels")

    def _outputs(self) -> None:
        with gr.Row():
            self.draw = gr.Button("Draw", variant="primary", elem_id="draw")
            self.stop = gr.Button("Cancel", interactive=False, elem_id="stop")
        self.message = gr.HTML("", elem_id="message", apply_default_css=False)
        self.view = gr.HTML(EMPTY, elem_id="view", apply_default_css=False)
        with gr.Row():
            self.new_seed = gr.Button("New seed", size="sm", elem_id="new_seed")
            self.reuse = gr.Button("Paint on the result", size="sm", interactive=False, elem_id="reuse")
        self.command = gr.Textbox(
            label="Equivalent command", lines=3, max_lines=8, interactive=False, buttons=["copy"],
            elem_id="command", placeholder="The equivalent command appears here.",
        )  # fmt: skip
