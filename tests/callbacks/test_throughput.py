"""Throughput, step time and FLOPs: exact numbers under a fake clock."""

import warnings
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from small_runs import FULL_RATE, quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA, Throughput
from asyncdiff.callbacks.flops import peak_flops, training_flops
from asyncdiff.callbacks.phase_timer import CudaClock, PhaseTimer, WallClock
from asyncdiff.callbacks.throughput import untimed
from asyncdiff.networks.dit import DiT
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.shapes import IndexedLevels, level_map
from datamodules import Digits

BATCH = 479  # a third of the digits: epochs of three batches
# Seconds; powers of two, so that a sum shows its terms.
DATA, FORWARD, ZERO, BACKWARD, CLIP, UPDATE, EARLY, LATE = (2**k for k in range(8))
FOREVER = 2**20


class Ticks(WallClock):
    """Clock that advances only by `tick`."""

    def __init__(self):
        self.time = 0

    def tick(self, seconds):
        self.time += seconds

    def now(self):
        return self.time

    def seconds(self, start, end):
        return end - start


@pytest.fixture
def ticks(monkeypatch):
    clock = Ticks()
    monkeypatch.setattr("asyncdiff.callbacks.throughput.WallClock", lambda: clock)
    monkeypatch.setattr(Timed, "clock", clock)
    return clock


class Timed(AsyncDiffusion):
    """Every part of a step takes its own time."""

    clock = Ticks()

    def training_step(self, batch, batch_idx):
        result = super().training_step(batch, batch_idx)
        self.clock.tick(FORWARD)
        return result

    def backward(self, loss):
        super().backward(loss)
        self.clock.tick(BACKWARD)

    def optimizer_zero_grad(self, *args):
        super().optimizer_zero_grad(*args)
        self.clock.tick(ZERO)

    def configure_gradient_clipping(self, *args, **kwargs):
        super().configure_gradient_clipping(*args, **kwargs)
        self.clock.tick(CLIP)

    def optimizer_step(self, *args):
        super().optimizer_step(*args)
        self.clock.tick(UPDATE)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.clock.tick(FOREVER)


class SlowDigits(Digits):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        Timed.clock.tick(DATA)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


class AtBatchEnd(Callback):
    """Does some work at the end of every batch."""

    def __init__(self, work):
        self.work = work

    def on_train_batch_end(self, trainer, *_):
        self.work(trainer)


class Rows(Logger):
    """Records the logged throughput by step."""

    name, version = "", 0

    def __init__(self):
        super().__init__()
        self.speeds, self.losses = {}, []

    def log_metrics(self, metrics, step=None):
        if "train/ms_step" in metrics:
            self.speeds[step] = metrics
        if "train/loss" in metrics:
            self.losses.append(metrics["train/loss"])

    def log_hyperparams(self, *args, **kwargs):
        pass


def module(kind=Timed, **options):
    return kind(small_dit(**options), sampler=Sampler(steps=2), image_size=8, optimizer=FULL_RATE)


def trainer(tmp_path, callbacks, **options):
    defaults = {"log_every_n_steps": 2, "gradient_clip_val": 1.0, "logger": Rows(), **options}
    return quiet_trainer(tmp_path, callbacks=callbacks, **defaults)


def parts(row, *, steps=2):
    """Seconds in an interval by phase."""
    names = ("data", "forward", "backward", "optimizer", "step")
    return {name: row[f"train/ms_{name}"] * steps / 1000 for name in names}


def split(data, forward, backward, optimizer):
    whole = data + forward + backward + optimizer
    return {"data": data, "forward": forward, "backward": backward, "optimizer": optimizer, "step": whole}


OPTIMIZER = ZERO + CLIP + UPDATE


