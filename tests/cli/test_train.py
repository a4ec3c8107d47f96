"""Command line of train.py: layered files, one-line errors, and protected runs."""

import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._utils import ExceptionWrapper

from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.cli.errors import user_error_message
from asyncdiff.cli.errors.suggestions import nearest_class_path
from asyncdiff.cli.run_directory import THIS_FOLDER, make_portable
from asyncdiff.cli.train import ExperimentCLI, checkpoint_to_load, main
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.randomness import per_image
from asyncdiff.training import OptimizerSettings, PredictSettings
from asyncdiff.training.lightning_module import AsyncDiffusion

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
seed_everything: 0
vars: {dim: 32}
data:
  class_path: datamodules.Digits
  init_args: {batch_size: 32, seed: "${seed_everything}"}
model:
  network:
    class_path: asyncdiff.networks.DiT
    init_args: {channels: 1, patch_size: 2, dim: "${vars.dim}", depth: 1, heads: 2, classes: 10}
  levels:
    class_path: asyncdiff.noise.AlongPath
    init_args:
      path: {class_path: asyncdiff.noise.AsyncPatch, init_args: {spread: 1.0}}
  sampler:
    class_path: asyncdiff.sampling.Sampler
    init_args: {steps: 2, solver: {class_path: asyncdiff.sampling.DDIM}}
  image_size: 8
  optimizer:
    {learning_rate: 1.0e-3, warmup_steps: 2}
  seed: ${seed_everything}
trainer:
  default_root_dir: run
  accelerator: cpu
  max_steps: 2
  limit_val_batches: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  logger: false
  callbacks:
    - {class_path: asyncdiff.callbacks.EMA, init_args: {decay: 0.9}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: "${trainer.default_root_dir}/checkpoints", every_n_train_steps: 1, save_last: true}
"""


LOGGER = """logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {save_dir: "${trainer.default_root_dir}", name: "", version: ""}"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    Path("experiment.yaml").write_text(EXPERIMENT)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Run directory of a fit, whose paths are relative to it; copy it before changing it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("finished"))
        patch.setattr(sys, "argv", ["train.py"])
        edit("logger: false", LOGGER)
        main(["fit", "--config", "experiment.yaml", "--auto_resume", "true"])
    return folder / "run"


@pytest.fixture
def run(finished_run):
    """Copy of the finished run as the folder run."""
    return shutil.copytree(finished_run, "run")


@pytest.fixture
def refused(expect_error):
    """Function that runs a command of train.py that must fail, and returns its error message."""
    return partial(expect_error, command=main)


@pytest.fixture
def printed(capfd):
    """Function that returns the configuration that a command would run, and its text."""

    def run(*args):
        with pytest.raises(SystemExit) as stopped:
            main([*args, "--print_config"])
        assert stopped.value.code == 0
        text = capfd.readouterr().out
        return yaml.safe_load(text), text

    return run


@pytest.fixture
def run_command():
    """Function that runs a command and returns the CLI with the objects that it built."""

    def run(*args):
        built = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ExperimentCLI, "after_instantiate_classes", lambda self: built.append(self))
            main(list(args))
        return built[0]

    return run


def edit(old, new, text=EXPERIMENT):
    assert old in text
    Path("experiment.yaml").write_text(text.replace(old, new))


def run_config(**trainer):
    Path("run/checkpoints").mkdir(parents=True)
    torch.save({"global_step": 3}, "run/checkpoints/last.ckpt")
    return Namespace(ckpt_path=None, trainer=Namespace(default_root_dir="run", **trainer))


# Files


