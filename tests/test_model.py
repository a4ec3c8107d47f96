"""A DiffusionModel draws what the LightningModule draws, from every kind of file, without Lightning."""

import copy
import pickle
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from small_runs import small_dit

from asyncdiff import AsyncDiffusion, DiffusionModel
from asyncdiff.denoising import Denoiser
from asyncdiff.latents import Identity
from asyncdiff.model import Model
from asyncdiff.noise import AsyncPatch, CosineVP, Half
from asyncdiff.sampling import DDIM, Sampler

ROOT = Path(__file__).resolve().parents[1]
OLD = ROOT / "tests" / "checkpoints" / "v0_1_0"


@pytest.fixture(scope="module")
def model():
    return DiffusionModel(Denoiser(small_dit(), CosineVP()).eval(), Sampler(AsyncPatch(), DDIM(0.5), 3), 8)


@pytest.mark.parametrize("weights", ["auto", "ema", "raw"])
def test_a_run_its_checkpoint_and_the_lightning_module_draw_the_same(digits_run, weights):
    file = digits_run / "checkpoints" / "last.ckpt"
    expected = AsyncDiffusion.load_from_checkpoint(file, weights=weights).generate([0, 5], [1, 2])
    for path in (digits_run, file, str(file)):
        loaded = DiffusionModel.load(path, weights=weights)
        assert not loaded.network.training
        assert torch.equal(loaded.generate([0, 5], [1, 2]), expected)


def test_weights_are_chosen(digits_run):
    ema, raw = (DiffusionModel.load(digits_run, weights=w).denoiser.state_dict() for w in ("ema", "raw"))
    assert any(not torch.equal(ema[name], raw[name]) for name in ema)


def test_exports_and_files_of_the_first_version_load():
    run, export = DiffusionModel.load(OLD / "run"), DiffusionModel.from_pretrained(OLD / "export")
    assert torch.equal(run.generate([3], [1]), export.generate([3], [1]))
    assert torch.equal(run.generate([3], [1]), AsyncDiffusion.from_pretrained(OLD / "export").generate([3], [1]))


def test_image_i_depends_on_seed_i_alone(model):
    together = model.generate([4, 7, 9], [0, 1, 2])
    alone = [model.generate([seed], [label], batch_size=1) for seed, label in ((4, 0), (7, 1), (9, 2))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    torch.testing.assert_close(together, model.generate([4, 7, 9], [0, 1, 2], batch_size=2), atol=1e-5, rtol=0)


def test_inpainting_keeps_known_pixels_bit_for_bit(model):
    image, known = torch.rand(1, 8, 8) * 2 - 1, Half()(8, 8)
    drawn = model.inpaint(image, known, seeds=[0, 1])
    assert torch.equal(drawn[:, :, known], image[:, known].expand(2, -1, -1))
    assert not torch.equal(drawn[0], drawn[1])


def test_inputs_of_another_range_are_refused(model):
    """Floats in [0, 255] or [0, 1] would be inpainted as white or gray; a mask of bytes would be inverted wrongly."""
    grid, known = torch.arange(64.0).reshape(1, 8, 8), torch.ones(8, 8, dtype=torch.bool)
    for image, got in ((4 * grid, "values from 0 to 252"), (4 * grid / 255, "multiples of 1/255")):
        with pytest.raises(ValueError, match=rf"image must lie in \[-1, 1\], got {got}"):
            model.inpaint(image, known)
        with pytest.raises(ValueError, match=rf"images must lie in \[-1, 1\], got {got[:9]}"):
            model.encode(image[None])


def test_a_model_never_changes(model):
    with pytest.raises(FrozenInstanceError):
        model.sampler = Sampler()
    other = replace(model, sampler=model.sampler.replace(steps=7))
    assert (model.sampler.steps, other.sampler.steps) == (3, 7)
    assert other.denoiser is model.denoiser
    expected = model.generate([0], sampler=other.sampler)
    assert torch.equal(other.generate([0]), expected)


def test_evaluation_mode_is_restored(model):
    model.network.train()
    drawn = model.generate([0])
    assert model.network.training
    model.network.eval()
    assert torch.equal(model.generate([0]), drawn)


def test_the_lightning_module_owns_the_model_that_it_trains():
    module = AsyncDiffusion(small_dit(), sampler=Sampler(steps=2), image_size=8)
    assert isinstance(module, Model)
    assert isinstance(module.model, Model)
    assert module.model.denoiser is module.denoiser
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert torch.equal(module.generate([1], [2]), module.model.generate([1], [2]))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.model.denoiser is other.denoiser
        assert other.denoiser is not module.denoiser
    module.sampler, module.codec = Sampler(steps=1), Identity()
    assert (module.model.sampler.steps, module.model.codec) == (1, module.codec)
    assert all(name.startswith("denoiser.") for name in module.state_dict())


@pytest.mark.parametrize(
    ("labels", "message"), [([10], r"labels must lie in 0 \.\. 9, got 10"), ([1, 2], "labels needs one class per seed")]
)
def test_labels_are_checked(model, labels, message):
    with pytest.raises(ValueError, match=message):
        model.generate([0], labels)


def test_labels_of_an_unconditional_model_are_refused():
    plain = DiffusionModel.assemble(small_dit(classes=0), image_size=8)
    with pytest.raises(ValueError, match="labels need a model trained with classes, got .1. for an unconditional one"):
        plain.inpaint(torch.zeros(1, 8, 8), Half()(8, 8), labels=[1])


class Supervised(AsyncDiffusion):
    """LightningModule of a user, with a weight of its own."""

    def __init__(self, factor: float = 1.0, side: int = 8):
        super().__init__(small_dit(), sampler=Sampler(steps=2), image_size=side)
        self.factor, self.side = factor, side
        self.head = torch.nn.Linear(2, 2)


def test_a_subclass_draws_with_its_denoiser(tmp_path):
    module = Supervised().eval()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "own.ckpt")
    package = __name__.partition(".")[0]
    with pytest.raises(ValueError, match=f"class_path {__name__}.Supervised is not in the allowed packages"):
        DiffusionModel.load(tmp_path / "own.ckpt")
    loaded = DiffusionModel.load(tmp_path / "own.ckpt", allow=("asyncdiff", package))
    assert torch.equal(loaded.generate([1]), module.generate([1]))


