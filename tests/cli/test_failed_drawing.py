"""Drawing that fails leaves nothing behind before its first images are complete, and complete images after that."""

from pathlib import Path

import pytest

from asyncdiff.__main__ import main
from asyncdiff.sampling import Sampler


@pytest.fixture
def fail_after(monkeypatch, digits_run, tmp_path):
    """Function that draws four images in two batches of two, and lets batch number `good` fail."""
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(digits_run)
    frames = Sampler.frames

    def draw(good: int) -> None:
        calls = []

        def failing(self, *arguments, **options):
            calls.append(None)
            if len(calls) > good:
                raise RuntimeError("out of memory")
            return frames(self, *arguments, **options)

        monkeypatch.setattr(Sampler, "frames", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            main(["sample", "run", "--seeds", "0-3", "--batch_size", "2", "--output", "new/images", "--labels", "1"])

    return draw


def test_nothing_is_written_before_the_first_images(fail_after):
    fail_after(0)
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_complete_images_stay_with_their_record(fail_after):
    fail_after(1)
    written = sorted(path.name for path in Path("new/images").iterdir())
    assert written == ["000000_class1.png", "000001_class1.png", "predict.yaml"]