def test_values_flow_through_files_overrides_and_environment(printed, monkeypatch):
    Path("wider.yaml").write_text(
        "vars: {width: 64}\n"
        "model:\n"
        '  network: {init_args: {dim: "${vars.width}", depth: "${oc.env:ASYNCDIFF_TEST_DEPTH,3}"}}\n'
        "  optimizer: {warmup_steps: '${trainer.max_steps}'}\n"
        "trainer:\n"
        "  callbacks+: [{class_path: asyncdiff.callbacks.Throughput}]\n"
    )
    args = ["fit", "--config", "experiment.yaml", "--config", "wider.yaml", "--data.init_args.batch_size", "16"]
    args += ["--seed_everything", "3", "--trainer.max_steps", "7", "--model.optimizer.learning_rate", "0.01"]
    args += ["--trainer.callbacks+=asyncdiff.callbacks.LossByLevel"]
    config, _ = printed(*args)
    network = config["model"]["network"]["init_args"]
    assert (network["dim"], network["depth"], network["classes"]) == (64, 3, 10)
    assert config["vars"] == {"dim": 32, "width": 64}
    assert config["data"]["init_args"]["batch_size"] == 16
    optimizer = config["model"]["optimizer"]
    assert (optimizer["warmup_steps"], optimizer["learning_rate"], optimizer["weight_decay"]) == (7, 0.01, 0.0)
    assert [config["data"]["init_args"]["seed"], config["model"]["seed"]] == [3, 3]
    classes = [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]]
    assert classes == ["EMA", "ModelCheckpoint", "Throughput", "LossByLevel"]
    monkeypatch.setenv("ASYNCDIFF_TEST_DEPTH", "5")
    config, _ = printed(*args, "--vars.width", "128")
    network = config["model"]["network"]["init_args"]
    assert (network["dim"], network["depth"]) == (128, 5)


def test_a_printed_configuration_reproduces_itself(printed):
    _, text = printed("fit", "--config", "experiment.yaml", "--seed_everything", "3", "--vars.dim", "64")
    Path("again.yaml").write_text(text)
    assert printed("fit", "--config", "again.yaml")[1] == text


def test_bare_class_names_are_accepted(printed):
    edit("asyncdiff.noise.AsyncPatch", "AsyncPatch", EXPERIMENT.replace("datamodules.Digits", "Digits"))
    config, _ = printed("fit", "--config", "experiment.yaml")
    assert config["data"]["class_path"] == "datamodules.Digits"