def test_phases_add_up_to_the_step(ticks, tmp_path):
    early, late = AtBatchEnd(lambda _: ticks.tick(EARLY)), AtBatchEnd(lambda _: ticks.tick(LATE))
    run = trainer(tmp_path, [early, Throughput(), late], max_steps=2)
    run.fit(module(), datamodule=SlowDigits(batch_size=BATCH))
    rows = run.logger.speeds
    assert list(rows) == [2]
    assert parts(rows[2]) == split(2 * DATA + LATE, 2 * FORWARD, 2 * BACKWARD, 2 * (OPTIMIZER + EARLY))
    assert rows[2]["train/images_per_second"] == 2 * BATCH / parts(rows[2])["step"]


def test_a_step_includes_all_accumulated_batches(ticks, tmp_path):
    """Of the three batches of an epoch, accumulated in pairs, the second and the last complete a step."""
    run = trainer(tmp_path, [Throughput()], max_steps=6, accumulate_grad_batches=2)
    run.fit(module(), datamodule=SlowDigits(batch_size=BATCH))
    expected = split(3 * DATA, 3 * FORWARD, 3 * BACKWARD, 2 * OPTIMIZER)
    assert {step: parts(row) for step, row in run.logger.speeds.items()} == dict.fromkeys((2, 4, 6), expected)
    assert {row["train/images_per_second"] for row in run.logger.speeds.values()} == {3 * BATCH / expected["step"]}


def untimed_work(trainer):
    with untimed(trainer):
        Timed.clock.tick(FOREVER)


class Around(Callback):
    """Work at the end of an epoch, and where a validation is set up."""

    def on_train_epoch_end(self, *_):
        Timed.clock.tick(FOREVER)

    def on_validation_start(self, *_):
        Timed.clock.tick(FOREVER)


