"""Every path option of every command x every path that cannot be read or written: one line, and nothing is created."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from asyncdiff.__main__ import COMMANDS, load_command
from asyncdiff.cli import train  # noqa: F401  imported here, so that no test is charged for it
from asyncdiff.cli.commands import evaluate_inpainting, evaluate_likelihood, evaluate_samples, image_commands
from asyncdiff.cli.commands.shared.command_parser import CommandParser, command_parser

TEXTS = ("image", "mask", "exemplar", "levels", "examples", "experiments")  # paths whose type is str
OUTPUTS = ("output", "out", "slurm")
# What a command needs besides the option that is tried.
NEEDED = {
    "sample": "run",
    "inpaint": "run --image photo.png --mask half",
    "edit": "run --image photo.png",
    "outpaint": "run --image photo.png --to 16x16",
    "autoregress": "run --image photo.png --mask half",
    "texture": "run",
    "serve": "run --examples none",
    "evaluate --samples": "run",
    "evaluate --likelihood": "run",
    "evaluate --inpainting": "run",
    "compare": "card.json",
    "levels": "layer.yaml",
    "ablate": "ablation.yaml",
    "report": "run",
    "cache-latents": "--out out",
    "export": "run --output out",
    "port": "run/checkpoints/last.ckpt --output out.ckpt",
}
EVALUATIONS: dict[str, Any] = {
    "evaluate --samples": evaluate_samples,
    "evaluate --likelihood": evaluate_likelihood,
    "evaluate --inpainting": evaluate_inpainting,
}
BAD = {
    "below a file": "file/x",
    "a link to nothing": "nowhere/x",
    "a circle": "circle/x",
    "too long": "x" * 300,
    "too long below": f"new/{'x' * 300}/y",
    "too deep": "a/" * 2100 + "x",
    "no user": "~no-such-user-here/x",
    "not there": "missing/x",
}
READ_ONLY = {"a pipe": "pipe"}  # for options that are read


def declared(command: str) -> CommandParser:
    """Return the parser of a command without the classes of its objects."""
    parser = command_parser(command, "", imports_classes=False)
    if command in EVALUATIONS:
        EVALUATIONS[command]._declare(parser)
    elif COMMANDS[command][0] == "image_commands":
        image_commands._declare(parser, command)
    else:
        sys.modules[load_command(command).__module__]._declare(parser)
    return parser


def options() -> list[tuple[str, str]]:
    """Return every command with each of its options that names a path; those without dashes are positional."""
    found = []
    for command in NEEDED:
        for action in declared(command)._actions:
            kind = str(getattr(action, "_typehint", None) or action.type)
            if "Path" in kind or ("str" in kind and action.dest in TEXTS):
                found.append((command, action.option_strings[0] if action.option_strings else action.dest))
    return found


def test_every_command_is_tried():
    assert {command.split()[0] for command in NEEDED} == set(COMMANDS)
    assert len(options()) > 40


@pytest.fixture(autouse=True)
def folder(digits_run, tmp_path, monkeypatch):
    """Working directory with a run, and what bad paths lead to."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_run, "run")
    Path("file").write_text("x")
    Path("nowhere").symlink_to("gone")
    Path("circle").symlink_to("circle")
    Path("card.json").write_text("{}")
    Path("layer.yaml").write_text("model: {levels: {class_path: asyncdiff.noise.Shared}}")
    Path("ablation.yaml").write_text(
        "base: [layer.yaml]\nseeds: [0]\naxes: {trainer.max_steps: [1]}\nmetrics: {val/loss: min}\n"
    )
    Image.new("L", (8, 8)).save("photo.png")
    os.mkfifo("pipe")


@pytest.mark.parametrize(("command", "option"), options())
def test_a_bad_path_is_one_line_and_nothing_is_created(command, option, expect_error):
    before = sorted(str(path) for path in Path().rglob("*"))
    for name, path in {**BAD, **({} if option.lstrip("-") in OUTPUTS else READ_ONLY)}.items():
        if name in ("not there", "no user") and option.lstrip("-") in OUTPUTS:
            continue  # such folders are created
        argv = [*command.split(), *NEEDED[command].split()]
        if not option.startswith("--"):
            argv[len(command.split())] = path
        elif option in argv:
            argv[argv.index(option) + 1] = path
        else:
            argv += [option, path]
        if option == "--levels" and "--mask" in argv:
            argv = [argument for argument in argv if argument not in ("--mask", "half")]
        message = expect_error(*argv, chatter=True)
        assert path[:20] in message or "File name too long" in message, (name, message)
        assert sorted(str(path) for path in Path().rglob("*")) == before, name


EXPERIMENT = str(Path("experiments/digits_dit_async.yaml").resolve())
SAVE = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: PATH}}"
LOG = "{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: PATH}}"
IMAGES = "{class_path: datamodules.ImageFolder, init_args: {root: PATH, size: 8}}"
INPAINT = "{class_path: asyncdiff.tasks.Inpaint, init_args: {image: PATH, mask: half}}"
OF_RUN = " ".join(f"--model.network.init_args.{key}" for key in ("dim 32", "depth 1", "heads 2"))
# Command lines of train.py in which PATH is written, or read.
WRITTEN = {
    "default_root_dir": "fit --trainer.default_root_dir PATH",
    "dirpath": f"fit --trainer.callbacks+|{SAVE}",
    "save_dir": f"fit --trainer.logger|{LOG}",
}
READ = {
    "pretrained": "fit --model.pretrained PATH",
    "ckpt_path": "test --ckpt_path PATH",
    "root": f"fit --data|{IMAGES}",
    "image": f"predict --ckpt_path run/checkpoints/last.ckpt {OF_RUN} --model.predict.task|{INPAINT}",
}


@pytest.mark.slow
@pytest.mark.parametrize("key", [*WRITTEN, *READ])
def test_a_bad_path_in_the_configuration_of_training_is_one_line(key, expect_error):
    before = sorted(str(path) for path in Path().rglob("*"))
    for name, path in {**BAD, **({} if key in WRITTEN else READ_ONLY)}.items():
        if (name in ("not there", "no user") and key in WRITTEN) or (name == "a link to nothing" and key == "dirpath"):
            continue  # such folders are created; Lightning follows the link in dirpath
        command, *more = {**WRITTEN, **READ}[key].replace("PATH", path).split("|")
        argv = command.split()
        root = [] if key == "default_root_dir" else ["--trainer.default_root_dir", "new-run"]
        options = ["--config", EXPERIMENT, "--trainer.max_steps", "1", *root, *argv[1:], *more]
        message = expect_error(argv[0], *options, chatter=True)
        assert path[:20] in message or "File name too long" in message, (name, message)
        assert sorted(str(path) for path in Path().rglob("*")) == before, name