@pytest.mark.parametrize("command", [[], ["fit"], ["validate"], ["test"], ["predict"]])
def test_every_subcommand_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "--config" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "section"), [("optimizer", OptimizerSettings), ("predict", PredictSettings)])
def test_help_explains_every_setting(name, section, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for setting in dataclasses.fields(section):
        option, metavar = rf"--model\.{name}\.{setting.name}", r"[A-Z\[][\w\]\[+,. -]*"
        assert re.search(rf"{option} {metavar} [a-z][^(]{{8,}}\(type: ", text), setting.name


# Mistakes in them


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "meant"),
    [
        ("trainer:\n", "trainr:\n", 22, "trainr", "trainer"),
        ("seed_everything: 0", "sed_everything: 0", 2, "sed_everything", "seed_everything"),
        ("seed_everything: 0", "seed_everything: 0\nmax_steps: 3", 3, "max_steps", "trainer.max_steps"),
        ("{learning_rate", "{learning_rat", 20, "model.optimizer.learning_rat", "model.optimizer.learning_rate"),
        ("  optimizer", "  optimiser", 19, "model.optimiser", "model.optimizer"),
        ("max_steps", "max_step", 25, "trainer.max_step", "trainer.max_steps"),
        ("patch_size", "patchsize", 10, "model.network.init_args.patchsize", "patch_size"),
        ("spread", "spred", 14, "model.levels.init_args.path.init_args.spred", "spread"),
        ("steps: 2, solver", "steps: 2, solvr", 17, "model.sampler.init_args.solvr", "solver"),
        ("batch_size", "batchsize", 6, "data.init_args.batchsize", "batch_size"),
        ("decay", "decy", 32, "trainer.callbacks.init_args.decy", "decay"),
        ("save_last", "savelast", 34, "trainer.callbacks.init_args.savelast", "save_last"),
        ("init_args: {decay", "init_arg: {decay", 32, "trainer.callbacks.init_arg", "init_args"),
        ("- {class_path", "- {class_pat", 32, "trainer.callbacks.class_pat", "class_path"),
        ("path: {class_path", "path: {class_pat", 14, "model.levels.init_args.path.class_pat", "class_path"),
        ("class_path: asyncdiff.networks", "class_pat: asyncdiff.networks", 9, "model.network.class_pat", "class_path"),
    ],
)  # fmt: skip
def test_a_misspelled_key_is_reported_with_its_location_and_a_suggestion(old, new, line, key, meant, refused):
    edit(old, new)
    message = refused("fit", "--config", "experiment.yaml")
    assert message.startswith(f"experiment.yaml:{line}: {key}: ")
    assert message.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("right", "wrong", "key"),
    [
        ("asyncdiff.noise.AsyncPatch", "asyncdiff.noise.paths.AsyncPach", "model.levels.init_args.path"),
        ("asyncdiff.noise.AsyncPatch", "asyncdiff.path.AsyncPatch", "model.levels.init_args.path"),
        ("asyncdiff.noise.AsyncPatch", "AsyncPach", "model.levels.init_args.path"),
        ("asyncdiff.networks.DiT", "asyncdiff.networks.dit.DIT", "model.network"),
        ("asyncdiff.networks.DiT", "asyncdiff.network.dit.DiT", "model.network"),
        ("asyncdiff.networks.DiT", "asyncdiff.noise.DiT", "model.network"),
        ("asyncdiff.networks.DiT", "DIT", "model.network"),
        ("asyncdiff.sampling.DDIM", "asyncdiff.sampling.solvers.Ddimm", "model.sampler.init_args.solver"),
        ("datamodules.Digits", "datamodules.Digit", "data"),
        ("datamodules.Digits", "datamodule.Digits", "data"),
        ("datamodules.Digits", "Digts", "data"),
        ("asyncdiff.callbacks.EMA", "asyncdiff.callbacks.Emma", "trainer.callbacks"),
        ("lightning.pytorch.callbacks.ModelCheckpoint", "ModelCheckpont", "trainer.callbacks"),
    ],
)
def test_a_misspelled_class_is_reported_with_its_location_and_a_suggestion(right, wrong, key, refused):
    edit(right, wrong)
    line = next(n for n, text in enumerate(Path("experiment.yaml").read_text().splitlines(), 1) if wrong in text)
    expected = f"experiment.yaml:{line}: {key}: there is no class {wrong}; did you mean {right}?"
    assert refused("fit", "--config", "experiment.yaml") == expected


