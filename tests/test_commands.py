"""`python -m asyncdiff`: the overview, mistakes in a line, and what `levels` writes."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncdiff.__main__ import COMMANDS, main
from asyncdiff.commands.experiment import IMAGE_SIZE, Experiment
from asyncdiff.levels import AlongPath, SumBeta
from asyncdiff.module import AsyncDiffusion
from asyncdiff.paths import AsyncPatch

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = """
vars: {spread: 0.5, size: 16}
model:
  network:
    class_path: asyncdiff.networks.dit.DiT
    init_args: {channels: 1, patch_size: 2, level_patch_size: 4, dim: 1024, depth: 24, heads: 16}
  levels:
    class_path: asyncdiff.levels.AlongPath
    init_args:
      path: {class_path: asyncdiff.paths.AsyncPatch, init_args: {spread: "${vars.spread}"}}
  image_size: ${vars.size}
trainer: {default_root_dir: "${nothing.that.matters.here}"}
"""
LAYER = """
model:
  levels:
    class_path: asyncdiff.levels.SumBeta
    init_args: {sharpness: 2.0}
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("experiment.yaml").write_text(EXPERIMENT)
    Path("layer.yaml").write_text(LAYER)


@pytest.fixture
def refused(capfd):
    """Runs a command that has to fail; returns the line that says why."""

    def run(*words):
        with pytest.raises(SystemExit) as stopped:
            main(list(words))
        printed = capfd.readouterr()
        assert stopped.value.code == 2
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        return line.removeprefix("error: ")

    return run


# The dispatcher


def test_the_overview_lists_every_command_without_loading_any():
    code = (
        "import sys; from asyncdiff.__main__ import main; main(['--help']); "
        "print({'torch', 'lightning', 'jsonargparse', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("set()\n")
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name}" in result.stdout
        assert summary in result.stdout


def test_no_words_give_the_overview(capsys):
    main([])
    assert capsys.readouterr().out.startswith("usage: python -m asyncdiff COMMAND")


def test_levels_does_without_lightning():
    code = "import sys, asyncdiff.commands.levels; print({'lightning', 'timm', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_an_unknown_command(refused):
    assert refused("levls") == f"the command must be one of {', '.join(COMMANDS)}, got levls; did you mean levels?"


