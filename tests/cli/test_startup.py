"""Wrong arguments are refused without PyTorch, and commands that draw or export need no Lightning."""

import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
from small_runs import save_untrained, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.cli.commands import (
    cache_latents,
    evaluate_inpainting,
    evaluate_likelihood,
    evaluate_samples,
    image_commands,
    serve,
)
from asyncdiff.cli.commands.shared.command_parser import command_parser
from asyncdiff.cli.commands.shared.options import check_file_name
from asyncdiff.cli.errors import one_line_errors
from asyncdiff.evaluation.figures.sampling_gif import MAX_IMAGES
from asyncdiff.sampling import Sampler

ROOT = Path(__file__).resolve().parents[2]
REFUSED = {
    "smple": "the command must be one of",
    "sample RUN --step 7": "--step: there is no such option; did you mean --steps?",
    "sample RUN --sampler Sampler --step 7": "--step: there is no such option; did you mean --steps?",
    "sample RUN --steps many": "--steps: must be int or null, got many",
    "sample RUN --steps 0": "steps must be at least 1, got 0",
    "sample RUN --precision fp16": "--precision: must be one of 'float32', 'tf32', 'bf16' or null, got fp16",
    "evaluate RUN --likelihood --precision half": "--precision: must be one of 'float32', 'tf32', 'bf16' or null, got",
    "sample RUN --batch-size 0": "batch_size must be at least 1, got 0",
    "sample RUN --seeds 3-1": "--seeds must be integers such as 0,3,8-15, got 3-1",
    "sample RUN --output used": "output folder used already contains images",
    "sample nowhere --sampler Sampler --sampler.steps 2": "RUN must be a run directory of train.py, a .ckpt file",
    "sample RUN --ckpt_path nowhere": "--ckpt_path must be a run directory of train.py, a .ckpt file or an export",
    "sample RUN --ckpt_path used": "--ckpt_path must contain checkpoints/last.ckpt, got used without it",
    "sample": "run must be given",
    "inpaint nowhere --image a --mask square": "RUN must be a run directory of train.py",
    "inpaint RUN": "image must be given",
    "inpaint RUN --image a --mask square --fit pad": "--fit: must be one of 'crop', 'resize', 'keep', got pad",
    "inpaint RUN --image none.png --mask square": "image must be an image file, a folder or a pattern",
    "edit RUN --image a --levls 1": "--levls: there is no such option; did you mean --levels?",
    "outpaint RUN --image used": "set either to, the size of the result, or at least one of top",
    "autoregress RUN --overlap high": "--overlap: must be float, got high",
    "texture RUN --scale 2": "scale and piece need an exemplar, got none",
    "serve RUN --prt 1": "--prt: there is no such option; did you mean --port?",
    "serve RUN --port 70000": "--port must lie in [0, 65535], got 70000",
    "compare": "cards must be given",
    "compare a a": "cards must differ, got a more than once",
    "levels a.yaml --imags 3": "--imags: there is no such option; did you mean --images?",
    "levels a.yaml --grid 16": "--grid must be ROWSxCOLUMNS, got 16",
    "ablate a.yaml --paralel 2": "--paralel: there is no such option; did you mean --parallel?",
    "report a --title": "--title: a value must follow",
    "cache-latents --out a --codec b --dtype half": "--dtype: must be one of 'float16', 'float32', got half",
    "export RUN": "output must be given",
    "export RUN --output used": "--output used exists and is not an export: choose a new folder",
    "export RUN --output new --push_to_hub name": "--push_to_hub must be a repository OWNER/NAME, got name",
    "port a.pt --output b.pt": "--output must be a new .ckpt file, got b.pt: choose another path",
    "port a.pt --output b.ckpt --kind vit": "--kind: must be one of 'dit', 'sit' or null, got vit",
    "evaluate RUN": "choose exactly one of --samples, --likelihood, --inpainting, got none",
    "evaluate RUN --samples --cout 3": "--cout: there is no such option; did you mean --count?",
    "evaluate RUN --likelihood --split part": "--split: must be one of 'val', 'test', got part",
    "evaluate nowhere --inpainting": "RUN must be",
}
WITHOUT_OBJECTS = ("compare", "levels", "ablate", "report", "export", "port")  # commands whose options are plain values
RUN_ALL = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from asyncdiff.__main__ import main
main(["--help"])
assert "jsonargparse" not in sys.modules
for argv in json.load(sys.stdin):
    with redirect_stderr(io.StringIO()) as printed, redirect_stdout(printed):
        try:
            main(argv)
        except SystemExit as stopped:
            answer = [stopped.code, printed.getvalue(), "torch" in sys.modules]
    print(json.dumps(answer))