@pytest.mark.parametrize(
    ("argv", "key", "meant"),
    [
        (["--trainer.max_step", "3"], "--trainer.max_step", "--trainer.max_steps"),
        (["--model.optimizer.learning_rat=3"], "--model.optimizer.learning_rat", "--model.optimizer.learning_rate"),
        (["--sed_everything", "3"], "--sed_everything", "--seed_everything"),
        (["--data.init_args.batchsize", "3"], "--data.init_args.batchsize", "batch_size"),
        (["--model.network.init_args.dept", "3"], "--model.network.init_args.dept", "depth"),
        (["--model.levels.path.spred", "3"], "--model.levels.path.spred", "spread"),
        (
            ["--model.weighting", "asyncdiff.denoising.weightings.Velocty"],
            "--model.weighting",
            "asyncdiff.denoising.Velocity",
        ),
        (
            ["--trainer.callbacks+=asyncdiff.callbacks.LossByLevl"],
            "--trainer.callbacks",
            "asyncdiff.callbacks.LossByLevel",
        ),
    ],
)
def test_a_misspelled_option_is_reported_with_a_suggestion(argv, key, meant, refused):
    message = refused("fit", "--config", "experiment.yaml", *argv)
    assert message.startswith(f"{key}: ")
    assert message.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("old", "new", "place", "reason"),
    [
        ("1.0e-3", "fast", "20: model.optimizer.learning_rate", "must be float, got fast"),
        ("spread: 1.0", "spread: far", "14: model.levels.init_args.path.init_args.spread", "must be float, got far"),
        (
            "${vars.dim}",
            "${vars.dimm}",
            "10: model.network.init_args.dim",
            "${vars.dimm} is not defined; did you mean vars.dim?",
        ),
        (
            "${vars.dim}",
            "${oc.env:NO_SUCH_NAME}",
            "10: model.network.init_args.dim",
            "Environment variable 'NO_SUCH_NAME' not found",
        ),
        ("trainer:\n", "trainer: [\n", "24", "not valid YAML: did not find expected ',' or ']'"),
        (
            "    class_path: asyncdiff.networks.DiT\n",
            "",
            "9: model.network",
            "class_path must be given next to init_args",
        ),
        (
            "model:\n",
            "model:\n  class_path: asyncdiff.AsyncDiffusion\n",
            "8: model.class_path",
            "there is no such key: write its arguments directly below model",
        ),
        ("{decay", "{zzz", "32: trainer.callbacks.init_args.zzz", "EMA has no argument zzz; it takes decay"),
        (
            "{class_path: asyncdiff.callbacks.EMA, init_args: {decay: 0.9}}",
            "asyncdiff.callbacks.EMAX",
            "31: trainer.callbacks",
            "there is no class asyncdiff.callbacks.EMAX; did you mean asyncdiff.callbacks.EMA?",
        ),
        (
            "init_args: {decay: 0.9}",
            "decay: 0.9",
            "32: trainer.callbacks.decay",
            "there is no such key: write it below trainer.callbacks.init_args",
        ),
        (
            "solver: {class_path: asyncdiff.sampling.DDIM}",
            "guidance: {class_path: asyncdiff.sampling.ClassifierFree, init_args: {scale: 2}}",
            "17: model.sampler.init_args.guidance",
            "must be Sequence, got {'class_path': ",
        ),
        ("image_size: 8", "image_size: 2020-13-45", "18: model.image_size", "must be int, got 2020-13-45"),
        ("dim: 32", "dim: abc", "10: model.network.init_args.dim", "must be int, got abc"),
    ],
)
def test_other_configuration_errors_are_reported_with_their_location(old, new, place, reason, refused):
    edit(old, new)
    assert refused("fit", "--config", "experiment.yaml").startswith(f"experiment.yaml:{place}: {reason}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trainer.logger", "false", "--model.seed", "x"], "--model.seed: must be int, got x"),
        (["--model.levels.path.spread", "wide"], "--model.levels.path.spread: must be float, got wide"),
        (["--vars.dim", "abc"], "experiment.yaml:10: model.network.init_args.dim: must be int, got abc"),
        (["--trainer.max_steps"], "--trainer.max_steps: a value must follow"),
        (["--trainer.max_steps", "x", "--foo"], "--trainer.max_steps: must be int, got x"),
        (["--foo"], "--foo: there is no such option"),
        (["--seed_everything", "x"], "--seed_everything: must be bool or int, got x"),
        (
            ["--model.sampler.guidance", "[{class_path: ClassifierFree, init_args: {scale: x}}]"],
            "--model.sampler.guidance: must be float, got x",
        ),
        (
            ["--model.sampler", "{class_path: Sampler, steps: 3}"],
            "--model.sampler: there is no such key: write it below model.sampler.init_args",
        ),
        (["--model", "3"], "--model: must be a section of keys, got 3"),
        (["--model.seed", "${nothing}"], "--model.seed: ${nothing} is not defined"),
        (
            ["--model.network", "net.yaml"],
            "--model.network: must be a class path or a YAML file with one, got net.yaml: there is no such file",
        ),
        (
            ["--model.network", "null"],
            "--model.network: must be Module written as {class_path: ..., init_args: {...}}, got null",
        ),
    ],
)
def test_invalid_values_of_options_are_reported_in_one_line(argv, message, refused):
    assert refused("fit", "--config", "experiment.yaml", *argv) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# nothing", "more.yaml must contain sections such as data, model and trainer, got nothing"),
        (b"trainer:", "more.yaml must contain sections such as data, model and trainer, got {'trainer': None}"),
        (b"model: 3", "more.yaml:1: model: must be a section of keys, got 3"),
        (b"model:\nvars: {a: 1}", "model.network must be given"),
        ("vars: {a: 1}".encode("utf-16"), "more.yaml: not valid YAML: invalid start byte at byte 0; save it as UTF-8"),
    ],
)
def test_invalid_files_are_reported_in_one_line(content, message, refused):
    Path("more.yaml").write_bytes(content)
    assert refused("fit", "--config", "experiment.yaml", "--config", "more.yaml") == message


