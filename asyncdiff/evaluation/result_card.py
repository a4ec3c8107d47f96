"""Read and write result cards (metrics with the protocol that produced them), and compare protocols."""

import math
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdiff.checkpoints.json_files import read_json
from asyncdiff.checkpoints.old_names import update_names

if TYPE_CHECKING:
    import torch

FORMAT = 1  # version of the card format; `read_card` rejects others
# Protocol keys that identify what is compared, and keys that should not affect the numbers.
SUBJECT_KEYS = ("checkpoint", "checkpoint_sha256", "step")
SOFTWARE_KEYS = ("hardware", "torch", "commit")
EVALUATIONS = ("samples", "likelihood", "inpainting")  # measurements of `evaluate`, whose cards name the precision


def software(device: "torch.device | str") -> dict[str, str]:
    """Return the hardware name, PyTorch version and commit of this checkout, to record in a protocol."""
    import torch  # imported late, because cards are also read without it

    return {"hardware": hardware(device), "torch": torch.__version__, "commit": commit()}


def hardware(device: "torch.device | str") -> str:
    """Return the name of a GPU, or the CPU model and the number of threads in use."""
    import torch

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
    content = read_json(file, "evaluate the run again")
    if not {"protocol", "metrics"} <= content.keys():
        raise ValueError(f"{file} is not a result card, it lacks the protocol or metrics: evaluate the run again")
    if content.get("format") != FORMAT:
        raise ValueError(f"{file} has the card format {content.get('format')}, not {FORMAT}: evaluate the run again")
    if not isinstance(content["protocol"], dict) or not isinstance(content["metrics"], dict):
        raise ValueError(
            f"{file} is not a result card, its protocol or metrics are not mappings: evaluate the run again"
        )
    if content["protocol"].get("measurement") in EVALUATIONS:
        content["protocol"].setdefault("precision", "float32")  # versions up to 0.2.0 had no other, and recorded none
    return dict(update_names(content))


def format_number(value: float) -> str:
    """Format a value with four significant digits, or with one decimal if it is 1000 or more."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
