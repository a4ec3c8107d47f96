from unittest import mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pretend_gpu.pretended_cuda import run_on_both
from small_runs import quiet_trainer
from torch import nn

from asyncdiff.callbacks.ema import EMA, ema_weights


class Drift(LightningModule):
    """One parameter that grows by one each step, and an integer buffer that the EMA must not touch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("count", torch.tensor(5))
        self.seen = []

    def training_step(self, batch, index):
        return -self.weight.sum()

    def validation_step(self, batch, index):
        self.seen.append(self.weight[0].item())
        if getattr(self, "fail", False):
            raise RuntimeError("in the middle of a validation")

    def on_save_checkpoint(self, checkpoint):  # as AsyncDiffusion does
        for callback in self.trainer.callbacks:
            if isinstance(callback, EMA):
                callback.add_average(checkpoint, self)

    def on_load_checkpoint(self, checkpoint):
        self.averaged = checkpoint["ema"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(tmp_path, module, callbacks, steps=5, resume=None, **options):
    run = quiet_trainer(tmp_path, max_steps=steps, callbacks=callbacks, **options)
    data = torch.utils.data.DataLoader(torch.zeros(8, 1))
    run.fit(module, data, data, ckpt_path=resume)
    return run


def expected(decay: float, steps: int) -> float:
    average = 0.0
    for n in range(1, steps + 1):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * n
    return average


def test_the_ema_has_a_warm_up(tmp_path):
    module, ema = Drift(), EMA(0.5)
    fit(tmp_path, module, [ema])
    assert module.weight[0].item() == 5
    assert ema.average["weight"][0].item() == pytest.approx(expected(0.5, 5), rel=1e-6)


def test_the_ema_of_a_gpu_is_that_of_a_cpu_without_waiting():
    """The third of five steps is skipped."""

    def flow(device, watch):
        module, ema, run = Drift().to(device), EMA(0.5), mock.Mock(spec=Trainer, global_step=0)
        module.guard = mock.Mock()
        ema.on_train_start(run, module)
        watch.clear()
        for step in range(1, 6):
            if step > 1:  # the first one makes the counter
                watch.step()
            taken = torch.full((), float(step != 3), device=device)
            with torch.no_grad():
                module.weight.add_(taken)
            run.global_step, module.guard.taken = step, taken
            ema.on_train_batch_end(run, module)
        waits = list(watch.waits)
        ema._subtract_skipped()
        assert ema.updates == 4
        return ema.average["weight"], waits

    watch, (usual, _), (average, waits) = run_on_both(flow)
    assert not watch.mixed
    assert waits == []
    assert usual[0].item() == pytest.approx(expected(0.5, 4), rel=1e-6)
    assert average.tolist() == pytest.approx(usual.tolist(), rel=1e-6)


def test_the_ema_counts_optimizer_steps_not_batches(tmp_path):
    module, ema = Drift(), EMA(0.5)
    fit(tmp_path, module, [ema], steps=2, accumulate_grad_batches=4)
    assert ema.updates == 2


def test_swapping_restores_the_weights_exactly(tmp_path):
    module, ema = Drift(), EMA(0.5)
    run = fit(tmp_path, module, [ema])
    with ema_weights(run, module):
        assert module.weight[0].item() == pytest.approx(expected(0.5, 5), rel=1e-6)
        with ema_weights(run, module):  # nested: still the EMA
            assert module.weight[0].item() == pytest.approx(expected(0.5, 5), rel=1e-6)
        assert module.weight[0].item() != 5
    assert module.weight[0].item() == 5
    assert module.count.item() == 5


def test_validation_uses_the_ema(tmp_path):
    module = Drift()
    fit(tmp_path, module, [EMA(0.5)], steps=4, val_check_interval=4, limit_val_batches=1)
    assert module.seen == [pytest.approx(expected(0.5, 4), rel=1e-6)]
    assert module.weight[0].item() == 4


def test_a_failing_validation_restores_the_trained_weights(tmp_path):
    module = Drift()
    module.fail = True
    with pytest.raises(RuntimeError, match="in the middle"):
        fit(tmp_path, module, [EMA(0.5)], steps=4, val_check_interval=4, limit_val_batches=1)
    assert module.weight[0].item() == 4


def test_a_checkpoint_written_during_evaluation_holds_the_raw_weights(tmp_path):
    module, ema = Drift(), EMA(0.5)
    run = fit(tmp_path, module, [ema])
    with ema.swapped(module):
        run.save_checkpoint(tmp_path / "inside.ckpt")
    saved = torch.load(tmp_path / "inside.ckpt", weights_only=True)
    assert saved["state_dict"]["weight"][0].item() == 5
    assert saved["ema"]["0.5"]["weights"]["weight"][0].item() == pytest.approx(expected(0.5, 5), rel=1e-6)


def test_several_decays_can_coexist(tmp_path):
    fast, slow = EMA(0.1), EMA(0.9)
    module = Drift()
    run = fit(tmp_path, module, [fast, slow])
    run.save_checkpoint(tmp_path / "two.ckpt")
    saved = torch.load(tmp_path / "two.ckpt", weights_only=True)["ema"]
    assert list(saved) == ["0.1", "0.9"]
    assert slow.average["weight"][0].item() == pytest.approx(expected(0.9, 5), rel=1e-6)
    with ema_weights(run, module):  # the first in the list evaluates
        assert module.weight[0].item() == pytest.approx(expected(0.1, 5), rel=1e-6)


def test_a_resumed_ema_is_identical_bit_for_bit(tmp_path):
    whole, first, second = EMA(0.5), EMA(0.5), EMA(0.5)
    fit(tmp_path, Drift(), [whole], steps=5)
    fit(tmp_path, Drift(), [first], steps=3).save_checkpoint(tmp_path / "half.ckpt")
    fit(tmp_path, Drift(), [second], steps=5, resume=tmp_path / "half.ckpt")
    assert second.updates == 5
    assert torch.equal(second.average["weight"], whole.average["weight"])


def test_another_decay_on_resume_warns(tmp_path):
    fit(tmp_path, Drift(), [EMA(0.5)], steps=2).save_checkpoint(tmp_path / "half.ckpt")
    with pytest.warns(UserWarning, match="EMA weights with decay 0.5, but none with 0.9"):
        fit(tmp_path, Drift(), [EMA(0.9)], steps=3, resume=tmp_path / "half.ckpt")


def test_two_emas_with_the_same_decay_are_refused(tmp_path):
    with pytest.raises(ValueError, match="decay must differ between EMA callbacks, got 0.5 twice"):
        fit(tmp_path, Drift(), [EMA(0.5), EMA(0.5)])