def test_a_similar_class_of_the_same_module_is_suggested():
    assert nearest_class_path("asyncdiff.noise.Sharde") == "asyncdiff.noise.Shared"  # not a class named Shard


def test_a_package_that_a_class_needs_is_named(refused, monkeypatch):
    Path("broken.py").write_text("import nothing_here")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    argv = ["--model.network", "broken.Network", "--allow-class-paths", "broken"]
    message = refused("fit", "--config", "experiment.yaml", *argv)
    assert message == "--model.network: broken.Network needs the package nothing_here, which is not installed"


def test_missing_arguments_of_a_class_are_listed(refused):
    edit("datamodules.Digits", "datamodules.ImageFolder")
    assert refused("fit", "--config", "experiment.yaml") == "data.init_args.root, data.init_args.size must be given"


def test_a_class_of_the_wrong_type_is_reported_with_alternatives(refused):
    edit("asyncdiff.noise.AsyncPatch", "asyncdiff.sampling.DDIM")
    message = refused("fit", "--config", "experiment.yaml")
    location = "experiment.yaml:14: model.levels.init_args.path: "
    assert message.startswith(f"{location}asyncdiff.sampling.DDIM is not a Path; ")
    assert "asyncdiff.noise.AsyncPatch" in message


def test_errors_name_the_last_file_that_sets_the_key(refused):
    Path("more.yaml").write_text("model:\n  optimizer: {learning_rate: fast}\n")
    assert refused("fit", "--config", "experiment.yaml", "--config", "more.yaml").startswith("more.yaml:2: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the command must be one of fit, validate, test, predict"),
        (["fitt"], "the command must be one of fit, validate, test, predict, got fitt; did you mean fit?"),
        (["fit"], "model.network, data must be given; name an experiment file with --config"),
        (["fit", "--trainer.max_steps", "3"], "model.network, data must be given; name an experiment file with"),
        (["--config", "experiment.yaml", "fit"], "options must come after the command, as in: train.py fit"),
        (["fit", "--config", "none.yaml"], "--config must be a YAML file, got none.yaml: No such file"),
        (["fit", "--config", "experiment.yaml", "3"], "3 is not an option"),
        (
            ["fit", "--config", "experiment.yaml", "--ckpt_path", "last"],
            "ckpt_path is last, but",
        ),
        (
            ["fit", "--config", "experiment.yaml", "--ckpt_path", "a.ckpt"],
            "ckpt_path must be a checkpoint or last",
        ),
    ],
)
def test_invalid_command_lines_are_reported_in_one_line(args, message, refused):
    assert refused(*args).startswith(message)


# Errors that only building or running finds


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.image_size", "1"], "images must be at least as large as a patch"),
        (["--model.optimizer.learning_rate", "-1"], "optimizer.learning_rate must be positive"),
        (["--data.init_args.batch_size", "0"], "batch_size must be at least 1"),
        (["--data.init_args.batch_size", "5000"], "batch_size must leave at least one batch"),
        (["--trainer.callbacks+=asyncdiff.callbacks.EMA", "--trainer.callbacks.decay", "2"], "decay must lie in"),
        (["--model.levels", "asyncdiff.noise.Independent", "--model.weighting", "asyncdiff.denoising.ELBO"], "ELBO"),
        (["--trainer.accelerator", "abacus"], "You selected an invalid accelerator name"),
    ],
)  # fmt: skip
def test_an_argument_rejected_by_a_constructor_is_reported_in_one_line(args, message, refused):
    assert refused("fit", "--config", "experiment.yaml", *args, chatter=True).startswith(message)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("optimizer:", "model.optimizer must be a section of keys, got null: write learning_rate: 1e-4 below it"),
        ("predict: 3", "model.predict must be a section of keys, got 3: write count: 64 below it"),
    ],
)
def test_a_section_must_have_values(section, message, refused):
    Path("more.yaml").write_text(f"model:\n  {section}\n")
    reported = refused("fit", "--config", "experiment.yaml", "--config", "more.yaml", chatter=True)
    assert reported.startswith(message)


