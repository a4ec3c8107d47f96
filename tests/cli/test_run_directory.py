"""A run is the directory that its config.yaml lies in, wherever that is."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from faults.killing import first_difference, read_curves

from asyncdiff.cli.commands.shared.runs import find_checkpoint
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.cli.run_directory import OPTION, THIS_FOLDER, make_portable, with_run_directory
from asyncdiff.cli.train import main

torch.set_num_threads(1)
OLD_RUN = Path(__file__).resolve().parents[1] / "checkpoints" / "v0_1_0" / "run"
ROOT = "${trainer.default_root_dir}"
EXPERIMENT = f"""
data: {{class_path: datamodules.Digits, init_args: {{batch_size: 400, eval_batch_size: 40}}}}
model:
  network:
    class_path: asyncdiff.networks.DiT
    init_args: {{channels: 1, patch_size: 2, dim: 16, depth: 1, heads: 2}}
  image_size: 8
trainer:
  default_root_dir: run
  accelerator: cpu
  max_steps: 4
  limit_val_batches: 1
  val_check_interval: 2
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {{save_dir: "{ROOT}", name: "", version: ""}}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: "{ROOT}/checkpoints", filename: "{{step}}", every_n_train_steps: 1,
                  monitor: step, mode: max, save_top_k: 2, save_last: link}}
"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])


def fit(*args):
    main(["fit", *args])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder with the same run of four steps (whole) and of eight (long)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("finished"))
        patch.setattr(sys, "argv", ["train.py"])
        Path("experiment.yaml").write_text(EXPERIMENT)
        fit("--config", "experiment.yaml")
        fit("--config", "experiment.yaml", "--trainer.default_root_dir", "long", "--trainer.max_steps", "8")
    return folder


@pytest.fixture
def run(finished):
    """The run of four steps, in the folder run."""
    return shutil.copytree(finished / "run", Path("run"), symlinks=True)


def contents(folder):
    """Names, bytes and targets of links of all files below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() or file.is_symlink())
    return {str(f.relative_to(folder)): os.readlink(f) if f.is_symlink() else f.read_bytes() for f in files}


def use(way, run):
    """Move, copy or link a run; return its new place, from where the command is given, and whether it is a copy."""
    new = Path("archive") / "b"
    if way == "moved":
        new.parent.mkdir()
        return run.rename(new), Path(), False
    if way == "linked":
        new.parent.mkdir()
        new.symlink_to(run.resolve())
        return new, Path(), False
    if way == "copied with links":
        shutil.copytree(run, new, copy_function=lambda source, target: os.symlink(os.path.abspath(source), target))
        return new, Path(), True
    shutil.copytree(run, new, symlinks=way != "copied with files for links")
    return (Path("b"), new.parent, True) if way == "from elsewhere" else (new, Path(), True)


WAYS = ["moved", "copied", "copied with files for links", "copied with links", "linked", "from elsewhere"]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_continues_where_it_is(finished, run, way, monkeypatch):
    before = contents(run)
    new, folder, is_copy = use(way, run)
    here = Path.cwd()
    monkeypatch.chdir(folder)
    fit("--config", str(new / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "8")
    monkeypatch.chdir(here)
    new = folder / new
    assert {file.name for file in (new / "checkpoints").iterdir()} == {"step=7.ckpt", "step=8.ckpt", "last.ckpt"}
    assert (new / "checkpoints" / "last.ckpt").resolve().name == "step=8.ckpt"
    own, whole = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (new, finished / "long"))
    assert first_difference(own, whole) is None
    assert read_curves(new) == read_curves(finished / "long")
    assert (new / "config.yaml").read_text() == (finished / "long" / "config.yaml").read_text()
    assert find_checkpoint(new, None).resolve().name == "step=8.ckpt"
    if is_copy:
        assert contents(Path("run")) == before
    else:
        assert Path("run").exists() == (way == "linked")


def test_a_run_of_an_earlier_version_continues_where_it_is(run, capsys):
    """Its config.yaml names the directory in which it started."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["default_root_dir"] = "run"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    before = contents(run)
    shutil.copytree(run, "copy", symlinks=True)
    fit("--config", "copy/config.yaml", "--auto_resume", "true", "--trainer.max_steps", "5")
    assert "copy/config.yaml belongs to the run copy, which is used: trainer.default_root_dir in it is run" in (
        capsys.readouterr().err
    )
    assert contents(run) == before
    assert Path("copy/checkpoints/last.ckpt").resolve().name == "step=5.ckpt"
    assert yaml.safe_load(Path("copy/config.yaml").read_text())["trainer"]["default_root_dir"] == THIS_FOLDER


def test_a_config_of_a_run_starts_another_run(run, capsys):
    """Named config.yaml, in its own folder; under another name, in the directory of the command line."""
    before = contents(run)
    Path("new").mkdir()
    for name in ("new/config.yaml", "mine.yaml"):
        shutil.copy(run / "config.yaml", name)
    fit("--config", "new/config.yaml", "--auto_resume", "true", "--trainer.max_steps", "1")
    fit("--config", "mine.yaml", "--auto_resume", "true", "--trainer.max_steps", "1", OPTION, "other")
    for name in ("new", "other"):
        assert Path(name, "checkpoints", "last.ckpt").resolve().name == "step=1.ckpt"
    assert contents(run) == before
    with pytest.raises(SystemExit):
        fit("--config", "mine.yaml")
    assert "trainer.default_root_dir must be a directory, got <this folder>" in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == {"run", "new", "other", "mine.yaml"}


