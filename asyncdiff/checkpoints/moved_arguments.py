"""Keys of run configs that have moved into a section: model.learning_rate is now model.optimizer.learning_rate.

Only `asyncdiff.checkpoints.old_names` and the parser's error messages use this table.
"""

import re
from collections.abc import Mapping
from typing import Any

# Arguments of AsyncDiffusion that have moved into a section: old name -> section, name in the section.
MOVED = {
    "learning_rate": ("optimizer", "learning_rate"),
    "betas": ("optimizer", "betas"),
    "weight_decay": ("optimizer", "weight_decay"),
    "warmup_steps": ("optimizer", "warmup_steps"),
    "stop_after_bad_steps": ("optimizer", "stop_after_bad_steps"),
    "task": ("predict", "task"),
    "predict_count": ("predict", "count"),
    "predict_seeds": ("predict", "seeds"),
    "predict_labels": ("predict", "labels"),
    "predict_batch_size": ("predict", "batch_size"),
}
# Classes of the sections, which object configs name and run configs do not.
SECTIONS = {"optimizer": "asyncdiff.training.OptimizerSettings", "predict": "asyncdiff.training.PredictSettings"}


def update_key(key: str, replaced: dict[str, str] | None = None) -> str:
    """Return the current name of a dotted key of a run config.

    Args:
        key: key such as model.learning_rate or model.task.init_args.image; may end with +, as options do.
        replaced: dictionary to which the old name is added, with the new one, if it was replaced.

    Returns:
        The current key; any other key is returned unchanged.
    """
    if (match := re.fullmatch(r"model\.(\w+)(.*)", key, re.DOTALL)) is None or match[1] not in MOVED:
        return key
    old, new = f"model.{match[1]}", ".".join(("model", *MOVED[match[1]]))
    if replaced is not None:
        replaced[old] = new
    return new + match[2]


def update_keys(settings: Any, replaced: dict[str, str] | None = None) -> Any:
    """Return a copy of nested dicts and lists with current dotted keys, such as model.optimizer.learning_rate.

    Args:
        settings: values by dotted key, such as the axes of an ablation; not modified.
        replaced: dictionary to which every old key that was replaced is added, with its new key.

    Returns:
        The updated copy.

    Raises:
        ValueError: a dictionary has an old and the current key of the same argument, with different values.
    """
    if isinstance(settings, list):
        return [update_keys(item, replaced) for item in settings]
    if not isinstance(settings, dict):
        return settings
    updated: dict[Any, Any] = {}
    for key, value in settings.items():
        new = update_key(key, replaced) if isinstance(key, str) else key
        if new != key and new in settings and settings[new] != value:
            raise ValueError(contradiction(key, value, new, settings[new]))
        updated[new] = update_keys(value, replaced)
    return updated


def move_arguments(
    arguments: Mapping[Any, Any], classes: Mapping[str, str] | None = None, replaced: dict[str, str] | None = None
) -> dict[Any, Any]:
    """Return arguments of AsyncDiffusion by their current names, those that have moved in their sections.

    Args:
        arguments: arguments by name, without old class paths.
        classes: class path of each section, for an object config; a run config has none.
        replaced: dictionary to which every old key that was replaced is added, with its new key.

    Returns:
        The arguments; the values are shared with those passed.

    Raises:
        ValueError: an argument is given by its old and by its current name, with different values.
    """
    moved = dict(arguments)
    for old, value in arguments.items():
        section, _ = MOVED.get(str(old).rstrip("+"), (None, None))  # + may follow, as in YAML files
        # A section may be a file name: then the parser refuses the old name.
        if section is None or not isinstance(moved.get(section) or {}, dict):
            continue
        del moved[old]
        new = update_key(f"model.{old}", replaced)
        settings, name = _open_section(moved, section, classes), new.rpartition(".")[2]
        if name in settings and settings[name] != value:
            raise ValueError(contradiction(f"model.{old}", value, new, settings[name]))
        settings[name] = value
    return moved


def _open_section(arguments: dict[Any, Any], section: str, classes: Mapping[str, str] | None) -> dict[str, Any]:
    """Replace a section of `arguments` by a copy, and return the dictionary of its settings, which may be changed."""
    copied = dict(arguments.get(section) or ({"class_path": classes[section]} if classes else {}))
    arguments[section] = copied
    if "class_path" not in copied:
        return copied
    copied["init_args"] = dict(copied.get("init_args") or {})
    return copied["init_args"]


def contradiction(old: str, old_value: Any, new: str, value: Any) -> str:
    """Return the error message for an old and a current name of the same argument that have different values."""
    return f"{old} is an earlier name of {new} and must equal it, got {old_value} and {value}: remove {old}"
