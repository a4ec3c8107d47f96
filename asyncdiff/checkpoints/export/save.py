"""Write exports atomically: the output folder is either complete or unchanged."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.checkpoints.export.files import CARD, CONFIG, WEIGHTS, check_output_folder
from asyncdiff.checkpoints.export.load import FORMAT, tensors_sha256
from asyncdiff.checkpoints.export.yaml_tuples import tuple_paths
from asyncdiff.checkpoints.loaded_tensors import check_tensors
from asyncdiff.checkpoints.run_lock import hold


def write_export(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], card: str, *, overwrite: bool = True
) -> None:
    """Write weights, configuration and model card into `folder`, replacing an earlier export.

    All files are first written to a temporary sibling folder, which is renamed once they are complete and on disk. One
    process at a time does this, and it puts in order what a killed one has left.

    Args:
        folder: output folder that `check_output_folder` accepts.
        tensors: weights by name; they are stored exactly.
        config: configuration as plain dicts and lists. The format version, the paths of the tuples in "recipe" and the
            SHA-256 of the weights are added.
        card: model card in Markdown, including the front matter.
        overwrite: whether `folder` may be an earlier export.

    Raises:
        OSError: a file cannot be written; the folder is unchanged.
        ValueError: the weights are not finite, or another process writes into the folder.
    """
    from safetensors.torch import save

    # Which of them are buffers, that may be infinite, was known when the model was loaded.
    check_tensors(tensors, folder, "export another checkpoint", buffers=tensors)
    weights: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        weights[name] = tensor.clone() if memory in stored else tensor  # safetensors refuses shared memory
        stored.add(memory)
    tuples = list(tuple_paths(config["recipe"]))
    complete = {"format": FORMAT, **config, "tuples": tuples, "weights_sha256": tensors_sha256(weights)}
    content = yaml.safe_dump(complete, sort_keys=False, allow_unicode=True, width=120).encode()
    metadata = {"format": "pt", "asyncdiff_format": str(FORMAT), "config_sha256": hashlib.sha256(content).hexdigest()}
    new, old = (folder.with_name(f".{folder.name}.{state}.tmp") for state in ("new", "old"))
    with hold(folder, "being exported to", lock=folder.with_name(f".{folder.name}.lock")):
        if old.exists() and not folder.exists():
            old.rename(folder)  # the process was killed between two renames
        check_output_folder(folder, overwrite=overwrite)
        try:
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
            new.mkdir()
            write_atomically(new / WEIGHTS, [save(weights, metadata)])
            write_atomically(new / CONFIG, [content])
            write_atomically(new / CARD, [card.encode()])
            _move_into_place(new, folder, old)
        except OSError as error:
            raise OSError(f"cannot write {folder}: {error}; the folder is unchanged") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _move_into_place(new: Path, folder: Path, old: Path) -> None:
    """Rename a complete folder to its final name, then delete the earlier export."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
