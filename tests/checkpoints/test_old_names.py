"""Files written by 0.1.0 (v0_1_0/, made with that version) are read, resumed and sampled from as before."""

import filecmp
import importlib
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asyncdiff import AsyncDiffusion
from asyncdiff.__main__ import main
from asyncdiff.checkpoints import read_checkpoint
from asyncdiff.checkpoints.compare import differences
from asyncdiff.checkpoints.moved_arguments import MOVED, SECTIONS, update_key
from asyncdiff.checkpoints.object_config import build, class_path, describe
from asyncdiff.checkpoints.old_names import (
    ARGUMENTS,
    RENAMED,
    update_argv,
    update_checkpoint,
    update_class_path,
    update_config,
    update_names,
    warn_of_old_names,
)
from asyncdiff.cli.train import main as train
from asyncdiff.cli.train import parse_config
from asyncdiff.evaluation.result_card import read_card
from asyncdiff.noise import AlongPath, LogitNormalProgress, MixedCleanPatches, RandomBoxes, WithCleanPatches
from asyncdiff.sampling import DDIM, Adaptive, Tolerance
from asyncdiff.training import OptimizerSettings, PredictSettings

OLD = Path(__file__).resolve().parent / "v0_1_0"
ROOT = Path(__file__).resolve().parents[2]
KEY, OPTION = (f"there is no such {noun}; did you mean" for noun in ("key", "option"))
CLASS_PATHS = (OLD / "class_paths.txt").read_text().split()


