import torch
from lightning.pytorch import Trainer
from PIL import Image

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import ImageWriter
from asyncdiff.networks.dit import DiT
from asyncdiff.sampling import Sampler


def test_predictions_are_the_images_of_their_seeds(tmp_path):
    torch.manual_seed(0)
    network = DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2, classes=3)
    module = AsyncDiffusion(network, sampler=Sampler(steps=2), image_size=8, predict_count=5, predict_batch_size=2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[ImageWriter()], **quiet)
    trainer.predict(module, return_predictions=False)
    files = sorted((tmp_path / "predictions").iterdir())
    assert [f.name for f in files] == [f"{i:06d}_class{i % 3}.png" for i in range(5)]
    expected = (module.generate([4], [1])[0, 0].clamp(-1, 1) + 1) * 127.5
    written = torch.tensor(list(Image.open(files[4]).convert("L").getdata())).reshape(8, 8)
    assert (written - expected).abs().max() <= 1
