"""Read and write result cards (metrics with the protocol that produced them), and compare protocols."""

import json
import math
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from asyncdiff.checkpoints.old_names import update_names

FORMAT = 1  # version of the card format; `read_card` rejects others
# Protocol keys that identify what is compared, and keys that should not affect the numbers.
SUBJECT_KEYS = ("checkpoint", "checkpoint_sha256", "step")
SOFTWARE_KEYS = ("hardware", "torch", "commit")

_MISSING = object()


def software(device: torch.device | str) -> dict[str, str]:
    """Return the hardware name, PyTorch version and commit of this checkout, to record in a protocol."""
    return {"hardware": hardware(device), "torch": torch.__version__, "commit": commit()}


def hardware(device: torch.device | str) -> str:
    """Return the name of a GPU, or the CPU model and the number of threads in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")  # Linux only; other platforms give less detail
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def commit() -> str:
    """Return the commit of this checkout, with -dirty if files were modified, or "unknown" outside a checkout."""
    home = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two protocols differ, in the order of the first one.

    A list is compared as one value. A key that only one protocol has counts as a difference.
    """
    return list(_differences(before, now, ""))


def value_at(protocol: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or None if the key is missing."""
    value: Any = protocol
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def abbreviate(value: Any) -> str:
    """Return a value as text of at most 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def make_card(protocol: Mapping[str, Any], metrics: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """Return a result card as plain dicts and lists for a JSON file, from metrics by name and their protocol.

    A metric that is not finite becomes None, since JSON cannot represent it.
    """
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return {"format": FORMAT, "protocol": dict(protocol), "metrics": finite, **more}


def read_card(file: Path) -> dict[str, Any]:
    """Read a result card; raise FileNotFoundError or a one-line ValueError if the file is not a valid card."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file: check the path of the result card")
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(f"{file} cannot be read as a JSON file: {line}; evaluate the run again") from error
    if not isinstance(content, dict) or not {"protocol", "metrics"} <= content.keys():
        raise ValueError(f"{file} is not a result card, it lacks the protocol or metrics: evaluate the run again")
    if content.get("format") != FORMAT:
        raise ValueError(f"{file} has the card format {content.get('format')}, not {FORMAT}: evaluate the run again")
    if not isinstance(content["protocol"], dict) or not isinstance(content["metrics"], dict):
        raise ValueError(
            f"{file} is not a result card, its protocol or metrics are not mappings: evaluate the run again"
        )
    return dict(update_names(content))


def _differences(before: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(before.get(key, _MISSING), now.get(key, _MISSING), f"{name}.{key}".lstrip("."))
    elif before is _MISSING or now is _MISSING or _json_value(before) != _json_value(now):
        yield name


def _json_value(value: Any) -> Any:
    """Return a value as JSON reads it back, with lists in place of tuples."""
    return json.loads(json.dumps(value, default=str))
