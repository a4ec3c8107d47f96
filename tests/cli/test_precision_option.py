"""--precision: every command that draws or evaluates has it, computes in it, and records it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import yaml
from small_runs import Pixels, save_untrained, small_dit

from asyncdiff import AsyncDiffusion, DiffusionModel, precision
from asyncdiff.__main__ import main
from asyncdiff.checkpoints import read_checkpoint
from asyncdiff.cli.commands import (
    cache_latents,
    evaluate_inpainting,
    evaluate_likelihood,
    evaluate_samples,
    image_commands,
    serve,
)
from asyncdiff.cli.commands.image_commands import COMMANDS, DrawArguments
from asyncdiff.cli.commands.shared.command_parser import command_parser
from asyncdiff.cli.jobs.draw import prepare_job
from asyncdiff.cli.jobs.extract_features import reference_for
from asyncdiff.cli.jobs.image_sources import ImageSource
from asyncdiff.cli.jobs.prediction_record import format_record
from asyncdiff.cli.jobs.serve import Planner
from asyncdiff.evaluation import as_features
from asyncdiff.evaluation.held_out_images import evaluate_in_batches
from asyncdiff.evaluation.reference_statistics import load_reference, save_reference
from asyncdiff.evaluation.result_card import make_card, read_card
from asyncdiff.latents import Identity
from asyncdiff.latents.cache.shards import Settings, plan
from asyncdiff.precision import Precision, computing_in
from asyncdiff.sampling import Sampler
from asyncdiff.sampling.trajectories import last
from asyncdiff.tasks import Generate
from asyncdiff.tasks.photos import save_png
from asyncdiff.web.draw_request import DrawRequest
from datamodules import Digits

DATA = {"data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 32}}}
CLASSIFIER = {"channels": 1, "classes": 10, "epochs": 1, "width": 8, "dim": 16}
FEATURES = json.dumps({"class_path": "asyncdiff.evaluation.TrainedClassifier", "init_args": CLASSIFIER})
DECLARED = {name: lambda parser, name=name: image_commands._declare(parser, name) for name in COMMANDS}
DECLARED |= {"serve": serve._declare, "evaluate --samples": evaluate_samples._declare}
DECLARED |= {"evaluate --likelihood": evaluate_likelihood._declare}
DECLARED |= {"evaluate --inpainting": evaluate_inpainting._declare}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run directory of an untrained network, trained in bf16-mixed according to its checkpoint."""
    folder = tmp_path_factory.mktemp("bf16")
    model = AsyncDiffusion(small_dit(patch_size=4), sampler=Sampler(steps=2), image_size=8)
    save_untrained(folder, model, DATA)
    file = folder / "checkpoints" / "last.ckpt"
    torch.save(torch.load(file, weights_only=True) | {"precision": "bf16-mixed"}, file)
    return folder


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cpu_with_bfloat16(monkeypatch):
    """Function that sets whether the CPU has instructions for bfloat16."""
    return lambda has: monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: has)


def record(folder: str) -> tuple[str, str]:
    """The command in predict.yaml, and the precision of its trainer."""
    text = (Path(folder) / "predict.yaml").read_text()
    return text.splitlines()[1], yaml.safe_load(text)["trainer"]["precision"]


def card(run, kind: str, *argv: str) -> dict:
    """The protocol that an evaluation of the run records."""
    main(["evaluate", str(run), f"--{kind}", "--device", "cpu", "--output", "out", *argv])
    return json.loads((Path("out") / f"{kind}.json").read_text())


@pytest.mark.parametrize("command", DECLARED)
def test_every_command_that_draws_or_evaluates_has_the_option(command):
    parser = command_parser(command, "", imports_classes=False)
    DECLARED[command](parser)
    (action,) = (action for action in parser._actions if "--precision" in action.option_strings)
    assert action.default is None
    assert action._typehint == Precision | None
    default = "default: float32" if "likelihood" in command else "default: bf16 if the run was trained in 16 bits and"
    assert default in action.help


