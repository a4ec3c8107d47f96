"""Skip optimizer steps whose gradient is not finite."""

from collections import deque
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.devices import HostCopy, to_device
from asyncdiff.training.optimization.gradients import any_process, gradient_norms, nan_gradient_if_nonfinite, total_norm
from asyncdiff.training.optimization.step_record import COUNTERS, StepRecord

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
        # Skipped steps of the entire run, consecutive ones up to the last step, and overflows of the entire run.
        self.counts = torch.zeros(len(COUNTERS), dtype=torch.int64)
        self.taken = torch.ones(())  # 1 if the last step was taken, 0 if it was skipped
        self.norm = torch.tensor(torch.nan)  # norm of the last gradient, before clipping
        self._batches: deque[dict[str, Any]] = deque(maxlen=MAX_BATCHES)  # batches of the current step
        self._unread: deque[StepRecord] = deque()

    def state(self) -> dict[str, int]:
        """Return the counters for a checkpoint; synchronizes with the device."""
        return dict(zip(COUNTERS, self.counts.tolist(), strict=True))

    def restore(self, state: dict[str, int]) -> None:
        """Restore the counters from a checkpoint; 0 if it has none."""
        self.counts = torch.tensor([state.get(name, 0) for name in COUNTERS])

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
    ) -> StepRecord | None:
        """Make the upcoming optimizer step be skipped if its gradient is not finite.

        Args:
            optimizer: optimizer that is about to step.
            module: module being trained, for the names of the parameters.
            step: number of optimizer steps of the run, including this one.
            epoch: number of completed passes through the data.
            scaler: gradient scaler of float16 autocast.

        Returns:
            The step at which the run must stop because too many in a row were skipped; otherwise None.
        """
        batches = list(self._batches)
        self._batches.clear()
        on_device = getattr(optimizer, "_step_supports_amp_scaling", False)  # whether it supports `found_inf`
        if scaler is not None and on_device:
            # Lightning leaves this to the step of fused optimizers, which is too late for clipping.
            scaler.unscale_(optimizer)
        optimized = [p for group in optimizer.param_groups for p in group["params"]]
        own = {id(p) for p in optimized}
        named = [(n, p.grad) for n, p in module.named_parameters() if id(p) in own and p.grad is not None]
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
            for parameter in optimized:
                parameter.grad = None  # optimizers skip parameters without a gradient
        if self.stop_after == 0:
            return None
        self._unread.append(StepRecord(step, epoch, batches, norms, [n for n, _ in named], HostCopy(self.counts)))
        # All processes read the same step, so that they stop together.
        if len(self._unread) <= lag(bad.device):
            return None
        oldest = self._unread.popleft()
        return oldest if oldest.counters()["in_a_row"] >= self.stop_after else None

    def _count(self, bad: Tensor, overflow: Tensor) -> None:
        """Update the counters on the device; an overflow neither extends nor ends a series of skipped steps."""
        total, in_a_row, overflows = to_device(self.counts, bad.device)
        skipped = bad & ~overflow
        in_a_row = torch.where(overflow, in_a_row, (in_a_row + 1) * skipped)
        self.counts = torch.stack([total + skipped, in_a_row, overflows + overflow])
        self.taken = (~bad).float()


def lag(device: torch.device) -> int:
    """Return the number of steps after which counters on `device` are read."""
    return LAG if device.type == "cuda" else 0