@pytest.mark.parametrize("key", ["model.optimizer.learning_rate", "data.batch_size", "trainer.num_nodes"])
def test_only_lists_can_be_appended_to(key, refused):
    name = key.rpartition(".")[2]
    message = f"+ appends to a list, which this is not: write {name}"
    assert refused("fit", "--config", "experiment.yaml", f"--{key}+", "3") == f"--{key}: {message}"
    full = key.replace("data.", "data.init_args.")
    Path("more.yaml").write_text("{" + full.replace(".", ": {") + "+: 3" + "}" * full.count(".") + "}\n")
    reported = refused("fit", "--config", "experiment.yaml", "--config", "more.yaml")
    assert reported == f"more.yaml:1: {full}: {message}"


@pytest.mark.parametrize(
    ("content", "key", "kind"),
    [
        ("model: {image_size: null}", "model.image_size", "int"),
        ("model: {optimizer: {betas: null}}", "model.optimizer.betas", "tuple[float, float]"),
        ("model: {network: {init_args: {dim: null}}}", "model.network.init_args.dim", "int"),
        ("trainer: {max_steps: null}", "trainer.max_steps", "int"),
        ("data: {init_args: {seed: null}}", "data.init_args.seed", "int"),
    ],
)
def test_null_is_refused_where_it_is_not_a_value(content, key, kind, refused):
    Path("more.yaml").write_text(f"vars: {{}}\n{content}\n")
    reported = refused("fit", "--config", "experiment.yaml", "--config", "more.yaml")
    assert reported == f"more.yaml:2: {key}: must be {kind}, got null: omit it, or give a value"


def test_a_section_may_be_a_file(printed):
    Path("optimizer.yaml").write_text("{learning_rate: 0.5, betas: [0.5, 0.75]}\n")
    Path("more.yaml").write_text("model: {optimizer: optimizer.yaml}\n")
    for argv in (["--model.optimizer", "optimizer.yaml"], ["--config", "more.yaml"]):
        config, _ = printed("fit", "--config", "experiment.yaml", *argv)
        assert config["model"]["optimizer"]["learning_rate"] == 0.5
        assert config["model"]["optimizer"]["warmup_steps"] == 2  # of the experiment


@pytest.mark.parametrize(("folder", "message"), [("none", "root must be a folder"), (".", "root must contain images")])
def test_an_invalid_data_folder_is_reported_in_one_line(folder, message, refused):
    edit("datamodules.Digits", "datamodules.ImageFolder")
    args = ["--data.init_args.root", folder, "--data.init_args.size", "8", "--data.init_args.channels", "1"]
    assert refused("fit", "--config", "experiment.yaml", *args, chatter=True).startswith(message)


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(AsyncDiffusion, "training_step", lambda self, batch, batch_idx: int("no number"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["fit", "--config", "experiment.yaml"])


def test_an_error_raised_by_another_package_is_a_bug():
    with pytest.raises(ValueError, match="invalid literal") as caught:
        per_image(iter(["many"]))
    assert user_error_message(caught.value) is None


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
@pytest.mark.parametrize("value", ["many", "-1", "1.5", "1e3", "9" * 40])
def test_variables_of_job_managers_must_be_integers(name, value, monkeypatch):
    config = run_config()
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} must be a non-negative integer, got {value}: unset it") as caught:
        checkpoint_to_load(config, training=True)
    assert user_error_message(caught.value) is not None