def test_latents_are_cached_in_float32_or_tf32(expect_error):
    parser = command_parser("cache-latents", "", imports_classes=False)
    cache_latents._declare(parser)
    (action,) = (action for action in parser._actions if "--precision" in action.option_strings)
    assert (action.default, get_args(action._typehint)) == ("float32", ("float32", "tf32"))
    settings = [plan(Digits(), Identity(), Path("out"), Settings(precision=name))[0] for name in ("float32", "tf32")]
    assert [shard.depends["precision"] for shard in settings] == ["float32", "tf32"]


def test_another_precision_is_refused(run, expect_error):
    message = expect_error("sample", str(run), "--precision", "fp16")
    assert message == "--precision: must be one of 'float32', 'tf32', 'bf16' or null, got fp16"
    message = expect_error("sample", str(run), "--precision", "tf32", "--device", "cpu", chatter=True)
    assert message == "--precision tf32 needs an NVIDIA GPU of the year 2020 or later, got cpu: use float32"


@pytest.mark.parametrize(("has", "name"), [(True, "bf16"), (False, "float32")])
def test_a_run_draws_in_its_own_precision_where_the_processor_has_it(run, cpu_with_bfloat16, has, name):
    cpu_with_bfloat16(has)
    assert DiffusionModel.load(run).precision == name
    assert DiffusionModel.load(run, precision="float32").precision == "float32"
    main(["sample", str(run), "--seeds", "0,1", "--device", "cpu", "--output", "own"])
    main(["sample", str(run), "--seeds", "0,1", "--device", "cpu", "--precision", name, "--output", "given"])
    for image in ("label0_seed0.png", "sheet.png"):
        if (Path("own") / image).exists():
            assert (Path("own") / image).read_bytes() == (Path("given") / image).read_bytes()
    command, trainer = record("own")
    assert command.endswith(f"--precision {name}")
    assert trainer == {"bf16": "bf16-mixed", "float32": "32-true"}[name]
    assert record("given")[0].count("--precision") == 1


IMAGE = ("--image", "photo.png")
EXAMPLES = {
    "inpaint": (*IMAGE, "--mask", "square"),
    "edit": (*IMAGE, "--levels", "0.5"),
    "outpaint": (*IMAGE, "--right", "4"),
    "autoregress": ("--steps_per_patch", "2"),
    "texture": ("--size", "8x12"),
}


@pytest.mark.parametrize("command", EXAMPLES)
def test_images_of_every_command_depend_on_the_precision_and_their_record_names_it(run, command):
    save_png(torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8) * 3, Path("photo.png"))
    drawn = {}
    for name, trainer in (("float32", "32-true"), ("bf16", "bf16-mixed")):
        model = DiffusionModel.load(run, precision=name)
        argv = [str(run), *EXAMPLES[command], "--seeds", "0", "--device", "cpu", "--precision", name]
        arguments = DrawArguments.parse(command, [*argv, "--output", name])
        job = prepare_job(arguments, model)
        drawn[name] = last(job.steps()).images
        assert record(name)[0].endswith(f"--precision {name}")
        assert record(name)[1] == trainer
    assert not torch.equal(drawn["float32"], drawn["bf16"])


def test_the_page_shows_the_precision_that_it_draws_in(run, cpu_with_bfloat16):
    for has, name in ((True, "bf16"), (False, "float32")):
        cpu_with_bfloat16(has)
        options = SimpleNamespace(device="cpu", weights="auto", codec=None, precision=None)
        planner = Planner.load(run / "checkpoints" / "last.ckpt", options)
        Path(name).mkdir()
        job, command = planner(DrawRequest(movie=False), Path(name).resolve())
        assert job.model.precision == name
        assert f"--precision {name}" in command
        assert f"--precision {name}" in job.record


def test_runs_of_earlier_versions_and_of_float32_draw_in_float32(digits_run, run, tmp_path, cpu_with_bfloat16):
    cpu_with_bfloat16(True)
    assert DiffusionModel.load(digits_run).precision == "float32"
    contents = read_checkpoint(run / "checkpoints" / "last.ckpt")
    del contents["precision"]
    assert DiffusionModel.from_checkpoint(contents, "last.ckpt").precision == "float32"


