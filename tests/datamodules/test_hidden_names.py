"""One rule decides which names no listing of images includes."""

import pytest

from datamodules.hidden_names import is_hidden


@pytest.mark.parametrize(
    "path",
    [
        *(".DS_Store", "._photo.png", "a/._photo.png", "__MACOSX/a/photo.png", "a/.ipynb_checkpoints/photo.png"),
        *("Thumbs.db", "a\\desktop.ini", "@eaDir/photo.png", "./.hidden.png", "a/$RECYCLE.BIN/photo.png"),
    ],
)
def test_hidden(path):
    assert is_hidden(path)


@pytest.mark.parametrize(
    "path",
    ["photo.png", "./photo.png", "../photo.png", "a.b/photo.png", "macosx/photo.png", "thumbs.db.png", "_b.png"],
)
def test_not_hidden(path):
    assert not is_hidden(path)
