"""`trainer.precision: auto`: bfloat16 where the processor computes in it, float32 elsewhere."""

from functools import partial

import pytest
import torch
import yaml

from asyncdiff.cli import trainer_precision
from asyncdiff.cli.train import ExperimentCLI, main
from asyncdiff.cli.trainer_precision import choose_precision, emulation_warning, trainer_device

RUN = """
data: {class_path: datamodules.Digits, init_args: {batch_size: 32}}
model:
  network: {class_path: asyncdiff.networks.DiT, init_args: {channels: 1, patch_size: 4, dim: 8, depth: 1, heads: 1}}
  image_size: 8
trainer:
  default_root_dir: run
  accelerator: cpu
  max_steps: 1
  limit_val_batches: 0
  enable_progress_bar: false
  logger: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: "${trainer.default_root_dir}/checkpoints", every_n_train_steps: 1, save_last: true}
"""


@pytest.fixture
def processor(monkeypatch):
    """Function that says whether all processors have bfloat16 instructions."""
    return lambda fast: monkeypatch.setattr(trainer_precision, "fast_bfloat16", lambda device: fast)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Function that runs a command of train.py in an empty directory and returns its trainer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    built = []
    monkeypatch.setattr(ExperimentCLI, "after_instantiate_classes", lambda self: built.append(self.trainer))

    def run(command, *options):
        main([command, "--config", "run.yaml", *options])
        return built[-1]

    return run


@pytest.mark.parametrize(
    ("precision", "fast", "chosen", "note"),
    [
        ("auto", True, "bf16-mixed", "auto: this CPU has bfloat16 instructions"),
        ("auto", False, "32-true", "auto: this CPU has no bfloat16 instructions"),
        ("bf16-mixed", False, "bf16-mixed", ""),
        ("32-true", True, "32-true", ""),
        (16, True, 16, ""),
        (None, True, None, ""),
    ],
)
def test_only_auto_depends_on_the_processor(precision, fast, chosen, note, processor):
    processor(fast)
    assert choose_precision(precision, "cpu") == (chosen, note)


def test_auto_asks_about_the_device_that_the_trainer_uses(monkeypatch):
    asked = []
    monkeypatch.setattr(trainer_precision, "fast_bfloat16", lambda device: not asked.append(device.type))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    notes = [choose_precision("auto", accelerator)[1] for accelerator in ("auto", "gpu", "cuda", "cpu")]
    assert asked == ["cuda", "cuda", "cuda", "cpu"]
    assert [note.split()[2] for note in notes] == ["GPU", "GPU", "GPU", "CPU"]


def test_without_a_gpu_auto_uses_the_cpu_and_a_gpu_is_left_to_the_trainer_to_refuse(monkeypatch, run, expect_error):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert [trainer_device(accelerator).type for accelerator in ("auto", "cpu", "gpu")] == ["cpu", "cpu", "cuda"]
    if not torch.cuda.is_available():
        argv = ["fit", "--config", "run.yaml", "--trainer.precision", "auto", "--trainer.accelerator", "gpu"]
        assert expect_error(*argv, command=main) == "No supported gpu backend found!"


@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed", "bf16-true"])
def test_a_cpu_that_emulates_the_precision_is_warned_about(precision, processor):
    processor(False)
    expected = (
        f"trainer.precision is {precision}, but this CPU has no bfloat16 instructions: "
        "it is about 9 times slower than float32; use auto"
    )
    assert emulation_warning(precision, "cpu") == expected
    assert [emulation_warning(other, "cpu") for other in ("auto", "32-true", "64-true", None)] == [""] * 4
    processor(True)
    assert emulation_warning(precision, "cpu") == ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("fast", "precision"), [(False, "32-true"), (True, "bf16-mixed")])
def test_a_run_says_what_auto_chose_and_its_config_keeps_auto(fast, precision, processor, run, tmp_path, capfd):
    processor(fast)
    assert run("fit", "--trainer.precision", "auto").precision == precision
    reason = "bfloat16 instructions" if fast else "no bfloat16 instructions"
    out, err = capfd.readouterr()
    assert f"hardware: CPU, precision {precision} (auto: this CPU has {reason})" in out
    assert "warning" not in err
    assert "AMP" not in out + err  # Lightning's own message says the same
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["precision"] == "auto"
    again = run("validate", "--trainer.precision", "auto", "--ckpt_path", "last", "--trainer.limit_val_batches", "1")
    assert again.precision == precision


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_emulates_is_warned_about_in_one_line(processor, run, capfd):
    processor(False)
    assert run("fit", "--trainer.precision", "bf16-mixed").precision == "bf16-mixed"
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"warning: {emulation_warning('bf16-mixed', 'cpu')}"


def test_other_precisions_are_refused_with_all_choices(run, expect_error):
    refused = partial(expect_error, command=main)
    message = refused("fit", "--config", "run.yaml", "--trainer.precision", "fast")
    assert message.startswith("--trainer.precision: must be one of 'auto', 64, 32, 16, ")
    assert message.endswith("'bf16' or null, got fast")
