"""Gradio page and its server: event handlers for the components. Only this package imports Gradio."""

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.resources import files
from pathlib import Path
from random import SystemRandom
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no telemetry; read when Gradio is imported

import gradio as gr
from starlette.middleware import Middleware

from asyncdiff.model import Model
from asyncdiff.tasks.photos import collect_warnings
from asyncdiff.tasks.pixel_space import PixelSpace
from asyncdiff.web.draw_request import KINDS, TOGETHER, DrawRequest
from asyncdiff.web.image_encoding import (
    data_url,
    error_html,
    notes_html,
    preview_html,
    result_html,
    stopped_html,
    waiting_html,
)
from asyncdiff.web.job_queue import PREVIEW_INTERVAL, Job, JobQueue, Plan
from asyncdiff.web.layout import DESCRIPTIONS, NO_CLASS, Layout
from asyncdiff.web.limits import Limits
from asyncdiff.web.mask_painter import decode_paint, scene
from asyncdiff.web.model_info import ModelInfo, model_info
from asyncdiff.web.same_origin import LOCAL, SameOrigin, free_port
from asyncdiff.web.uploads import Photo, load_examples, load_photo, load_result

MAX_RANDOM_SEED = 2**31
HOUR = 3600  # seconds after which uploads are deleted
FONT = ("system-ui", "sans-serif")  # fonts of the visitor's machine: nothing is fetched


def serve(
    plan: Plan,
    model: Model,
    root: Path,
    *,
    limits: Limits,
    name: str,
    examples: str,
    host: str,
    port: int,
    names: Sequence[str],
    browser: bool,
) -> None:
    """Serve the page until the program is interrupted.

    Args:
        plan: function that turns requests into drawings.
        model: model to sample from.
        root: output folder.
        limits: limits on requests and on the queue.
        name: name of the model.
        examples: source of the images to pick from, see `load_examples`.
        host: address to listen on.
        port: port to listen on; 0 for any free port.
        names: additional host names of the page, such as a proxy's.
        browser: whether to open the page in a browser.
    """
    PixelSpace(model).check_channels()
    info = model_info(model, name)
    loaded_examples = load_examples(examples, model, info, limits)
    queue = JobQueue(plan, root, limits)
    with suppress(ValueError):  # signal handlers need the main thread
        signal.signal(signal.SIGTERM, _interrupt)  # so that uploads are also deleted on SIGTERM
    try:
        blocks = build_page(queue, info, loaded_examples)
        url = _launch(blocks, limits, host, port, names, browser)
        print(f"page: {url} (Ctrl+C stops it)", flush=True)
        if host not in LOCAL:
            print(f"warning: anyone who can reach {host} can use this page, since it has no password", flush=True)
        while True:
            time.sleep(HOUR)
    except KeyboardInterrupt:
        print("stopped")
    finally:
        queue.close()
        gr.close_all(verbose=False)


def _interrupt(number: int, frame: Any) -> None:
    """Interrupt the program as Ctrl+C does, and ignore further SIGTERM signals."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _launch(blocks: gr.Blocks, limits: Limits, host: str, port: int, names: Sequence[str], browser: bool) -> str:
    """Start the server and return the page's address; raise OSError if the port is taken."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    gray, light = "*neutral_600", "*neutral_300"  # of higher contrast than Gradio's
    theme = gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=("ui-monospace", "monospace")).set(
        block_info_text_color=gray,
        block_info_text_color_dark=light,
        body_text_color_subdued=gray,
        body_text_color_subdued_dark=light,
    )
    _, url, _ = blocks.queue(max_size=4 * limits.queued, api_open=False).launch(
        server_name=host,
        server_port=free_port(host, port),
        share=False,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        allowed_paths=[],
        max_file_size=f"{limits.megabytes}mb",
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=files("asyncdiff.web").joinpath("page.css").read_text(),
        app_kwargs={"middleware": [Middleware(SameOrigin, host=host, names=names)]},
    )
    return str(url)


