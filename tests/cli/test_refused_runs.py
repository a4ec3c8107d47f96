"""A command of train.py that is refused leaves nothing behind, and takes nothing away."""

import shutil
from pathlib import Path

import pytest

from asyncdiff.cli import train  # noqa: F401  imported here, so that no test is charged for it

EXPERIMENT = str(Path("experiments/digits_dit_async.yaml").resolve())
OTHER = ("--model.network.init_args.patch_size", "4")


def tree() -> dict[str, int | None]:
    """Return the modification time of every file below the working directory, and None for every folder."""
    return {str(path): None if path.is_dir() else path.stat().st_mtime_ns for path in sorted(Path().rglob("*"))}


@pytest.fixture(autouse=True)
def run(digits_run, tmp_path, monkeypatch):
    """A run with a configuration of its own, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_run, "run")
    Path("run/config.yaml").write_text("seed_everything: 5\n")
    Path("damaged.ckpt").write_bytes(b"garbage")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--ckpt_path", "damaged.ckpt"), "damaged.ckpt cannot be read safely as a checkpoint"),
        (("--ckpt_path", "last", *OTHER), "model.network"),
        (
            ("--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.default_root_dir", "new/run", *OTHER),
            "model.network",
        ),
    ],
    ids=["damaged", "other", "other in a new folder"],
)
def test_a_refused_checkpoint_leaves_nothing_behind(command, more, problem, expect_error):
    before = tree()
    message = expect_error(command, "--config", EXPERIMENT, "--trainer.default_root_dir", "run", *more, chatter=True)
    assert problem in message
    assert tree() == before  # the configuration of the run, too


def test_refused_data_leave_nothing_behind(expect_error):
    before = tree()
    argv = ("fit", "--config", EXPERIMENT, "--trainer.default_root_dir", "new", "--data.init_args.batch_size", "100000")
    assert "batch_size must leave at least one batch per epoch" in expect_error(*argv, chatter=True)
    assert tree() == before


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("http://127.0.0.1:1/x.ckpt", "which is not supported: download it"),
        ("ftp://127.0.0.1/x.ckpt", "which is not supported: download it"),
        ("nothing://x", "which cannot be read (Protocol not known: nothing): download it"),
        ("memory://x", "which does not exist: download it"),
        ("best", "which does not exist: check the path"),
        ("registry:x", "which does not exist: check the path"),
        ("x" * 300, "which does not exist: check the path"),
        ("damaged.ckpt/x", "which does not exist: check the path"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_checkpoints_that_are_elsewhere_are_refused_before_anything_is_built(command, path, problem, expect_error):
    message = expect_error(command, "--config", EXPERIMENT, "--trainer.default_root_dir", "run", "--ckpt_path", path)
    assert message == f"ckpt_path must be a checkpoint or last, got {path}, {problem}" + message.partition(problem)[2]


def test_hpc_needs_a_checkpoint_of_slurm(expect_error):
    message = expect_error("fit", "--config", EXPERIMENT, "--trainer.default_root_dir", "run", "--ckpt_path", "hpc")
    assert message == "ckpt_path is hpc, but there is no hpc_ckpt_N.ckpt in run: use last, or a file"