def test_work_outside_training_is_not_counted(ticks, tmp_path):
    """Sanity checks, validations, sample grids and the time between two epochs."""
    drawing = AtBatchEnd(untimed_work)
    often = {"val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    callbacks = [drawing, Around(), Throughput(), drawing, Around()]
    run = trainer(tmp_path, callbacks, max_steps=8, num_sanity_val_steps=1, **often)
    run.fit(module(), datamodule=SlowDigits(batch_size=BATCH))
    assert ticks.time > 8 * 2 * FOREVER
    assert list(run.logger.speeds) == [2, 4, 6, 8]
    # The wait for the batch after a validation is not counted, unless it starts an epoch: here the third and fifth.
    waits = dict(zip(run.logger.speeds, (2, 1, 1, 2), strict=True))
    for step, row in run.logger.speeds.items():
        assert parts(row) == split(waits[step] * DATA, 2 * FORWARD, 2 * BACKWARD, 2 * OPTIMIZER)


def test_writing_a_checkpoint_is_not_counted(ticks, tmp_path):
    """Nor is the wait for the next batch, unless it starts an epoch, as the first and fourth do here."""

    def save(trainer):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        ticks.tick(FOREVER)

    run = trainer(tmp_path, [Throughput(), AtBatchEnd(save)], max_steps=4)
    run.fit(module(), datamodule=SlowDigits(batch_size=BATCH))
    expected = split(DATA, 2 * FORWARD, 2 * BACKWARD, 2 * OPTIMIZER)
    assert [parts(row) for row in run.logger.speeds.values()] == [expected, expected]


def test_a_resumed_run_averages_over_its_own_steps(ticks, tmp_path):
    first = trainer(tmp_path, [Throughput()], max_steps=3)
    first.fit(module(), datamodule=SlowDigits(batch_size=BATCH))
    first.save_checkpoint(tmp_path / "a.ckpt")
    run = trainer(tmp_path, [Throughput()], max_steps=6)
    run.fit(module(), datamodule=SlowDigits(batch_size=BATCH), ckpt_path=tmp_path / "a.ckpt")
    step = split(DATA, FORWARD, BACKWARD, OPTIMIZER)
    assert parts(run.logger.speeds[4], steps=1) == step
    assert parts(run.logger.speeds[6]) == {name: 2 * seconds for name, seconds in step.items()}
    assert run.logger.speeds[4]["train/images_per_second"] == BATCH / step["step"]


def test_throughput_does_not_change_training(tmp_path):
    runs = []
    for callbacks in ([], [Throughput()]):
        run = trainer(tmp_path, [EMA(0.9), *callbacks], max_steps=4, log_every_n_steps=1, accumulate_grad_batches=2)
        trained = module(AsyncDiffusion, dropout=0.1, checkpointing=True, uncertainty=True)
        run.fit(trained, datamodule=Digits(batch_size=64))
        runs.append((run.logger.losses, trained.state_dict(), torch.get_rng_state()))
        assert not trained.denoiser._forward_pre_hooks
    assert all(row["train/tflops"] > 0 for row in run.logger.speeds.values())
    (losses, weights, state), (same_losses, same_weights, same_state) = runs
    assert len(losses) == 4
    assert same_losses == losses
    assert all(torch.equal(same_weights[name], weights[name]) for name in weights)
    assert torch.equal(same_state, state)


class ByValue(torch.nn.Module):
    """Network that branches on values, which tensors on the meta device do not have."""

    channels = 1

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def grid(self, size):
        return size[0] // 2, size[1] // 2

    def forward(self, x_t, t, label=None):
        return self.factor * x_t if level_map(t).max().item() > 0 else x_t


def test_a_network_that_cannot_be_counted_trains_without_tflops(tmp_path):
    run = trainer(tmp_path, [Throughput()], max_steps=4)
    model = AsyncDiffusion(ByValue(), image_size=8)
    with pytest.warns(UserWarning, match="train/tflops is not logged") as caught:
        run.fit(model, datamodule=Digits(batch_size=64))
    assert len([w for w in caught if "tflops" in str(w.message)]) == 1
    assert list(run.logger.speeds) == [2, 4]
    assert not any("flops" in name or "mfu" in name for row in run.logger.speeds.values() for name in row)


# FLOPs

B, LEVELS, SIZE, WIDTH, DEPTH, HEADS, P = 6, 5, 16, 64, 3, 4, 2
TOKENS = (SIZE // P) ** 2


def call(channels=3):
    draw = torch.Generator().manual_seed(0)
    index = torch.randint(LEVELS, (B, SIZE // P, SIZE // P), generator=draw)
    levels = IndexedLevels(torch.rand(LEVELS, generator=draw), index)
    x = torch.randn(B, channels, SIZE, SIZE, generator=draw)
    return x, levels, torch.zeros(B, dtype=torch.int64)


def forward_flops(classes):
    """Count 2 m n k for every product of an (m, k) and a (k, n) matrix in a DiT."""
    n, pixels, rows = B * TOKENS, 3 * P**2, LEVELS + (B if classes else 0)
    block = 2 * n * (3 + 1 + 4 + 4) * WIDTH**2  # queries, keys, values; projection; MLP of fourfold width
    attention = 2 * 2 * n * TOKENS * WIDTH  # scores and their use
    ends = 2 * 2 * n * pixels * WIDTH
    modulation = 2 * rows * (6 * DEPTH + 2) * WIDTH**2
    embedding = 2 * LEVELS * (256 * WIDTH + WIDTH**2)
    return DEPTH * (block + attention) + ends + modulation + embedding


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"rope": True, "qk_norm": True, "dropout": 0.5}])
def test_flops_of_a_dit(classes, options):
    network = DiT(channels=3, patch_size=P, dim=WIDTH, depth=DEPTH, heads=HEADS, classes=classes, **options)
    x, t, label = call()
    state = torch.get_rng_state()
    assert training_flops(network, (x, t, label if classes else None), {}) == 3 * forward_flops(classes)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.device.type == "cpu" for p in network.parameters())


