"""Who may import whom: the core stands alone, and no room knows the rooms above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEAVES = {
    "shapes",
    "randomness",
    "checks",
    "image_grid",
    "foreign_text",
    "markdown",
    "memory",
    "regular_files",
    "yaml_files",
    "output_paths",
    "devices",
    "precision",
}
CORE = ("noise", "denoising", "networks", "sampling")
# Floor by floor: every room with the rooms that it may import. All may import the leaves.
ALLOWED: dict[str, set[str]] = {
    "noise": set(),
    "networks": set(),
    "checkpoints": set(),
    "denoising": {"noise"},
    "latents": {"checkpoints"},
    "sampling": {"noise", "denoising"},
    "model": {"noise", "checkpoints", "denoising", "latents", "sampling"},
    "tasks": {"noise", "sampling", "model"},
    "evaluation": {"noise", "checkpoints", "denoising", "sampling", "model"},
    "training": {"noise", "checkpoints", "denoising", "latents", "sampling", "model", "tasks"},
    "ablation": {"checkpoints", "evaluation"},
    "web": {"noise", "model", "tasks"},
    "callbacks": {"noise", "checkpoints", "denoising", "sampling", "tasks", "evaluation", "training"},
    "cli": {"noise", "networks", "checkpoints", "denoising", "latents", "sampling", "model", "tasks", "evaluation"}
    | {"training", "ablation", "web", "callbacks"},
}
ONE_FILE = {"model"}  # rooms of a single file
FRAMEWORKS = {"lightning", "torchmetrics", "torchvision", "jsonargparse", "timm"}
# What asyncdiff takes of datamodules: the base class, the loader that resumes, the format of latent shards, and which
# files are opened and listed.
OF_DATA = {"datamodules", "datamodules.base", "datamodules.order", "datamodules.storage.latent_shards"}
OF_DATA |= {"datamodules.hidden_names", "datamodules.index_cache", "datamodules.regular_files"}


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_of(room: str) -> set[str]:
    home = ROOT / "asyncdiff"
    files = [home / f"{room}.py"] if room in ONE_FILE else sorted((home / room).rglob("*.py"))
    assert files
    return {dotted for file in files for dotted in imports(file)}


def rooms(dotted_names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in dotted_names if name.startswith("asyncdiff.")}


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_downwards_only(room):
    program = {"__main__"} if room == "cli" else set()  # a command may run again in other processes
    assert rooms(imports_of(room)) - {room} <= ALLOWED[room] | LEAVES | program


def test_every_room_is_listed_above_those_that_it_imports():
    home = ROOT / "asyncdiff"
    assert {p.parent.name for p in home.glob("*/__init__.py")} == set(ALLOWED) - ONE_FILE
    assert {p.stem for p in home.glob("*.py")} == LEAVES | ONE_FILE | {"__init__", "__main__"}
    floors = list(ALLOWED)
    assert all(floors.index(below) < floors.index(room) for room in ALLOWED for below in ALLOWED[room])


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_import_nothing_of_the_package(leaf):
    assert not rooms(imports(ROOT / "asyncdiff" / f"{leaf}.py")) - LEAVES


@pytest.mark.parametrize("room", CORE)
def test_the_core_imports_torch_and_jaxtyping_only(room):
    allowed = {"asyncdiff", "torch", "jaxtyping", *sys.stdlib_module_names}
    assert {dotted.split(".")[0] for dotted in imports_of(room)} <= allowed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        (
            "asyncdiff.noise, asyncdiff.denoising, asyncdiff.networks, asyncdiff.sampling",
            FRAMEWORKS | {"torch._dynamo"},
        ),
        ("asyncdiff.latents", {"diffusers", "lightning"}),
        ("asyncdiff.cli.commands.serve, asyncdiff.web.image_encoding", {"gradio"}),
    ],
)
def test_packages_load_without_frameworks(modules, unwanted):
    """In a fresh interpreter."""
    code = f"import sys, {modules}; print(sorted({unwanted!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


SAMPLE = """
import sys
from asyncdiff.denoising import Denoiser
from asyncdiff.networks import DiT, UNet
from asyncdiff.noise import RectifiedFlow
from asyncdiff.sampling import Sampler

for network in (DiT(dim=32, depth=1, heads=4, rope=True), UNet(width=8, head_dim=4)):
    Sampler(steps=2)(Denoiser(network, RectifiedFlow()), seeds=[0], shape=(3, 16, 16))
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_sampling_does_not_load_the_compiler():
    """In a fresh interpreter: torch._dynamo takes longer to load than PyTorch."""
    result = subprocess.run([sys.executable, "-c", SAMPLE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_data_modules_know_nothing_of_diffusion():
    for file in (ROOT / "datamodules").rglob("*.py"):
        assert not any(dotted.startswith("asyncdiff") for dotted in imports(file)), file


def test_the_package_takes_no_plumbing_from_the_data_modules():
    taken = {dotted for room in ALLOWED for dotted in imports_of(room) if dotted.startswith("datamodules")}
    assert {dotted.rpartition(".")[0] or dotted for dotted in taken} <= OF_DATA


@pytest.mark.parametrize(("name", "below"), [("images", set()), ("storage", {"images"})])
def test_rooms_of_data_modules_import_downwards_only(name, below):
    """Storages know how images are read, images know no storage, and neither knows a data module."""
    home = ROOT / "datamodules"
    shared = {"argument_checks", "base", "order", "hash_split", "index_cache", "hidden_names", "regular_files"}
    files = sorted((home / name).glob("*.py"))
    assert len(files) > 3
    used = {dotted.split(".")[1] for file in files for dotted in imports(file) if dotted.startswith("datamodules.")}
    assert used - {name} <= shared | below
    above = {dotted for file in shared for dotted in imports(home / f"{file}.py") if dotted.startswith("datamodules.")}
    assert {dotted.split(".")[1] for dotted in above} <= shared | {"unreadable"}


def test_only_latents_use_diffusers():
    files = [*(ROOT / "asyncdiff").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py"), ROOT / "train.py"]
    found = {file.parent.name for file in files if any(dotted.startswith("diffusers") for dotted in imports(file))}
    assert found == {"latents"}


def test_only_the_page_uses_gradio():
    files = (ROOT / "asyncdiff").rglob("*.py")
    found = {file.name for file in files if any(dotted.startswith("gradio") for dotted in imports(file))}
    assert found == {"page.py", "layout.py", "mask_painter.py"}
