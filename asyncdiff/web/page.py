"""Gradio page and its server: event handlers for the components. Only this package imports Gradio."""

import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from importlib.resources import files
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no telemetry; read when Gradio is imported

import gradio as gr
from starlette.middleware import Middleware

from asyncdiff.tasks.arguments import format_size
from asyncdiff.tasks.drawing_cost import DrawingCost
from asyncdiff.tasks.photos import collect_warnings
from asyncdiff.web.draw_request import KINDS, TOGETHER, DrawRequest
from asyncdiff.web.drawing import PREVIEW_INTERVAL
from asyncdiff.web.drawing_process import DrawingProcess, Opening
from asyncdiff.web.ending import Ending
from asyncdiff.web.image_encoding import (
    data_url,
    error_html,
    notes_html,
    preview_html,
    restarting_html,
    result_html,
    stopped_html,
    waiting_html,
)
from asyncdiff.web.job_queue import Job, JobQueue
from asyncdiff.web.layout import DESCRIPTIONS, NO_CLASS, Layout
from asyncdiff.web.limits import Limits
from asyncdiff.web.mask_painter import decode_paint, scene
from asyncdiff.web.model_info import ModelInfo, PageFacts
from asyncdiff.web.request_cost import format_duration, largest_size
from asyncdiff.web.same_origin import LOCAL, SameOrigin, free_port
from asyncdiff.web.upload_limits import UploadLimits
from asyncdiff.web.uploads import Photo, load_photo, load_result

MAX_RANDOM_SEED = 2**31
SIGN_OF_LIFE = 0.5  # seconds after which something is sent to a page even if nothing has changed
HOUR = 3600  # seconds after which uploads are deleted
FONT = ("system-ui", "sans-serif")  # fonts of the visitor's machine: nothing is fetched


def serve(
    opening: Opening,
    root: Path,
    *,
    limits: Limits,
    host: str,
    port: int,
    names: Sequence[str],
    browser: bool,
) -> None:
    """Serve the page until the program is interrupted, and end the program.

    Args:
        opening: function that loads the model in the drawing process, with `PageFacts`.
        root: output folder.
        limits: limits on requests and on the queue.
        host: address to listen on.
        port: port to listen on; 0 for any free port.
        names: additional host names of the page, such as a proxy's.
        browser: whether to open the page in a browser.

    Raises:
        ValueError: the model cannot be loaded, at the start or again.
    """
    queue = JobQueue(lambda first: DrawingProcess(opening, first=first), root, limits)
    with TemporaryDirectory(prefix="asyncdiff-uploads-", ignore_cleanup_errors=True) as folder, closing(queue):
        ending = Ending([queue.close, partial(shutil.rmtree, folder, ignore_errors=True)])
        try:
            facts = queue.open()
            queue.cost = facts.cost
            blocks = build_page(queue, facts)
            print(describe_limits(facts.cost, limits), flush=True)
            url = _launch(blocks, limits, Path(folder), host, port, names, browser)
            print(f"page: {url} (Ctrl+C stops it)", flush=True)
            if host not in LOCAL:
                print(f"warning: anyone who can reach {host} can use this page, since it has no password", flush=True)
            ending.code = 0
            queue.broken.wait()
        except KeyboardInterrupt:
            print("stopped" if ending.code == 0 else "interrupted")
            ending.end()
    raise ValueError(queue.failure)


def describe_limits(cost: DrawingCost, limits: Limits) -> str:
    """Return a sentence on how large images may be."""
    own = cost.together(cost.window, steps=1).seconds
    own_size, seconds = format_size(cost.window), format_duration(limits.seconds)
    start = f"a step of {own_size} takes about {format_duration(own)}, and a request may take {seconds}"
    if (size := largest_size(cost, limits)) is None:
        return f"warning: {start}, too little for an image of the model: increase --max_seconds"
    return f"{start}: images of at most {format_size(size)} with {cost.steps} step{'s' * (cost.steps > 1)}"


def _launch(
    blocks: gr.Blocks, limits: Limits, uploads: Path, host: str, port: int, names: Sequence[str], browser: bool
) -> str:
    """Start the server and return the page's address; raise OSError if the port is taken."""
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # read whenever a file is stored
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
        max_threads=limits.queued + 40,
        state_session_capacity=limits.sessions,
        app_kwargs={
            "middleware": [
                Middleware(SameOrigin, host=host, names=names),
                Middleware(UploadLimits, folder=uploads, limits=limits),
            ]
        },
    )
    return str(url)