def test_a_compiled_network_is_counted_uncompiled():
    class Blur(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.filter = torch.nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x_t, t, label=None):
            return self.filter(x_t)

    def refuse(*_):
        raise AssertionError

    network = Blur()
    network.compile(backend=refuse, fullgraph=True)
    assert training_flops(network, call(), {}) == 3 * 2 * B * SIZE**2 * 3 * 5 * 3**2


# A CUDA device, played


class Event:
    """Event that has passed once it was synchronized."""

    passed, synchronised = 0, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = Ticks.device.time

    def synchronize(self):
        Event.synchronised += 1
        Event.passed = max(Event.passed, self.time)

    def elapsed_time(self, end):
        assert self.time <= end.time <= Event.passed
        return 1000.0 * (end.time - self.time)


@pytest.fixture
def cuda(monkeypatch):
    device = Ticks()
    monkeypatch.setattr(Ticks, "device", device, raising=False)
    monkeypatch.setattr(Event, "passed", 0)
    monkeypatch.setattr(Event, "synchronised", 0)
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda _: 7_500_000_000)
    return device


def test_events_are_read_late(cuda):
    watch = PhaseTimer(CudaClock())
    for phase in "abab":
        watch.enter(phase)
        cuda.tick(1 if phase == "a" else 10)
    with watch.paused():
        cuda.tick(FOREVER)
    watch.discard()
    assert Event.synchronised == 0
    assert watch.seconds() == {"a": 2, "b": 20}
    assert watch.seconds() == {}


def test_metrics_of_one_and_of_several_gpus(cuda):
    """One step of 4 images on each of 8 devices: 1 s of data, 2 forward, 4 backward, 1 of the optimizer."""
    rows, network = Rows(), torch.nn.Linear(1000, 1000, bias=False)
    model = Mock(spec=AsyncDiffusion, denoiser=network, device=torch.device("cuda"))
    run = Mock(spec=Trainer, global_step=0, world_size=8, loggers=[rows], log_every_n_steps=1, precision="bf16-mixed")
    speed, batch = Throughput(), {"image": torch.zeros(4, 1000)}
    speed.on_train_start(run, model)
    speed.on_train_epoch_start(run, model)
    cuda.tick(1)
    speed.on_train_batch_start(run, model, batch, 0)
    network(batch["image"])
    cuda.tick(2)
    speed.on_before_backward(run, model, torch.zeros(()))
    cuda.tick(4)
    speed.on_after_backward(run, model)
    cuda.tick(1)
    assert Event.synchronised == 0
    run.global_step = 1
    speed.on_train_batch_end(run, model, None, batch, 0)
    row = rows.speeds[1]
    assert parts(row, steps=1) == split(1, 2, 4, 1)
    assert row["train/images_per_second"] == 8 * 4 / 8
    assert row["train/tflops"] == pytest.approx(3 * 2 * 4 * 1000**2 / 8 / 1e12)
    assert row["train/mfu"] == pytest.approx(row["train/tflops"] / 989.4)  # NVIDIA's figure for bfloat16
    assert row["train/memory_gb"] == 7.5


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "16-mixed", 989.4),
        ("NVIDIA H100 PCIe", "bf16-true", 756),
        ("NVIDIA H100 NVL", "bf16-true", 835.5),
        ("NVIDIA H200", "bf16-mixed", 989.5),
        ("NVIDIA H200", "32-true", 67),
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312),
        ("NVIDIA L40S", "bf16-mixed", 362.05),
        ("NVIDIA L4", "bf16-mixed", 121),
    ],
)
def test_peak_flops_exclude_sparsity(monkeypatch, name, precision, teraflops):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda"), precision) == pytest.approx(teraflops * 1e12)


def test_unknown_peaks_are_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Some GPU")
    with pytest.warns(UserWarning, match="Some GPU"):
        assert peak_flops(torch.device("cuda"), "bf16-mixed") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert peak_flops(torch.device("cpu"), "32-true") is None
        assert peak_flops(torch.device("cuda"), "transformer-engine") is None