def test_the_traceback_of_a_user_error_can_be_shown(monkeypatch):
    monkeypatch.setenv("ASYNCDIFF_TRACEBACK", "1")
    with pytest.raises(ValueError, match="optimizer.learning_rate must be positive"):
        main(["fit", "--config", "experiment.yaml", "--model.optimizer.learning_rate", "-1"])


def test_a_user_error_in_a_data_worker_is_recognized():
    lines = []
    for mistake in (lambda: AsyncPatch(spread=-1.0), lambda: int("no number")):
        try:
            mistake()
        except ValueError:
            passed_on = ExceptionWrapper(where="in DataLoader worker process 0")
        with pytest.raises(ValueError, match="Original Traceback") as caught:
            passed_on.reraise()
        lines.append(user_error_message(caught.value))
    assert lines[0].startswith("spread must")
    assert lines[1] is None


# Runs


def test_a_fit_prints_where_its_results_are_and_can_be_repeated(run_command, refused, capfd):
    edit("logger: false", LOGGER)
    run_command("fit", "--config", "experiment.yaml")
    printed_text = capfd.readouterr().out
    for line in ("checkpoint: run/checkpoints/last.ckpt", "config: run/config.yaml", "tensorboard --logdir run"):
        assert line in printed_text
    run_command("fit", "--config", "run/config.yaml", "--trainer.default_root_dir", "twin")
    assert list(Path("twin").glob("events*"))
    ours, theirs = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("run", "twin"))
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    configs = [yaml.safe_load(Path(name, "config.yaml").read_text()) for name in ("run", "twin")]
    assert [config["trainer"]["default_root_dir"] for config in configs] == [THIS_FOLDER] * 2
    assert configs[0] == configs[1]
    capfd.readouterr()
    for file in ("experiment.yaml", "run/config.yaml"):
        message = refused("fit", "--config", file)
        assert message.startswith("trainer.default_root_dir run already contains a run: ")
        assert "--ckpt_path last" in message


def test_a_resumed_fit_uses_the_command_line_and_saves_no_absolute_paths(run_command):
    folder = ["--trainer.default_root_dir", f"{Path.cwd()}/run/"]  # as a shell completes it
    run_command("fit", "--config", "experiment.yaml", *folder)
    args = [*folder, "--ckpt_path", "last", "--trainer.max_steps", "3"]
    args += ["--model.optimizer", "{learning_rate: 5e-4, betas: [0.8, 0.95]}"]
    args += ["--model.optimizer.weight_decay", "0.1", "--model.optimizer.warmup_steps", "8"]
    cli = run_command("fit", "--config", "experiment.yaml", *args)
    assert cli.trainer.global_step == 3
    assert cli.model.optimizer.learning_rate == 5e-4
    group = cli.trainer.optimizers[0].param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.95), 0.1)
    assert group["lr"] == pytest.approx(5e-4 * 4 / 8)  # of the fourth step
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    assert saved["ckpt_path"] is None
    dirpaths = [c["init_args"].get("dirpath") for c in saved["trainer"]["callbacks"]]
    assert not any(path and path.startswith("/") for path in dirpaths)
    assert sorted(path.name for path in Path("run/checkpoints").glob("last*")) == ["last.ckpt"]


def test_metrics_of_test_are_logged_at_the_step_of_the_checkpoint(run, run_command):
    run_command("test", "--config", "run/config.yaml", "--ckpt_path", "last")
    events = EventAccumulator("run").Reload()
    assert [event.step for event in events.Scalars("test/loss")] == [2]


def test_predict_and_validate_can_use_the_last_checkpoint(run, run_command):
    saved = Path("run/config.yaml").read_text()
    assert yaml.safe_load(saved)["auto_resume"] is False  # although the command line says true
    args = ["--ckpt_path", "last", "--model.predict.count", "4"]
    for command in ("predict", "validate"):
        cli = run_command(command, "--config", "run/config.yaml", *args)
        assert Path(cli.config[command].ckpt_path) == Path("run/checkpoints/last.ckpt")
    assert Path("run/config.yaml").read_text() == saved


