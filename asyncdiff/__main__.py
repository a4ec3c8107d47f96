"""`python -m asyncdiff COMMAND`, or `asyncdiff COMMAND` where it is installed: train.py's commands and all others."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

# Every command with its module, which has a function `main(args)`, and what it is for. Loaded when chosen only.
COMMANDS = {
    "levels": ("asyncdiff.cli.commands.levels", "noise-level samplers of experiments, drawn side by side"),
    "evaluate": ("asyncdiff.cli.commands.evaluate", "numbers of a trained model: samples, likelihood, inpaintings"),
    "compare": ("asyncdiff.cli.commands.compare", "cards of evaluate in one table, unlike protocols marked"),
    "sample": ("asyncdiff.cli.commands.draw", "whole images"),
    "inpaint": ("asyncdiff.cli.commands.draw", "photos with a part of them drawn anew"),
    "edit": ("asyncdiff.cli.commands.draw", "photos changed as much as a painted map of noise levels says"),
    "outpaint": ("asyncdiff.cli.commands.draw", "photos continued beyond their edges"),
    "autoregress": ("asyncdiff.cli.commands.draw", "images drawn patch after patch, in any order"),
    "texture": ("asyncdiff.cli.commands.draw", "textures of any size, tileable too, from an exemplar or from nothing"),
    "serve": ("asyncdiff.cli.commands.serve", "a page in the browser to paint on photos and watch them being drawn"),
    "ablate": ("asyncdiff.cli.commands.ablate", "runs that differ in a few settings, over several seeds, side by side"),
    "cache-latents": ("asyncdiff.cli.commands.cache_latents", "images through a codec onto the disk, to train on"),
    "report": (
        "asyncdiff.cli.commands.report",
        "tables, curves and pictures of runs, as Markdown and as one HTML page",
    ),
    "export": (
        "asyncdiff.cli.commands.export",
        "a trained model as a folder to share: safetensors, YAML and a model card",
    ),
    "port": ("asyncdiff.cli.commands.port", "weights of DiT and SiT, or a diffusers folder, as a checkpoint of ours"),
}

# These share a module, whose main(name, argv) draws.
DRAWING = [name for name, (module, _) in COMMANDS.items() if module == "asyncdiff.cli.commands.draw"]

# What train.py does, for those who have installed the package and have no train.py.
TRAINING = ("fit", "validate", "test", "predict")


def main(words: Sequence[str] | None = None) -> None:
    """Run one command; an error of the user's ends it with one line."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0] in TRAINING:
        with packages_told():
            from asyncdiff.cli.train import main as train

        train(list(words))
        return
    with packages_told():
        from asyncdiff.cli.errors import one_line_errors
        from asyncdiff.cli.trusted_packages import gate  # has a parser to load, which the overview does not need

    with one_line_errors(words[1:]), gate(words[1:]) as left:
        command(words[0])(left)


@contextmanager
def packages_told() -> Iterator[None]:
    """End the program with one line where a package is missing: most often another Python was meant."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("asyncdiff", "datamodules"):
            raise  # a mistake of ours
        missing = f"error: the package {error.name} must be installed, got none in {sys.executable}"
        sys.exit(f"{missing}: use .venv/bin/python after make install, or pip install -r requirements.txt")


def overview() -> str:
    """The commands with a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    usage = ["usage: python -m asyncdiff COMMAND ...", "", *lines, ""]
    told = [f"python -m asyncdiff COMMAND --help tells the rest. {' | '.join(TRAINING)} are those of train.py."]
    told += ["--allow-class-paths PACKAGE[,PACKAGE] lets files name classes of other packages, whose code then runs."]
    return "\n".join([*usage, *told])


def command(name: str) -> Callable[[Sequence[str]], None]:
    """The function of a command; ValueError with the nearest name if there is none."""
    from asyncdiff.cli.errors.suggestions import did_you_mean, near

    if name not in COMMANDS:
        known = (*COMMANDS, *TRAINING)
        raise ValueError(f"the command must be one of {', '.join(known)}, got {name}{did_you_mean(near(name, known))}")
    module = importlib.import_module(COMMANDS[name][0])
    return partial(module.main, name) if name in DRAWING else module.main


if __name__ == "__main__":
    main()