def test_as_a_program(tmp_path):
    words = [sys.executable, "-m", "asyncdiff", "levels", str(tmp_path / "layer.yaml"), "--grid", "16"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: grid must be ROWSxCOLUMNS, got 16: 16x16, say\n"


def test_the_traceback_of_a_mistake_can_be_had(monkeypatch):
    monkeypatch.setenv("ASYNCDIFF_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        main(["levels", "nothing.yaml"])


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(SumBeta, "sample", lambda self, source: int("no number"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["levels", "layer.yaml"])


# Reading experiments


def test_levels_and_grid_are_read_with_interpolations():
    experiment = Experiment(Path("experiment.yaml"))
    levels = experiment.levels()
    assert isinstance(levels, AlongPath)
    assert levels.path.spread == 0.5
    assert experiment.grid() == (4, 4)  # 16 pixels in level patches of 4
    assert Experiment(Path("layer.yaml")).levels().sharpness == 2.0
    assert Experiment(Path("layer.yaml")).grid() is None


def test_what_a_file_leaves_out_is_the_models_default():
    Path("bare.yaml").write_text("model: {network: {class_path: DiT, init_args: {dim: 32, heads: 4, depth: 1}}}")
    experiment = Experiment(Path("bare.yaml"))
    assert isinstance(experiment.levels().path, AsyncPatch)
    assert experiment.grid() == (IMAGE_SIZE // 2, IMAGE_SIZE // 2)
    assert inspect.signature(AsyncDiffusion).parameters["image_size"].default == IMAGE_SIZE


def test_a_file_is_named_for_its_run_where_all_runs_call_it_alike():
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/config.yaml").write_text(LAYER)
    assert Experiment(Path("runs/demo/config.yaml")).name == "demo"
    assert Experiment(Path("layer.yaml")).name == "layer"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAYER.replace("sharpness", "sharpnes"), ":5: model.levels.init_args.sharpnes: SumBeta has no argument"),
        (LAYER.replace("SumBeta", "SumBetta"), ":4: model.levels: there is no class asyncdiff.levels.SumBetta; did"),
        (LAYER.replace("2.0", "much"), ":5: model.levels.init_args.sharpness: must be float, got much"),
        (LAYER.replace("2.0", "-2"), ": sharpness must be positive, got -2.0"),
        (LAYER.replace("levels.SumBeta", "paths.Synchronous"), ":4: model.levels: asyncdiff.paths.Synchronous is no"),
        (LAYER.replace("  levels", "  levls"), ":3: model.levls: there is no such key; did you mean model.levels?"),
        (LAYER.replace("2.0", "'${vars.no}'"), ":5: model.levels.init_args.sharpness: ${vars.no} leads to no value"),
        (LAYER.replace("model:", "model: ["), ":4: not valid YAML"),
        ("trainer: {}", ": model.levels must be given in a file without model.network"),
        ("- 3", " must hold an experiment, got a list"),
        (EXPERIMENT.replace("size: 16", "size: 18"), ": the sides of the image must be multiples of the patch size 4"),
        (EXPERIMENT.replace("size: 16", "size: big"), ": model.image_size must be int, got big"),
        (EXPERIMENT.replace("heads: 16", "head: 16"), ":6: model.network.init_args.head: DiT has no argument head"),
        (EXPERIMENT.replace("asyncdiff.networks.dit.DiT", "torch.nn.Identity").replace("{channels", "{} #"),
         ": model.network must have a method grid((h, w)), got Identity"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_one_line_with_their_place(text, message, refused):
    Path("wrong.yaml").write_text(text)
    line = refused("levels", "layer.yaml", "wrong.yaml")
    assert line.startswith(f"wrong.yaml{message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.yaml"], "experiments must be YAML files, got none.yaml, which does not exist"),
        ([], "experiments must be given"),
        (["layer.yaml", "--imags", "3"], "--imags: there is no such option; did you mean --images?"),
        (["layer.yaml", "--images", "x"], "images: must be int, got x"),
        (["layer.yaml", "--images", "0"], "images must be at least 1, got 0"),
        (["layer.yaml", "--columns", "0"], "columns must be at least 1, got 0"),
        (["layer.yaml", "--grid", "16"], "grid must be ROWSxCOLUMNS, got 16"),
        (["layer.yaml", "--grid", "0x4"], "grid must be ROWSxCOLUMNS, got 0x4"),
        (["layer.yaml", "layer.yaml"], "names must differ, got layer 2 times: tell the experiments apart with --names"),
        (["layer.yaml", "--names", "a", "b"], "names must be as many as experiments, got 2 for 1"),
        (["layer.yaml", "--names", "../b"], "names must be names of files, got ../b"),
    ],
)
def test_wrong_words(words, message, refused):
    assert refused("levels", *words).startswith(message)
    assert not Path("runs").exists()


# What is written


def test_two_experiments_side_by_side(capfd):
    words = ["levels", "experiment.yaml", "layer.yaml", "--names", "half", "srm", "--images", "64", "--output", "out"]
    main(words)
    told = capfd.readouterr().out
    assert told == "figure: out/levels.png\npaths: half.gif in out\nTensorBoard: tensorboard --logdir out\n"
    with Image.open("out/levels.png") as figure:
        assert figure.width > figure.height * 0.6
    with Image.open("out/half.gif") as movie:
        assert movie.n_frames > 20
    assert not Path("out/srm.gif").exists()
    half, srm = (EventAccumulator(f"out/{name}", {"images": 0}).Reload() for name in ("half", "srm"))
    histograms = {"levels/of_patches", "levels/mean_of_image", "levels/sd_in_image"}
    for events in (half, srm):
        assert set(events.Tags()["histograms"]) == histograms
    assert set(half.Tags()["images"]) == {"levels/figure", "levels/path"}
    assert set(srm.Tags()["images"]) == {"levels/figure"}
    assert [event.step for event in half.Images("levels/path")] == list(range(10))
    patches = half.Histograms("levels/of_patches")[0].histogram_value
    assert patches.num == 64 * 4 * 4  # the network's grid
    assert srm.Histograms("levels/of_patches")[0].histogram_value.num == 64 * 16 * 16
    main([*words, "--no-gif", "--grid", "2x3"])  # a second call replaces the event files
    assert "gif" not in capfd.readouterr().out
    (file,) = Path("out/half").iterdir()
    again = EventAccumulator(str(file)).Reload()
    assert again.Histograms("levels/of_patches")[0].histogram_value.num == 64 * 6
