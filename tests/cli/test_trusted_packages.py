"""Only trusted packages are imported for the values of files and command lines, however they are written."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse._common import parsing_settings

from asyncdiff.__main__ import main as command
from asyncdiff.checkpoints import object_config
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.cli.train import ExperimentCLI, main
from asyncdiff.cli.trusted_packages import (
    ALLOWED,
    may_be_imported,
    option_argv,
    restrict_imports,
    split_option,
    user_trusted,
)

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = ROOT / "experiments" / "digits_dit_async.yaml"
MODULE = """
import pathlib
pathlib.Path("imported").touch()
import torch
from lightning.pytorch import Callback, LightningDataModule
class Network(torch.nn.Module):
    def __init__(self): super().__init__()
class Told(Callback): pass
class Data(LightningDataModule): pass
def made() -> torch.nn.Module: return Network()
"""


@pytest.fixture(autouse=True)
def untrusted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a module that creates a file when it is imported."""
    (tmp_path / "stranger.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(ExperimentCLI, "instantiate_classes", lambda self: sys.exit(0))
    only = {"fit": ExperimentCLI.subcommands()["fit"]}  # parsers take longer to make than to use
    monkeypatch.setattr(ExperimentCLI, "subcommands", staticmethod(lambda: only))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)


@pytest.fixture
def refused(expect_error):
    """Function that runs a command that must fail without importing the module, and returns its error message."""

    def run(argv: list[str], command: Any = main) -> str:
        message: str = expect_error(*argv, command=command)
        assert not Path("imported").exists()
        assert "stranger" not in sys.modules
        return message

    return run


WAYS = {
    "a class": ["--model.network", "stranger.Network"],
    "a class path": ["--model.network.class_path=stranger.Network"],
    "a dictionary": ["--model.network", "{class_path: stranger.Network, init_args: {}}"],
    "a function": ["--model.network", "stranger.made"],
    "help": ["--model.network.help", "stranger.Network"],
    "help of data": ["--data.help=stranger.Data"],
    "data": ["--data", "stranger.Data"],
    "a logger": ["--trainer.logger", "stranger.Told"],
    "an added callback": ["--trainer.callbacks+=stranger.Told"],
    "a list of callbacks": ["--trainer.callbacks=[{class_path: stranger.Told}]"],
    "a part of a part": ["--model.sampler.init_args.solver", "stranger.Network"],
    "a printed configuration": ["--print_config", "--model.network", "stranger.Network"],
}


@pytest.mark.parametrize("way", WAYS)
def test_an_untrusted_class_is_rejected_before_it_is_imported(way: str, refused: Any) -> None:
    line = refused(["fit", "--config", str(EXPERIMENT), *WAYS[way]])
    assert "got stranger." in line
    assert line.endswith("if you trust its code, add --allow-class-paths stranger")


def test_a_file_cannot_allow_itself(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = yaml.safe_load(EXPERIMENT.read_text())
    tree["trainer"]["callbacks"].append({"class_path": "stranger.Told"})
    for key in ("allow_class_paths", "allow-class-paths"):
        Path("own.yaml").write_text(yaml.safe_dump({key: "stranger", **tree}))
        refused(["fit", "--config", "own.yaml"])
    monkeypatch.setenv("ASYNCDIFF_ALLOW_CLASS_PATHS", "stranger")
    monkeypatch.setenv("PYTORCH_LIGHTNING_ALLOW_CLASS_PATHS", "stranger")
    Path("own.yaml").write_text(yaml.safe_dump(tree))
    assert "got stranger.Told" in refused(["fit", "--config", "own.yaml"])


def test_values_of_type_any_are_not_built(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(EXPERIMENT), "--vars.x={class_path: stranger.Network}", "--print_config"])
    assert stopped.value.code == 0
    assert yaml.safe_load(capfd.readouterr().out)["vars"] == {"x": {"class_path": "stranger.Network"}}
    assert not Path("imported").exists()


