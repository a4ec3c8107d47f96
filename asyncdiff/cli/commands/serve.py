"""`python -m asyncdiff serve RUN`: a page in the browser to paint on photos and watch them being drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncdiff.checks import within
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.draw import Drawing, checkpoint_of, drawing_of, loaded, run_of
from asyncdiff.cli.commands.options import CODEC, add_device, add_weights, command_parser, with_codec, with_underscores
from asyncdiff.latents import Codec
from asyncdiff.tasks.photos import photo_files
from asyncdiff.web.draw_request import DrawRequest, Limits, line
from asyncdiff.web.draw_request import words as words_of
from asyncdiff.web.same_origin import free_port

DESCRIPTION = """Open a page on this machine that draws with one model: paint on a photo what is to be drawn anew, or
how much each part may change, and watch. Needs gradio: pip install gradio."""


def main(args: Sequence[str]) -> None:
    """Load the model and serve the page until Ctrl+C."""
    parser = command_parser("serve", DESCRIPTION)
    parser.add_argument("run", type=Path, help="a run directory of train.py, or a .ckpt file")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen at; this machine's own alone")
    parser.add_argument("--port", type=int, default=7860, help="of the page; 0 takes any that is free")
    parser.add_argument("--name", type=str, action="append", default=[], help="that a proxy calls the page by")
    parser.add_argument("--examples", type=str, default="drawn", help=EXAMPLES)
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--output", type=Path | None, help="folder of all that is drawn; RUN/predictions/serve by default"
    )
    parser.add_argument("--codec", type=Codec | None, sub_configs=True, help=CODEC)
    parser.add_argument("--ckpt_path", type=Path | None, help="RUN/checkpoints/last.ckpt by default")
    add_weights(parser)
    add_device(parser)
    parser.add_argument("--max_pixels", type=int, default=Limits.pixels, help="of a picture that is drawn")
    options = parser.instantiate(parser.parse_args([with_underscores(word) for word in args]))
    within("--port", options.port, 0, 65535, "7860 is usual")
    within("--max_pixels", options.max_pixels, 1, 2**28, "1048576 are 1024x1024")
    checkpoint = checkpoint_of(options.run, options.ckpt_path)
    if checkpoint.is_symlink():  # of a run that goes on: lines name what was read, not what is the last one by then
        checkpoint = checkpoint.parent / checkpoint.readlink()
    free_port(options.host, options.port)
    if options.examples not in ("drawn", "none"):
        photo_files("--examples", options.examples)
    page = _page()  # what may be missing is found out before the model is read
    print(f"reading {checkpoint}", flush=True)
    planner = Planner(checkpoint, options, _codec_words(args))
    page.serve(
        planner,
        planner.model,
        options.output or run_of(checkpoint) / "predictions" / "serve",
        limits=Limits(pixels=options.max_pixels),
        name=checkpoint.name if run_of(checkpoint) == checkpoint.parent else run_of(checkpoint).name,
        examples=options.examples,
        host=options.host,
        port=options.port,
        names=options.name,
        browser=options.open,
    )


class Planner:
    """Drawings of wishes by a model that is loaded once.

    Args:
        checkpoint: of the model.
        options: of the command line.
        codec: its words that name a codec, for the lines that are shown.
    """

    def __init__(self, checkpoint: Path, options: Any, codec: Sequence[str] = ()):
        self.checkpoint = checkpoint
        self.options = options
        self.codec = codec
        self.model = loaded(checkpoint, options)
        with_codec(self.model, options.codec)
        self._own = self.model.sampler

    def __call__(self, wish: DrawRequest, folder: Path) -> tuple[Drawing, str]:
        """The drawing, and the line that does the same; every wish finds the sampler as the checkpoint has it."""
        said = [*words_of(wish, self.checkpoint, folder), "--device", self.options.device]
        if self.options.weights != "auto":
            said += ["--weights", self.options.weights]
        into = ["--output", str(folder / "pictures")]
        drawing = drawing_of(said[0], [*said[1:], *into], load=self._again, more=self.codec)
        return drawing, line([*said, *self.codec, *trusted_packages.option()])

    def _again(self, checkpoint: Path, options: Any) -> Any:
        self.model.sampler = self._own
        return self.model


def _page() -> Any:
    """The module of the page; ValueError where Gradio is missing."""
    try:
        from asyncdiff.web import page
    except ImportError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise ValueError("serve needs the package gradio, got none: pip install gradio") from error
    return page


def _codec_words(args: Sequence[str]) -> list[str]:
    """Those words of a command line that name a codec, with their values."""
    said: list[str] = []
    waiting = iter(args)
    for word in waiting:
        if word == "--codec" or word.startswith(("--codec.", "--codec=")):
            said += [word] if "=" in word else [word, next(waiting)]
    return said


EXAMPLES = """photos to pick from: a file, a folder or a pattern; "drawn" lets the model draw six when the page starts,
"none" has none"""
