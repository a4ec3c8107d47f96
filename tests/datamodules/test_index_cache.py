import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from datamodules import index_cache
from datamodules.index_cache import cached_arrays, file_fingerprint, memmaps_to_paths, paths_to_memmaps


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counted:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"names": np.array([b"a", b"bc"]), "offsets": np.arange(3)}


def test_arrays_are_built_once_per_fingerprint(home: Path) -> None:
    build = Counted()
    for _ in range(2):
        found = cached_arrays("tar", {"size": 1}, build)
    assert build.calls == 1
    assert found["names"].tolist() == [b"a", b"bc"]
    assert isinstance(found["offsets"], np.memmap)
    cached_arrays("tar", {"size": 2}, build)
    assert build.calls == 2
    assert sorted(p.name.split("-")[0] for p in home.iterdir()) == ["tar", "tar"]  # nothing temporary is left


@pytest.mark.parametrize("damage", ["truncated", "missing", "no list"])
def test_a_damaged_entry_is_built_again(home: Path, damage: str) -> None:
    build = Counted()
    cached_arrays("tar", 1, build)
    (entry,) = home.iterdir()
    if damage == "truncated":
        (entry / "offsets.npy").write_bytes((entry / "offsets.npy").read_bytes()[:-8])
    elif damage == "missing":
        (entry / "names.npy").unlink()
    else:
        (entry / "index.json").write_text("{")
    assert cached_arrays("tar", 1, build)["offsets"].tolist() == [0, 1, 2]
    assert build.calls == 2
    assert cached_arrays("tar", 1, build)["offsets"].tolist() == [0, 1, 2]
    assert build.calls == 2


def test_an_entry_that_another_process_finished_first_is_used(home: Path) -> None:
    def build() -> dict[str, np.ndarray]:
        cached_arrays("tar", 1, Counted())
        return Counted()()

    assert cached_arrays("tar", 1, build)["offsets"].tolist() == [0, 1, 2]
    assert len(list(home.iterdir())) == 1


def test_a_cache_that_is_not_writable_gives_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"cannot write the index .*: set ASYNCDIFF_CACHE"):
        assert cached_arrays("tar", 1, Counted())["offsets"].tolist() == [0, 1, 2]


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASYNCDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert index_cache.cache_folder() == Path("/x/asyncdiff")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert index_cache.cache_folder() == Path.home() / ".cache" / "asyncdiff"


def test_a_file_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"x" * 3_000_000)
    before = file_fingerprint(file)
    assert file_fingerprint(file) == before == json.loads(json.dumps(before))
    with file.open("r+b") as stream:
        stream.seek(2_999_999)
        stream.write(b"y")
    assert file_fingerprint(file)["ends"] != before["ends"]


def test_mapped_arrays_are_pickled_as_the_names_of_their_files() -> None:
    found = cached_arrays("tar", 1, lambda: {"offsets": np.arange(100_000)})
    state = memmaps_to_paths({"full": found["offsets"], "part": found["offsets"][5:], "other": 3})
    assert len(pickle.dumps(state["full"])) < 1000
    again = paths_to_memmaps(state)
    assert isinstance(again["full"], np.memmap)
    assert again["full"].tolist() == list(range(100_000))
    assert again["part"].tolist() == list(range(5, 100_000))
    assert again["other"] == 3
