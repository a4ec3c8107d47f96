"""The page itself: what happens when something is clicked, and the server behind it. The only room with Gradio."""

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from random import SystemRandom
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is loaded: it is to tell nobody anything

import gradio as gr
from starlette.middleware import Middleware

from asyncdiff.tasks.photos import collected
from asyncdiff.tasks.pixel_space import check_pictures
from asyncdiff.web.draw_request import KINDS, TOGETHER, DrawRequest, Limits
from asyncdiff.web.image_encoding import data_url, failed, finished, noted, on_its_way, stopped, waiting
from asyncdiff.web.job_queue import LOOKS, Job, JobQueue, Plan
from asyncdiff.web.layout import NO_CLASS, TOLD, Layout, layout
from asyncdiff.web.mask_painter import painted, scene
from asyncdiff.web.model_info import About, about_of
from asyncdiff.web.same_origin import LOCAL, SameOrigin, free_port
from asyncdiff.web.uploads import Photo, examples_of, photo_of, result_of

SEEDS = 2**31
HOUR = 3600  # uploads are thrown away after one
FONT = ("system-ui", "sans-serif")  # what the machine has: nothing is fetched


def serve(
    plan: Plan,
    model: Any,
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
        plan: makes drawings of wishes.
        model: that draws.
        root: folder of all that is drawn.
        limits: of wishes and of the queue.
        name: of the model.
        examples: photos to pick from; "drawn" or "none".
        host: address to listen at.
        port: 0 takes any that is free.
        names: that the page may be called by, beside this machine's own.
        browser: open the page in one.
    """
    check_pictures(model)
    about = about_of(model, name)
    given = examples_of(examples, model, about, limits)
    studio = JobQueue(plan, root, limits)
    with suppress(ValueError):  # not in the main thread: whoever started it there ends it
        signal.signal(signal.SIGTERM, _end)  # uploads are thrown away then, too
    try:
        blocks = page(studio, about, given)
        url = launched(blocks, limits, host, port, names, browser)
        print(f"page: {url} (Ctrl+C ends it)", flush=True)
        if host not in LOCAL:
            print(f"warning: whoever reaches {host} can draw here, there is no password", flush=True)
        while True:
            time.sleep(HOUR)
    except KeyboardInterrupt:
        print("closed")
    finally:
        studio.close()
        gr.close_all(verbose=False)


def _end(number: int, frame: Any) -> None:
    """End the program as Ctrl+C does; a second signal does not disturb it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def launched(blocks: gr.Blocks, limits: Limits, host: str, port: int, names: Sequence[str], browser: bool) -> str:
    """The address of the page, served from now on; OSError if the port is taken."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _, url, _ = blocks.queue(max_size=4 * limits.waiting, api_open=False).launch(
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
        theme=theme(),
        css=files("asyncdiff.web").joinpath("page.css").read_text(),
        app_kwargs={"middleware": [Middleware(SameOrigin, host=host, names=names)]},
    )
    return str(url)


def theme() -> Any:
    """Gradio's, with texts that can be read and fonts that the machine has."""
    usual = gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=("ui-monospace", "monospace"))
    grey, light = "*neutral_600", "*neutral_300"
    return usual.set(
        block_info_text_color=grey,
        block_info_text_color_dark=light,
        body_text_color_subdued=grey,
        body_text_color_subdued_dark=light,
    )


