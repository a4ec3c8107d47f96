"""Record training steps, and write the step that ends a run to a JSON file."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.devices import HostCopy
from asyncdiff.training.optimization.gradients import nonfinite_names

COUNTERS = ("skipped", "in_a_row", "overflows")
MAX_NAMES = 20  # maximum number of parameters listed in a file; a single bad image may affect thousands


@dataclass(frozen=True)
class StepRecord:
    """Record of one optimizer step of one process: small tensors, on their devices, and no images.

    Attributes:
        step: number of optimizer steps of the run, including this one.
        epoch: number of completed passes through the data.
        batches: one mapping per accumulated batch, with its loss and the info given to `StepGuard.watch`.
        norms: norm of every gradient; for sharded ones, the norm of this process's shard.
        names: names of the parameters with these gradients.
        counts: `COUNTERS` after this step, on their way to the host.
    """

    step: int
    epoch: int
    batches: Sequence[dict[str, Any]]
    norms: Float[Tensor, " n"]
    names: Sequence[str]
    counts: HostCopy

    def counters(self) -> dict[str, int]:
        """Return the counters by name, after waiting for the device if they have not arrived."""
        return dict(zip(COUNTERS, self.counts.read().tolist(), strict=True))

    def stop_run(
        self,
        folder: Path,
        module: nn.Module,
        files: Callable[[Sequence[int]], Sequence[str] | None],
        *,
        rank: int = 0,
        seed: int | None = None,
    ) -> NoReturn:
        """Write this step to `folder`/step_N_rank_R.json and raise ValueError.

        `files` returns the file names of dataset indices, or None if the images have no files.
        """
        in_a_row = self.counters()["in_a_row"]
        path = folder / f"step_{self.step}_rank_{rank}.json"
        content = {"step": self.step, "epoch": self.epoch, "rank": rank, "seed": seed}
        try:
            content |= self._describe(module, files)
            folder.mkdir(parents=True, exist_ok=True)
            # JSON escapes other characters, including those of file names that are not valid text.
            path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="ascii")
            dump = f"see {path}"
        except OSError as error:  # the disk may be full, or the images gone
            dump = f"no file could be written ({error})"
        raise ValueError(
            f"loss and gradients must be finite, got NaN or infinity in {in_a_row} steps in a row up to step "
            f"{self.step}: {dump}; lower optimizer.learning_rate, inspect the images of this step, or raise "
            "optimizer.stop_after_bad_steps"
        )

    def _describe(self, module: nn.Module, files: Callable[[Sequence[int]], Sequence[str] | None]) -> dict[str, Any]:
        batches = [{name: _to_json(value) for name, value in batch.items()} for batch in self.batches]
        for batch in batches:
            batch["files"] = files(batch["index"]) if batch.get("index") is not None else None
        norms = zip(self.names, self.norms.tolist(), strict=True)
        nonfinite = [name for name, norm in norms if not math.isfinite(norm)]
        counters = self.counters()
        return {
            "steps_in_a_row": counters["in_a_row"],
            "skipped_steps": counters["skipped"],
            "loss_is_finite_here": all(math.isfinite(float(batch["loss"])) for batch in batches),
            "gradients_not_finite": nonfinite[:MAX_NAMES],
            "gradients_not_finite_count": len(nonfinite),
            "parameters_not_finite": nonfinite_names(module.named_parameters())[:MAX_NAMES],
            "batches": batches,
        }


def _to_json(value: Any) -> Any:
    """Convert tensors to lists, and numbers that are not finite to the strings nan, inf and -inf."""
    if isinstance(value, Tensor):
        return _to_json(value.detach().cpu().tolist())
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