def test_emulation_is_warned_about_in_one_line(run, cpu_with_bfloat16, capsys):
    cpu_with_bfloat16(False)
    main(["sample", str(run), "--seeds", "0", "--device", "cpu", "--precision", "bf16", "--output", "out"])
    warning = "warning: --precision is bf16, which cpu emulates: float32 is several times faster and exact\n"
    assert capsys.readouterr().err.count(warning) == 1


def test_exports_and_their_cards_keep_the_precision_of_the_run(run, cpu_with_bfloat16):
    main(["export", str(run), "--output", "shared"])
    assert "| precision | bf16-mixed |" in Path("shared/README.md").read_text()
    for has, name in ((True, "bf16"), (False, "float32")):
        cpu_with_bfloat16(has)
        assert DiffusionModel.from_pretrained("shared").precision == name


def test_images_differ_and_tasks_and_models_agree(run):
    draws = {}
    for name in ("float32", "bf16"):
        model = DiffusionModel.load(run, precision=name)
        draws[name] = model.generate([0, 1], labels=[3, 4])
        assert torch.equal(Generate().sample(model, seeds=[0, 1], labels=[3, 4]), draws[name])
        assert draws[name].dtype == torch.float32
    assert not torch.equal(draws["float32"], draws["bf16"])
    assert (draws["float32"] - draws["bf16"]).abs().max() < 0.1


def test_a_model_of_a_precision_ignores_the_settings_around_it_and_others_follow_them(run):
    model = DiffusionModel.load(run, precision="float32")
    plain = model.generate([0], labels=[3])
    module = AsyncDiffusion(small_dit(patch_size=4), sampler=Sampler(steps=2), image_size=8)
    module.eval()
    assert module.model.precision is None
    around = module.generate([0], labels=[3])
    with computing_in("bf16", "cpu"):
        assert torch.equal(model.generate([0], labels=[3]), plain)
        assert not torch.equal(module.generate([0], labels=[3]), around)


def test_states_of_a_task_leave_no_setting_behind(run):
    model = DiffusionModel.load(run, precision="bf16")
    task = Generate()
    for state in task.states(model, task.requests(model, seeds=[0], labels=[1])):
        assert not torch.is_autocast_enabled("cpu")
        assert state.images.dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_the_record_says_that_the_trainer_of_a_gpu_rounds_otherwise(run, device):
    """PyTorch convolves in TF32 by default, `--precision float32` does not."""
    arguments = DrawArguments.parse("sample", [str(run), "--device", device, "--precision", "float32"])
    text = format_record(arguments.argv, arguments, DiffusionModel.load(run))
    assert ("equal up to rounding" in text) == (device != "cpu")


