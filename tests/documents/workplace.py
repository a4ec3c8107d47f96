"""Working directory for following documents, with the files that they mention."""

import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from blocks import ROOT
from PIL import Image

from asyncdiff import AsyncDiffusion
from asyncdiff.cli import train as cli

# Layer that makes every `fit` small; it must come last on the command line.
SMALLER = ["--config", str(Path(__file__).with_name("smaller.yaml"))]


def train_runs(folder: Path) -> Path:
    """Train the demo on digits and RUN on ten classes of 16x16 color images, for two steps each; return the folder."""
    draw_photos(folder / "ten", classes=10, each=4, size=(24, 20))
    demo = ["--config", str(ROOT / "experiments" / "demo.yaml"), *SMALLER]
    cli.main(["fit", *demo, "--trainer.default_root_dir", str(folder / "demo")])
    photos = ["--config", str(ROOT / "experiments" / "folder_dit_async.yaml"), *SMALLER]
    photos += ["--vars.root", str(folder / "ten"), "--vars.size", "16", "--vars.classes", "10"]
    photos += ["--data.init_args.held_out", "0.3"]
    cli.main(["fit", *photos, "--trainer.default_root_dir", str(folder / "RUN")])
    return folder


def prepare(folder: Path, runs: Path) -> None:
    """Fill an empty directory with the files that documents assume."""
    for name in ("experiments", "docs", "train.py", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(runs / "demo", folder / "runs" / "demo")
    shutil.copytree(runs / "RUN", folder / "RUN")
    draw_photos(folder / "images", classes=2, each=80, size=(40, 36), names=("cats", "dogs"))
    draw_photos(folder / "photos", classes=1, each=2, size=(40, 36))
    (folder / "PATH").symlink_to("images")
    photo((96, 80), 0).save(folder / "photo.jpg")
    photo((640, 480), 1).save(folder / "wall.png")
    Image.fromarray(np.linspace(0, 255, 96 * 80).astype(np.uint8).reshape(80, 96)).save(folder / "map.png")
    shutil.copytree(folder / "photos", folder / "masks")
    for file in (folder / "masks").rglob("*.png"):
        Image.fromarray(np.arange(40 * 36, dtype=np.uint8).reshape(36, 40) // 128 * 255).save(file)
    for name in ("EXPERIMENT", "EXPERIMENT.yaml", "FILE"):
        (folder / name).symlink_to(ROOT / "experiments" / "digits_dit_async.yaml")
    (folder / "paths.yaml").write_text("straight: {class_path: asyncdiff.noise.Synchronous}")
    identity = {"class_path": "asyncdiff.latents.Identity", "init_args": {"channels": 1}}
    (folder / "CODEC.yaml").write_text(yaml.safe_dump(identity))


def draw_photos(folder: Path, *, classes: int, each: int, size: tuple[int, int], names: tuple[str, ...] = ()) -> None:
    """Write images into class folders, or directly into the folder if there is one class."""
    for number in range(classes):
        class_folder = folder if classes == 1 else folder / (names[number] if names else f"class_{number}")
        class_folder.mkdir(parents=True, exist_ok=True)
        for index in range(each):
            photo(size, number * each + index).save(class_folder / f"{index:04d}.png")


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Return an image of (width, height) with smooth random colors."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def predefined_variables() -> dict[str, object]:
    """Return variables that Python blocks use without defining them."""
    generator = torch.Generator().manual_seed(0)
    digits = torch.randint(0, 2, (4, 1, 8, 8), generator=generator) * 2.0 - 1  # valid for any number of bits
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[:, :4] = True
    return {
        "__name__": "a document",
        "image": digits[0],
        "known": known,
        "x": digits,
        "label": torch.arange(4),
        "model": AsyncDiffusion.load_from_checkpoint("runs/demo/checkpoints/last.ckpt"),
        "images": torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1,
        "shuffled_pairs": [],
    }
