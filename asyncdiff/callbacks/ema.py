"""Exponential moving average of the network's parameters."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from asyncdiff.training.fsdp2 import full_tensors, local_shard, reshard, shard_like, unsharded

CHUNK = 64  # tensors, so many that kernels are launched for many at once


class EMA(Callback):
    """Keeps a float32 average of the trained parameters, and puts it in their place while images are drawn or judged.

    The average follows after every optimiser step with the decay min(decay, (1 + n) / (10 + n)), n steps counted, so
    that the first steps do not weigh it down. Steps that were skipped because they were not finite leave it as it is,
    bit for bit, and are not counted. Several callbacks with different decays may run side by side: the first
    in the list is the one that evaluates. Checkpoints hold the raw weights in "state_dict" and every average in "ema",
    also when they are written during an evaluation.

    Args:
        decay: in [0, 1); 0.9999 for long runs, 0.999 for some ten thousand steps.
    """

    def __init__(self, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}: 0.9999 for long runs, 0.999 for short ones")
        self.decay = decay
        self.updates = 0
        self._skipped: Tensor | None = None  # updates that were none: skipped steps, of which only the device knows
        self.average: dict[str, Tensor] | None = None
        self._raw: dict[str, Tensor] | None = None  # the trained weights, while the average stands in their place
        self._seen_step = 0
        self._evaluation = ExitStack()

    @property
    def state_key(self) -> str:
        """Several decays are several callbacks."""
        return f"EMA{{decay={self.decay}}}"

    @contextmanager
    def swapped(self, module: LightningModule) -> Iterator[None]:
        """The average in place of the trained parameters; nested use and a missing average change nothing."""
        if self._raw is not None or not self._has_average(module):
            yield
            return
        assert self.average is not None
        parameters = _writable_parameters(module)
        self._raw = {name: p.clone() for name, p in parameters.items()}
        _copy(parameters, self.average)
        try:
            yield
        finally:
            _copy(_writable_parameters(module), self._raw)
            self._raw = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse two averages of one decay, which a checkpoint could not tell apart."""
        same = [c for c in trainer.callbacks if isinstance(c, EMA) and c.decay == self.decay]  # type: ignore[attr-defined]
        if len(same) > 1:
            raise ValueError(f"decay must differ between EMA callbacks, got {self.decay} twice: leave one out")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the checkpoint's average, or start from the present weights."""
        self._seen_step = trainer.global_step
        if not self._has_average(pl_module):
            if held := list(getattr(pl_module, "averaged", {})):
                text = f"the checkpoint has averages of decay {', '.join(held)}, none of {self.decay}: a new one begins"
                rank_zero_warn(text)
            self.average = {name: p.float().clone() for name, p in _parameters(pl_module).items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Follow the parameters after each optimiser step."""
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        assert self.average is not None, "on_train_start has run"
        averages, parameters = list(self.average.values()), [p.float() for p in _parameters(pl_module).values()]
        taken = getattr(getattr(pl_module, "guard", None), "taken", torch.ones(()))
        if taken.device.type == "cpu":
            if taken:
                self.updates += 1
                torch._foreach_lerp_(averages, parameters, 1 - self._decay(self.updates))
            return
        self.updates += 1
        self._skipped = (1 - taken) if self._skipped is None else self._skipped + (1 - taken)
        update_averages(averages, parameters, (1 - self._decay(self.updates - self._skipped)) * taken)

    def add_average(self, checkpoint: dict[str, Any], module: LightningModule) -> None:
        """Add the average to a checkpoint in the making; the module calls this, for files of weights only, too.

        While the average stands in for the trained parameters, these are put back into the file. Shares of several
        processes are gathered: all have to call this.
        """
        parameters = dict(module.named_parameters())
        if self._raw is not None:
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **full_tensors(self._raw, parameters)}
        if self.average is not None:
            self._subtract_skipped()
            entry = {"decay": self.decay, "updates": self.updates, "weights": full_tensors(self.average, parameters)}
            checkpoint.setdefault("ema", {})[str(self.decay)] = entry

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the average."""
        self._start_evaluation(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the average."""
        self._start_evaluation(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw with the average."""
        self._start_evaluation(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the parameters back."""
        self._evaluation.close()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the parameters back."""
        self._evaluation.close()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the parameters back."""
        self._evaluation.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the parameters back before anybody saves them."""
        self._evaluation.close()

    def _decay(self, updates: Any) -> Any:
        """The decay of the n-th update; n is a number, or a tensor on the device."""
        early = (1 + updates) / (10 + updates)
        return early.clamp(max=self.decay) if isinstance(early, Tensor) else min(self.decay, early)

    def _subtract_skipped(self) -> None:
        """Take what was no update out of the count; waits for the device."""
        if self._skipped is not None:
            self.updates -= int(self._skipped)
            self._skipped = None

    def _start_evaluation(self, trainer: Trainer, module: LightningModule) -> None:
        first = next(c for c in trainer.callbacks if isinstance(c, EMA))  # type: ignore[attr-defined]
        if first is self:
            self._evaluation.enter_context(self.swapped(module))

    def _has_average(self, module: LightningModule) -> bool:
        """Whether there is an average, taken from the checkpoint that the module loaded if need be."""
        loaded = getattr(module, "averaged", {}).pop(str(self.decay), None)
        if loaded is not None:
            with torch.inference_mode(False):  # a later fit goes on with what an evaluation has loaded
                weights = loaded["weights"]
                trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
                self.average = {n: local_shard(shard_like(weights[n].float(), p)).clone() for n, p in trained.items()}
            self.updates, self._skipped = loaded["updates"], None
        return self.average is not None


def update_averages(averages: list[Tensor], parameters: list[Tensor], weight: Tensor) -> None:
    """Move averages towards parameters by a weight on their device, for which nothing waits; 0 moves none, exactly."""
    for first in range(0, len(averages), CHUNK):  # the differences of all at once would be a copy of the network
        some = averages[first : first + CHUNK]
        differences = list(torch._foreach_sub(parameters[first : first + CHUNK], some))
        torch._foreach_mul_(differences, weight)
        torch._foreach_add_(some, differences)


@contextmanager
def ema_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """The context in which `module` has the averaged weights of the trainer's first `EMA`, if it has one.

    All processes have the network whole in it: none waits for another in a forward pass.
    """
    with ExitStack() as stack:
        if averages := [callback for callback in trainer.callbacks if isinstance(callback, EMA)]:  # type: ignore[attr-defined]
            stack.enter_context(averages[0].swapped(module))
        stack.enter_context(unsharded(module))
        yield


def _writable_parameters(module: LightningModule) -> dict[str, Tensor]:
    """The trained parameters to be changed: copies of them, gathered for an evaluation, are let go of."""
    reshard(module)
    return _parameters(module)


def _parameters(module: LightningModule) -> dict[str, Tensor]:
    """The trained parameters, of sharded ones this process's share."""
    return {name: local_shard(p.detach()) for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy(parameters: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    torch._foreach_copy_(list(parameters.values()), [source[name] for name in parameters])