def named(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A copy of the run of 0.1.0 at the place that its config names, as the working directory's runs/v0_1_0."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "run", tmp_path / "runs" / "v0_1_0")
    shutil.copy(OLD / "photo.png", tmp_path / "photo.png")
    return Path("runs/v0_1_0")


def test_every_class_that_an_old_file_could_name_is_found():
    assert len(CLASS_PATHS) > 100
    for path in CLASS_PATHS:
        kind = named(update_class_path(path))
        assert isinstance(kind, type), path
        assert kind.__name__ == update_class_path(path).rpartition(".")[2]


def test_new_paths_are_the_shortest_and_final():
    for old, new in RENAMED.items():
        assert update_class_path(new) == new, old
        if new.rpartition(".")[2][0].isupper():
            assert new in (class_path(named(new)), f"{named(new).__module__}.{named(new).__name__}")
    for path in ARGUMENTS:
        assert set(ARGUMENTS[path].values()) <= set(inspect.signature(named(path)).parameters)


def test_present_names_are_unchanged():
    config = describe(WithCleanPatches(AlongPath(progress_sampler=LogitNormalProgress())))
    for value in (config, {"note": "asyncdiff.is.text", "n": (1, 2.5, None)}):
        assert update_names(value) == value


def test_old_arguments_follow_their_classes():
    contexts = [{"class_path": "asyncdiff.contexts.Boxes", "init_args": {}}]
    context = {"class_path": "asyncdiff.contexts.Mixed", "init_args": {"contexts": contexts}}
    levels = {"class_path": "asyncdiff.levels.AlongPath", "init_args": {"spacing": None}}
    arguments = {"levels": levels, "context": context}
    built = build({"class_path": "asyncdiff.levels.CleanContext", "init_args": arguments})
    assert isinstance(built, WithCleanPatches)
    assert isinstance(built.clean_patches, MixedCleanPatches)
    assert isinstance(built.clean_patches.contexts[0], RandomBoxes)
    likelihood = {"class_path": "asyncdiff.callbacks.Likelihood", "init_args": {"spacing": None}}
    config = update_config({"trainer": {"callbacks": [likelihood]}})
    assert config["trainer"]["callbacks"][0]["init_args"] == {"progress_sampler": None}


def test_every_moved_argument_is_one_of_its_section():
    for section, name in MOVED.values():
        assert name in inspect.signature(named(SECTIONS[section])).parameters
        assert section in inspect.signature(AsyncDiffusion).parameters
    assert not MOVED.keys() & inspect.signature(AsyncDiffusion).parameters.keys()


def test_keys_move_into_their_sections_in_files_command_lines_and_interpolations():
    assert update_key("model.task.init_args.image") == "model.predict.task.init_args.image"
    assert update_key("model.predict_seeds+") == "model.predict.seeds+"
    assert update_key("model.network.init_args.task") == "model.network.init_args.task"
    argv = [
        "fit",
        "--model.learning_rate=1",
        "--model.task.image",
        "model.task",
        "--trainer.max_steps",
        "${model.betas}",
    ]
    replaced: dict[str, str] = {}
    assert update_argv(argv, replaced) == [
        "fit",
        "--model.optimizer.learning_rate=1",
        "--model.predict.task.image",
        "model.task",
        "--trainer.max_steps",
        "${model.optimizer.betas}",
    ]
    assert replaced["model.learning_rate"] == "model.optimizer.learning_rate"
    config = {"model": {"betas": [0, 0], "optimizer": {"learning_rate": 1}, "predict_seeds+": [3]}, "vars": {"task": 1}}
    kept = json.loads(json.dumps(config))
    updated = update_config(config)
    assert updated["model"] == {"optimizer": {"learning_rate": 1, "betas": [0, 0]}, "predict": {"seeds+": [3]}}
    assert (updated["vars"], config) == ({"task": 1}, kept)
    (rate,) = update_config({"model": {"learning_rate": math.nan}})["model"]["optimizer"].values()
    assert math.isnan(rate)  # no contradiction, although the value differs from itself
    for other in (3, "x", [1], {"model": None}, {"model": {1: 2}}, {"data": {"learning_rate": 1}}):
        assert update_config(other) == other


def test_the_recipe_of_a_subclass_moves_only_if_it_inherits_the_constructor():
    inherited = dict.fromkeys(MOVED, 1) | {"network": None}
    moved = update_names({"class_path": "mine.Model", "init_args": inherited})["init_args"]
    assert set(moved) == {"network", "optimizer", "predict"}
    assert moved["predict"]["class_path"] == "asyncdiff.training.PredictSettings"
    own = {"class_path": "mine.Other", "init_args": {"learning_rate": 1, "task": "text"}}
    assert update_names(own) == own


def settings(*argv: str) -> dict:
    return parse_config(["fit", "--config", str(ROOT / "experiments" / "digits_dit_async.yaml"), *argv])


def test_earlier_keys_configure_a_run_with_one_warning_per_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text(
        "model:\n  learning_rate: ${vars.rate}\n  betas: [0.5, 0.75]\n  predict_seeds: [4]\n"
        "  task: {class_path: asyncdiff.predictions.tasks.Inpaint, init_args: {image: x, mask: half}}\n"
        "vars: {rate: 0.25}\ntrainer: {max_steps: '${model.predict_batch_size}'}\n"
    )
    Path("section.yaml").write_text("warmup_steps: 7\n")
    argv = ["--config", "old.yaml", "--model", "section.yaml", "--model.predict_seeds+=5", "--model.task.image", "y"]
    config = settings(*argv, "--model", '{"weight_decay": 0.5}')
    chosen = {"learning_rate": 0.25, "betas": [0.5, 0.75], "weight_decay": 0.5, "warmup_steps": 7}
    assert config["model"]["optimizer"] == chosen | {"stop_after_bad_steps": 10}
    assert config["model"]["predict"]["seeds"] == [4, 5]
    assert config["model"]["predict"]["task"]["class_path"] == "asyncdiff.tasks.Inpaint"
    assert config["model"]["predict"]["task"]["init_args"]["image"] == "y"
    assert config["trainer"]["max_steps"] == 64
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: names of an earlier")]
    assert len(warned) == 4  # the command line, its JSON and two files
    assert all("model.weight_decay is now model.optimizer.weight_decay" in line for line in warned if "decay" in line)


def test_the_first_process_warns_once(monkeypatch, capsys):
    for rank in ("1", "0", "0"):
        monkeypatch.setenv("RANK", rank)
        warn_of_old_names({"old": "new"})
    assert capsys.readouterr().err == "warning: names of an earlier version: old is now new\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    warn_of_old_names({"older": "new"})
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        (
            "model:\n  optimizer: {learning_rate: 1.0}\n  learning_rate: 0.5\n",
            [],
            "old.yaml:3: model.learning_rate is an earlier name of model.optimizer.learning_rate and must equal it, "
            "got 0.5 and 1.0: remove model.learning_rate",
        ),
        ("model:\n  warmup_steps: soon\n", [], "old.yaml:2: model.optimizer.warmup_steps: must be int, got soon"),
        ("model:\n  task:\n    class_path: Inpain\n", [], "old.yaml:3: model.predict.task: there is no class Inpain"),
        ("model:\n  predict_cout: 3\n", [], f"old.yaml:2: model.predict_cout: {KEY} model.predict.count?"),
        ("model:\n  learnig_rate: 1\n", [], f"old.yaml:2: model.learnig_rate: {KEY} model.optimizer.learning_rate?"),
        (
            "model:\n  optimizer:\n    betaz: 1\n",
            [],
            f"old.yaml:3: model.optimizer.betaz: {KEY} model.optimizer.betas?",
        ),
        ("", ["--model.learning_rate", "fast"], "--model.optimizer.learning_rate: must be float, got fast"),
        ("", ["--model.predict_cout=2"], f"--model.predict_cout: {OPTION} --model.predict.count?"),
    ],
)
def test_errors_in_earlier_keys_name_the_line(text, argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text(text or "model: {seed: 1}\n")
    with pytest.raises(SystemExit, match="2"):
        train(["fit", "--config", str(ROOT / "experiments" / "digits_dit_async.yaml"), "--config", "old.yaml", *argv])
    assert message in capsys.readouterr().err


def test_an_earlier_key_may_repeat_the_current_one(tmp_path):
    layer = tmp_path / "both.yaml"
    layer.write_text("model: {learning_rate: 0.5, optimizer: {learning_rate: 0.5}}\n")
    assert settings("--config", str(layer))["model"]["optimizer"]["learning_rate"] == 0.5


def test_a_checkpoint_loads_with_its_weights():
    file = OLD / "run" / "checkpoints" / "last.ckpt"
    held = read_checkpoint(file)
    assert not any(path in json.dumps(held["recipe"]) for path in CLASS_PATHS if update_class_path(path) != path)
    assert "ResumeLogging" in held["callbacks"]
    model = AsyncDiffusion.load_from_checkpoint(file)
    averaged = next(iter(held["ema"].values()))["weights"]
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in averaged.items())
    assert isinstance(model.sampler, Adaptive)
    assert isinstance(model.sampler.step_rule, Tolerance)
    assert isinstance(model.sampler.solver, DDIM)
    assert model.optimizer == OptimizerSettings(learning_rate=0.002, warmup_steps=200)
    assert model.predict == PredictSettings()


