"""Steps that are skipped where their gradient is not finite."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.training.optimization.gradients import any_process, gradient_norms, nan_gradient_if_nonfinite, total_norm
from asyncdiff.training.optimization.step_dump import StepRecord, write_step_dump

COUNTERS = ("skipped", "in_a_row", "overflows")
MAX_BATCHES = 64  # batches of a step: of more, accumulated, the last ones are told of
LAG = 2  # steps after which a GPU's counters are read: it has been through them by then, and nothing waits


class StepGuard:
    """Skips optimiser steps whose gradient is NaN or infinite, counts them, and stops a run after many in a row.

    A skipped step leaves weights, moments and the optimiser's step counts as they are, bit for bit; the learning rate
    goes on. Under DDP and fully_shard all processes skip together, as their gradients are sums over all. Fused
    optimisers skip on the device, so that nothing waits for it: the counters are read `LAG` steps late on GPUs, at
    once elsewhere. Other optimisers wait for the device at every step.

    Under float16 autocast a gradient may overflow because of the scale of the loss, which is then halved and the step
    is skipped: such steps are counted apart, as long as the loss is finite and the scale is above 1.

    Args:
        stop_after: skipped steps in a row that end a run; 0 never ends it.
    """

    def __init__(self, stop_after: int = 10):
        self.stop_after = stop_after
        self.skipped = torch.zeros((), dtype=torch.int64)  # in the whole run
        self.in_a_row = torch.zeros((), dtype=torch.int64)  # up to now
        self.overflows = torch.zeros((), dtype=torch.int64)  # in the whole run, under a scaled loss
        self.taken = torch.ones(())  # 1 if the last step was taken, 0 if it was skipped
        self.norm = torch.tensor(torch.nan)  # of the last gradient, before it is clipped
        self._batches: deque[dict[str, Any]] = deque(maxlen=MAX_BATCHES)  # of the step that is being made
        self._unread: deque[_Unread] = deque()

    def state(self) -> dict[str, int]:
        """The counters, for a checkpoint; waits for the device."""
        return {name: int(getattr(self, name)) for name in COUNTERS}

    def restore(self, state: dict[str, int]) -> None:
        """Count on from a checkpoint; from 0 where it has no counters."""
        for name in COUNTERS:
            setattr(self, name, torch.tensor(state.get(name, 0), dtype=torch.int64))

    def start_fit(self) -> None:
        """Forget the steps of an earlier fit, not their number."""
        self._batches.clear()
        self._unread.clear()

    def watch(self, loss: Float[Tensor, ""], **facts: Any) -> Float[Tensor, ""]:
        """The loss of a batch, to be differentiated; `facts` are told of the batch if its step is the last."""
        self._batches.append({"loss": loss.detach(), **facts})
        return nan_gradient_if_nonfinite(loss)

    @torch.no_grad()
    def check(
        self, optimizer: torch.optim.Optimizer, module: nn.Module, *, step: int, epoch: int, scaler: Any = None
    ) -> "Verdict | None":
        """See to it that the step that is about to be made is skipped if its gradient is not finite.

        Returns what to stop with, if there were too many such steps in a row.

        Args:
            optimizer: about to step.
            module: what is trained, which tells the names of the parameters.
            step: optimiser steps of the run, this one included.
            epoch: passes through the data before it.
            scaler: the gradient scaler of float16 autocast.
        """
        batches = list(self._batches)
        self._batches.clear()
        on_device = getattr(optimizer, "_step_supports_amp_scaling", False)  # PyTorch's word for heeding found_inf
        if scaler is not None and on_device:
            scaler.unscale_(optimizer)  # Lightning leaves it to such optimisers, which clipping cannot wait for
        own = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        named = [(name, p.grad) for name, p in module.named_parameters() if id(p) in own and p.grad is not None]
        if not named:
            return None
        gradients = [gradient for _, gradient in named]
        norms = gradient_norms(gradients)
        self.norm = total_norm(norms, gradients)
        bad = ~self.norm.isfinite()
        overflow = torch.zeros_like(bad)
        if scaler is not None:
            finite = torch.stack([batch["loss"].isfinite() for batch in batches] or [~overflow]).all()
            overflow = bad & ~any_process(~finite) & (scaler._get_scale_async() > 1)
        self._count(bad, overflow)
        if scaler is None and on_device:
            optimizer.found_inf = 1 - self.taken  # type: ignore[attr-defined]
        elif scaler is None and bool(bad):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # which optimisers pass over
        return self._read(StepRecord(step, epoch, batches, norms, [name for name, _ in named]))

    def _count(self, bad: Tensor, overflow: Tensor) -> None:
        """Count on the device. An overflow says nothing of the steps around it."""
        for name in COUNTERS:
            setattr(self, name, getattr(self, name).to(bad.device))
        wrong = bad & ~overflow
        self.skipped = self.skipped + wrong
        self.overflows = self.overflows + overflow
        self.in_a_row = torch.where(overflow, self.in_a_row, (self.in_a_row + 1) * wrong)
        self.taken = (~bad).float()

    def _read(self, record: StepRecord) -> "Verdict | None":
        """What the counters were after the last step of which they are known without waiting."""
        if self.stop_after == 0:
            return None
        self._unread.append(_Unread(record, torch.stack([self.in_a_row, self.skipped])))
        # All processes read the same step, so that they stop together.
        if len(self._unread) <= lag(self.in_a_row.device):
            return None
        oldest = self._unread.popleft()
        in_a_row, skipped = oldest.counts()
        return StopReason(oldest.record, in_a_row, skipped) if in_a_row >= self.stop_after else None


def lag(device: torch.device) -> int:
    """Steps after which counters of `device` are read."""
    return LAG if device.type == "cuda" else 0


class _Unread:
    """Counters on their way from the device, and the step that they are of."""

    def __init__(self, record: StepRecord, counts: Tensor):
        self.record = record
        self._event: torch.cuda.Event | None = None
        self._counts = counts
        if counts.device.type == "cuda":
            self._counts = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
            self._counts.copy_(counts, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def counts(self) -> tuple[int, int]:
        """Skipped steps in a row, and of the whole run."""
        if self._event is not None:
            self._event.synchronize()
        in_a_row, skipped = self._counts.tolist()
        return in_a_row, skipped


@dataclass(frozen=True)
class StopReason:
    """That a run has to stop, and the last step that was skipped.

    Attributes:
        record: that step.
        in_a_row: skipped steps up to it.
        skipped: skipped steps of the whole run.
    """

    record: StepRecord
    in_a_row: int
    skipped: int

    def stop(
        self, folder: Path, module: nn.Module, files: Callable[[Sequence[int]], Sequence[str] | None], **facts: Any
    ) -> NoReturn:
        """Write a file of the step and raise ValueError; the arguments are those of `step_records.write_step_dump`."""
        told = {"steps_in_a_row": self.in_a_row, "skipped_steps": self.skipped, **facts}
        try:
            place = str(write_step_dump(folder, self.record, module=module, files=files, **told))
        except OSError as error:  # the disk may be what is full of it
            place = f"no file, as none could be written ({error})"
        raise ValueError(
            f"loss and gradients must be finite, got NaN or infinity in {self.in_a_row} steps in a row up to step "
            f"{self.record.step}: {place} tells of the last one; lower learning_rate, or look at these images, or set "
            "stop_after_bad_steps higher"
        )