"""
DRAW = """
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from asyncdiff.__main__ import main
sampler = ["--sampler", "Sampler", "--sampler.steps", "2"]
main(["sample", "run", "--seeds", "0-2", "--labels", "none", "--output", "a", "--gif", *sampler])
main(["autoregress", "run", "--seeds", "0", "--steps_per_patch", "1", "--output", "b"])
main(["inpaint", "run", "--image", "a/000000.png", "--seeds", "0,1", "--output", "c"])
main(["texture", "run", "--size", "12x8", "--output", "d"])
print({"timm", "torchvision", "matplotlib", "lightning", "torch._dynamo", "datamodules.base"} & set(sys.modules))
main(["export", "run", "--output", "exported"])
main(["sample", "exported", "--seeds", "0", "--output", "e"])
from asyncdiff.cli.jobs.serve import Planner
from asyncdiff.web import draw_request, drawing, job_queue
planner = Planner.load(Path("exported"), SimpleNamespace(device="cpu", weights="auto", codec=None, precision=None))
*_, result = drawing.draw(planner, draw_request.DrawRequest(), Path("served"), lambda: False)
assert result.images[0].exists()
print({"lightning"} & set(sys.modules))
"""


def run_python(code, folder, stdin=""):
    argv, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        argv, cwd=folder, env=environment, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with a run of an untrained network, and a folder of images."""
    folder = tmp_path_factory.mktemp("startup")
    network = small_dit(channels=1, patch_size=2, dim=32, depth=1, heads=2)
    save_untrained(folder / "run", AsyncDiffusion(network, sampler=Sampler(steps=2), image_size=8))
    (folder / "used").mkdir()
    (folder / "used" / "image.png").touch()
    return folder


@pytest.mark.slow
def test_wrong_arguments_are_refused_without_pytorch(folder):
    """In a fresh interpreter; help for plain options needs no PyTorch either."""
    argvs = [line.replace("RUN", "run").split() for line in REFUSED]
    argvs += [[command, "--help"] for command in WITHOUT_OBJECTS]
    result = run_python(RUN_ALL, folder, json.dumps(argvs))
    answers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(argvs), result.stderr
    assert not any(imports_torch for _, _, imports_torch in answers)
    for (code, printed, _), (line, message) in zip(answers, REFUSED.items(), strict=False):
        assert (code, printed.count("\n")) == (2, 1), (line, printed)
        assert printed.startswith(f"error: {message}"), line
    for (code, printed, _), command in zip(answers[len(REFUSED) :], WITHOUT_OBJECTS, strict=True):
        assert (code, printed.startswith(f"usage: python -m asyncdiff {command}")) == (0, True)


@pytest.mark.slow
def test_drawing_and_exporting_need_no_lightning(folder):
    """In a fresh interpreter."""
    result = run_python(DRAW, folder)
    assert result.stdout.splitlines().count("set()") == 2, result


DECLARATIONS = {
    **{name: partial(image_commands._declare, command=name) for name in image_commands.COMMANDS},
    "serve": serve._declare,
    "cache-latents": cache_latents._declare,
    **{module.__name__: module._declare for module in (evaluate_samples, evaluate_likelihood, evaluate_inpainting)},
}


@pytest.mark.parametrize("command", DECLARATIONS)
def test_the_first_pass_knows_the_options_of_the_complete_parser(command):
    first, complete = (command_parser(command, "", imports_classes=value) for value in (False, True))
    for parser in (first, complete):
        DECLARATIONS[command](parser)
    options, expected = (
        {
            action.dest: (getattr(action, "_typehint", None), action.default, action.required)
            for action in parser._actions
            if not action.dest.endswith(".help")
        }
        for parser in (first, complete)
    )
    objects = {option.removeprefix("--") for option in first.objects}
    assert "codec" in objects
    assert options.keys() == expected.keys()
    for name, (kind, default, required) in options.items():
        assert (default, required) == expected[name][1:], name
        assert name in objects or kind == expected[name][0], name


def test_the_help_names_the_number_of_images_in_a_gif():
    assert f"the first {MAX_IMAGES} images" in image_commands.GIF


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", ".", "", "a/b", "a\0b", "a\nb", "x" * 300])
def test_names_of_output_files_stay_in_their_folder(name):
    with pytest.raises(ValueError, match="--name must be a file name, got"):
        check_file_name("--name", name)
    check_file_name("--name", "samples, 3 (ü).v2")


def test_warnings_show_characters_that_control_a_terminal():
    with pytest.warns(UserWarning, match=r"a\\x1b\[2J\nb \\u202e$"), one_line_errors():
        warnings.warn("a\x1b[2J\nb \u202e", stacklevel=1)
    before = warnings.showwarning
    with one_line_errors():
        pass
    assert warnings.showwarning is before
