"""Leave nothing behind of a run that is refused before it starts."""

from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from asyncdiff.callbacks.resume_logging import own_event_files
from asyncdiff.callbacks.tensorboard import tensorboard_loggers

HPARAMS = "hparams.yaml"


class RefusedRun(Callback):
    """Removes the empty event files and folders of a run that ends with an error before its first batch.

    Lightning opens event files before it reads the checkpoint and the data, so that each refused command would leave
    one. `train.py` adds this callback by default, and calls `remember` when the trainer has been built.
    """

    def __init__(self) -> None:
        self._before: set[Path] = set()
        self._started = False

    def remember(self, trainer: Trainer) -> None:
        """Store which files and folders there are, which remain in any case."""
        for logger in tensorboard_loggers(trainer):
            folder = Path(logger.log_dir)
            self._before |= {path for path in (folder / HPARAMS, folder, *folder.parents) if path.exists()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what is written from now on."""
        self._started = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what is written from now on, except by the sanity check in front of training."""
        self._started |= not trainer.sanity_checking

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what is written from now on."""
        self._started = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what is written from now on."""
        self._started = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove what has been written before the start."""
        if self._started or not trainer.is_global_zero:
            return
        names = own_event_files(trainer)
        for logger in tensorboard_loggers(trainer):
            logger.experiment.close()
            folder = Path(logger.log_dir)
            for path in (*(folder / name for name in names), folder / HPARAMS):
                if path not in self._before:
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # raised for the first folder that is not empty
                for path in (folder, *folder.parents):
                    if path in self._before:
                        break
                    path.rmdir()
