"""Non-finite steps change nothing, are counted, and end a run with many of them in a row."""

import copy
import json
import math
from unittest import mock

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from optimization_run import Poison, fit, model
from pretend_gpu.pretended_cuda import run_on_both
from processes import run_script
from torch import nn

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA
from asyncdiff.callbacks.ema import update_averages
from asyncdiff.checkpoints import read_checkpoint
from asyncdiff.cli.errors.user_errors import user_error_message
from asyncdiff.devices import to_device
from asyncdiff.networks import UNet
from asyncdiff.randomness import counter_key
from asyncdiff.training.optimization import gradients
from asyncdiff.training.optimization.gradients import (
    check_finite,
    gradient_norms,
    nan_gradient_if_nonfinite,
    total_norm,
)
from asyncdiff.training.optimization.nonfinite_steps import StepGuard
from datamodules import Digits

KEPT = ("weights", "moments", "average")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run(folder, batches, steps=5, *, stop_after=10, **options):
    """Train with NaN in some batches; return the module, the recorded states and the trainer."""
    poison, module = Poison(batches), model(stop_after)
    trainer = fit(folder, module, [EMA(0.9), poison], steps, **options)
    return module, poison.seen, trainer


# One skipped step


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0.5},
        {"gradient_clip_val": 0.5, "precision": "bf16-mixed"},
        {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
    ],
)
def test_a_skipped_step_keeps_everything_bit_for_bit(tmp_path, options):
    _, seen, trainer = run(tmp_path, {2}, **options)
    before, skipped, after = seen[1:4]
    assert all(equal(before[name], skipped[name]) for name in KEPT)
    assert all(not equal(skipped[name], after[name]) for name in KEPT)
    assert [s["skipped"] for s in seen] == [0, 0, 1, 1, 1]
    assert [s["in_a_row"] for s in seen] == [0, 0, 1, 0, 0]
    assert [s["updates"] for s in seen] == [1, 2, 2, 3, 4]
    assert {float(v) for name, v in after["moments"].items() if name.endswith("step")} == {3.0}
    assert all(p.isfinite().all() for p in seen[-1]["weights"].values())
    # The learning rate schedule advances: 1e-2 after 100 steps.
    assert [s["rate"] for s in seen] == pytest.approx([k * 1e-4 for k in (2, 3, 4, 5, 6)])
    assert trainer.callback_metrics["train/skipped_steps"] == 1
    assert trainer.callback_metrics["train/skipped_in_a_row"] == 0


def test_finite_steps_equal_plain_adamw(tmp_path):
    _, seen, _ = run(tmp_path, (), steps=3)
    again = model()
    again.log = lambda *args, **options: None  # there is no trainer
    optimizer = torch.optim.AdamW(again.parameters(), 1e-2, betas=(0.9, 0.99), weight_decay=0, fused=True)
    data = Digits(batch_size=8)
    for k, batch in zip(range(3), data.train_dataloader(), strict=False):
        optimizer.param_groups[0]["lr"] = (k + 1) * 1e-4
        again.on_train_batch_start(batch, k)
        again.zero_grad()
        again.training_step(batch, k)["loss"].backward()
        optimizer.step()
    assert equal(seen[-1]["weights"], dict(again.named_parameters()))


def test_one_bad_batch_skips_the_step_it_is_accumulated_in(tmp_path):
    _, seen, _ = run(tmp_path, {1, 2}, steps=3, accumulate_grad_batches=2)
    assert [s["skipped"] for s in seen] == [0, 1, 1, 2, 2, 2]
    assert equal(seen[0]["weights"], seen[3]["weights"])
    assert not equal(seen[3]["weights"], seen[5]["weights"])


def test_steps_of_optimizers_that_are_not_fused_are_skipped(tmp_path, monkeypatch):
    def sgd(self):
        return torch.optim.SGD(self.parameters(), 1e-2, momentum=0.9, weight_decay=0.1)

    monkeypatch.setattr("asyncdiff.AsyncDiffusion.configure_optimizers", sgd)
    _, seen, _ = run(tmp_path, {2})
    assert all(equal(seen[1][name], seen[2][name]) for name in KEPT)
    assert not equal(seen[2]["weights"], seen[3]["weights"])
    assert seen[-1]["skipped"] == 1