class Shifted(Denoiser):
    """Denoiser of a user, whose velocity is off by one."""

    def forward(self, x_t, t, label=None, **options):
        prediction = super().forward(x_t, t, label, **options)
        return replace(prediction, v=prediction.v + 1)


def test_a_subclass_draws_with_a_denoiser_of_its_own():
    module, plain = (AsyncDiffusion(small_dit(), sampler=Sampler(steps=2), image_size=8) for _ in range(2))
    plain.load_state_dict(module.state_dict())
    module.denoiser = Shifted(module.network, module.process)
    module.sampler = Sampler(steps=1)
    assert module.model.denoiser is module.denoiser
    expected = plain.generate([0], sampler=Sampler(steps=1)) - 1  # the velocity is that of the noise minus the image
    torch.testing.assert_close(module.generate([0]), expected, atol=1e-5, rtol=0)


def test_what_is_no_model_is_refused_in_one_line(tmp_path, digits_run):
    checkpoint = torch.load(digits_run / "checkpoints" / "last.ckpt", weights_only=True)
    cases = {
        "other.ckpt": (
            checkpoint | {"recipe": {"class_path": "asyncdiff.noise.Half", "init_args": {}}},
            "got asyncdiff",
        ),
        "more.ckpt": (
            checkpoint | {"state_dict": checkpoint["state_dict"] | {"x": torch.ones(1)}},
            "must have the same",
        ),
        "less.ckpt": (checkpoint | {"state_dict": {}, "ema": {}}, "must have the same weights"),
    }
    for number, recipe in enumerate(("text", None, [1], {"init_args": {}}, {"class_path": "asyncdiff.AsyncDiffusion"})):
        cases[f"{number}.ckpt"] = (checkpoint | {"recipe": recipe}, "is not a checkpoint of AsyncDiffusion")
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=message) as error:
            DiffusionModel.load(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(
        FileNotFoundError, match="path must be a run directory of train.py, .*gone, which does not exist"
    ):
        DiffusionModel.load(tmp_path / "gone")
    shutil.copytree(digits_run, tmp_path / "runs" / "a")
    with pytest.raises(FileNotFoundError, match=f"path must contain checkpoints/last.ckpt, .* use {tmp_path}/runs/a"):
        DiffusionModel.load(tmp_path / "runs")


@pytest.mark.slow
def test_drawing_imports_no_training_framework(digits_run):
    """In a fresh interpreter, from the file to the images."""
    unwanted = {"lightning", "torchmetrics", "torchvision", "timm", "matplotlib", "torch._dynamo", "datamodules.base"}
    code = (
        "import sys; from asyncdiff import DiffusionModel\n"
        f"DiffusionModel.load({str(digits_run)!r}).generate([0])\n"
        f"print(sorted({unwanted!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