def build_page(queue: JobQueue, facts: PageFacts) -> gr.Blocks:
    """Build the page with its event handlers."""
    info, examples, cost = facts
    size = largest_size(cost, queue.limits)
    largest = "" if size is None else f"; at most about {format_size(size)} in the time allowed"
    first = (examples[0], 1) if examples else (None, 0)  # the photo to paint on and its number
    with gr.Blocks(
        title=f"{info.name} - asyncdiff", analytics_enabled=False, delete_cache=(HOUR // 6, HOUR), fill_width=True
    ) as blocks:
        components = Layout(
            info, queue.limits, _example_buttons(examples), scene(first[0], info.patch, "fill", first[1]), largest
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
        self._jobs: dict[str, Job] = {}  # running or waiting, by session
        self._results: OrderedDict[str, Path] = OrderedDict()  # first image of the last job, by session

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
        finally:
            Path(file).unlink(missing_ok=True)
        return self._show(pixels, kind, photo) | {self.components.note: notes_html(notes)}

    def pick_example(self, kind: str, photo: tuple[Photo | None, int], event: gr.EventData) -> dict[Any, Any]:
        """Show the example that was clicked."""
        index = int(event.index)
        return self._show(self.examples[index], kind, photo) if 0 <= index < len(self.examples) else {}

    def reuse(self, kind: str, photo: tuple[Photo | None, int], request: gr.Request) -> dict[Any, Any]:
        """Show the first image of the session's last job, at its own size."""
        image = self._results.get(str(request.session_hash))
        if image is None:
            return {}
        pixels, notes = load_result(image, self.info)
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
        parts, session = self.components, str(request.session_hash)
        try:
            if session in self._jobs:
                raise ValueError("this page is drawing already: wait for the images, or cancel")
            job = self._jobs[session] = self.queue.submit(self._request(*values), _visitor(request))
        except ValueError as error:  # the images shown so far stay
            yield {parts.message: error_html(str(error))}
            return
        try:
            yield {
                parts.message: "",
                parts.draw: gr.update(interactive=False),
                parts.stop: gr.update(interactive=True),
                parts.command: "",
            }
            shown, sent = None, time.monotonic()
            while not job.wait(PREVIEW_INTERVAL):
                html = self._job_html(job)
                if html != shown:
                    yield {parts.view: html}
                elif time.monotonic() - sent > SIGN_OF_LIFE:  # Gradio looks for closed pages when something is sent
                    yield {parts.view: gr.skip()}
                else:
                    continue
                shown, sent = html, time.monotonic()
            if job.result is not None:
                self._remember(session, job.result.images[0])
            yield {
                parts.view: self._job_html(job),
                parts.command: job.result.command if job.result is not None else "",
                parts.draw: gr.update(interactive=True),
                parts.stop: gr.update(interactive=False),
                parts.reuse: gr.update(interactive=job.result is not None),
            }
        finally:  # also when the visitor closes the page
            self.queue.stop(job)
            self._jobs.pop(session, None)

    def stop(self, request: gr.Request) -> None:
        """Stop the session's job."""
        if job := self._jobs.get(str(request.session_hash)):
            self.queue.stop(job)

    def leave(self, request: gr.Request) -> None:
        """Stop the job of a session whose page was closed, and forget its result."""
        self.stop(request)
        self._results.pop(str(request.session_hash), None)

    def _remember(self, session: str, image: Path) -> None:
        """Remember the image for `reuse`, and forget the oldest ones."""
        self._results[session] = image
        self._results.move_to_end(session)
        while len(self._results) > self.queue.limits.sessions:
            self._results.popitem(last=False)

    def _job_html(self, job: Job) -> str:
        if job.result is not None:
            return result_html(job.result, job)
        if job.status == "failed":
            return error_html(job.error)
        if job.status == "stopped":
            return stopped_html(job.preview)
        if job.preview is None:
            if self.queue.restarting:
                return restarting_html()
            return waiting_html(self.queue.jobs_ahead(job), self.queue.seconds_ahead(job))
        return preview_html(job.preview, job.stopping)


def _visitor(request: gr.Request) -> str:
    """Return the visitor's address; that of this machine may be a proxy's, which everyone shares: then the page."""
    host = request.client.host if request.client is not None else ""
    return str(request.session_hash) if host in (*LOCAL, "") else host


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
