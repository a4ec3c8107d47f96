"""Command line of the package: `python -m asyncdiff COMMAND`, or `asyncdiff COMMAND` where it is installed."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

# Module in asyncdiff.cli.commands and summary of every command. A module is imported only when its command is chosen.
COMMANDS = {
    "sample": ("image_commands", "generate images"),
    "inpaint": ("image_commands", "inpaint photos: generate the part that a mask hides"),
    "edit": ("image_commands", "change photos more or less strongly, patch by patch, with SDEdit"),
    "outpaint": ("image_commands", "extend photos beyond their edges"),
    "autoregress": ("image_commands", "generate or inpaint images patch by patch, in any order"),
    "texture": ("image_commands", "generate textures of any size, from scratch or from an exemplar"),
    "serve": ("serve", "open a web page for sampling, inpainting and editing"),
    "evaluate": ("evaluate", "evaluate a trained model: samples, likelihood, inpainting"),
    "compare": ("compare", "compare results of evaluate in one table, marking those measured differently"),
    "levels": ("levels", "plot the noise-level samplers of experiments side by side"),
    "ablate": ("ablate", "train every combination of a few settings over several seeds"),
    "report": ("report", "summarize runs as Markdown and HTML: tables, curves, images"),
    "cache-latents": ("cache_latents", "encode a dataset once and store its latents for training"),
    "export": ("export", "export a trained model as a folder: safetensors, YAML, model card"),
    "port": ("port", "convert DiT or SiT weights, or a diffusers folder, to a checkpoint"),
}

# Subcommands of train.py, also available here because an installed package has no train.py.
TRAINING = ("fit", "validate", "test", "predict")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; a user error ends the program with a one-line message.

    Args:
        argv: arguments without the program's name; None for those of this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return
    if argv[0] in TRAINING:
        with explain_missing_packages():
            from asyncdiff.cli.train import main as train

        train(list(argv))
        return
    with explain_missing_packages():
        from asyncdiff.cli.errors import one_line_errors
        from asyncdiff.cli.trusted_packages import restrict_imports  # imports jsonargparse, which the overview avoids

        with one_line_errors(), restrict_imports(argv[1:]) as rest:  # commands import PyTorch after their options
            load_command(argv[0])(rest)


@contextmanager
def explain_missing_packages() -> Iterator[None]:
    """End the program with one line if a package is missing: usually the wrong Python interpreter is running."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("asyncdiff", "datamodules"):
            raise  # a bug in this package
        missing = f"error: the package {error.name} is not installed in {sys.executable}"
        sys.exit(f"{missing}: use .venv/bin/python after make install, or pip install -r requirements.txt")


def overview() -> str:
    """Return the help text, which lists every command with its summary."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    usage = ["usage: python -m asyncdiff COMMAND ...", "", *lines, ""]
    notes = [f"{' | '.join(TRAINING)} train and test from YAML files, as train.py does."]
    notes += ["RUN, where a command takes one, is a run directory, a .ckpt file or an exported folder."]
    notes += ["Run python -m asyncdiff COMMAND --help for the options of a command."]
    notes += ["--allow-class-paths PACKAGE[,PACKAGE] lets files use classes of other packages and runs their code."]
    return "\n".join([*usage, *notes])


def load_command(name: str) -> Callable[[Sequence[str]], None]:
    """Import a command and return its main function; raise ValueError with a suggestion if there is no such command."""
    from asyncdiff.cli.errors.suggestions import did_you_mean, nearest_name

    if name not in COMMANDS:
        known = (*COMMANDS, *TRAINING)
        raise ValueError(
            f"the command must be one of {', '.join(known)}, got {name}{did_you_mean(nearest_name(name, known))}"
        )
    module = importlib.import_module(f"asyncdiff.cli.commands.{COMMANDS[name][0]}")  # noqa: TID251  of a fixed table
    return partial(module.main, name) if COMMANDS[name][0] == "image_commands" else module.main


if __name__ == "__main__":
    main()