def test_a_loss_that_is_not_finite_has_no_finite_gradient():
    for value in (math.inf, -math.inf, math.nan):
        x = torch.tensor([1.0, 2.0], requires_grad=True)
        nan_gradient_if_nonfinite(x.sum() + value).backward()  # the plain gradient would be 1
        assert x.grad.isnan().all()
    x = torch.tensor([1.1, 2.3], requires_grad=True)
    loss = x.square().sum()
    (plain,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(nan_gradient_if_nonfinite(loss), loss)
    assert torch.equal(torch.autograd.grad(nan_gradient_if_nonfinite(loss), x)[0], plain)


# float16 and its scaled loss


def test_an_overflow_of_the_scaled_loss_is_counted_separately(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    options = {"plugins": [plugin], "gradient_clip_val": 1.0, "stop_after": 2}
    _, seen, trainer = run(tmp_path, (), steps=6, **options)
    overflows = seen[-1]["overflows"]
    assert 0 < overflows < 6
    assert seen[-1]["skipped"] == 0
    assert scaler.get_scale() == 2.0 ** (20 - overflows)
    assert equal(seen[0]["weights"], seen[overflows - 1]["weights"])
    assert not equal(seen[overflows - 1]["weights"], seen[overflows]["weights"])
    assert seen[-1]["updates"] == 6 - overflows
    assert trainer.callback_metrics["train/overflowed_steps"] == overflows
    assert trainer.callback_metrics["train/gradient_norm"] < 1e6  # of the loss, not of the scaled one


def test_a_non_finite_loss_is_counted_under_a_scaled_loss_too(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    _, seen, _ = run(tmp_path, {2}, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert all(equal(seen[1][name], seen[2][name]) for name in KEPT)
    assert (seen[-1]["skipped"], seen[-1]["overflows"]) == (1, 0)


def test_overflows_at_a_scale_of_one_are_skipped_steps():
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))  # it begins with the first loss
    layer = nn.Linear(2, 1)
    optimizer, guard = torch.optim.AdamW(layer.parameters(), fused=True), StepGuard(1)
    guard.watch(torch.ones(()), index=None)
    for p in layer.parameters():
        p.grad = torch.full_like(p, math.inf)
    assert guard.check(optimizer, layer, step=1, epoch=0, scaler=scaler).counters()["in_a_row"] == 1
    assert guard.state() == {"skipped": 1, "in_a_row": 1, "overflows": 0}


# Too many in a row


def test_many_in_a_row_end_the_run_with_a_dump_of_the_last(tmp_path):
    poison, module = Poison({1, 3, 4, 5}), model(stop_after=3, seed=7)
    with pytest.raises(ValueError, match=r"must be finite, got .* 3 steps in a row up to step 6: .*step_6") as error:
        fit(tmp_path, module, [poison], 10)
    line = user_error_message(error.value)
    assert line is not None
    assert "\n" not in line
    assert str(tmp_path / "not_finite" / "step_6_rank_0.json") in line
    dump = json.loads((tmp_path / "not_finite" / "step_6_rank_0.json").read_text(), parse_constant=pytest.fail)
    assert [dump[name] for name in ("step", "epoch", "rank", "seed")] == [6, 0, 0, 7]
    assert (dump["steps_in_a_row"], dump["skipped_steps"], dump["loss_is_finite_here"]) == (3, 4, False)
    assert dump["gradients_not_finite_count"] == len(list(module.parameters()))
    assert dump["gradients_not_finite"][0] in dict(module.named_parameters())
    assert dump["parameters_not_finite"] == []
    (batch,) = dump["batches"]
    data = Digits(batch_size=8)
    expected = [b for _, b in zip(range(6), data.train_dataloader(), strict=False)][5]
    assert batch["index"] == expected["index"].tolist()
    assert batch["key"] == expected["key"].tolist()
    assert batch["label"] == expected["label"].tolist()
    assert batch["stream"] == counter_key(7, 0, int(expected["key"][0]))
    assert batch["loss"] == "nan"
    assert [k for k, loss in enumerate(batch["loss_per_image"]) if loss == "nan"] == [1]  # the image at fault
    torch.manual_seed(batch["stream"])  # the levels are those that the stream gives again
    assert torch.equal(module._sample_levels(8).t, torch.tensor(batch["levels"]))
    assert batch["files"] is None  # the digits have none
    # No weight has moved since the last good step.
    assert equal(poison.seen[2]["weights"], dict(module.named_parameters()))


def test_counters_read_late_report_their_own_step(tmp_path, monkeypatch):
    monkeypatch.setattr("asyncdiff.training.optimization.nonfinite_steps.lag", lambda device: 2)  # as on a GPU
    poison, module = Poison({1, 2, 3}), model(stop_after=2)
    with pytest.raises(ValueError, match="2 steps in a row up to step 3: see .*step_3_rank_0.json"):
        fit(tmp_path, module, [poison], 10)
    assert len(poison.seen) == 4  # the stop is found in the fifth step
    (batch,) = json.loads((tmp_path / "not_finite" / "step_3_rank_0.json").read_text())["batches"]
    assert batch["loss"] == "nan"


def test_zero_never_ends_a_run(tmp_path):
    _, seen, _ = run(tmp_path, range(12), steps=12, stop_after=0)
    assert seen[-1]["in_a_row"] == 12


def test_the_dump_names_files_if_there_are_any(tmp_path):
    class Named(Digits):
        def dataset(self, split):
            found = super().dataset(split)
            found.name = lambda index: f"{split}/{index}.png"
            return found

    with pytest.raises(ValueError, match="step_1_rank_0.json"):
        fit(tmp_path, model(stop_after=1), [Poison({0})], 3, data=Named(batch_size=8))
    (batch,) = json.loads((tmp_path / "not_finite" / "step_1_rank_0.json").read_text())["batches"]
    assert batch["files"] == [f"train/{index}.png" for index in batch["index"]]


def test_the_error_is_raised_even_if_no_file_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "not_finite").write_text("in the way")
    with pytest.raises(ValueError, match=r"2 steps in a row up to step 2: no file could be written \(.*\)"):
        run(tmp_path, {0, 1}, stop_after=2)

    def gone(self, indices):
        raise FileNotFoundError("the data are gone")

    monkeypatch.setattr("asyncdiff.AsyncDiffusion._files", gone)
    with pytest.raises(ValueError, match=r"1 steps in a row up to step 1: no file could be written \(the data"):
        run(tmp_path, {0}, stop_after=1)


# Checkpoints


def test_a_resumed_run_restores_the_counters(tmp_path):
    _, _, trainer = run(tmp_path, {0, 2, 3}, steps=4)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert read_checkpoint(tmp_path / "half.ckpt")["skipped_steps"] == {"skipped": 3, "in_a_row": 2, "overflows": 0}
    poison = Poison({4})
    with pytest.raises(ValueError, match="3 steps in a row up to step 5"):
        fit(tmp_path, model(stop_after=3), [poison], 8, resume=tmp_path / "half.ckpt")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    module, _, trainer = run(tmp_path, (), steps=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()
    with torch.no_grad():
        module.network.blocks[0].attention.proj.weight[0, 0] = math.inf
    with pytest.raises(
        ValueError, match=r"must be finite to be saved, got NaN or infinity in .*blocks.0.attention.proj.weight"
    ):
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_checkpoints_without_counters_start_from_zero():
    guard = StepGuard()
    guard.restore({})
    assert guard.state() == {"skipped": 0, "in_a_row": 0, "overflows": 0}


# Norms, clipping, averages


def test_norms_in_half_precision_do_not_overflow():
    halves = [torch.full((4,), 6e4, dtype=torch.float16), torch.full((3,), 2.0, dtype=torch.bfloat16)]
    norms = gradient_norms(halves)
    assert norms.tolist() == pytest.approx([1.2e5, 12**0.5], rel=1e-3)
    assert total_norm(norms, halves).item() == pytest.approx(1.2e5, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_equals_that_of_pytorch(dtype):
    torch.manual_seed(0)
    a, b = ([nn.Parameter(torch.zeros(3, 2, dtype=dtype)), nn.Parameter(torch.zeros(5, dtype=dtype))] for _ in "ab")
    module = model()
    for algorithm, plain in [("norm", nn.utils.clip_grad_norm_), ("value", nn.utils.clip_grad_value_)]:
        for p, q in zip(a, b, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        found = [p.grad for p in a]
        module.guard.norm = total_norm(gradient_norms(found), found)
        module.configure_gradient_clipping(torch.optim.SGD(a), 0.7, algorithm)
        plain(b, 0.7)
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(a, b, strict=True))


def test_updates_on_the_device_equal_those_on_the_host():
    torch.manual_seed(0)
    averages = [torch.randn(3, 2), torch.tensor([-1e30, 1e30, 1e-30]), torch.randn(())]
    parameters = [torch.randn(3, 2), torch.tensor([0.0, -1e30, 1e30]), torch.randn(())]
    before = [a.clone() for a in averages]
    update_averages(averages, parameters, torch.zeros(()))
    assert all(torch.equal(a, b) for a, b in zip(averages, before, strict=True))
    update_averages(averages, parameters, torch.tensor(0.125))
    for a, b, p in zip(averages, before, parameters, strict=True):
        assert torch.allclose(a, b.lerp(p, 0.125), atol=1e-6)


def test_the_ema_on_a_device_subtracts_skipped_steps_later():
    ema = EMA(0.9)
    ema.updates, ema._skipped = 7, torch.tensor(2.0)
    assert float(ema._decay(ema.updates - ema._skipped)) == pytest.approx(6 / 15)
    ema._subtract_skipped()
    assert ema.updates == 5
    assert ema._decay(5) == pytest.approx(6 / 15)
    assert float(ema._decay(torch.tensor(1e6))) == pytest.approx(0.9)


class Vectors(type):
    """Type of all vectors."""

    def __instancecheck__(cls, x):
        return x.ndim == 1


def test_the_norm_of_shards_and_whole_gradients_waits_for_no_gpu(monkeypatch):
    monkeypatch.setattr(gradients, "DTensor", Vectors("Vector", (), {}))  # vectors count as shards

    def flow(device, watch):
        norms = to_device(torch.tensor([3.0, 2.0, 6.0, 4.0]), device)
        kinds = [torch.zeros(1), torch.zeros(()), torch.zeros(1), torch.zeros(())]
        with mock.patch.object(torch.distributed, "all_reduce", lambda total: total.mul_(2)):
            mixed, sharded = total_norm(norms, kinds), total_norm(norms[::2], kinds[::2])
        return mixed.square(), sharded.square(), list(watch.waits)

    watch, usual, found = run_on_both(flow)
    assert not watch.mixed
    assert found[2] == []
    for result in (usual, found):
        assert [float(square) for square in result[:2]] == pytest.approx([2 * 45 + 20, 2 * 45], rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_of_any_memory_layout_are_resumed(layout):
    """Those of a sharded U-Net are contiguous in checkpoints; its convolutions are channels-last in memory."""
    module, later = (AsyncDiffusion(UNet(1, 8, (1, 2), 1, head_dim=8), image_size=8) for _ in range(2))
    later.load_state_dict(module.state_dict())
    torch.manual_seed(0)
    for p, q in zip(module.parameters(), later.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    first, second = (each.configure_optimizers()["optimizer"] for each in (module, later))
    first.step()
    saved = copy.deepcopy(first.state_dict())
    for state in saved["state"].values():
        state |= {n: x.contiguous(memory_format=layout) if x.ndim == 4 else x for n, x in state.items()}
    second.load_state_dict(saved)
    later.load_state_dict(module.state_dict())
    for optimizer in (first, second):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), later.parameters(), strict=True))


def test_the_error_names_the_weight():
    good, bad = ("good", torch.ones(2)), ("bad", torch.tensor([1.0, math.nan]))
    check_finite([good], torch.device("cpu"))
    with pytest.raises(ValueError, match="got NaN or infinity in bad"):
        check_finite([good, bad], torch.device("cpu"))


# Several processes


@pytest.fixture(scope="module")
def poisoned_runs(tmp_path_factory):
    """Folder of runs of two processes, one of which gets images that are not finite."""
    folder = tmp_path_factory.mktemp("processes")
    run_script("optimization_run.py", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fully_shard"])
def test_all_processes_skip_if_one_has_a_bad_batch_and_stop_together(poisoned_runs, strategy):
    folder = poisoned_runs / strategy
    for rank in (0, 1):
        held = torch.load(folder / f"rank_{rank}.pt", weights_only=True)
        seen = held["seen"]
        assert [s["skipped"] for s in seen] == [0, 1, 1, 2]  # the run ends in the next one
        assert [s["updates"] for s in seen] == [1, 1, 2, 2]
        assert all(equal(seen[0][name], seen[1][name]) for name in KEPT)
        assert not equal(seen[1]["weights"], seen[2]["weights"])
        assert "2 steps in a row up to step 5" in held["error"]
        dump = json.loads((folder / "not_finite" / f"step_5_rank_{rank}.json").read_text())
        assert dump["loss_is_finite_here"] == (rank == 0)
        assert dump["gradients_not_finite_count"] > 0
