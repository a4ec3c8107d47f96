"""`python -m asyncdiff`: the overview, one-line errors, what `levels` writes, and generated images."""

import inspect
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from photo_files import random_photo
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncdiff import DiffusionModel
from asyncdiff.__main__ import COMMANDS, TRAINING, main
from asyncdiff.cli import train as cli
from asyncdiff.cli.commands.shared.options import choose_device
from asyncdiff.cli.commands.shared.runs import find_checkpoint, run_directory_of
from asyncdiff.cli.jobs import encode_latents
from asyncdiff.cli.jobs.draw import DrawJob
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.model import IMAGE_SIZE
from asyncdiff.noise.level_samplers import AlongPath
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.sampling.guidance import ClassifierFree
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.tasks.photos import read_photo, to_bytes
from asyncdiff.training.lightning_module import AsyncDiffusion

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
vars: {spread: 0.5, size: 16}
model:
  network:
    class_path: asyncdiff.networks.DiT
    init_args: {channels: 1, patch_size: 2, level_patch_size: 4, dim: 1024, depth: 24, heads: 16}
  levels:
    class_path: asyncdiff.noise.AlongPath
    init_args:
      path: {class_path: asyncdiff.noise.AsyncPatch, init_args: {spread: "${vars.spread}"}}
  image_size: ${vars.size}
trainer: {default_root_dir: "${nothing.that.matters.here}"}
"""
LAYER = """
model:
  levels:
    class_path: asyncdiff.noise.SumBeta
    init_args: {sharpness: 2.0}
"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("experiment.yaml").write_text(EXPERIMENT)
    Path("layer.yaml").write_text(LAYER)


# The dispatcher


def run_python(*argv):
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_the_overview_lists_every_command(argv, capsys):
    main(argv)
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m asyncdiff COMMAND")
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name}" in printed
        assert summary in printed


def test_an_unknown_command_is_reported_with_a_suggestion(expect_error):
    known = ", ".join((*COMMANDS, *TRAINING))
    assert expect_error("levls") == f"the command must be one of {known}, got levls; did you mean levels?"


def test_a_missing_package_is_reported_in_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(SystemExit, match="error: the package tqdm is not installed in .*: use .venv/bin/python after"):
        main(["sample", str(run), "--seeds", "0", "--output", "out"])


@pytest.mark.slow
def test_errors_of_a_subprocess_are_one_line_with_exit_code_2(tmp_path):
    result = run_python("-m", "asyncdiff", "levels", str(tmp_path / "layer.yaml"), "--grid", "16")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --grid must be ROWSxCOLUMNS, got 16: use 16x16, for example\n"


# Reading experiments


def test_levels_and_grid_are_read_with_interpolations():
    experiment = Experiment(Path("experiment.yaml"))
    levels = experiment.levels()
    assert isinstance(levels, AlongPath)
    assert levels.path.spread == 0.5
    assert experiment.grid() == (4, 4)  # 16 pixels in level patches of 4
    assert Experiment(Path("layer.yaml")).levels().sharpness == 2.0
    assert Experiment(Path("layer.yaml")).grid() is None


