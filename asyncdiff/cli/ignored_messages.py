"""Warnings and log messages of libraries that users of train.py cannot act on."""

import logging
import warnings

# Warnings that do not concern users: about arguments that this program passes to LightningCLI, about deprecations
# inside libraries, and about the length of `predict`'s iterable batches, which is correct.
WARNINGS = (
    "LightningCLI's args parameter",
    r"(?s).*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"(?s).*``instantiate_classes`` was deprecated",
    r"(?s).*By default only one JsonargparseDeprecationWarning",
    "Your `IterableDataset` has `__len__` defined",
    "GPU available but not used",  # RunSummary says so, too
    r"(?s).*Checkpoint directory .* exists and is not empty",  # as that of a resumed run is
)
# Weights are always read with weights_only=True; RunSummary prints seed, hardware, precision and checkpoint.
LOG_MESSAGES = (
    "Tip: For seamless cloud",
    "`weights_only` was not set",
    "Seed set to",
    "GPU available",
    "TPU available",
    "Automatic Mixed Precision (AMP)",
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)


def silence_libraries() -> None:
    """Hide warnings and log messages that users cannot act on."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in (
        "pytorch.utilities.rank_zero",
        "pytorch.trainer.connectors.checkpoint_connector",
        "fabric.utilities.seed",
    ):
        logger = logging.getLogger(f"lightning.{name}")
        logger.removeFilter(_is_relevant)
        logger.addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in LOG_MESSAGES)
