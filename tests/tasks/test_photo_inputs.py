"""Every photo gets its own mask or level map, and says which; a photo is never its own mask."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import small_dit

from asyncdiff import DiffusionModel
from asyncdiff.sampling import Sampler
from asyncdiff.tasks import Edit, Inpaint
from asyncdiff.tasks.arguments import photo_files

LEFT = np.uint8([[255] * 4 + [0] * 4] * 8)


@pytest.fixture(scope="module")
def model():
    return DiffusionModel.assemble(small_dit(), sampler=Sampler(steps=1), image_size=8)


@pytest.fixture
def folders(tmp_path):
    """Two photos, and masks of the same names, one of them upside down."""
    for folder, pictures in (("photos", [LEFT // 2, LEFT // 3]), ("masks", [LEFT, LEFT.T])):
        (tmp_path / folder).mkdir()
        for name, pixels in zip("ab", pictures, strict=True):
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    return tmp_path / "photos", tmp_path / "masks"


def drawn(model, task):
    return [request.photo for request in task.requests(model, seeds=[0])]


def test_each_photo_names_the_mask_of_its_name(model, folders):
    photos, masks = folders
    (masks / "._a.png").write_bytes(b"AppleDouble")
    (masks / "Thumbs.db").touch()
    a, b = drawn(model, Inpaint(str(photos), str(masks)))
    assert torch.equal(a.known, torch.from_numpy(LEFT > 0))
    assert torch.equal(b.known, torch.from_numpy(LEFT.T > 0))
    assert a.note.endswith(f", with the mask {masks / 'a.png'}")
    assert b.note.endswith(f", with the mask {masks / 'b.png'}")
    assert drawn(model, Edit(str(photos), str(masks)))[1].note.endswith(f", with the levels {masks / 'b.png'}")
    assert drawn(model, Inpaint(str(photos), "half"))[0].note.endswith(", with the built-in mask Half")


@pytest.mark.parametrize(("task", "name"), [(Inpaint, "mask"), (Edit, "levels")])
def test_wrong_pairs_are_refused(model, folders, task, name, tmp_path):
    photos, masks = folders
    for where in (photos, photos / "a.png"):
        with pytest.raises(ValueError, match=rf"^{name} must be another file than its photo, got \S+a.png for both"):
            drawn(model, task(str(where), str(where)))
    (tmp_path / "link.png").symlink_to(photos / "a.png")
    with pytest.raises(ValueError, match=f"{name} must be another file than its photo"):
        drawn(model, task(str(photos / "a.png"), str(tmp_path / "link.png")))
    Image.fromarray(LEFT).save(masks / "c.png")  # of a photo that is in another folder
    assert len(drawn(model, task(str(photos), str(masks)))) == 2
    (masks / "a.png").unlink()
    with pytest.raises(ValueError, match=f"{name} folder .* must contain exactly one image file named a, got 0"):
        drawn(model, task(str(photos / "*.png"), str(masks)))


def test_a_name_of_both_a_file_and_a_mask_set_is_refused(model, folders, monkeypatch):
    photos, masks = folders
    monkeypatch.chdir(masks.parent)
    masks.rename("half")
    with pytest.raises(ValueError, match=r"got half, which is both: write \./half for the file"):
        drawn(model, Inpaint(str(photos), "half"))
    assert len(drawn(model, Inpaint(str(photos), "./half"))) == 2


def test_listings_of_photos_leave_out_hidden_names(tmp_path):
    for name in ("a.png", "._a.png", ".hidden/b.png", "__MACOSX/c.png", "d/e.png", "f.png/g.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert photo_files("image", str(tmp_path)) == [tmp_path / "a.png"]
    assert [file.name for file in photo_files("image", str(tmp_path / "*" / "*.png"))] == ["e.png", "g.png"]
    assert photo_files("image", str(tmp_path / ".hidden" / "*.png")) == [tmp_path / ".hidden" / "b.png"]
    assert photo_files("image", str(tmp_path / ".hid*" / "*.png")) == [tmp_path / ".hidden" / "b.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="image must contain image files"):
        photo_files("image", str(tmp_path))
