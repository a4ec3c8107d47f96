"""How a run's checkpoints are written: as a whole or not at all, beside training if wanted."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from asyncdiff.checkpoints.atomic_files import remove_stale, written_whole
from asyncdiff.checkpoints.export import is_export, read_export
from asyncdiff.checkpoints.load import damage, read_safely
from asyncdiff.checkpoints.old_names import current_checkpoint

# Lightning's file in which the processes of ddp_fork and ddp_spawn hand on weights alone at the end of a fit.
HANDED_ON = ".temp.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place, lets the disk confirm them, and renames them into it.

    An earlier file of that name is intact until then, whatever happens: a kill, a full disk, a crash of the machine.
    (Lightning's own way writes to the temporary folder, and copies from there where that is another file system.)
    Damaged files are refused by name. `train.py` has this plugin without being told; addresses such as s3://... are
    left to Lightning.

    Args:
        asynchronous: copy the state and write it in the background while training goes on; a second copy of all
            weights and of the optimiser's state has to fit into memory. A failure stops training at the next
            checkpoint, or at the end.
    """

    def __init__(self, asynchronous: bool = False):
        self.asynchronous = asynchronous
        self._writer: ThreadPoolExecutor | None = None
        self._writing: list[Future[None]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write it; OSError where that fails, with the earlier file intact."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if not self.asynchronous:
            _write(checkpoint, Path(path))
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # now: a link to the file may be made before it is there
        # One thread: files come and go in the order they were asked to, so that there is one at any time.
        self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._submit(_write, apply_to_collection(checkpoint, Tensor, _copied), Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it, or an export, as tensors and plain containers; ValueError for all else, and for a damaged one."""
        if weights_only is False:
            raise ValueError(
                "weights_only must be true, got false, which would run whatever code a checkpoint holds: leave it out"
            )
        self._wait()
        if "://" in str(path):
            remote: dict[str, Any] = super().load_checkpoint(path, map_location or _to_cpu, True)
            return remote
        if is_export(path):
            return read_export(path)
        if told := damage(path):
            raise ValueError(f"ckpt_path must be a whole checkpoint, got {path}: {told}: take an earlier one")
        loaded = read_safely(path, map_location or _to_cpu, checked=True)
        if Path(path).name == HANDED_ON:
            return loaded
        if not isinstance(loaded, dict) or not {"state_dict", "pytorch-lightning_version"} <= loaded.keys():
            raise ValueError(f"ckpt_path must be a checkpoint, got {path}, which holds something else: take another")
        return current_checkpoint(loaded)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove it, after all that was to be written before."""
        if self._writer is None:
            super().remove_checkpoint(path)
        else:
            self._submit(super().remove_checkpoint, path)

    def teardown(self) -> None:
        """Wait for what is being written; raise what went wrong."""
        try:
            self._wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()
                self._writer = None

    def _submit(self, what: Any, *args: Any) -> None:
        assert self._writer is not None
        done = [future for future in self._writing if future.done()]
        self._writing = [future for future in self._writing if future not in done]
        for future in done:
            future.result()
        self._writing.append(self._writer.submit(what, *args))

    def _wait(self) -> None:
        writing, self._writing = self._writing, []
        for future in writing:
            future.result()


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # tidying is no reason to fail
        remove_stale(path.parent)
    with written_whole(path) as stream:
        try:
            torch.save(checkpoint, stream)
        except RuntimeError as error:  # PyTorch's word for an archive that cannot be written, which hides the system's
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else OSError(str(error).split("\n")[0]) from error


def _to_cpu(storage: Any, location: str) -> Any:
    return storage


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
