"""Skip optimizer steps whose gradient is not finite."""

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
MAX_BATCHES = 64  # maximum number of batches recorded per step; the last ones, if more are accumulated
LAG = 2  # number of steps after which counters are read from a GPU: by then they are ready, so the host does not wait


class StepGuard:
    """Skips optimizer steps whose gradient is NaN or infinite, counts them, and stops a run after many in a row.

    A skipped step leaves weights, moments and the optimizer's step counts unchanged, bit for bit; the learning rate
    schedule advances. Under DDP and fully_shard all processes skip together, since gradients are summed over them.
    Fused optimizers skip on the device without synchronization; the counters are read `LAG` steps later on GPUs, and
    immediately on other devices. Other optimizers synchronize at every step.

    Under float16 autocast a gradient may overflow because of the loss scale. The step is then skipped and the scale
    halved; such steps are counted separately, as long as the loss is finite and the scale is above 1.

    Args:
        stop_after: number of consecutive skipped steps that ends the run; 0 never ends it.
    """

    def __init__(self, stop_after: int = 10):
        self.stop_after = stop_after
        self.skipped = torch.zeros((), dtype=torch.int64)  # over the entire run
        self.in_a_row = torch.zeros((), dtype=torch.int64)  # consecutive, up to the last step
        self.overflows = torch.zeros((), dtype=torch.int64)  # over the entire run, because of the loss scale
        self.taken = torch.ones(())  # 1 if the last step was taken, 0 if it was skipped
        self.norm = torch.tensor(torch.nan)  # norm of the last gradient, before clipping
        self._batches: deque[dict[str, Any]] = deque(maxlen=MAX_BATCHES)  # batches of the current step
        self._unread: deque[_PendingCounters] = deque()

    def state(self) -> dict[str, int]:
        """Return the counters for a checkpoint; synchronizes with the device."""
        return {name: int(getattr(self, name)) for name in COUNTERS}

    def restore(self, state: dict[str, int]) -> None:
        """Restore the counters from a checkpoint; 0 if it has none."""
        for name in COUNTERS:
            setattr(self, name, torch.tensor(state.get(name, 0), dtype=torch.int64))

    def start_fit(self) -> None:
        """Discard the records of an earlier fit; keep the counters."""
        self._batches.clear()
        self._unread.clear()

    def watch(self, loss: Float[Tensor, ""], **info: Any) -> Float[Tensor, ""]:
        """Record a batch and return the loss to differentiate; `info` goes into the dump if this step ends the run."""
        self._batches.append({"loss": loss.detach(), **info})
        return nan_gradient_if_nonfinite(loss)

    @torch.no_grad()
    def check(
        self, optimizer: torch.optim.Optimizer, module: nn.Module, *, step: int, epoch: int, scaler: Any = None
    ) -> "StopReason | None":
        """Make the upcoming optimizer step be skipped if its gradient is not finite.

        Args:
            optimizer: optimizer that is about to step.
            module: module being trained, for the names of the parameters.
            step: number of optimizer steps of the run, including this one.
            epoch: number of completed passes through the data.
            scaler: gradient scaler of float16 autocast.

        Returns:
            The reason to stop the run, if too many steps in a row were skipped; otherwise None.
        """
        batches = list(self._batches)
        self._batches.clear()
        on_device = getattr(optimizer, "_step_supports_amp_scaling", False)  # whether it supports `found_inf`
        if scaler is not None and on_device:
            # Lightning leaves this to the step of fused optimizers, which is too late for clipping.
            scaler.unscale_(optimizer)
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
                    parameter.grad = None  # optimizers skip parameters without a gradient
        return self._read(StepRecord(step, epoch, batches, norms, [name for name, _ in named]))

    def _count(self, bad: Tensor, overflow: Tensor) -> None:
        """Update the counters on the device; an overflow neither extends nor ends a series of skipped steps."""
        for name in COUNTERS:
            setattr(self, name, getattr(self, name).to(bad.device))
        skipped = bad & ~overflow
        self.skipped = self.skipped + skipped
        self.overflows = self.overflows + overflow
        self.in_a_row = torch.where(overflow, self.in_a_row, (self.in_a_row + 1) * skipped)
        self.taken = (~bad).float()

    def _read(self, record: StepRecord) -> "StopReason | None":
        """Check the counters of the latest step whose counters are available without waiting."""
        if self.stop_after == 0:
            return None
        self._unread.append(_PendingCounters(record, torch.stack([self.in_a_row, self.skipped])))
        # All processes read the same step, so that they stop together.
        if len(self._unread) <= lag(self.in_a_row.device):
            return None
        oldest = self._unread.popleft()
        in_a_row, skipped = oldest.counts()
        return StopReason(oldest.record, in_a_row, skipped) if in_a_row >= self.stop_after else None


def lag(device: torch.device) -> int:
    """Return the number of steps after which counters on `device` are read."""
    return LAG if device.type == "cuda" else 0


class _PendingCounters:
    """Counters of one step while they are copied from the device."""

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
        """Return the number of consecutive skipped steps, and the number over the entire run."""
        if self._event is not None:
            self._event.synchronize()
        in_a_row, skipped = self._counts.tolist()
        return in_a_row, skipped


@dataclass(frozen=True)
class StopReason:
    """Reason to stop a run: too many skipped steps in a row.

    Attributes:
        record: the last skipped step.
        in_a_row: number of consecutive skipped steps up to it.
        skipped: number of skipped steps over the entire run.
    """

    record: StepRecord
    in_a_row: int
    skipped: int

    def stop(
        self, folder: Path, module: nn.Module, files: Callable[[Sequence[int]], Sequence[str] | None], **info: Any
    ) -> NoReturn:
        """Write the step to a file with `write_step_dump`, which gets the arguments, and raise ValueError."""
        details = {"steps_in_a_row": self.in_a_row, "skipped_steps": self.skipped, **info}
        try:
            dump = f"see {write_step_dump(folder, self.record, module=module, files=files, **details)}"
        except OSError as error:  # the disk may be full
            dump = f"no file could be written ({error})"
        raise ValueError(
            f"loss and gradients must be finite, got NaN or infinity in {self.in_a_row} steps in a row up to step "
            f"{self.record.step}: {dump}; lower learning_rate, inspect the images of this step, or raise "
            "stop_after_bad_steps"
        )
