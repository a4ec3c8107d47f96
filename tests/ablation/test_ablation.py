"""Ablations: trials of all combinations, skipping, resuming, reported failures, TensorBoard and SLURM output."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from asyncdiff.ablation import Ablation
from asyncdiff.ablation.config import Metric
from asyncdiff.ablation.launch import Runner, comparable_config, first_difference, resolve_config
from asyncdiff.ablation.tensorboard import last_values, read_curves, write_hparams, write_layout
from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.cli import train as cli
from asyncdiff.cli.commands import ablate

ROOT = Path(__file__).resolve().parents[2]
# Those for ImageNet and LSUN are built in tests/test_experiments.py.
ABLATIONS = sorted(f for f in (ROOT / "experiments" / "ablations").glob("[!il]*.yaml") if "axes:" in f.read_text())
SMALL = {
    "trainer.max_steps": 4,
    "trainer.log_every_n_steps": 1,
    "trainer.val_check_interval": 4,
    "trainer.accelerator": "cpu",
    "model.network.init_args.dim": 16,
    "model.network.init_args.depth": 1,
}


SAVING = """
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: "${trainer.default_root_dir}/checkpoints", every_n_train_steps: EVERY, save_last: true}
"""


def write_ablation(folder: Path, *, every: int = 2, **changes) -> Path:
    (folder / "saving.yaml").write_text(SAVING.replace("EVERY", str(every)))
    content = {
        "base": [os.path.relpath(ROOT / "experiments" / "digits_dit_async.yaml", folder), "saving.yaml"],
        "seeds": [0, 1],
        "axes": {
            "levels": {
                name: os.path.relpath(ROOT / "experiments" / "levels" / f"{name}.yaml", folder)
                for name in ("shared", "async")
            },
            "model.optimizer.learning_rate": [0.001, 0.002],
        },
        "set": SMALL,
        "metrics": {"train/loss": {"goal": "min", "label": "loss"}, "val/loss": "min"},
    } | changes
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
    return file


def run_ablate(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "asyncdiff", "ablate", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_trials_are_all_combinations_seed_by_seed(tmp_path):
    ablation = Ablation.read(write_ablation(tmp_path))
    trials = ablation.trials()
    assert [(trial.variant, trial.seed) for trial in trials] == [
        (f"{levels},{rate}", seed) for seed in (0, 1) for levels in ("shared", "async") for rate in (0.001, 0.002)
    ]
    assert len({trial.folder(tmp_path) for trial in trials}) == len(trials)


def test_the_config_of_a_trial_is_resolved_from_its_arguments(tmp_path):
    trial = Ablation.read(write_ablation(tmp_path)).trials()[-1]
    config = resolve_config(trial, tmp_path, cli.parse_config)
    assert config["model"]["levels"]["class_path"] == "asyncdiff.noise.AlongPath"
    assert config["model"]["optimizer"]["learning_rate"] == 0.002
    assert config["seed_everything"] == config["model"]["seed"] == config["data"]["init_args"]["seed"] == 1
    assert config["trainer"]["max_steps"] == 4
    assert "default_root_dir" not in config["trainer"]


def test_variants_override_common_settings_and_later_axes_override_earlier_ones(tmp_path):
    axes = {
        "a": {"x": {"model.optimizer.learning_rate": 1.0}},
        "b": {"y": [{"model.optimizer.learning_rate": 2.0}], "none": None},
    }
    trials = Ablation.read(
        write_ablation(tmp_path, axes=axes, set={"model.optimizer.learning_rate": 0.5}, seeds=[0])
    ).trials()
    assert [trial.settings["model.optimizer.learning_rate"] for trial in trials] == [2.0, 1.0]


def test_earlier_keys_name_the_same_trials_with_a_warning(tmp_path, capsys):
    def read(rate: str, steps: str, **changes) -> list:
        axes = {rate: [0.001, 0.002], "b": {"y": ["saving.yaml", {steps: 7}]}}
        return Ablation.read(write_ablation(tmp_path, axes=axes, set={steps: 5}, **changes)).trials()

    earlier = read("model.learning_rate", "model.warmup_steps")
    assert "model.learning_rate is now model.optimizer.learning_rate" in capsys.readouterr().err
    assert earlier == read("model.optimizer.learning_rate", "model.optimizer.warmup_steps")
    assert earlier[0].settings["model.optimizer.warmup_steps"] == 7
    both = {"model.betas": 1, "model.optimizer.betas": 2}
    with pytest.raises(ValueError, match=r"small.yaml: model.betas is an earlier name of .* got 1 and 2: remove"):
        Ablation.read(write_ablation(tmp_path, set=both))


def test_run_directories_are_ignored_in_comparisons():
    one = comparable_config(
        {"trainer": {"default_root_dir": "/a", "max_steps": 3}, "callbacks": ["/a/checkpoints"]}, "/a"
    )
    two = comparable_config(
        {"trainer": {"default_root_dir": "/b", "max_steps": 3}, "callbacks": ["/b/checkpoints"]}, "/b"
    )
    assert one == two
    assert first_difference(one, two | {"trainer": {"max_steps": 4}}) == "trainer.max_steps 3 -> 4"
    assert first_difference(one, two | {"added_in_a_later_version": None}) is None
    assert first_difference({"paths": {"async_0.5": {"span": 1}}}, {"paths": {"async_0.5": {"span": 2}}}) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": None}, "axes must map at least one axis"),
        ({"axes": {"a": {}}}, "axes.a has no variants"),
        (
            {"axes": {"model.optimizer.learning_rate": [1.0, 1.0]}},
            "axes.model.optimizer.learning_rate lists a value twice",
        ),
        ({"axes": {"a": {"x/y": None}}}, "variants must be valid folder names, got 'x/y'"),
        ({"axes": {"a": {"x": "nowhere.yaml"}}}, r"axes.a.x must name YAML files .*nowhere.yaml is not a file"),
        ({"seeds": [0, 0]}, "seeds must be distinct"),
        ({"seeds": 3}, "seeds must be a list of integers"),
        ({"set": {"learning_rate": 1}}, "can only set keys of data, model, trainer or vars, got learning_rate"),
        ({"metrics": {"val/loss": "smaller"}}, "metrics.val/loss must be min, max"),
        ({"metrics": None}, "metrics must map the tags"),
        ({"bases": []}, "unknown key bases: choose from base, seeds, axes, set, metrics"),
    ],
)
def test_invalid_files_are_reported_in_one_line(tmp_path, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Ablation.read(write_ablation(tmp_path, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("file", ABLATIONS, ids=lambda f: f.stem)
def test_every_shipped_ablation_can_be_run(file, tmp_path):
    ablation = Ablation.read(file)
    first = [trial for trial in ablation.trials() if trial.seed == ablation.seeds[0]]
    configs = Runner(ablation, tmp_path, cli.parse_config).check(first)
    texts = [json.dumps(config, sort_keys=True) for config in configs.values()]
    assert len(set(texts)) == len(texts)


def write_curves(folder: Path, **curves: list[float]) -> Path:
    with SummaryWriter(str(folder)) as writer:
        for tag, values in curves.items():
            for step, value in enumerate(values):
                writer.add_scalar(tag.replace("__", "/"), value, step)
    return folder


def test_each_step_counts_once(tmp_path):
    """If runs of earlier versions logged a step twice, the two values differ only in throughput."""
    (earlier,) = write_curves(tmp_path, val__loss=[3.0, 2.0, 9.0]).iterdir()
    earlier.rename(tmp_path / "events.out.tfevents.1.host.1.0")  # files are read in the order of their times
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("val/loss", 1.0, 2)
    assert read_curves(tmp_path)["val/loss"] == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_a_missing_metric_is_reported_with_the_available_ones(tmp_path):
    curves = read_curves(write_curves(tmp_path, val__loss=[3.0], other=[1.0]))
    with pytest.raises(ValueError, match=r"did not log the metric frechet: choose from other, val/loss"):
        last_values(curves, [Metric("frechet", "f", "min")], tmp_path)


def test_hparams_and_chart_layouts_do_not_change_the_curves(tmp_path):
    ablation = Ablation.read(write_ablation(tmp_path, metrics={"val/loss": "min"}))
    trial = ablation.trials()[0]
    folder = write_curves(trial.folder(tmp_path), val__loss=[3.0, 2.0])
    for _ in range(2):  # a second call replaces the first
        write_hparams(trial, ablation, folder, {"val/loss": 2.0}, step=1)
        write_layout(ablation, tmp_path)
    assert len(list(folder.glob("*.ablation"))) == len(list(tmp_path.glob("*.ablation"))) == 1
    assert read_curves(folder) == {"val/loss": [(0, 3.0), (1, 2.0)]}

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata
    from tensorboard.plugins.hparams import metadata as hparams

    events = EventAccumulator(str(next(iter(folder.glob("*.ablation")))))
    events.Reload()
    assert events.Scalars("hp/val/loss")[-1].value == 2.0
    session = hparams.parse_session_start_info_plugin_data(
        events.summary_metadata[hparams.SESSION_START_INFO_TAG].plugin_data.content
    )
    assert {name: v.string_value or v.number_value for name, v in session.hparams.items()} == {
        "levels": "shared",
        "model.optimizer.learning_rate": "0.001",
        "seed": 0,
    }
    root = EventAccumulator(str(next(iter(tmp_path.glob("*.ablation")))))
    root.Reload()
    layout = layout_pb2.Layout()
    layout.ParseFromString(root.Tensors(metadata.CONFIG_SUMMARY_TAG)[0].tensor_proto.string_val[0])
    charts = [[list(chart.multiline.tag) for chart in category.chart] for category in layout.category]
    assert charts == [[["^val/loss$"]], [["^train/loss$"], ["^val/error_constant$"], ["^val/error_heterogeneous$"]]]


def test_the_table_has_means_and_deviations_over_the_seeds(tmp_path):
    grid = Ablation.read(write_ablation(tmp_path, metrics={"val/loss": {"goal": "min", "label": "loss"}}))
    rows = {"shared,0.001": [{"val/loss": 1.0}, {"val/loss": 3.0}], "async,0.001": [{"val/loss": 2.0}]}
    assert ablate.table(grid, rows).splitlines() == [
        "| levels, model.optimizer.learning_rate | seeds | loss |",
        "|---|---|---|",
        "| shared,0.001 | 2 | 2.000 ± 1.414 |",
        "| async,0.001 | 1 | 2.000 |",
    ]


def test_a_trial_of_another_process_is_left_alone(tmp_path):
    (trial,), lines = Ablation.read(write_ablation(tmp_path, axes={"levels": {"async": None}}, seeds=[0])).trials(), []
    runner = Runner(Ablation.read(tmp_path / "small.yaml"), tmp_path / "out", cli.parse_config, log=lines.append)
    folder = trial.folder(runner.output)
    with hold(folder, "being run", lock=folder / ".trial.lock"):
        assert runner.run([trial], {(trial.variant, trial.seed): {}}, 1) == ["elsewhere"]
    assert len(lines) == 1
    assert f"async, seed 0: {folder} is being run by process {os.getpid()} on" in lines[0]
    assert not folder.exists()


@pytest.mark.slow
def test_finished_trials_are_skipped_and_other_settings_rejected(tmp_path):
    axes = {"levels": {"async": None}, "model.label_dropout": [0.5, 7.0]}  # the second one fails when it is built
    file, out = write_ablation(tmp_path, axes=axes, seeds=[0]), str(tmp_path / "out")
    first = run_ablate(str(file), "--output", out)
    assert first.returncode == 1, first.stderr
    assert "async,0.5, seed 0: finished in" in first.stdout
    assert "async,7.0, seed 0: failed" in first.stdout
    assert "label_dropout must lie in [0, 1], got 7.0" in first.stdout  # the last line of its log
    assert "1 of 2 trials are finished" in first.stdout
    write_ablation(tmp_path, axes=axes | {"model.label_dropout": [0.5]}, seeds=[0])
    again = run_ablate(str(file), "--output", out)
    assert again.returncode == 0, again.stderr
    assert "async,0.5, seed 0: already finished" in again.stdout
    write_ablation(
        tmp_path,
        axes=axes | {"model.label_dropout": [0.5]},
        seeds=[0],
        set=SMALL | {"model.optimizer.weight_decay": 0.1},
    )
    other = run_ablate(str(file), "--output", out)
    assert other.returncode == 2
    assert (
        "was run with other settings (model.optimizer.weight_decay 0.0 -> 0.1): choose another --output" in other.stderr
    )
    assert len(other.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_ablation_is_resumed(tmp_path, interruption):
    long = SMALL | {"trainer.max_steps": 150, "trainer.val_check_interval": 150}
    file = write_ablation(tmp_path, axes={"levels": {"async": None}}, seeds=[0], set=long, every=20)
    argv = [sys.executable, "-m", "asyncdiff", "ablate", str(file), "--output", str(tmp_path / "out")]
    argv += ["--threads", "1"]
    run = tmp_path / "out" / "async" / "seed_0"
    # If the tests run in the background, SIGINT is ignored, and children inherit that.
    restore_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    output = tmp_path / "output.txt"
    with output.open("w") as file_of_output:
        streams = {"stdout": file_of_output, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(argv, cwd=ROOT, preexec_fn=restore_sigint, **streams)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(interruption)
    assert process.wait(timeout=60) != 0
    assert f"async, seed 0: interrupted, see {run / 'log.txt'}" in output.read_text()
    # No process of the ablation is still running: the locks of the trial and of its run are free.
    with hold(run, "being run", lock=run / ".trial.lock"), hold(run, "being trained"):
        pass
    assert not (run / "finished.json").exists()
    again = run_ablate(str(file), "--output", str(tmp_path / "out"))
    assert again.returncode == 0, again.stdout + again.stderr
    steps = [step for step, _ in read_curves(run)["train/loss"]]
    assert steps == list(range(150))
    assert "resumes after step" in (run / "log.txt").read_text()


@pytest.mark.slow
def test_a_trial_can_use_several_processes(tmp_path):
    two = SMALL | {"trainer.devices": 2, "trainer.strategy": "ddp"}
    file = write_ablation(tmp_path, axes={"levels": {"async": None}}, seeds=[0], set=two)
    done = run_ablate(str(file), "--output", str(tmp_path / "out"))
    run = tmp_path / "out" / "async" / "seed_0"
    assert done.returncode == 0, (run / "log.txt").read_text()[-2000:]
    assert "distributed_backend=gloo" in (run / "log.txt").read_text()
    assert [step for step, _ in read_curves(run)["train/loss"]] == list(range(4))


@pytest.mark.parametrize(
    ("argv", "array"),
    [
        (["--sbatch", "--gres=gpu:8"], "0-7"),  # not an option of ablate
        (["--sbatch=--gres=gpu:8"], "0-7"),
        (["--sbatch", "--gres=gpu:8 --time=1:00:00", "--parallel", "3"], "0-7%3"),
    ],
)
def test_a_slurm_script_has_one_task_per_trial(tmp_path, monkeypatch, argv, array):
    monkeypatch.setattr("asyncdiff.cli.train.parse_config", lambda args: {})
    script = tmp_path / "job.sh"
    ablate.main([str(write_ablation(tmp_path)), "--output", str(tmp_path / "out"), "--slurm", str(script), *argv])
    lines = script.read_text().splitlines()
    assert {f"#SBATCH --array={array}", "#SBATCH --gres=gpu:8"} <= set(lines)
    assert lines[-1].endswith("--cell $SLURM_ARRAY_TASK_ID")
    assert not list((tmp_path / "out").glob("*/seed_0"))
