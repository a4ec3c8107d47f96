"""`python -m asyncdiff serve RUN`: serve a web page for sampling, inpainting and editing with one model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from asyncdiff.checks import within
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.shared.command_parser import (
    CommandLine,
    CommandParser,
    split_option,
    underscore_option,
)
from asyncdiff.cli.commands.shared.options import RUN, add_model
from asyncdiff.cli.commands.shared.runs import find_checkpoint, run_directory_of
from asyncdiff.output_paths import check_output_folder
from asyncdiff.tasks.arguments import photo_files
from asyncdiff.web.limits import Limits
from asyncdiff.web.same_origin import free_port

DESCRIPTION = """Serve a web page that samples from one model: paint on a photo what to inpaint, or how much each part
may change, and watch the sampling. Needs gradio: pip install gradio."""


def main(argv: Sequence[str]) -> None:
    """Start a process that loads the model and draws, and serve the page until Ctrl+C."""
    argv = [underscore_option(argument) for argument in argv]
    line = _command_line(argv)
    options = line.plain
    within("--port", options.port, 0, 65535, "7860 is the default")
    within("--max_pixels", options.max_pixels, 1, 2**28, "1048576 allows 1024x1024")
    within("--max_seconds", options.max_seconds, 1, 10**6, "300 is the default")
    checkpoint = find_checkpoint(options.run, options.ckpt_path)
    if checkpoint.is_symlink():  # last.ckpt of a running fit may change: the file that is loaded stays
        checkpoint = checkpoint.parent / checkpoint.readlink()
    check_output_folder(options.output or run_directory_of(checkpoint) / "predictions" / "serve", "--output")
    free_port(options.host, options.port)
    if options.examples not in ("drawn", "none"):
        photo_files("--examples", options.examples)
    page = _import_page()  # reports a missing package before the model is loaded
    from asyncdiff.cli.jobs.serve import Opening  # imports PyTorch

    run = run_directory_of(checkpoint)
    limits = Limits(pixels=options.max_pixels, seconds=options.max_seconds)
    print(f"loading {checkpoint}", flush=True)
    page.serve(
        Opening(
            build=partial(_build_options, argv),
            checkpoint=checkpoint,
            codec_argv=split_option(argv, "--codec")[1],
            trusted_argv=trusted_packages.option_argv(),
            name=checkpoint.name if run == checkpoint.parent else run.name,
            limits=limits,
        ),
        options.output or run / "predictions" / "serve",
        limits=limits,
        host=options.host,
        port=options.port,
        names=options.name,
        browser=options.open,
    )


def _command_line(argv: Sequence[str]) -> CommandLine:
    return CommandLine("serve", DESCRIPTION, _declare, argv)


def _build_options(argv: Sequence[str]) -> Any:
    """Return the options with the codec built, in the process that draws."""
    return _command_line(argv).build()


def _declare(parser: CommandParser) -> None:
    parser.add_argument("run", type=Path, help=RUN)
    parser.add_argument("--host", type=str, default="127.0.0.1", help=HOST)
    parser.add_argument("--port", type=int, default=7860, help="port of the page; 0 chooses any free port")
    parser.add_argument("--name", type=str, action="append", default=[], help=NAME)
    parser.add_argument("--examples", type=str, default="drawn", help=EXAMPLES)
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--output", type=Path | None, help="output folder (default: RUN/predictions/serve)")
    add_model(parser)
    parser.add_argument("--max_pixels", type=int, default=Limits.pixels, help="maximum number of pixels per image")
    parser.add_argument("--max_seconds", type=float, default=Limits.seconds, help=MAX_SECONDS)


def _import_page() -> Any:
    """Import the page's module; raise ValueError if Gradio is missing."""
    try:
        from asyncdiff.web import page
    except ImportError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise ValueError("serve needs the package gradio, which is not installed: pip install gradio") from error
    return page


HOST = "address to listen on; the default can be reached only from this machine"
NAME = "additional host name under which the page is reached, such as a proxy's; can be repeated"
EXAMPLES = """example photos to choose from: a file, a folder or a pattern; "drawn" lets the model generate six when the
page starts, "none" offers none"""
MAX_SECONDS = """maximum duration of a request, as estimated from the model's speed at the start; a request that takes
twice as long is ended"""