def test_states_of_callbacks_are_kept_under_their_new_names():
    states = {"Ema{decay=0.9}": 1, "LevelLoss": 2, "ModelCheckpoint{'monitor': None}": 3}
    found = update_checkpoint({"callbacks": states})
    assert found["callbacks"] == {"EMA{decay=0.9}": 1, "LossByLevel": 2, "ModelCheckpoint{'monitor': None}": 3}


def test_an_export_is_the_model_that_was_exported():
    exported, trained = (
        AsyncDiffusion.from_pretrained(OLD / "export"),
        AsyncDiffusion.load_from_checkpoint(OLD / "run" / "checkpoints" / "last.ckpt"),
    )
    assert describe(exported) == describe(trained)
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), trained.parameters(), strict=True))


@pytest.mark.parametrize("task", ["inpaint", "sample"])
def test_a_record_reproduces_its_images(task, run, capsys):
    folder = Path("again")
    argv = ["--config", f"{run}/config.yaml", "--config", f"{run}/predictions/{task}/predict.yaml"]
    train(["predict", *argv, "--ckpt_path", f"{run}/checkpoints/last.ckpt", "--trainer.default_root_dir", str(folder)])
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert any("asyncdiff.solvers.Ddim is now asyncdiff.sampling.DDIM" in line for line in warned)
    assert len(warned) == len(set(warned)) <= 3  # a line per file
    there = sorted(path.name for path in (run / "predictions" / task).glob("*_*.png"))
    assert there
    for name in there:
        (drawn,) = folder.rglob(name)
        assert filecmp.cmp(drawn, run / "predictions" / task / name, shallow=False), name