@pytest.mark.parametrize("argument", ["--allow-class-paths", "--allow_class_paths"])
def test_the_command_line_can_allow_a_package(argument: str, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["fit", "--config", str(EXPERIMENT), "--model.network", "stranger.Network", "--print_config"]
    with pytest.raises(SystemExit) as stopped:
        main([*argv, argument, "other.part,stranger"])
    assert stopped.value.code == 0
    assert "class_path: stranger.Network" in capfd.readouterr().out
    assert Path("imported").exists()
    assert user_trusted() == ()
    assert parsing_settings["import_path_verdicts"].get("stranger") is None  # not the next command


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.Popen",
        "torch.hub.load",
        "torch.nn.Identity",
        "builtins.exec",
        "jsonargparse.ArgumentParser",
        "asyncdiff.cli.train.os.system",
        "asyncdiff.cli.train.ExperimentCLI",
        "asyncdiff.ablation.launch.subprocess.Popen",
    ],
)
def test_classes_that_run_programs_are_rejected(path: str, refused: Any) -> None:
    given = f"{{class_path: {path}, init_args: {{args: [touch, imported]}}}}"
    refused(["fit", "--config", str(EXPERIMENT), "--model.network", given])


def test_plugins_that_read_pickles_and_lambda_callbacks_are_rejected(refused: Any) -> None:
    for key, path in {
        "plugins": "lightning.fabric.plugins.io.TorchCheckpointIO",
        "callbacks+": "lightning.pytorch.callbacks.LambdaCallback",
    }.items():
        line = refused(["fit", "--config", str(EXPERIMENT), f"--trainer.{key}={path}"])
        assert "--allow-class-paths lightning." in line


def test_other_commands_also_reject_untrusted_classes(refused: Any) -> None:
    Path("levels.yaml").write_text("model: {levels: {class_path: stranger.Network}}\n")
    assert "got stranger.Network" in refused(["levels", "levels.yaml"], command)
    Path("data.yaml").write_text("data: {class_path: stranger.Data}\n")
    argv = ["cache-latents", "--data", "data.yaml", "--codec", "asyncdiff.latents.Identity", "--out", "out"]
    assert refused(argv, command).startswith("data.yaml: data.class_path must name a class of ")
    with pytest.raises(ValueError, match=r"levels\.yaml.*got stranger\.Network"):  # of Python, without a command
        Experiment(Path("levels.yaml")).levels()
    assert not Path("imported").exists()


def test_a_checkpoint_cannot_name_a_program() -> None:
    for path in (
        "asyncdiff.cli.train.ExperimentCLI",
        "asyncdiff.cli.commands.evaluate.Run",
        "asyncdiff.ablation.launch.Runner",
    ):
        with pytest.raises(ValueError, match="belongs to a command, not to a model"):
            object_config.build({"class_path": path, "init_args": {}})
    with pytest.raises(ValueError, match="--allow-class-paths stranger"):
        object_config.build({"class_path": "stranger.Network", "init_args": {}})
    assert not Path("imported").exists()


@pytest.mark.parametrize("value", [[], [""], ["../x"], ["a b"], ["jsonargparse"], ["a,,b"]])
def test_the_option_accepts_only_package_names(value: list[str]) -> None:
    with pytest.raises(ValueError, match="--allow-class-paths must list packages, got "):
        split_option(["fit", "--allow-class-paths", *value])


def test_subprocesses_trust_the_same_packages() -> None:
    with restrict_imports(["a", "--allow-class-paths=one,two.parts", "b"]) as rest:
        assert rest == ["a", "b"]
        assert option_argv() == ["--allow-class-paths", "one,two.parts"]
        with restrict_imports(["--allow-class-paths", "three"]):
            assert user_trusted() == ("one", "two.parts", "three")
        assert [may_be_imported(path) for path in ("two.parts.A", "two.A", "three.A", "asyncdiff.cli.train.A")] == [
            True, False, False, False,
        ]  # fmt: skip
    assert option_argv() == []


def test_all_class_paths_in_experiments_are_allowed() -> None:
    with restrict_imports():
        files = sorted((ROOT / "experiments").rglob("*.yaml"))
        named = {path for file in files for path in _class_paths(yaml.safe_load(file.read_text()))}
        assert len(named) > 40
        assert [path for path in named if not may_be_imported(path)] == []
    assert not any(path.startswith("torch") for path in ALLOWED)


def _class_paths(tree: object) -> set[str]:
    if isinstance(tree, list):
        return set().union(*map(_class_paths, tree))
    if not isinstance(tree, dict):
        return set()
    own = {tree["class_path"]} if isinstance(tree.get("class_path"), str) else set()
    return own.union(*map(_class_paths, tree.values()))
