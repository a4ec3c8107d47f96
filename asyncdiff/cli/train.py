"""Command line of train.py: LightningCLI with one-line errors, interpolation and protection against overwriting runs.

User errors end the program with a one-line message and exit code 2; ASYNCDIFF_TRACEBACK=1 shows the traceback instead.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._actions import _ActionConfigLoad
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import datamodules
from asyncdiff import callbacks, latents
from asyncdiff.callbacks.refused_run import RefusedRun
from asyncdiff.checkpoints.atomic_files import remove_stale, write_atomically
from asyncdiff.checkpoints.latest import list_checkpoints, newest_intact_checkpoint
from asyncdiff.checkpoints.lightning_io import SPAWN_WEIGHTS, AtomicCheckpointIO
from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.checks import environment_integer, is_first_process
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.errors import ReportingParser, one_line_errors
from asyncdiff.cli.errors.parser import with_current_names
from asyncdiff.cli.ignored_messages import silence_libraries
from asyncdiff.cli.run_directory import THIS_FOLDER, make_portable, run_directory, with_run_directory
from asyncdiff.cli.trainer_precision import accept_auto, choose_precision, emulation_warning, trainer_device
from asyncdiff.cli.trainer_ranges import check_seed_everything, check_trainer
from asyncdiff.networks import dit, unet
from asyncdiff.noise import masks
from asyncdiff.output_paths import check_output_folder
from asyncdiff.training.lightning_module import AsyncDiffusion

# Imported here so that files can use bare class names, as in `class_path: Digits`.
SHORT_NAME_MODULES = (callbacks, latents, datamodules.ImageDataModule, dit, masks, unet)
# Set by SLURM and torchrun when they restart the same command after an interruption.
RESTART_VARIABLES = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")

# Sections of keys, and a line that each may contain.
SECTIONS = {
    "trainer": "max_steps: 1000",
    "model.optimizer": "learning_rate: 1e-4",
    "model.predict": "count: 64",
}


class Parser(ReportingParser, LightningArgumentParser):
    """Argument parser for layered files, which raises its errors."""

    def _apply_actions(self, cfg: Any, parent_key: str = "", *rest: Any, **options: Any) -> Namespace:
        """Replace earlier names in a file for the section `model` alone, as in --model FILE."""
        if parent_key == "model":
            cfg = with_current_names({parent_key: cfg})[parent_key]
        return super()._apply_actions(cfg, parent_key, *rest, **options)

    def _check_value_key(self, action: Any, value: Any, key: str, cfg: Any, append: bool = False) -> Any:
        """Merge the `vars` of layered files; by default, a later mapping would replace an earlier one."""
        if action.dest == "vars" and isinstance(value, dict):
            value = {**((cfg and cfg.get(key)) or {}), **value}
        return super()._check_value_key(action, value, key, cfg, append)


class SaveConfig(SaveConfigCallback):
    """Callback that writes RUN/config.yaml, which repeats the run in this or any other directory."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing: checkpoint and data are not read yet, and may be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file from one process, before the first step."""
        if trainer.is_global_zero:
            run = run_directory(trainer.default_root_dir)
            config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
            given = config["ckpt_path"]
            # Resuming does not change what the run computes; starting from another run's checkpoint does.
            if given and _is_inside(Path(given), run):
                config["ckpt_path"] = None
            config["auto_resume"] = False  # for the same reason; another directory may also contain another run
            config = make_portable(config, config["trainer"]["default_root_dir"] or str(run))
            config["trainer"]["default_root_dir"] = THIS_FOLDER
            run.mkdir(parents=True, exist_ok=True)
            write_atomically(run / "config.yaml", [yaml.safe_dump(config, sort_keys=False).encode()])