def test_the_command_of_a_record_reproduces_its_images(run):
    main(["inpaint", str(run), "--image", "photo.png", "--mask", "square", "--seeds", "0-1", "--output", "again"])
    for name in ("photo_seed0.png", "photo_seed1.png", "sheet.png"):
        assert filecmp.cmp(Path("again") / name, run / "predictions" / "inpaint" / name, shallow=False), name


def test_old_class_paths_on_the_command_line(run, capsys):
    sampler = ["--sampler", "asyncdiff.sampling.Sampler", "--sampler.solver", "asyncdiff.solvers.Ddim"]
    main(["sample", str(run), "--seeds", "0", "--labels", "0", *sampler, "--steps", "2", "--output", "again"])
    assert "warning: names of an earlier version: asyncdiff.solvers.Ddim is now asyncdiff.sampling.DDIM" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_run_resumes(run):
    """In a process of its own: training in one process follows another's threads."""
    argv = ["fit", "--config", f"{run}/config.yaml", "--auto_resume", "true", "--trainer.max_steps", "6"]
    command = [sys.executable, "-m", "asyncdiff", *argv, "--trainer.enable_progress_bar", "false"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    before = torch.load(OLD / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    after = torch.load(run / "checkpoints" / "epoch=0-step=6.ckpt", weights_only=True)
    assert (before["global_step"], after["global_step"]) == (4, 6)
    assert set(after["ema"]) == {"0.9"}
    assert next(iter(after["ema"].values()))["updates"] == next(iter(before["ema"].values()))["updates"] + 2


def test_cards_are_compared_under_present_names(tmp_path):
    card = read_card(OLD / "run" / "evaluation" / "likelihood.json")
    assert card["protocol"]["paths"]["raster"]["class_path"] == "asyncdiff.noise.Ordered"
    again = tmp_path / "card.json"
    again.write_text(json.dumps(card))
    assert differences(card["protocol"], read_card(again)["protocol"]) == []


def test_a_latent_cache_is_unchanged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "latents" / "photos", "photos")
    shutil.copytree(OLD / "latents" / "cache", "cache")
    shards = {file.name: file.read_bytes() for file in Path("cache").glob("*.safetensors")}
    data = ["--data", "datamodules.ImageFolder", "--data.init_args.root", "photos", "--data.init_args.size", "8"]
    main(["cache-latents", *data, "--codec", "asyncdiff.codecs.Identity", "--out", "cache"])
    main(["cache-latents", *data, "--codec", "asyncdiff.codecs.Identity", "--out", "cache", "--verify"])
    assert {file.name: file.read_bytes() for file in Path("cache").glob("*.safetensors")} == shards


def test_a_finished_ablation_is_left_alone(tmp_path, monkeypatch, capsys):
    from asyncdiff.ablation.launch import FINISHED

    monkeypatch.chdir(tmp_path)
    grid = OLD / "ablation" / "grid.yaml"
    shutil.copytree(OLD / "ablation" / "run", "out")
    record = Path("out/shared/seed_0/cell.json")
    before = record.read_bytes()
    main(["ablate", str(grid), "--output", "out", "--dry_run"])
    assert "0: python train.py fit" in capsys.readouterr().out
    assert record.read_bytes() == before
    assert (record.parent / FINISHED).is_file()
