"""Who may import whom: the mathematics stands alone, and nothing knows the rooms above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MATHEMATICS = [
    "checks",
    "shapes",
    "randomness",
    "processes",
    "orders",
    "fields",
    "spacings",
    "contexts",
    "paths",
    "levels",
    "weightings",
    "targets",
    "denoiser",
    "oracles",
    "likelihood",
    "solvers",
]
MATHEMATICS += ["skipping", "guidance", "sampling", "repaint", "uncertainty", "clocks", "adaptive", "look_ahead"]
MATHEMATICS += ["objective", "masks", "tasks", "canvases"]
# Every room with the rooms of asyncdiff that it may import.
ALLOWED = {
    "checks": set(),
    "class_paths": {"recipe"},
    "exports": set(),
    "checkpoints": {"exports"},
    "event_files": set(),
    "shapes": set(),
    "randomness": set(),
    "processes": {"shapes"},
    "fields": {"shapes", "randomness"},
    "orders": {"shapes", "randomness"},
    "paths": {"shapes", "randomness", "fields", "orders"},
    "spacings": {"shapes", "paths", "processes"},
    "contexts": {"shapes", "randomness", "fields", "masks"},
    "levels": {"shapes", "randomness", "fields", "paths", "spacings", "contexts"},
    "weightings": {"shapes", "processes", "levels"},
    "targets": {"shapes", "processes"},
    "denoiser": {"shapes", "processes", "targets"},
    "oracles": {"shapes", "processes", "denoiser"},
    "likelihood": {"shapes", "randomness", "processes", "paths", "spacings", "denoiser", "weightings"},
    "objective": {"shapes", "denoiser", "levels", "weightings"},
    "solvers": {"shapes", "processes", "denoiser"},
    "skipping": {"shapes", "processes", "denoiser"},
    "guidance": {"shapes", "randomness", "processes", "denoiser", "skipping"},
    "sampling": {"shapes", "randomness", "denoiser", "guidance", "orders", "paths", "skipping", "solvers"},
    "repaint": {"shapes", "guidance", "sampling", "solvers"},
    "uncertainty": {"shapes", "denoiser"},
    "clocks": {"shapes", "uncertainty"},
    "adaptive": {"shapes", "randomness", "denoiser", "guidance", "sampling", "solvers", "clocks", "uncertainty"},
    "look_ahead": {"shapes", "randomness", "denoiser", "guidance", "uncertainty"},
    "masks": set(),
    "canvases": {"denoiser", "randomness", "sampling", "tasks"},
    "photos": set(),
    "codecs": {"shapes", "checkpoints"},
    "predictions": {"shapes", "codecs", "denoiser", "sampling", "orders", "masks", "tasks", "canvases", "photos"},
    "predicted": {"predictions", "shapes"},
    "tasks": {"shapes", "denoiser", "sampling"},
    "networks": {"shapes"},
    "recipe": set(),
    "caching": {"codecs", "recipe", "shapes"},
    "strategies": {"checkpoints", "exports", "mismatch"},
    "optimisation": {"strategies"},
    "settings": {"paths", "sampling"},
    "mismatch": {"recipe", "codecs"},
    "pretrained": {"mismatch", "checkpoints", "strategies"},
    "held_out": {"shapes", "randomness", "paths", "levels", "weightings", "denoiser", "objective"},
    "evaluation": {"shapes", "randomness", "processes", "denoiser", "paths", "orders", "spacings", "masks"}
    | {"likelihood", "sampling", "tasks", "checkpoints"},
    "module": ({*MATHEMATICS} - {"masks"})
    | {"codecs", "recipe", "checkpoints", "pretrained", "strategies", "evaluation", "held_out"}
    | {"predictions", "predicted"}
    | {"optimisation", "settings", "mismatch", "exports"},
    "plots": {"shapes", "randomness", "paths", "levels", "spacings", "likelihood", "evaluation"},
    "callbacks": {"module", "tasks", "evaluation", "sampling", "masks", "paths", "shapes", "spacings", "likelihood"}
    | {"event_files", "strategies", "plots", "recipe", "predictions", "levels", "randomness"},
    "ablations": {"class_paths", "cli", "evaluation"},
    "serve": {"photos", "predictions"},
    "commands": {
        "serve",
        "ablations",
        "class_paths",
        "cli_errors",
        "recipe",
        "checkpoints",
        "module",
        "callbacks",
        "evaluation",
        "plots",
    }
    | {"caching", "codecs", "levels", "networks", "paths", "spacings", "masks", "likelihood"}
    | {"predictions", "photos", "sampling", "guidance", "adaptive", "look_ahead", "repaint"}
    | {"processes", "targets", "weightings", "solvers", "exports"},
    "__main__": {"cli", "class_paths", "cli_errors"},
}


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "asyncdiff" and len(parts) > 1 else None


@pytest.mark.parametrize("name", ALLOWED)
def test_rooms_import_downwards_only(name):
    home = ROOT / "asyncdiff"
    files = [home / f"{name}.py"] if (home / f"{name}.py").exists() else sorted((home / name).glob("*.py"))
    assert files
    used = {room(dotted) for file in files for dotted in imports(file)} - {
        None,
        name,
        "checks",
    }  # checks serve everyone
    assert used <= ALLOWED[name]


def test_every_room_is_listed():
    rooms = {p.stem for p in (ROOT / "asyncdiff").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__", "cli", "cli_errors"} == set(ALLOWED)


def test_data_modules_know_nothing_of_diffusion():
    for file in (ROOT / "datamodules").rglob("*.py"):
        assert not any(dotted.startswith("asyncdiff") for dotted in imports(file)), file


@pytest.mark.parametrize(("name", "below"), [("images", set()), ("storage", {"images"})])
def test_rooms_of_data_modules_import_downwards_only(name, below):
    """Storages know how images are read, images know no storage, and neither knows a data module."""
    home = ROOT / "datamodules"
    shared = {"base", "order", "held_out", "index_cache"}
    files = sorted((home / name).glob("*.py"))
    assert len(files) > 3
    used = {dotted.split(".")[1] for file in files for dotted in imports(file) if dotted.startswith("datamodules.")}
    assert used - {name} <= shared | below
    above = {dotted for file in shared for dotted in imports(home / f"{file}.py") if dotted.startswith("datamodules.")}
    assert {dotted.split(".")[1] for dotted in above} <= shared | {"unreadable"}


def test_only_codecs_use_diffusers():
    files = [*(ROOT / "asyncdiff").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py"), ROOT / "train.py"]
    found = {file.parent.name for file in files if any(dotted.startswith("diffusers") for dotted in imports(file))}
    assert found == {"codecs"}


def test_only_the_page_uses_gradio():
    files = (ROOT / "asyncdiff").rglob("*.py")
    found = {file.name for file in files if any(dotted.startswith("gradio") for dotted in imports(file))}
    assert found == {"page.py", "layout.py", "painter.py"}
    code = "import sys, asyncdiff.cli.commands.serve, asyncdiff.web.image_encoding; print('gradio' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_codecs_load_without_diffusers():
    code = "import sys, asyncdiff.latents; print(sorted({'diffusers', 'lightning'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_mathematics_loads_without_the_frameworks():
    code = (
        f"import sys; [__import__('asyncdiff.' + name) for name in {MATHEMATICS!r}]; "
        "print(sorted({'lightning', 'timm', 'torchmetrics', 'torchvision', 'jsonargparse'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