class ExperimentCLI(LightningCLI):
    """`fit | validate | test | predict` for one experiment file.

    The run directory is `trainer.default_root_dir`. `--ckpt_path last` means its checkpoints/last.ckpt. Starting a new
    fit in a directory that already contains a checkpoint is an error.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        with ExitStack() as self._held:  # the run directory, until the subcommand has ended
            super().__init__(*args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys `vars`, for interpolation, and `auto_resume`."""
        for action in parser._actions:
            if isinstance(action, _ActionConfigLoad):
                action.basetype = None  # a section is never named by a class path, which a file name would be taken for
        accept_auto(parser)
        parser.add_argument(
            "--vars", type=dict[str, Any], default={}, help="user-defined variables for interpolation as ${vars.NAME}"
        )
        parser.add_argument(
            "--auto_resume",
            type=bool,
            default=False,
            help="whether to resume an existing run in trainer.default_root_dir",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments and find the checkpoint."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        check_sections(config)
        check_seed_everything(config.get("seed_everything"))
        on_cpu = trainer_device(config.trainer.get("accelerator")).type == "cpu"
        check_trainer(config.trainer, self.config.subcommand, on_cpu=on_cpu)
        training = self.config.subcommand == "fit"
        if training and not config.trainer.get("fast_dev_run"):
            self._held.enter_context(hold_run(run_directory(config.trainer.get("default_root_dir"))))
        config["ckpt_path"] = checkpoint_to_load(config, training=training)

    def _parse_ckpt_path(self) -> None:
        """Do nothing, since hyperparameters come from the user's configuration, never from the checkpoint."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; add plugins and callbacks that protect a run unless the user configured others."""
        config = self._get(self.config_init, "trainer", default={})
        plugins, configured = (_as_list(config.get(key)) for key in ("plugins", "callbacks"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        precision, note = choose_precision(config.get("precision"), config.get("accelerator"))
        if warning := emulation_warning(precision, config.get("accelerator")):
            _print_to_stderr(f"warning: {warning}")
        resume = _resume_requested(bool(self._get(self.config, "auto_resume", default=False)))
        if self.config.subcommand == "fit" and not any(isinstance(callback, Checkpoint) for callback in configured):
            _print_to_stderr("warning: trainer.callbacks has no ModelCheckpoint: the trained weights may not be saved")
        if config.get("fast_dev_run"):  # Lightning saves no checkpoint then, but writes last.ckpt at the end
            configured = [callback for callback in configured if not isinstance(callback, Checkpoint)]
        defaults = (
            callbacks.ResumeLogging(take_over=resume),
            callbacks.MovedRun(),
            callbacks.DueCheckpoints(),
            callbacks.GracefulShutdown(),
        )
        missing: list[Any] = [
            default for default in defaults if not any(isinstance(callback, type(default)) for callback in configured)
        ]
        if self.config.subcommand == "predict" and not any(isinstance(c, callbacks.ImageWriter) for c in configured):
            missing.append(callbacks.ImageWriter())
        if config.get("enable_model_summary") is None and not any(isinstance(c, ModelSummary) for c in configured):
            missing.append(callbacks.RunSummary(precision_note=note))
            kwargs["enable_model_summary"] = False
        show_bar = config.get("enable_progress_bar") is not False
        if show_bar and not any(isinstance(callback, ProgressBar) for callback in configured):
            missing.append(callbacks.StepProgressBar())
        refused = RefusedRun()
        trainer = super().instantiate_trainer(
            plugins=plugins, callbacks=[*configured, *missing, refused], precision=precision, **kwargs
        )
        refused.remember(trainer)
        written = {"save_dir of a logger": [logger.log_dir for logger in trainer.loggers]}
        if self.config.subcommand == "fit":  # otherwise refused only when the first checkpoint is due
            written["dirpath"] = [
                getattr(checkpointer, "dirpath", None) for checkpointer in trainer.checkpoint_callbacks
            ]
        for name, folder in ((name, folder) for name, folders in written.items() for folder in folders):
            if folder and "://" not in str(folder):
                check_output_folder(Path(folder), name, may_be_a_run=True)
        return trainer

    def before_predict(self) -> None:
        """Drop the data module, which would take precedence over the batches that the model provides for `predict`."""
        self.datamodule = None

    def after_fit(self) -> None:
        """Print where the results were written."""
        print_results(self.trainer)


class ConfigOnlyCLI(ExperimentCLI):
    """CLI that parses a command line without building or running anything."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments without looking for a checkpoint."""
        super(ExperimentCLI, self).parse_arguments(parser, args)

    def _set_seed(self) -> None:
        """Leave the global random state unchanged."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def parse_config(args: list[str]) -> dict[str, Any]:
    """Return the complete configuration of a train.py command line, as plain dicts and lists."""
    with trusted_packages.restrict_imports(args) as rest:
        cli = _run_cli(ConfigOnlyCLI, rest)
        config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
    return dict(config[cli.config.subcommand])


def main(args: list[str] | None = None) -> None:
    """Run one subcommand; a user error ends the program with a one-line message."""
    had_process_group = dist.is_available() and dist.is_initialized()
    argv = sys.argv[1:] if args is None else args
    with one_line_errors(), trusted_packages.restrict_imports(argv) as rest:
        _run_cli(ExperimentCLI, rest)
    # Threads of the trainer's process group could abort a successful run at interpreter exit, so end it here.
    if not had_process_group and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _run_cli(kind: type[ExperimentCLI], args: list[str]) -> ExperimentCLI:
    # ${data.init_args.x} must resolve under the subcommand's key, such as `fit`, as it does at the top level of a file.
    # Keys of type Any must keep a dictionary that looks like an object config as it is written.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True, instantiate_subclass_spec_in_any=False)
    silence_libraries()
    return kind(
        AsyncDiffusion,
        LightningDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_class=Parser,
        # allow_abbrev=False: a prefix of a key is a typing error and must not count as the key.
        parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False},
        save_config_callback=SaveConfig,
        seed_everything_default=0,
        trainer_defaults={"use_distributed_sampler": False},
        args=with_run_directory(args),
    )


def check_sections(config: Namespace) -> None:
    """Raise ValueError if a section is not a mapping, which the parser allows."""
    for key, example in SECTIONS.items():
        if not isinstance(section := config.get(key), Namespace):
            given = "null" if section is None else section
            raise ValueError(f"{key} must be a section of keys, got {given}: write {example} below it, for example")


@contextmanager
def hold_run(run: Path) -> Iterator[None]:
    """Hold the lock of a run directory in the first process of a run, and remove what killed processes left in it."""
    if not is_first_process() or "://" in str(run):
        yield
        return
    with hold(run, "being trained"):
        for folder in (run, run / "checkpoints"):
            remove_stale(folder)
        (run / SPAWN_WEIGHTS).unlink(missing_ok=True)
        yield


def checkpoint_to_load(config: Namespace, *, training: bool) -> str | None:
    """Return the checkpoint to start from, or None for a new run; raise ValueError if that would overwrite a run.

    All processes return the same, because none writes a checkpoint before all have passed this point.
    """
    ckpt_path = config.get("ckpt_path")
    run = run_directory(config.trainer.get("default_root_dir"))
    latest = run / "checkpoints" / "last.ckpt"
    existing = list_checkpoints(run)
    if not ckpt_path and not training:
        raise ValueError("ckpt_path is required, or untrained weights would be used: add --ckpt_path last")
    if ckpt_path == "last" and not (existing if training else latest.is_file()):
        remedy = "omit ckpt_path to start a new run" if training else "run fit first"
        raise FileNotFoundError(f"ckpt_path is last, but {latest} does not exist: {remedy}")
    if ckpt_path == "last":
        return str(newest_intact_checkpoint(run)) if training else str(latest)
    if ckpt_path and "://" in ckpt_path:
        _check_address(ckpt_path)
    elif ckpt_path and ckpt_path != "hpc" and not os.path.exists(ckpt_path):
        raise FileNotFoundError(
            f"ckpt_path must be a checkpoint or last, got {ckpt_path}, which does not exist: check the path"
        )
    elif ckpt_path == "hpc" and not list(run.glob("hpc_ckpt_*.ckpt")):
        raise FileNotFoundError(f"ckpt_path is hpc, but there is no hpc_ckpt_N.ckpt in {run}: use last, or a file")
    if not training or not existing or config.trainer.get("fast_dev_run"):
        return ckpt_path
    # A run that has started from another one's checkpoint, and was interrupted, has its own.
    from_another = ckpt_path and os.path.exists(ckpt_path) and not _is_inside(Path(ckpt_path), run)
    if _resume_requested(bool(config.get("auto_resume"))) and (not ckpt_path or from_another):
        return str(newest_intact_checkpoint(run))
    if ckpt_path:
        return ckpt_path
    remedy = "last" if latest.is_file() else str(existing[0])
    raise ValueError(
        f"trainer.default_root_dir {run} already contains a run: "
        f"add --ckpt_path {remedy} or --auto_resume true to resume it, or choose another directory"
    )


def _check_address(address: str) -> None:
    """Raise ValueError unless a checkpoint can be read from an address such as s3://bucket/last.ckpt."""
    problem, remedy = "is not supported", "download it, and give the path of the file"
    if not re.match(r"(https?|ftps?|sftp)://", address):
        try:
            problem = "" if get_filesystem(address).exists(address) else "does not exist"
        except Exception as error:  # whatever the client of the storage raises, also if its package is missing
            problem = f"cannot be read ({error})"
    if problem:
        raise ValueError(f"ckpt_path must be a checkpoint or last, got {address}, which {problem}: {remedy}")


def _is_inside(file: Path, folder: Path) -> bool:
    """Return whether a file, which may be a link, lies in a folder or below."""
    return (file.parent.resolve() / file.name).is_relative_to(folder.resolve())


def _as_list(value: Any) -> list[Any]:
    """Return a single item, a list of items or None as a list."""
    return [] if value is None else [*value] if isinstance(value, list) else [value]


def _resume_requested(auto_resume: bool) -> bool:
    """Return whether to resume an existing run: by auto_resume, or because a job manager restarted the command."""
    return auto_resume or any(map(environment_integer, RESTART_VARIABLES))


@rank_zero_only
def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@rank_zero_only
def print_results(trainer: Trainer) -> None:
    """Print the final metrics of the callbacks, and the paths of images, checkpoint, config and logs."""
    run = run_directory(trainer.default_root_dir)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name, value in getattr(callback, "results", {}).items():
            print(f"{name}: {value:.3f}")
    paths = {
        "images": run / "images",
        "checkpoint": run / "checkpoints" / "last.ckpt",
        "config": run / "config.yaml",
    }
    for label, path in paths.items():
        if path.exists():
            print(f"{label}: {path}")
    if trainer.loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        print(f"TensorBoard: tensorboard --logdir {run}")


if __name__ == "__main__":
    main()