def page(studio: JobQueue, about: About, examples: list[Photo]) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(
        title=f"{about.name} - asyncdiff", analytics_enabled=False, delete_cache=(HOUR // 6, HOUR), fill_width=True
    ) as blocks:
        pixels, number = first_of(examples)
        parts = layout(about, studio.limits, _buttons(examples), scene(pixels, about.patch, "fill", number))
        _Events(studio, about, examples, parts).bind(blocks)
    return blocks


def first_of(examples: list[Photo]) -> tuple[Photo | None, int]:
    """What is painted on at first: the pixels, and a number that is new for every photo."""
    return (examples[0], 1) if examples else (None, 0)


class _Events:
    """What happens. The photo that is painted on is a state of the visitor's, the job is found by the visit."""

    def __init__(self, studio: JobQueue, about: About, examples: list[Photo], parts: Layout):
        self.studio = studio
        self.about = about
        self.examples = examples
        self.parts = parts
        self.photo = gr.State(first_of(examples))
        self._jobs: dict[str, Job] = {}

    def bind(self, blocks: gr.Blocks) -> None:
        """Tie the components to what they do."""
        parts = self.parts
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        shown = [self.photo, parts.painter, parts.note]
        arranged = [
            parts.told,
            parts.easel,
            parts.remove,
            parts.around,
            parts.size,
            parts.tileable,
            parts.order,
            parts.overlap,
        ]
        arranged += [parts.steps_per_patch, parts.steps, parts.guidance, parts.input_guidance, parts.painter]
        for part in (parts.kind, parts.order, parts.label):
            part.change(self.arrange, [parts.kind, parts.order, parts.label, self.photo], arranged, **quick)
        parts.upload.upload(self.upload, [parts.upload, parts.kind, self.photo], shown, **quick)
        parts.examples.click(self.pick, [parts.kind, self.photo], shown, **quick)
        parts.again.click(self.take, [parts.kind, self.photo], shown, **quick)
        parts.remove.click(self.remove, [parts.kind, self.photo], shown, **quick)
        parts.another.click(lambda: SystemRandom().randrange(SEEDS), None, parts.seed, **quick)
        wanted = [parts.kind, self.photo, parts.painter, parts.seed, parts.pictures, parts.label, parts.order]
        wanted += [parts.overlap, parts.steps, parts.steps_per_patch, parts.guidance, parts.input_guidance]
        wanted += [*parts.sides, parts.size, parts.tileable, parts.movie]
        parts.draw.click(
            self.draw,
            wanted,
            [parts.message, parts.view, parts.line, parts.draw, parts.stop, parts.again],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=self.studio.limits.waiting + 2,  # they wait in the studio's queue, which counts them
        )
        parts.stop.click(self.stop, None, None, **quick)
        blocks.unload(self.leave)

    # Photos

    def upload(self, file: str, kind: str, photo: tuple[Photo | None, int]) -> dict[Any, Any]:
        """Show a file."""
        try:
            with collected() as notes:
                pixels = photo_of(Path(file), self.about, self.studio.limits)
        except (ValueError, OSError) as error:
            return {self.parts.note: failed(str(error))}
        return self._shown(pixels, kind, photo) | {self.parts.note: noted(notes)}

    def pick(self, kind: str, photo: tuple[Photo | None, int], event: gr.EventData) -> dict[Any, Any]:
        """Show an example."""
        index = int(event.index)
        return self._shown(self.examples[index], kind, photo) if 0 <= index < len(self.examples) else {}

    def take(self, kind: str, photo: tuple[Photo | None, int], request: gr.Request) -> dict[Any, Any]:
        """Show the first picture of the visitor's last job, at its own size."""
        job = self._jobs.get(str(request.session_hash))
        if job is None or job.result is None:
            return {}
        pixels, notes = result_of(job.result.pictures[0], self.about)
        return self._shown(pixels, kind, photo) | {self.parts.note: noted(notes)}

    def remove(self, kind: str, photo: tuple[Photo | None, int]) -> dict[Any, Any]:
        """Show no photo."""
        return self._shown(None, kind, photo)

    def _shown(self, pixels: Photo | None, kind: str, before: tuple[Photo | None, int]) -> dict[Any, Any]:
        number = before[1] + 1
        scene = self._scene(pixels, kind, number)
        return {self.photo: (pixels, number), self.parts.painter: scene, self.parts.note: ""}

    def _scene(self, pixels: Photo | None, kind: str, number: int) -> Any:
        return gr.update(scene=scene(pixels, self.about.patch, kind if KINDS[kind].painted else "none", number))

    # Settings

    def arrange(self, kind: str, order: str, label: int, photo: tuple[Photo | None, int]) -> list[Any]:
        """Show what the kind of wish needs."""
        ordered = KINDS[kind].ordered and order != TOGETHER
        given = KINDS[kind].needs_photo or ordered
        return [
            TOLD[kind],
            gr.update(visible=True if kind != "new" else "hidden"),  # what leaves the page loses its paint
            gr.update(visible=kind == "texture"),
            gr.update(visible=kind == "extend"),
            gr.update(visible=kind in ("new", "texture"), placeholder=self.about.usual(kind)),
            gr.update(visible=kind == "texture"),
            gr.update(visible=KINDS[kind].ordered),
            gr.update(visible=ordered),
            gr.update(visible=ordered),
            gr.update(visible=not ordered and self.about.steps is not None),
            gr.update(interactive=label != NO_CLASS),
            gr.update(visible=given),
            self._scene(photo[0], kind, photo[1]),
        ]

    def _wish(self, kind: str, photo: tuple[Photo | None, int], paint: str | None, *said: Any) -> DrawRequest:
        seed, count, label, order, overlap, steps, steps_per_patch, guidance, input_guidance, *rest = said
        *sides, size, tileable, movie = rest
        needs = kind != "new"
        return DrawRequest(
            kind=kind,
            photo=photo[0] if needs else None,
            painted=painted(paint, photo[0]) if KINDS[kind].painted else None,
            seed=int(seed or 0),
            count=int(count),
            label=None if label in (None, NO_CLASS) else int(label),
            order=order,
            overlap=overlap,
            steps=None if self.about.steps is None else int(steps or self.about.steps),
            steps_per_patch=int(steps_per_patch or DrawRequest.steps_per_patch),
            guidance=guidance,
            input_guidance=input_guidance if KINDS[kind].needs_photo or order != TOGETHER else 0.0,
            sides=(int(sides[0]), int(sides[1]), int(sides[2]), int(sides[3])),
            size=(size or "").strip() or (self.about.usual(kind) if kind == "texture" else None),
            tileable=tileable,
            movie=movie,
        )

    # Drawing

    def draw(self, request: gr.Request, *said: Any) -> Iterator[dict[Any, Any]]:
        """Show pictures on their way until they are done."""
        parts = self.parts
        try:
            job = self.studio.submit(self._wish(*said))
        except ValueError as error:  # pictures that are there stay
            yield {parts.message: failed(str(error))}
            return
        self._jobs[str(request.session_hash)] = job
        try:
            yield {
                parts.message: "",
                parts.draw: gr.update(interactive=False),
                parts.stop: gr.update(interactive=True),
                parts.line: "",
            }
            shown = None
            while not job.wait(LOOKS):
                text = self._told(job)
                if text != shown:
                    shown = text
                    yield {parts.view: text}
            yield {
                parts.view: self._told(job),
                parts.line: job.result.line if job.result is not None else "",
                parts.draw: gr.update(interactive=True),
                parts.stop: gr.update(interactive=False),
                parts.again: gr.update(interactive=job.result is not None),
            }
        finally:  # whoever closes the page waits for nothing any more
            self.studio.stop(job)

    def stop(self, request: gr.Request) -> None:
        """Stop the visitor's job."""
        job = self._jobs.get(str(request.session_hash))
        if job is not None:
            self.studio.stop(job)

    def leave(self, request: gr.Request) -> None:
        """Forget a visitor who closed the page."""
        job = self._jobs.pop(str(request.session_hash), None)
        if job is not None:
            self.studio.stop(job)

    def _told(self, job: Job) -> str:
        if job.result is not None:
            return finished(job.result, job)
        if job.where == "failed":
            return failed(job.error)
        if job.where == "stopped":
            return stopped(job.look)
        return waiting(self.studio.before(job)) if job.look is None else on_its_way(job.look, job.stopping)


def _buttons(examples: list[Photo]) -> str:
    """Photos to click at, in a row."""
    if not examples:
        return ""
    pictures = "".join(
        f'<button class="example" data-index="{i}" title="paint on it" aria-label="example {i + 1}">'
        f'<img src="{data_url(pixels)}" alt=""></button>'
        for i, pixels in enumerate(examples)
    )
    return f'<div class="examples"><span>or pick one:</span>{pictures}</div>'
