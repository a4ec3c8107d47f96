"""Keep an exponential moving average (EMA) of the network's parameters."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from asyncdiff.callbacks.every_n_steps import EveryNSteps
from asyncdiff.training.fsdp2 import full_tensors, local_shard, reshard, shard_like, unshard


class EMA(Callback):
    """Keeps a float32 EMA of the trained parameters, and swaps it in for sampling and evaluation.

    It is updated after every optimizer step with the decay min(decay, (1 + n) / (10 + n)) after n steps, so that the
    initial weights are soon forgotten. Steps that were skipped because of NaN or infinity leave it unchanged, bit for
    bit, and are not counted. Several EMAs with different decays can coexist: the first in the list of callbacks is used
    for evaluation. Checkpoints contain the raw weights in "state_dict" and every EMA in "ema", even if they are written
    during an evaluation.

    Args:
        decay: decay per optimizer step in [0, 1); 0.9999 for long runs, 0.999 for tens of thousands of steps.
    """

    def __init__(self, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}: use 0.9999 for long runs, 0.999 for short ones")
        self.decay = decay
        self.updates = 0
        self._skipped: Tensor | None = None  # number of skipped steps among the updates, on the device
        self.average: dict[str, Tensor] | None = None
        self._raw: dict[str, Tensor] | None = None  # trained weights while the EMA is swapped in
        self._steps = EveryNSteps(1)
        self._evaluation = ExitStack()

    @contextmanager
    def swapped(self, module: LightningModule) -> Iterator[None]:
        """Swap the EMA in for the trained parameters; does nothing inside another `swapped` or without an EMA."""
        average = None if self._raw is not None else self._loaded_average(module)
        if average is None:
            yield
            return
        parameters = _writable_parameters(module)
        self._raw = {name: p.clone() for name, p in parameters.items()}
        _copy(parameters, average)
        try:
            yield
        finally:
            _copy(_writable_parameters(module), self._raw)
            self._raw = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise ValueError if two EMAs have the same decay, and so the same checkpoint key."""
        same = [c for c in trainer.callbacks if isinstance(c, EMA) and c.decay == self.decay]  # type: ignore[attr-defined]
        if len(same) > 1:
            raise ValueError(f"decay must differ between EMA callbacks, got {self.decay} twice: remove one")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the EMA from the checkpoint, or start a new one from the current weights."""
        self._steps.start(trainer)
        self._loaded_or_new_average(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Update the EMA after each optimizer step."""
        if not self._steps.is_due(trainer):
            return
        averages = list(self._loaded_or_new_average(pl_module).values())
        parameters = [p.float() for p in _parameters(pl_module).values()]
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
        """Add the EMA to a checkpoint that is being written.

        The module calls this, for weights-only checkpoints as well. While the EMA is swapped in, the checkpoint's
        "state_dict" gets the trained parameters instead. Shards are gathered, so all processes must call this.
        """
        parameters = dict(module.named_parameters())
        if self._raw is not None:
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **full_tensors(self._raw, parameters)}
        if self.average is not None:
            self._subtract_skipped()
            entry = {"decay": self.decay, "updates": self.updates, "weights": full_tensors(self.average, parameters)}
            checkpoint.setdefault("ema", {})[str(self.decay)] = entry

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the EMA in for an evaluation, if it is the first in the list of callbacks."""
        first = next(c for c in trainer.callbacks if isinstance(c, EMA))  # type: ignore[attr-defined]
        if first is self:
            self._evaluation.enter_context(self.swapped(pl_module))

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the trained parameters."""
        self._evaluation.close()

    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the trained parameters before other callbacks save them."""
        self._evaluation.close()

    def _decay(self, updates: Any) -> Any:
        """Return the decay of an update from its number, which may be a tensor on the device."""
        warmup = (1 + updates) / (10 + updates)
        return warmup.clamp(max=self.decay) if isinstance(warmup, Tensor) else min(self.decay, warmup)

    def _subtract_skipped(self) -> None:
        """Subtract the skipped steps from the number of updates; synchronizes with the device."""
        if self._skipped is not None:
            self.updates -= int(self._skipped)
            self._skipped = None

    def _loaded_or_new_average(self, module: LightningModule) -> dict[str, Tensor]:
        """Return the EMA; if there is none, start a new one from the current weights."""
        average = self._loaded_average(module)
        if average is None:
            if saved := list(getattr(module, "averaged", {})):
                rank_zero_warn(
                    f"the checkpoint has EMA weights with decay {', '.join(saved)}, but none with {self.decay}: "
                    "a new EMA starts from the current weights"
                )
            average = self.average = {name: p.float().clone() for name, p in _parameters(module).items()}
        return average

    def _loaded_average(self, module: LightningModule) -> dict[str, Tensor] | None:
        """Return the EMA, if any; first take over the one that the module loaded from a checkpoint."""
        loaded = getattr(module, "averaged", {}).pop(str(self.decay), None)
        if loaded is not None:
            with torch.inference_mode(False):  # otherwise a later fit could not train these tensors
                weights = loaded["weights"]
                trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
                self.average = {n: local_shard(shard_like(weights[n].float(), p)).clone() for n, p in trained.items()}
            self.updates, self._skipped = loaded["updates"], None
        return self.average


def update_averages(averages: list[Tensor], parameters: list[Tensor], weight: Tensor) -> None:
    """Move averages toward parameters by a weight on the device, without synchronization; 0 changes no bit.

    One pass over memory: a kernel per tensor reads it and its average, and writes the average. Fused kernels for many
    tensors take the weight as a number of the host, or need a pass each for difference, product and sum.
    """
    torch._foreach_lerp_(averages, parameters, [weight] * len(averages))


@contextmanager
def ema_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Swap in the weights of the trainer's first `EMA`, if it has one, and gather the network on every process.

    Forward passes inside need no communication between processes.
    """
    with ExitStack() as stack:
        if averages := [callback for callback in trainer.callbacks if isinstance(callback, EMA)]:  # type: ignore[attr-defined]
            stack.enter_context(averages[0].swapped(module))
        stack.enter_context(unshard(module))
        yield


def _writable_parameters(module: LightningModule) -> dict[str, Tensor]:
    """Return the trained parameters for in-place changes, after freeing copies gathered for an evaluation."""
    reshard(module)
    return _parameters(module)


def _parameters(module: LightningModule) -> dict[str, Tensor]:
    """Return the trained parameters by name; for sharded ones, this process's shard."""
    return {name: local_shard(p.detach()) for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy(parameters: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    torch._foreach_copy_(list(parameters.values()), [source[name] for name in parameters])