@pytest.mark.slow
def test_predict_draws_what_the_record_names(digits_run, cpu_with_bfloat16, tmp_path):
    from asyncdiff.cli import train

    cpu_with_bfloat16(True)
    shutil.copytree(digits_run, "run")
    main(["sample", "run", "--seeds", "0,1", "--weights", "raw", "--precision", "bf16", "--output", "drawn"])
    assert record("drawn")[1] == "bf16-mixed"
    config = {
        "model": {
            "network": {
                "class_path": "asyncdiff.networks.DiT",
                "init_args": {"channels": 1, "patch_size": 2, "dim": 32, "depth": 1, "heads": 2, "classes": 10},
            },
            "image_size": 8,
        },
        **DATA,
        "trainer": {
            "default_root_dir": "run",
            "logger": False,
            "callbacks": [{"class_path": "asyncdiff.callbacks.ImageWriter", "init_args": {"folder": "predicted"}}],
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    files = ["--config", "config.yaml", "--config", "drawn/predict.yaml", "--ckpt_path", "run/checkpoints/last.ckpt"]
    train.main(["predict", *files])
    drawn = {file.name: file.read_bytes() for file in Path("drawn").glob("*.png")}
    assert drawn == {file.name: file.read_bytes() for file in Path("predicted").glob("*.png")}


# Evaluation


def test_numbers_of_samples_differ_and_name_their_precision(run, capsys):
    cards = {}
    for name in ("float32", "bf16"):
        few = ["--count", "20", "--metrics", "frechet", "--features", FEATURES, "--labels", "false"]
        cards[name] = card(run, "samples", *few, "--precision", name)
        assert cards[name]["protocol"]["precision"] == name
        assert f"drawn in {name}" in Path("out/samples.md").read_text()
        shutil.copy("out/samples.json", f"{name}.json")
    assert cards["float32"]["metrics"] != cards["bf16"]["metrics"]
    assert cards["float32"]["protocol"]["reference"] == cards["bf16"]["protocol"]["reference"]
    main(["compare", "float32.json", "bf16.json"])
    assert "protocol differs from float32.json in precision (bf16 instead of float32)" in capsys.readouterr().out


@pytest.mark.slow
def test_inpainting_is_in_the_runs_precision(run, cpu_with_bfloat16):
    cpu_with_bfloat16(True)
    few = ["--images", "4", "--steps", "2", "--metrics", "frechet", "--features", FEATURES, "--masks", "half"]
    own = card(run, "inpainting", *few, "--reference", "20", "--examples", "0")
    exact = card(run, "inpainting", *few, "--reference", "20", "--examples", "0", "--precision", "float32")
    assert (own["protocol"]["precision"], exact["protocol"]["precision"]) == ("bf16", "float32")
    assert own["rows"][0]["frechet"] != exact["rows"][0]["frechet"]


def test_likelihood_is_in_float32_whatever_the_run_unless_asked_for(run, cpu_with_bfloat16):
    cpu_with_bfloat16(True)
    few = ["--images", "4", "--points", "2"]
    own, bf16 = card(run, "likelihood", *few), card(run, "likelihood", *few, "--precision", "bf16")
    assert (own["protocol"]["precision"], bf16["protocol"]["precision"]) == ("float32", "bf16")
    assert own["metrics"] != bf16["metrics"]


class Rows:
    """Held-out images."""

    def __getitems__(self, indices):
        return {"image": torch.rand(len(indices), 1, 4, 4), "label": torch.zeros(1), "index": torch.tensor(indices)}


def test_held_out_numbers_are_in_float32_within_any_settings():
    seen = []

    def evaluate(x, label, positions):
        flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        seen.append((torch.is_autocast_enabled("cpu"), *flags, (x[0, 0] @ x[0, 0]).dtype))
        return x.flatten(1)

    with computing_in("tf32", "cuda"), computing_in("bf16", "cpu"):
        rows = list(evaluate_in_batches(Rows(), range(5), evaluate, batch_size=2, device="cpu", labels=False))
    assert [len(batch) for batch in rows] == [2, 2, 1]
    assert seen == [(False, False, False, torch.float32)] * 3


def test_cards_of_earlier_versions_are_of_float32():
    Path("old.json").write_text(json.dumps(make_card({"measurement": "samples"}, {"frechet/x": 1.0})))
    assert read_card(Path("old.json"))["protocol"]["precision"] == "float32"


class Source(ImageSource):
    """Real images."""

    count, batch_size, shape, label = 4, 2, (1, 8, 8), "real"

    def read(self, batches, device):
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return iter([(torch.tensor(rows), images[rows]) for rows in map(list, batches)])

    def fingerprint(self):
        return {"images": "four"}


def test_statistics_that_may_be_in_tf32_are_not_used_on_a_gpu(monkeypatch):
    """Earlier versions recorded no precision, and convolved in TF32 on GPUs."""
    from asyncdiff.cli.jobs import extract_features
    from asyncdiff.cli.jobs.distributed import Ranks

    features = as_features(Pixels())
    cpu, gpu = Ranks(0, 1, torch.device("cpu")), torch.device("cuda")
    made, file = reference_for(features, Source(), cpu)
    fingerprint = dict(made.fingerprint)
    assert load_reference(Path(file)).precision == made.precision == "float32"
    assert extract_features._load_cached(Path(file), fingerprint, gpu) is not None
    old = load_reference(Path(file))
    save_reference(type(old)(old.gaussian, old.count, old.features, old.fingerprint), Path(file))
    assert load_reference(Path(file)).precision is None
    assert extract_features._load_cached(Path(file), fingerprint, cpu.device) is not None
    assert extract_features._load_cached(Path(file), fingerprint, gpu) is None