def test_an_existing_run_is_not_overwritten():
    config = run_config()
    with pytest.raises(ValueError, match="add --ckpt_path last"):
        checkpoint_to_load(config, training=True)
    with pytest.raises(ValueError, match="untrained weights would be used: add --ckpt_path last"):
        checkpoint_to_load(config, training=False)
    Path("run/checkpoints/last.ckpt").rename("run/checkpoints/epoch=1.ckpt")
    with pytest.raises(ValueError, match=r"add --ckpt_path run/checkpoints/epoch=1.ckpt"):
        checkpoint_to_load(config, training=True)


def test_auto_resume_uses_the_newest_checkpoint(monkeypatch):
    config = run_config()
    last, folder = Path("run/checkpoints/last.ckpt"), Path("run/checkpoints")
    last.unlink()
    for age, step in enumerate((10000, 9000)):  # the one with the higher step is older, as after copying
        torch.save({"global_step": step}, folder / f"step={step}.ckpt")
        os.utime(folder / f"step={step}.ckpt", (1e9 + age, 1e9 + age))
    with pytest.raises(ValueError, match=r"add --ckpt_path run/checkpoints/step=10000.ckpt"):
        checkpoint_to_load(config, training=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert checkpoint_to_load(config, training=True) == "run/checkpoints/step=10000.ckpt"


def test_fast_dev_run_overwrites_nothing():
    assert checkpoint_to_load(run_config(fast_dev_run=True), training=True) is None


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_restarted_job_resumes(name, monkeypatch):
    config = run_config()
    monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="contains a run"):
        checkpoint_to_load(config, training=True)
    monkeypatch.setenv(name, "1")
    assert checkpoint_to_load(config, training=True) == str(Path("run/checkpoints/last.ckpt"))
    torch.save({"global_step": 4}, "run/hpc_ckpt_1.ckpt")
    assert checkpoint_to_load(config, training=True) == str(Path("run/hpc_ckpt_1.ckpt"))
    torch.save({"global_step": 5}, "run/checkpoints/last.ckpt")  # of a later interruption
    assert checkpoint_to_load(config, training=True) == str(Path("run/checkpoints/last.ckpt"))


def test_paths_in_the_run_directory_become_relative_to_it():
    config = {"trainer": {"default_root_dir": "a"}, "x": ["a/b", "ab", "a", 3], "y": {"z": "a/c/d"}}
    root = "${trainer.default_root_dir}"
    expected = {"trainer": {"default_root_dir": "a"}, "x": [f"{root}/b", "ab", root, 3], "y": {"z": f"{root}/c/d"}}
    assert make_portable(config, "a") == expected


@pytest.mark.slow
def test_an_error_of_train_py_prints_exactly_one_line():
    edit("spread", "spred")
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "experiment.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.endswith("did you mean spread?\n")


# One process at a time


def contents(folder):
    return {file: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def test_a_run_that_another_process_trains_is_refused_before_anything_is_built(run, refused, monkeypatch):
    monkeypatch.setattr(ExperimentCLI, "instantiate_classes", lambda _: pytest.fail("built"))
    before = contents(run)
    with hold(Path(run), "being trained"):
        message = refused("fit", "--config", "experiment.yaml", "--auto_resume", "true")
        assert re.fullmatch(
            rf"run is being trained by process {os.getpid()} on \S+ since [0-9: +-]+: wait for it, stop it, or choose "
            "another folder",
            message,
        )
    assert contents(run) == before


def test_a_run_leaves_no_lock_and_no_temporary_files_of_killed_processes(run):
    run, name = Path(run), f".x.{socket.gethostname()}.{os.getpid()}.0123abcd.tmp"
    for file in (name, f"checkpoints/{name}", ".lock", ".temp.ckpt"):
        (run / file).touch()
    main(["fit", "--config", "experiment.yaml", "--auto_resume", "true", "--trainer.max_steps", "3"])
    assert list(run.rglob(".*")) == []


def test_a_refused_fit_leaves_nothing_behind(refused):
    refused("fit", "--config", "experiment.yaml", "--model.network.init_args.depth", "-1")
    assert not Path("run").exists()
