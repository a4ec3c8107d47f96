"""`python -m asyncdiff serve RUN`: serve a web page for sampling, inpainting and editing with one model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncdiff.checks import within
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
    """Load the model and serve the page until Ctrl+C."""
    line = CommandLine("serve", DESCRIPTION, _declare, [underscore_option(argument) for argument in argv])
    within("--port", line.plain.port, 0, 65535, "7860 is the default")
    within("--max_pixels", line.plain.max_pixels, 1, 2**28, "1048576 allows 1024x1024")
    checkpoint = find_checkpoint(line.plain.run, line.plain.ckpt_path)
    if checkpoint.is_symlink():  # last.ckpt of a running fit may change: the file that is loaded stays
        checkpoint = checkpoint.parent / checkpoint.readlink()
    free_port(line.plain.host, line.plain.port)
    if line.plain.examples not in ("drawn", "none"):
        photo_files("--examples", line.plain.examples)
    options = line.build()
    page = _import_page()  # reports a missing package before the model is loaded
    from asyncdiff.cli.jobs.serve import Planner  # imports PyTorch

    print(f"loading {checkpoint}", flush=True)
    planner = Planner.load(checkpoint, options, split_option(argv, "--codec")[1])
    run = run_directory_of(checkpoint)
    page.serve(
        planner,
        planner.model,
        options.output or run / "predictions" / "serve",
        limits=Limits(pixels=options.max_pixels),
        name=checkpoint.name if run == checkpoint.parent else run.name,
        examples=options.examples,
        host=options.host,
        port=options.port,
        names=options.name,
        browser=options.open,
    )


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