def test_a_run_that_starts_from_another_one_continues_its_own(run):
    """It never touches the other one's checkpoints, and the same command resumes it.

    What the other one had not logged yet for the step of the checkpoint, this one logs.
    """
    before = contents(run)
    shutil.copy(run / "config.yaml", "mine.yaml")
    args = ["--config", "mine.yaml", OPTION, "other", "--ckpt_path", "run/checkpoints/last.ckpt"]
    for steps in ("6", "8"):
        fit(*args, "--auto_resume", "true", "--trainer.max_steps", steps)
        written = {file.name for file in Path("other/checkpoints").iterdir()}
        assert written == {f"step={int(steps) - 1}.ckpt", f"step={steps}.ckpt", "last.ckpt"}
    assert contents(run) == before
    steps = [step for step, _ in read_curves(Path("other"))["train/loss"]]
    assert steps == [3, 4, 5, 6, 7]


def test_last_is_replaced_also_with_other_settings(run):
    """A ModelCheckpoint with another interval has no state in the checkpoint."""
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("every_n_train_steps: 1\n", "every_n_train_steps: 2\n"))
    fit("--config", "run/config.yaml", "--auto_resume", "true", "--trainer.max_steps", "7")
    assert {file.name for file in run.glob("checkpoints/last*")} == {"last.ckpt"}
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7
    assert (run / "checkpoints" / "step=6.ckpt").is_file()


def test_a_trial_of_one_batch_leaves_a_run_as_it_is(run):
    before = contents(run)
    fit("--config", "run/config.yaml", "--trainer.fast_dev_run", "true")
    assert contents(run) == before


def test_the_command_line_decides(run):
    """Wherever the option stands."""
    for argv in (["--config", "run/config.yaml", OPTION, "x"], [f"{OPTION}=x", "--config=run/config.yaml"]):
        assert with_run_directory(argv) == [*argv, OPTION, "x"]
    assert with_run_directory(["--config", "mine.yaml", OPTION, "x"]) == ["--config", "mine.yaml", OPTION, "x"]
    argv = ["fit", "-c", "run/config.yaml", "--config", "layer.yaml", "--config"]
    assert with_run_directory(argv) == ["fit", "--config", argv[2], OPTION, "run", *argv[3:]]


@pytest.mark.parametrize("option", [["-c", "wrong.yaml"], ["-c=wrong.yaml"]])
def test_the_short_option_is_explained_as_the_long_one(tmp_path, monkeypatch, expect_error, option):
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text("trainer:\n  max_step: 3\n")
    assert "wrong.yaml:2: trainer.max_step: there is no such key" in expect_error("fit", *option)


def test_files_of_users_set_their_own_directory(tmp_path):
    """A file named config.yaml is that of a run only if a run has written it."""
    Path("checkpoints").mkdir()
    Path("checkpoints/last.ckpt").touch()
    Path("config.yaml").write_text(EXPERIMENT)
    for name in ("config.yaml", "missing.yaml", "checkpoints"):
        assert with_run_directory(["--config", name]) == ["--config", name]


def test_a_link_to_a_config_means_the_run_that_it_lies_in(run):
    Path("mine.yaml").symlink_to(Path("run/config.yaml").resolve())
    expected = ["--config", "mine.yaml", OPTION, str(Path("run").resolve())]
    assert with_run_directory(["--config", "mine.yaml"]) == expected


def test_a_copy_of_an_earlier_config_warns_of_the_run_that_it_names(capsys):
    shutil.copytree(OLD_RUN, "old")
    text = Path("old/config.yaml").read_text()
    written = yaml.safe_load(text)["trainer"]["default_root_dir"]
    Path("mine.yaml").write_text(text.replace(f"default_root_dir: {written}\n", "default_root_dir: old\n"))
    assert with_run_directory(["--config", "mine.yaml"]) == ["--config", "mine.yaml"]
    assert capsys.readouterr().err.startswith("warning: mine.yaml is a copy of a run's config, and names old: add")
    assert with_run_directory(["--config", "old/config.yaml"])[2:] == [OPTION, "old"]


@pytest.mark.parametrize("key", ["checkpoints", "codec"])
def test_commands_find_what_lies_in_the_run(run, key):
    """As `evaluate` reads the section data of a moved run."""
    file = run.rename("moved") / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data"]["init_args"] = {"root": f"{ROOT}/{key}"}
    file.write_text(yaml.safe_dump(config))
    assert Experiment(file).section("data")["init_args"]["root"] == f"moved/{key}"


@pytest.mark.parametrize("root", ["a", "./a", "a/", "{here}/a", "{here}/x/../a", "link"])
@pytest.mark.parametrize("path", ["a/b", "./a/b/", "{here}/a/b", "{here}/x/../a//b", "link/b"])
def test_every_spelling_of_a_path_in_the_run_is_recognized(tmp_path, root, path):
    Path("a").mkdir()
    Path("link").symlink_to("a")
    root, path = (text.format(here=tmp_path) for text in (root, path))
    assert make_portable({"x": [path]}, root) == {"x": [f"{ROOT}/b"]}


def test_other_texts_are_not_paths_in_the_run(tmp_path):
    others = ["train/loss", "ab", "ab/c", "../a/b", "a/../b", "https://a/b", 3, None, "datamodules.Digits"]
    others.append(f"{tmp_path.parent}/a")
    for root in ("a", "./", str(tmp_path / "a"), "~/a"):
        assert make_portable(others, root) == others


def test_a_path_in_the_home_directory_is_recognized(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_portable(["~/a/b", f"{tmp_path}/a/b"], str(tmp_path / "a")) == [f"{ROOT}/b"] * 2
    assert make_portable(["~/a/b", f"{tmp_path}/a/b", "~/ab"], "~/a") == [f"{ROOT}/b"] * 2 + ["~/ab"]