def test_missing_keys_take_the_models_defaults():
    Path("bare.yaml").write_text("model: {network: {class_path: DiT, init_args: {dim: 32, heads: 4, depth: 1}}}")
    experiment = Experiment(Path("bare.yaml"))
    assert isinstance(experiment.levels().path, AsyncPatch)
    assert experiment.grid() == (IMAGE_SIZE // 2, IMAGE_SIZE // 2)
    assert inspect.signature(AsyncDiffusion).parameters["image_size"].default == IMAGE_SIZE


def test_the_name_of_config_yaml_is_its_run_directory():
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/config.yaml").write_text(LAYER)
    assert Experiment(Path("runs/demo/config.yaml")).name == "demo"
    assert Experiment(Path("layer.yaml")).name == "layer"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAYER.replace("sharpness", "sharpnes"), ":5: model.levels.init_args.sharpnes: SumBeta has no argument"),
        (LAYER.replace("SumBeta", "SumBetta"),
         ":4: model.levels: there is no class asyncdiff.noise.SumBetta; did you mean asyncdiff.noise.SumBeta?"),
        (LAYER.replace("2.0", "much"), ":5: model.levels.init_args.sharpness: must be float, got much"),
        (LAYER.replace("2.0", "-2"), ": sharpness must be positive, got -2.0"),
        (LAYER.replace("SumBeta", "Synchronous"),
         ":4: model.levels: asyncdiff.noise.Synchronous is not a LevelSampler;"),
        (LAYER.replace("  levels", "  levls"), ":3: model.levls: there is no such key; did you mean model.levels?"),
        (LAYER.replace("2.0", "'${vars.no}'"), ":5: model.levels.init_args.sharpness: ${vars.no} is not defined"),
        (LAYER.replace("model:", "model: ["), ":4: not valid YAML"),
        ("trainer: {}", ": model.levels is missing: a file without model.network needs it"),
        ("- 3", " must contain sections such as model and data, got a list"),
        (EXPERIMENT.replace("size: 16", "size: 18"), ": the sides of the image must be multiples of the patch size 4"),
        (EXPERIMENT.replace("size: 16", "size: big"), ": model.image_size must be an integer, got big"),
        (EXPERIMENT.replace("heads: 16", "head: 16"), ":6: model.network.init_args.head: DiT has no argument head"),
        (EXPERIMENT.replace("asyncdiff.networks.DiT", "torch.nn.Identity").replace("{channels", "{} #"),
         ":5: model.network: must name a class of asyncdiff, datamodules and Lightning's callbacks, loggers, plugins, "
         "profilers and strategies, got torch.nn.Identity: if you trust its code, add --allow-class-paths torch"),
    ],
)  # fmt: skip
def test_errors_in_a_file_are_one_line_with_the_location(text, message, expect_error):
    Path("wrong.yaml").write_text(text)
    line = expect_error("levels", "layer.yaml", "wrong.yaml")
    assert line.startswith(f"wrong.yaml{message}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.yaml"], "experiments must be YAML files, got none.yaml, which does not exist: check the path"),
        ([], "experiments must be given"),
        (["layer.yaml", "--imags", "3"], "--imags: there is no such option; did you mean --images?"),
        (["layer.yaml", "--images", "x"], "--images: must be int, got x"),
        (["layer.yaml", "--images", "0"], "--images must be at least 1, got 0"),
        (["layer.yaml", "--columns", "0"], "--columns must be at least 1, got 0"),
        (["layer.yaml", "--grid", "16"], "--grid must be ROWSxCOLUMNS, got 16"),
        (["layer.yaml", "--grid", "0x4"], "--grid must be ROWSxCOLUMNS, got 0x4"),
        (["layer.yaml", "layer.yaml"], "names must differ, got layer 2 times: choose different ones with --names"),
        (
            ["layer.yaml", "--names", "a", "b"],
            "--names needs one name per experiment, got 2 names for 1 experiment: put --names",
        ),
        (["layer.yaml", "--names", "../b"], "--names must be a file name, got ../b"),
    ],
)
def test_invalid_arguments_of_levels_are_reported_in_one_line(argv, message, expect_error):
    assert expect_error("levels", *argv).startswith(message)
    assert not Path("runs").exists()


# What is written


def test_levels_plots_two_experiments(capfd):
    argv = ["levels", "experiment.yaml", "layer.yaml", "--names", "half", "srm", "--images", "64", "--output", "out"]
    main(argv)
    printed = capfd.readouterr().out
    assert printed == "figure: out/levels.png\nanimations: out/half.gif\nTensorBoard: tensorboard --logdir out\n"
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
    main([*argv, "--no-gif", "--grid", "2x3"])  # a second call replaces the event files
    assert "gif" not in capfd.readouterr().out
    (file,) = Path("out/half").iterdir()
    again = EventAccumulator(str(file)).Reload()
    assert again.Histograms("levels/of_patches")[0].histogram_value.num == 64 * 6


# Drawing


