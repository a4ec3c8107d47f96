"""Processes agree on signals: all act after the same step, on GPUs some steps later, and no signal is lost."""

import signal
from unittest import mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from asyncdiff.callbacks import GracefulShutdown, graceful_shutdown

LAST, MODULE = 12, LightningModule()


class Trained:
    """Processes in step with each other; `acted` lists (step, signal that the process acts on) of each."""

    def __init__(self, monkeypatch, processes=2, lag=2, validations=()):
        self.processes = [GracefulShutdown() for _ in range(processes)]
        self.acted = [[] for _ in self.processes]
        counts = {"world_size": processes, "global_step": 0, "max_steps": LAST}
        self.trainer = mock.Mock(spec=Trainer, **counts, is_last_batch=False, should_stop=False, strategy=mock.Mock())
        self.trainer.fast_dev_run, self.trainer.val_check_interval = False, 1.0
        self.trainer.strategy.root_device = torch.device("cpu")
        monkeypatch.setattr(graceful_shutdown, "lag", lambda device: lag)
        monkeypatch.setattr(graceful_shutdown.dist, "all_reduce", self._largest)
        monkeypatch.setattr(graceful_shutdown, "validation_is_due", lambda trainer: trainer.global_step in validations)
        for process in self.processes:
            process._requeue = mock.Mock()
            process._steps.start(self.trainer)

    def _largest(self, wanted, op):
        wanted.fill_(max(self.wanted))

    def run(self, signals=None, until=LAST):
        """Train; `signals` are {step: [(process, signal)]}, received in the step."""
        while self.trainer.global_step < until:
            self.trainer.global_step += 1
            step = self.trainer.global_step
            for number, received in (signals or {}).get(step, []):
                self.processes[number]._on_signal(received, None)
            self.wanted = [process._pending for process in self.processes]
            for process, acted in zip(self.processes, self.acted, strict=True):
                process._requeue.reset_mock()
                with mock.patch.object(graceful_shutdown, "save_last_checkpoint"):
                    try:
                        process.on_train_batch_end(self.trainer, MODULE)
                    except SystemExit as ended:
                        acted.append((step, ended.code - 128))
                if process._requeue.called:
                    acted.append((step, signal.SIGUSR1))
            if any(number != signal.SIGUSR1 for acted in self.acted for _, number in acted):
                return


@pytest.mark.parametrize(("lag", "step"), [(0, 4), (2, 6)])
def test_all_processes_end_after_the_same_step(monkeypatch, lag, step):
    trained = Trained(monkeypatch, processes=3, lag=lag)
    trained.run({4: [(1, signal.SIGINT)]})
    assert trained.acted == [[(step, signal.SIGTERM)], [(step, signal.SIGINT)], [(step, signal.SIGTERM)]]


def test_a_single_process_ends_after_the_step(monkeypatch):
    trained = Trained(monkeypatch, processes=1)
    trained.run({4: [(0, signal.SIGINT)]})
    assert trained.acted == [[(4, signal.SIGINT)]]


@pytest.mark.parametrize("received", [LAST - 3, LAST - 2, LAST - 1, LAST])
def test_signals_near_the_end_end_the_run_after_its_last_step_at_the_latest(monkeypatch, received):
    trained = Trained(monkeypatch)
    trained.run({received: [(0, signal.SIGTERM)]})
    step = min(received + 2, LAST)
    assert trained.acted == [[(step, signal.SIGTERM)]] * 2


@pytest.mark.parametrize(("validation", "step"), [(4, 4), (5, 5), (6, 6), (7, 6)])
def test_no_validation_starts_after_a_signal(monkeypatch, validation, step):
    trained = Trained(monkeypatch, validations=[validation])
    trained.run({4: [(0, signal.SIGTERM)]})
    assert trained.acted == [[(step, signal.SIGTERM)]] * 2


def test_an_unread_signal_is_known_to_all_processes_at_the_end(monkeypatch):
    """The time limit of a run may end it in any step."""
    trained = Trained(monkeypatch)
    trained.run({4: [(1, signal.SIGTERM)]}, until=5)
    for process in trained.processes:
        with pytest.raises(SystemExit) as ended:
            process.on_train_end(trained.trainer, MODULE)
        assert ended.value.code == 128 + signal.SIGTERM


def test_a_second_ctrl_c_ends_the_run_at_once(monkeypatch):
    trained = Trained(monkeypatch)
    trained.processes[0]._on_signal(signal.SIGINT, None)
    trained.run(until=1)
    with pytest.raises(KeyboardInterrupt):
        trained.processes[0]._on_signal(signal.SIGINT, None)


def test_a_job_is_requeued_once_and_ends_with_the_next_signal(monkeypatch):
    trained = Trained(monkeypatch)
    trained.run({3: [(0, signal.SIGUSR1), (1, signal.SIGUSR1)], 4: [(1, signal.SIGTERM)]})
    assert [[step for step, _ in acted] for acted in trained.acted] == [[5, 8]] * 2
    assert trained.acted[1] == [(5, signal.SIGUSR1), (8, signal.SIGTERM)]
