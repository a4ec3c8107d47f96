"""The wheel contains what it needs and nothing else, and its installation works outside the repository."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from asyncdiff import __version__

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def run(*argv: object, cwd: Path) -> str:
    done = subprocess.run([str(arg) for arg in argv], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Wheel built from the files that git tracks or would add."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():  # skips broken links in test data
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, source, cwd=out)
    (file,) = out.glob("*.whl")
    return file


def test_contents_of_the_wheel(wheel):
    assert wheel.name == f"asyncpatch_diffusion-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        text = archive.read(metadata).decode()
    files = [path for top in ("asyncdiff", "datamodules") for path in (ROOT / top).rglob("*.*")]
    used = {f"{path.relative_to(ROOT)}" for path in files if path.suffix in (".py", ".md", ".html", ".js", ".css")}
    assert used <= set(names)
    assert {name.split("/")[0] for name in names} == {"asyncdiff", "datamodules", metadata.split("/")[0]}
    assert "asyncdiff/py.typed" in names
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "THIRD_PARTY_NOTICES.md"}
    required = [line.removeprefix("Requires-Dist: ") for line in text.splitlines() if line.startswith("Requires-Dist")]
    assert {"torch>=2.8", "lightning>=2.6.6"} <= set(required)
    assert 'gradio>=6; extra == "serve"' in required
    extras = {line.removeprefix("Provides-Extra: ") for line in text.splitlines() if line.startswith("Provides-Extra")}
    assert extras >= {"latents", "serve", "docs", "dev"}


def test_an_installation_trains_and_samples_outside_the_repository(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    # Dependencies come from this environment.
    (site_packages,) = (tmp_path / "venv").glob("lib/*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--ignore-installed", "-q"]
    run(*install, wheel, cwd=tmp_path)
    command = tmp_path / "venv" / "bin" / "asyncdiff"
    files = run(
        python, "-c", "import asyncdiff, datamodules; print(asyncdiff.__file__, datamodules.__file__)", cwd=tmp_path
    )
    assert all(file.startswith(str(tmp_path / "venv")) for file in files.split())
    assert "fit | validate | test | predict" in run(command, cwd=tmp_path)
    small = yaml.safe_load((ROOT / "experiments" / "digits_dit_async.yaml").read_text())
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(small))
    options = ["--trainer.max_steps", 2, "--trainer.default_root_dir", "run", "--trainer.callbacks", "null"]
    saving = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"
    inside = ["--trainer.callbacks.dirpath", "run/checkpoints", "--trainer.callbacks.save_last", "true"]
    run(command, "fit", "--config", "experiment.yaml", *options, saving, *inside, cwd=tmp_path)
    run(command, "sample", "run", "--seeds", "0,1", "--steps", 2, "--output", "drawn", cwd=tmp_path)
    assert len(list((tmp_path / "drawn").rglob("*.png"))) >= 2
