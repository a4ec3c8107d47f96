"""Lightning plugin that writes checkpoints atomically, optionally in the background."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from asyncdiff.checkpoints.atomic_files import open_atomic, remove_stale
from asyncdiff.checkpoints.export import is_export, read_export
from asyncdiff.checkpoints.load import check_entries, find_damage, read_safely
from asyncdiff.checkpoints.old_names import update_checkpoint
from asyncdiff.devices import HostCopy

# With ddp_fork and ddp_spawn, this file carries the weights back to the main process after a fit, and nothing else.
SPAWN_WEIGHTS = ".temp.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin that writes to a temporary file in the same folder, flushes it to disk and renames it.

    An existing file with that name stays intact until the rename, even if the process is killed, the disk fills up or
    the machine crashes. (Lightning writes to the system's temporary folder, and copies the file if that is on another
    file system.) Loading a damaged file raises an error that names it. `train.py` uses this plugin by default. URLs
    such as s3://... are left to Lightning.

    Args:
        asynchronous: copy the state to the CPU and write it in the background while training continues, for networks
            whose checkpoints take long to write. A GPU copies into pinned memory, without the host waiting for it. A
            second copy of all weights and of the optimizer state must fit into memory, in which the first process keeps
            it for the next checkpoint. If a write fails, training stops at the next checkpoint, or at the end.
    """

    def __init__(self, asynchronous: bool = False):
        self.asynchronous = asynchronous
        self._writer: ThreadPoolExecutor | None = None
        self._writing: list[Future[None]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; raise OSError if that fails, leaving an earlier file of that name intact."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if not self.asynchronous:
            _write(checkpoint, Path(path))
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # now, as Lightning may link to the file before it exists
        # A single thread writes and removes files in the order of the calls, so that a checkpoint always exists.
        self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._submit(self._writer, _write_copy, apply_to_collection(checkpoint, Tensor, HostCopy), Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint or an export; raise ValueError if it is damaged or could execute code."""
        if weights_only is False:
            raise ValueError(
                "weights_only=False is not supported: it would execute arbitrary code from the checkpoint; omit it"
            )
        self._wait()
        if "://" in str(path):
            remote: dict[str, Any] = super().load_checkpoint(path, map_location or _to_cpu, True)
            return remote
        if is_export(path):
            return read_export(path)
        if damage := find_damage(path):
            raise ValueError(f"cannot load ckpt_path {path}, {damage}: use an earlier checkpoint")
        loaded = read_safely(path, map_location or _to_cpu, checked=True)
        if Path(path).name == SPAWN_WEIGHTS:
            return loaded
        if not isinstance(loaded, dict) or not {"state_dict", "pytorch-lightning_version"} <= loaded.keys():
            raise ValueError(
                f"ckpt_path {path} is not a checkpoint, it has no state_dict or no Lightning version: choose a .ckpt "
                "file of a run"
            )
        if "recipe" in loaded:
            check_entries(loaded, path)
        return update_checkpoint(loaded)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, after all writes that were requested earlier."""
        if self._writer is None:
            super().remove_checkpoint(path)
        else:
            self._submit(self._writer, super().remove_checkpoint, path)

    def teardown(self) -> None:
        """Wait for pending writes and raise their errors."""
        try:
            self._wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()
                self._writer = None

    def _submit(self, writer: ThreadPoolExecutor, function: Any, *args: Any) -> None:
        done = [future for future in self._writing if future.done()]
        self._writing = [future for future in self._writing if future not in done]
        for future in done:
            future.result()
        self._writing.append(writer.submit(function, *args))

    def _wait(self) -> None:
        writing, self._writing = self._writing, []
        for future in writing:
            future.result()


def _write_copy(copies: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whose tensors may still be on their way to the host."""
    _write(apply_to_collection(copies, HostCopy, HostCopy.read), path)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # a failed cleanup must not fail the checkpoint
        remove_stale(path.parent)
    with open_atomic(path) as stream:
        try:
            torch.save(checkpoint, stream)
        except RuntimeError as error:  # PyTorch raises it in place of an OSError
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else OSError(str(error).split("\n")[0]) from error


def _to_cpu(storage: Any, location: str) -> Any:
    return storage
