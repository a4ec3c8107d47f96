"""What a number was measured with: stamps that travel with it, and whether two of them may be compared."""

import json
import math
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from asyncdiff.checkpoints.old_names import current

FORMAT = 1  # of cards; a reader refuses others
# Keys that say what is compared, and those that ought to make no difference.
COMPARED = ("checkpoint", "checkpoint_sha256", "step")
SOFTWARE = ("hardware", "torch", "commit")

_MISSING = object()


def software(device: torch.device | str) -> dict[str, str]:
    """What computes: the hardware's name, PyTorch's version, and the commit of this checkout where it is one."""
    return {"hardware": hardware(device), "torch": torch.__version__, "commit": commit()}


def hardware(device: torch.device | str) -> str:
    """The name of a device, of a processor that of its kind and the threads in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")  # Linux only; elsewhere the platform says less
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def commit() -> str:
    """The commit of this checkout, with -dirty where files differ from it; unknown where it is none."""
    home = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two stamps differ, in the order of the first one.

    Lists are compared as wholes; a key that only one of them has is one in which they differ.
    """
    return list(_differences(before, now, ""))


def value_at(stamp: Mapping[str, Any], key: str) -> Any:
    """What stands at a dotted key, None if nothing does."""
    value: Any = stamp
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def told(value: Any) -> str:
    """A value in few words."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def card_of(protocol: Mapping[str, Any], metrics: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """Numbers by their names, with what they were measured with, as plain containers for a JSON file.

    A number that is not finite becomes None, since JSON has no word for it.
    """
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return {"format": FORMAT, "protocol": dict(protocol), "metrics": finite, **more}


def read_card(file: Path) -> dict[str, Any]:
    """A card from its file; ValueError in one line if it is none, or one of another format."""
    if not file.is_file():
        raise FileNotFoundError(f"cards must be JSON files, got {file}, which does not exist: evaluate writes them")
    try:
        held = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(
            f"cards must be JSON files, got {file}, which cannot be read: {line}; write it anew"
        ) from error
    if not isinstance(held, dict) or not {"protocol", "metrics"} <= held.keys():
        raise ValueError(f"cards must hold a protocol and metrics, got {file} without: evaluate the run again")
    if held.get("format") != FORMAT:
        raise ValueError(
            f"cards must be of format {FORMAT}, got {held.get('format')} in {file}: evaluate the run again"
        )
    if not isinstance(held["protocol"], dict) or not isinstance(held["metrics"], dict):
        raise ValueError(
            f"cards must hold keys with values in protocol and metrics, got others in {file}: write it anew"
        )
    return dict(current(held))


def _differences(before: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(before.get(key, _MISSING), now.get(key, _MISSING), f"{name}.{key}".lstrip("."))
    elif before is _MISSING or now is _MISSING or _plain(before) != _plain(now):
        yield name


def _plain(value: Any) -> Any:
    """As JSON gives it back: what was a tuple is a list there."""
    return json.loads(json.dumps(value, default=str))