def build_page(queue: JobQueue, info: ModelInfo, examples: list[Photo]) -> gr.Blocks:
    """Build the page with its event handlers."""
    first = (examples[0], 1) if examples else (None, 0)  # the photo to paint on and its number
    with gr.Blocks(
        title=f"{info.name} - asyncdiff", analytics_enabled=False, delete_cache=(HOUR // 6, HOUR), fill_width=True
    ) as blocks:
        components = Layout(
            info, queue.limits, _example_buttons(examples), scene(first[0], info.patch, "fill", first[1])
        )
        _Events(queue, info, examples, components, gr.State(first)).bind(blocks)
    return blocks


class _Events:
    """Event handlers of the page. The photo to paint on is per-session state; each session has at most one job.

    Every photo gets a new number.
    """

    def __init__(self, queue: JobQueue, info: ModelInfo, examples: list[Photo], components: Layout, photo: gr.State):
        self.queue = queue
        self.info = info
        self.examples = examples
        self.components = components
        self.photo = photo
        self._jobs: dict[str, Job] = {}

    def bind(self, blocks: gr.Blocks) -> None:
        """Connect the components to their handlers."""
        parts = self.components
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        shown = [self.photo, parts.painter, parts.note]
        arranged = list(self.arrange("fill", TOGETHER, NO_CLASS, (None, 0)))
        for part in (parts.kind, parts.order, parts.label):
            part.change(self.arrange, [parts.kind, parts.order, parts.label, self.photo], arranged, **quick)
        parts.upload.upload(self.upload, [parts.upload, parts.kind, self.photo], shown, **quick)
        parts.examples.click(self.pick_example, [parts.kind, self.photo], shown, **quick)
        parts.reuse.click(self.reuse, [parts.kind, self.photo], shown, **quick)
        parts.remove.click(partial(self._show, None), [parts.kind, self.photo], shown, **quick)
        parts.new_seed.click(lambda: SystemRandom().randrange(MAX_RANDOM_SEED), None, parts.seed, **quick)
        inputs = [parts.kind, self.photo, parts.painter, parts.seed, parts.image_count, parts.label, parts.order]
        inputs += [parts.overlap, parts.steps, parts.steps_per_patch, parts.guidance, parts.input_guidance]
        inputs += [*parts.sides, parts.size, parts.tileable, parts.movie]
        parts.draw.click(
            self.draw,
            inputs,
            [parts.message, parts.view, parts.command, parts.draw, parts.stop, parts.reuse],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=self.queue.limits.queued + 2,  # requests wait in the job queue, which limits their number
        )
        parts.stop.click(self.stop, None, None, **quick)
        blocks.unload(self.leave)

    # Photos

    def upload(self, file: str, kind: str, photo: tuple[Photo | None, int]) -> dict[Any, Any]:
        """Show an uploaded photo, or the reason why it cannot be read."""
        try:
            with collect_warnings() as notes:
                pixels = load_photo(Path(file), self.info, self.queue.limits)
        except (ValueError, OSError) as error:
            return {self.components.note: error_html(str(error))}
        return self._show(pixels, kind, photo) | {self.components.note: notes_html(notes)}

    def pick_example(self, kind: str, photo: tuple[Photo | None, int], event: gr.EventData) -> dict[Any, Any]:
        """Show the example that was clicked."""
        index = int(event.index)
        return self._show(self.examples[index], kind, photo) if 0 <= index < len(self.examples) else {}

    def reuse(self, kind: str, photo: tuple[Photo | None, int], request: gr.Request) -> dict[Any, Any]:
        """Show the first image of the session's last job, at its own size."""
        job = self._jobs.get(str(request.session_hash))
        if job is None or job.result is None:
            return {}
        pixels, notes = load_result(job.result.images[0], self.info)
        return self._show(pixels, kind, photo) | {self.components.note: notes_html(notes)}

    def _show(self, pixels: Photo | None, kind: str, before: tuple[Photo | None, int]) -> dict[Any, Any]:
        number = before[1] + 1
        scene = self._scene(pixels, kind, number)
        return {self.photo: (pixels, number), self.components.painter: scene, self.components.note: ""}

    def _scene(self, pixels: Photo | None, kind: str, number: int) -> Any:
        return gr.update(scene=scene(pixels, self.info.patch, kind if KINDS[kind].painted else "none", number))

    # Settings

    def arrange(self, kind: str, order: str, label: int, photo: tuple[Photo | None, int]) -> dict[Any, Any]:
        """Show the controls for this kind of request and hide the others."""
        parts, sized = self.components, kind in ("new", "texture")
        ordered = KINDS[kind].orderable and order != TOGETHER
        return {
            parts.description: DESCRIPTIONS[kind],
            parts.photo_column: gr.update(visible=True if kind != "new" else "hidden"),  # the painter keeps its paint
            parts.remove: gr.update(visible=kind == "texture"),
            parts.sides_row: gr.update(visible=kind == "extend"),
            parts.size: gr.update(visible=sized, placeholder=self.info.default_size(kind)),
            parts.tileable: gr.update(visible=kind == "texture"),
            parts.order: gr.update(visible=KINDS[kind].orderable),
            parts.overlap: gr.update(visible=ordered),
            parts.steps_per_patch: gr.update(visible=ordered),
            parts.steps: gr.update(visible=not ordered and self.info.steps is not None),
            parts.guidance: gr.update(interactive=label != NO_CLASS),
            parts.input_guidance: gr.update(visible=KINDS[kind].needs_photo or ordered),
            parts.painter: self._scene(photo[0], kind, photo[1]),
        }

    def _request(self, kind: str, photo: tuple[Photo | None, int], paint: str | None, *values: Any) -> DrawRequest:
        seed, count, label, order, overlap, steps, steps_per_patch, guidance, input_guidance, *rest = values
        *sides, size, tileable, movie = rest
        return DrawRequest(
            kind=kind,
            photo=photo[0] if kind != "new" else None,
            paint=decode_paint(paint, photo[0]) if KINDS[kind].painted else None,
            seed=int(seed or 0),
            count=int(count),
            label=None if label in (None, NO_CLASS) else int(label),
            order=order,
            overlap=overlap,
            steps=None if self.info.steps is None else int(steps or self.info.steps),
            steps_per_patch=int(steps_per_patch or DrawRequest.steps_per_patch),
            guidance=guidance,
            input_guidance=input_guidance if KINDS[kind].needs_photo or order != TOGETHER else 0.0,
            sides=(int(sides[0]), int(sides[1]), int(sides[2]), int(sides[3])),
            size=(size or "").strip() or (self.info.default_size(kind) if kind == "texture" else None),
            tileable=tileable,
            movie=movie,
        )

    # Drawing

    def draw(self, request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        """Submit a job and show its previews until it ends."""
        parts = self.components
        try:
            job = self.queue.submit(self._request(*values))
        except ValueError as error:  # the images shown so far stay
            yield {parts.message: error_html(str(error))}
            return
        self._jobs[str(request.session_hash)] = job
        try:
            yield {
                parts.message: "",
                parts.draw: gr.update(interactive=False),
                parts.stop: gr.update(interactive=True),
                parts.command: "",
            }
            shown = None
            while not job.wait(PREVIEW_INTERVAL):
                html = self._job_html(job)
                if html != shown:
                    shown = html
                    yield {parts.view: html}
            yield {
                parts.view: self._job_html(job),
                parts.command: job.result.command if job.result is not None else "",
                parts.draw: gr.update(interactive=True),
                parts.stop: gr.update(interactive=False),
                parts.reuse: gr.update(interactive=job.result is not None),
            }
        finally:  # also when the visitor closes the page
            self.queue.stop(job)

    def stop(self, request: gr.Request) -> None:
        """Stop the session's job."""
        if job := self._jobs.get(str(request.session_hash)):
            self.queue.stop(job)

    def leave(self, request: gr.Request) -> None:
        """Stop and forget the job of a session whose page was closed."""
        self.stop(request)
        self._jobs.pop(str(request.session_hash), None)

    def _job_html(self, job: Job) -> str:
        if job.result is not None:
            return result_html(job.result, job)
        if job.status == "failed":
            return error_html(job.error)
        if job.status == "stopped":
            return stopped_html(job.preview)
        if job.preview is None:
            return waiting_html(self.queue.jobs_ahead(job))
        return preview_html(job.preview, job.stopping)


def _example_buttons(examples: list[Photo]) -> str:
    """Format a row of buttons, one per example."""
    if not examples:
        return ""
    buttons = "".join(
        f'<button class="example" data-index="{i}" title="paint on it" aria-label="example {i + 1}">'
        f'<img src="{data_url(pixels)}" alt=""></button>'
        for i, pixels in enumerate(examples)
    )
    return f'<div class="examples"><span>or pick one:</span>{buttons}</div>'