@pytest.fixture(scope="module")
def run(color_run, tmp_path_factory):
    """Run directory of an untrained network for 8x8 color images and three classes, which tests may write into."""
    return shutil.copytree(color_run, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def photo():
    return random_photo(Path("photo.png"), 8, 16)


def read_images(folder):
    return {f.name: read_photo(f, 3) for f in sorted(Path(folder).glob("*.png"))}


def test_sample_writes_what_the_model_generates(run, capfd):
    main(["sample", str(run), "--labels", "0,2", "--seeds", "1,3-4", "--output", "out", "--batch-size", "2", "--gif"])
    printed = capfd.readouterr()
    assert printed.out == "3 images: out\ncontact sheet: out/sheet.png\nmovie: out/walk.gif\n"
    model = DiffusionModel.load(run)
    expected = to_bytes(model.generate([1, 3, 4], [0, 2, 0]))
    images = read_images("out")
    del images["sheet.png"]
    assert list(images) == ["000001_class0.png", "000003_class2.png", "000004_class0.png"]
    for image, truth in zip(images.values(), expected, strict=True):
        assert (image.int() - truth.int()).abs().max() <= 1
    with Image.open("out/walk.gif") as movie:
        assert movie.n_frames == 3


def test_the_options_change_the_sampler(run):
    argv = ["sample", str(run / "checkpoints/last.ckpt"), "--seeds", "0", "--labels", "1"]
    main([*argv, "--output", "a", "--steps", "5", "--guidance", "2"])
    model = DiffusionModel.load(run)
    guided = model.generate([0], [1], sampler=Sampler(steps=5, guidance=[ClassifierFree(2.0)]))
    assert (read_images("a")["000000_class1.png"].int() - to_bytes(guided)[0].int()).abs().max() <= 1
    main([*argv, "--output", "b", "--sampler", "Sampler", "--sampler.steps", "5", "--guidance", "2"])
    assert torch.equal(read_images("b")["000000_class1.png"], read_images("a")["000000_class1.png"])
    main([*argv, "--output", "c", "--steps", "5"])
    assert not torch.equal(read_images("c")["000000_class1.png"], read_images("a")["000000_class1.png"])


def test_inpaint_keeps_known_pixels_and_prints_how_the_photo_was_fitted(run, photo, capfd):
    main(["inpaint", str(run), "--image", photo, "--mask", "half", "--seeds", "0,1", "--mask-is-unknown", "true"])
    main(["inpaint", str(run), "--image", photo, "--seeds", "0", "--size", "8x16", "--input_guidance", "1"])
    first, second = Path(run) / "predictions/inpaint", Path(run) / "predictions/inpaint-2"
    printed = capfd.readouterr().out
    files = f"2 images: {first}\ncontact sheet: {first}/sheet.png\n"
    assert f"{photo}: 8x16 pixels, cropped to its center 8x8, with the built-in mask Half\n{files}" in printed
    assert f"{photo}: 8x16 pixels, unchanged, with the built-in mask Square\n1 image: {second}\n" in printed
    truth = read_photo(Path(photo), 3)[:, :, 4:12]
    for seed in (0, 1):
        image = read_images(first)[f"photo_seed{seed}.png"]
        assert torch.equal(image[:, :, 4:], truth[:, :, 4:])
        assert not torch.equal(image[:, :, :4], truth[:, :, :4])
    assert read_images(second)["photo_seed0.png"].shape == (3, 8, 16)


def test_edit_keeps_black_areas(run, photo):
    gray = np.zeros((8, 16), dtype=np.uint8)
    gray[:, 8:] = 128
    Image.fromarray(gray).save("map.png")
    main(["edit", str(run), "--image", photo, "--levels", "map.png", "--seeds", "0", "--output", "out"])
    truth, image = read_photo(Path(photo), 3)[:, :, 4:12], read_images("out")["photo_seed0.png"]
    assert torch.equal(image[:, :, :4], truth[:, :, :4])
    assert (image[:, :, 4:] != truth[:, :, 4:]).float().mean() > 0.5


def test_each_photo_warning_is_one_line(run, photo, capfd):
    for name, left, right in (("gray", 90, 200), ("black", 0, 0)):
        Image.fromarray(np.uint8([[left] * 8 + [right] * 8] * 8)).save(f"{name}.png")
        main(["inpaint", str(run), "--image", photo, "--mask", f"{name}.png", "--seeds", "0", "--output", name])
    lines = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert lines == [
        "warning: gray.png: 128 of 128 pixels are neither black nor white, thresholded at mid-gray",
        "warning: no pixel of photo is known: the results do not depend on it",
    ]


def test_outpaint_autoregress_and_texture(run, photo):
    main(["outpaint", str(run), "--image", photo, "--right", "6", "--seeds", "0", "--output", "outpainted", "--gif"])
    image = read_images("outpainted")["photo_seed0.png"]
    assert image.shape == (3, 8, 14)
    assert torch.equal(image[:, :, :8], read_photo(Path(photo), 3)[:, :, 4:12])
    argv = ["--order", "spiral", "--overlap", "0.5", "--steps_per_patch", "1", "--seeds", "0", "--labels", "none"]
    main(["autoregress", str(run), *argv, "--output", "ordered"])
    assert list(read_images("ordered")) == ["000000.png"]
    main(["texture", str(run), "--exemplar", photo, "--size", "16x12", "--tileable", "true", "--output", "texture"])
    assert read_images("texture")["photo_seed0.png"].shape == (3, 16, 12)


def test_train_predict_writes_what_the_command_writes(run, photo):
    config = {
        "model": {
            "network": {
                "class_path": "asyncdiff.networks.DiT",
                "init_args": {"channels": 3, "patch_size": 2, "dim": 32, "depth": 1, "heads": 2, "classes": 3},
            },
            "sampler": {"class_path": "asyncdiff.sampling.Sampler", "init_args": {"steps": 2}},
            "image_size": 8,
        },
        "data": {"class_path": "datamodules.Digits"},
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "logger": False,
            "callbacks": [{"class_path": "asyncdiff.callbacks.ImageWriter", "init_args": {"folder": "predicted"}}],
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    layer = ROOT / "experiments" / "tasks" / "inpaint.yaml"
    argv = ["predict", "--config", "config.yaml", "--config", str(layer), "--ckpt_path", "last"]
    cli.main([*argv, "--model.predict.count", "2", "--model.predict.task.init_args.image", photo])
    main(["inpaint", str(run), "--image", photo, "--mask", "square", "--seeds", "0,1", "--output", "commanded"])
    predicted, commanded = read_images("predicted"), read_images("commanded")
    assert list(predicted) == list(commanded) == ["photo_seed0.png", "photo_seed1.png", "sheet.png"]
    for name, image in predicted.items():
        assert (image.int() - commanded[name].int()).abs().max() <= 1


def test_images_have_a_record_that_reproduces_them(run, photo):
    argv = ["--image", photo, "--mask", "square", "--seeds", "4,1", "--labels", "2", "--steps", "3", "--guidance", "2"]
    main(["inpaint", str(run), *argv, "--output", "out"])
    text = Path("out/predict.yaml").read_text()
    command = text.splitlines()[1].removeprefix("#   python -m asyncdiff ")
    assert command == shlex.join(["inpaint", str(run), *argv, "--precision", "float32"])
    assert "train.py" not in text  # the run has no experiment
    assert f"# Photos:\n#   {photo}: " in text
    assert ", with the built-in mask Square\n" in text
    layer = yaml.safe_load(text)
    assert layer["trainer"]["precision"] == "32-true"
    assert layer["model"]["predict"]["seeds"] == [4, 1]
    assert layer["model"]["predict"]["labels"] == [2]
    assert layer["model"]["sampler"]["init_args"]["steps"] == 3
    assert layer["model"]["predict"]["task"]["init_args"]["mask"] == "square"


def test_serve_needs_gradio(run, expect_error, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("page", "layout", "mask_painter"):
        monkeypatch.delitem(sys.modules, f"asyncdiff.web.{name}", raising=False)
        monkeypatch.delattr(f"asyncdiff.web.{name}", raising=False)
    assert (
        expect_error("serve", str(run)) == "serve needs the package gradio, which is not installed: pip install gradio"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "nowhere"], "RUN must be a run directory of train.py, a .ckpt file or an export, got nowhere"),
        (
            ["sample", "."],
            "RUN must contain checkpoints/last.ckpt, got . without it: choose another checkpoint with --ckpt_path FILE",
        ),
        (["sample", "RUN", "--seeds", "0,0"], "--seeds must differ, got 0,0"),
        (["sample", "RUN", "--seeds", "3-1"], "--seeds must be integers such as 0,3,8-15, got 3-1"),
        (["sample", "RUN", "--labels", "cat"], "--labels must be integers such as 0,3,8-15, got cat"),
        (["sample", "RUN", "--labels", "7"], "labels must lie in 0 .. 2, got 7"),
        (["sample", "RUN", "--step", "7"], "--step: there is no such option; did you mean --steps?"),
        (["sample", "RUN", "--steps", "0"], "steps must be at least 1, got 0"),
        (["sample", "RUN", "--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["sample", "RUN", "--input_level", "0.5"], "--input_level needs --input_guidance, got 0.5 without it"),
        (
            ["inpaint", "RUN", "--image", "PHOTO", "--guidance", "2"],
            "--guidance needs class labels, got 2.0 without them",
        ),
        (["sample", "RUN", "--device", "foo"], "--device foo is not available on this machine: use cpu"),
        (["sample", "RUN", "--output", "layer.yaml"], "output must be a folder, got the existing file layer.yaml"),
        (["sample", "RUN", "--device", "cuda"], "--device cuda is not available on this machine: use cpu"),
        (["sample", "RUN", "--sampler", "Autoregressive", "--steps", "3"], "--steps does not apply to Autoreg"),
        (
            ["sample", "RUN/checkpoints/last.ckpt", "--ckpt_path", "a"],
            "--ckpt_path is a, but RUN is a checkpoint itself",
        ),
        (["sample", "RUN", "--device", ""], "--device is not available on this machine: use cpu"),
        (["sample", "RUN", "--sampler", "--steps", "3"], "--sampler: a value must follow"),
        (["sample", "RUN", "--seeds", str(2**64)], f"--seeds must be an integer from 0 to {2**32 - 1}, got {2**64}"),
        (["inpaint", "RUN"], "image must be given"),
        (["inpaint", "RUN", "--image", "none.png"], "image must be an image file, a folder or a pattern"),
        (["inpaint", "RUN", "--image", "PHOTO", "--mask", "sqare"], "mask must be one of thin, wide,"),
        (["inpaint", "RUN", "--image", "PHOTO", "--fit", "pad"], "--fit: must be one of 'crop', 'resize', 'keep'"),
        (["inpaint", "RUN", "--image", "layer.yaml"], "cannot read the image layer.yaml"),
        (["edit", "RUN", "--image", "PHOTO", "--levels", "2"], "levels must lie in (0, 1], got 2"),
        (["edit", "RUN", "--image", "PHOTO", "--levels", "a.png"], "levels must be a number, or an existing file"),
        (["serve", "nowhere"], "RUN must be a run directory of train.py"),
        (["serve", "RUN", "--port", "70000"], "--port must lie in [0, 65535], got 70000"),
        (["outpaint", "RUN", "--image", "PHOTO"], "set either to, the size of the result, or at least one of top, "),
        (["autoregress", "RUN", "--order", "spirl"], "order must be one of"),
        (["autoregress", "RUN", "--steps", "3"], "--steps: there is no such option"),
        (["texture", "RUN", "--size", "4x4"], "size must be at least the training size 8x8, got 4x4"),
    ],
)
def test_user_errors_in_sampling_are_one_line(argv, message, run, photo, expect_error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    line = expect_error(*(argument.replace("RUN", str(run)).replace("PHOTO", photo) for argument in argv))
    assert line.startswith(message)


def test_another_run_given_as_checkpoint_is_the_run_of_the_images(run):
    shutil.copytree(run, "other")
    checkpoint = find_checkpoint(run, Path("other"))
    assert checkpoint == Path("other/checkpoints/last.ckpt")
    assert run_directory_of(checkpoint) == Path("other")


def test_an_interrupted_command_keeps_the_files_that_it_did_not_write(run, monkeypatch, capfd):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(DrawJob, "steps", interrupt)
    Path("own").mkdir()
    Path("own/notes.txt").write_text("mine")
    for folder in ("own", "new"):
        with pytest.raises(SystemExit) as ended:
            main(["sample", str(run), "--output", folder])
        assert ended.value.code == 130
    assert "stopped after 0 of 16 images" in capfd.readouterr().out
    assert [path.name for path in Path("own").iterdir()] == ["notes.txt"]
    assert not Path("new").exists()


def test_devices_are_found_without_an_allocation(monkeypatch):
    """An allocation would occupy memory of the first GPU in every process."""
    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:1"):
        choose_device(SimpleNamespace(device=name))
    for name in ("cuda:2", "mps", "cuda:x", "meta"):
        with pytest.raises(ValueError, match=f"--device {name} is not available on this machine: use cpu"):
            choose_device(SimpleNamespace(device=name))


def test_sigterm_ends_the_processes_of_cache_latents(monkeypatch):
    ended = []
    process = SimpleNamespace(terminate=lambda: ended.append("terminated"))
    context = SimpleNamespace(processes=[process] * 2, join=lambda: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(encode_latents.multiprocessing, "spawn", lambda *_, **__: context)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        encode_latents.spawn(SimpleNamespace(processes=2), [])
    assert (stopped.value.code, ended) == (128 + signal.SIGTERM, ["terminated"] * 2)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "missing.yaml"], "experiments must be YAML files, got missing.yaml, which does not exist"),
        (["--data", "Digits", "--data.bath_size", "3"], "--data.bath_size: Digits has no argument bath_size"),
        (["--data", "datamodules.Digits"], "--codec is required: add --codec FILE.yaml"),
    ],
)
def test_wrong_options_of_cache_latents_are_reported_once(options, message, expect_error, monkeypatch):
    monkeypatch.setattr(encode_latents, "spawn", None)
    assert expect_error("cache-latents", *options, "--out", "out", "--processes", "2").startswith(message)
