"""Let a run that was moved or copied use its own checkpoints."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from asyncdiff.callbacks.graceful_shutdown import model_checkpoints


class MovedRun(Callback):
    """Makes a resumed run that was moved or copied replace its own checkpoints, never those of the original.

    Checkpoints record the paths of earlier checkpoints, which ModelCheckpoint forgets if the folder has changed: it
    would write last-v1.ckpt next to last.ckpt, and never remove old ones. `train.py` adds this callback by default.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Replace the recorded folders by those that the run has now."""
        for checkpointer in model_checkpoints(trainer):
            state = checkpoint.get("callbacks", {}).get(checkpointer.state_key)
            if state and state.get("dirpath") != checkpointer.dirpath and _resumes(trainer, checkpointer):
                # From the first process, as the others may not see the files.
                state.update(trainer.strategy.broadcast(moved_state(state, checkpointer)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let ModelCheckpoint replace last.ckpt also if its state lacks it, as with other settings than before."""
        for checkpointer in model_checkpoints(trainer):
            name = checkpointer.CHECKPOINT_NAME_LAST
            if checkpointer.save_last and "{" not in name and _resumes(trainer, checkpointer):
                last = f"{name}{checkpointer.FILE_EXTENSION}"
                checkpointer.last_model_path = os.path.join(str(checkpointer.dirpath), last)


def moved_state(state: dict[str, Any], checkpointer: ModelCheckpoint) -> dict[str, Any]:
    """Return the state of a ModelCheckpoint with paths in its present folder; files that are not there are left out."""
    old, new = str(state["dirpath"]), str(checkpointer.dirpath)

    def moved(path: str) -> str:
        inside = path.startswith(f"{old}{os.sep}") and Path(found := new + path.removeprefix(old)).is_file()
        return found if inside else ""

    scores = {name: score for path, score in state.get("best_k_models", {}).items() if (name := moved(path))}
    best, worst = (min, max) if checkpointer.mode == "min" else (max, min)

    def moved_or(choose: Any, path: str) -> str:
        remaining: str = choose(scores, key=lambda name: float(scores[name]), default="") if path else ""
        return moved(path) or remaining

    kth = moved_or(worst, state.get("kth_best_model_path", ""))
    first = moved_or(best, state.get("best_model_path", ""))
    return {
        "dirpath": checkpointer.dirpath,
        "best_k_models": scores,
        "kth_best_model_path": kth,
        "kth_value": scores.get(kth, checkpointer.kth_value),
        "best_model_path": first,
        "best_model_score": scores.get(first, state.get("best_model_score")),
        "last_model_path": moved(state.get("last_model_path", "")),
    }


def _resumes(trainer: Trainer, checkpointer: ModelCheckpoint) -> bool:
    """Return whether the checkpoint from which training starts lies in the run itself, rather than in another one."""
    if not trainer.ckpt_path or not checkpointer.dirpath or "://" in str(checkpointer.dirpath):
        return False
    run = trainer.default_root_dir
    own = (checkpointer.dirpath, run, os.path.join(run, "checkpoints"))
    # A link to a file counts as the file: copies of runs may consist of links.
    folder = os.path.realpath(os.path.dirname(os.path.abspath(trainer.ckpt_path)))
    return folder in {os.path.realpath(place) for place in own}
