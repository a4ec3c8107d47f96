import fcntl
import json
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
from encoded_files import cache_fixture  # noqa: F401

from datamodules import index_cache
from datamodules.index_cache import MappedArray, cached_arrays, file_fingerprint, map_npy


class Counted:
    """Function that builds arrays and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"names": np.array([b"a", b"bc"]), "empty": np.zeros((0, 2)), "offsets": np.arange(3)}


def test_arrays_are_built_once_per_fingerprint(cache: Path) -> None:
    build = Counted()
    for _ in range(2):
        found = cached_arrays("tar", {"size": 1}, build)
    assert build.calls == 1
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in Counted()().items()
    }
    assert all(isinstance(array, MappedArray) and array.flags.aligned for array in found.values())
    cached_arrays("tar", {"size": 2}, build)
    assert build.calls == 2
    assert sorted(p.name.split("-")[0] for p in cache.iterdir()) == ["tar", "tar"]  # nothing temporary is left


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty", "text", "flipped", "invalid"])
def test_a_damaged_or_outdated_index_is_built_again(cache: Path, damage: str) -> None:
    build = Counted()
    cached_arrays("tar", 1, build)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[-12] ^= 1
    if damage == "missing":
        file.unlink()
    elif damage != "invalid":
        changed = {"truncated": content[:-8], "empty": b"", "text": b"no index" * 9, "flipped": content}[damage]
        file.write_bytes(changed)
    for _ in range(2):
        found = cached_arrays("tar", 1, build, is_valid=lambda _: damage != "invalid" or build.calls > 1)
        assert found["offsets"].tolist() == [0, 1, 2]
        assert build.calls == 2


def test_an_index_that_another_process_finished_first_stays_mapped(cache: Path) -> None:
    first = []

    def build() -> dict[str, np.ndarray]:
        first.append(cached_arrays("tar", 1, Counted()))
        return Counted()()

    assert cached_arrays("tar", 1, build)["offsets"].tolist() == first[0]["offsets"].tolist() == [0, 1, 2]
    assert len(list(cache.iterdir())) == 1


def test_temporary_files_of_killed_processes_are_removed_and_others_kept(cache: Path) -> None:
    cache.mkdir(exist_ok=True)
    names = {"dead": socket.gethostname(), "living": socket.gethostname(), "far": "elsewhere"}
    left, living, far = (cache / f".tar-{name}.index-{host}-abc" for name, host in names.items())
    for file in (left, far):
        file.touch()
    with living.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        cached_arrays("tar", {"size": 1}, Counted())
        assert (left.exists(), living.exists(), far.exists()) == (False, True, True)
    assert len(list(cache.iterdir())) == 3


def test_a_temporary_file_that_another_process_removes_before_it_is_locked_is_created_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = fcntl.flock, []

    def remove_first(stream, operation):
        if not removed:
            removed.append(Path(stream.name))
            removed[0].unlink()
        lock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    built = cached_arrays("tar", {"size": 1}, Counted())
    assert isinstance(built["offsets"], MappedArray)
    assert [removed[0].exists(), len(list(cache.iterdir()))] == [False, 1]


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


@pytest.mark.parametrize("order", ["C", "F"])
def test_mapped_arrays_are_pickled_as_places_in_files(tmp_path: Path, order: str) -> None:
    values = np.asarray(np.arange(100_000).reshape(100, 1000), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "values.npy", values)
    for full in (map_npy(tmp_path / "values.npy"), cached_arrays("tar", 1, lambda: {"full": values})["full"]):
        text = pickle.dumps(full)
        again = pickle.loads(text)
        assert len(text) < 1000
        assert isinstance(again, MappedArray)
        assert not again.flags.writeable
        assert np.array_equal(again, values)
        part = pickle.loads(pickle.dumps(full[5:]))
        assert type(part) is np.ndarray
        assert np.array_equal(part, values[5:])


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_a_mapped_array_is_pickled_as_values_once_its_file_is_another(cache: Path, change: str) -> None:
    """Another run may build the index of a changed folder again while this one starts workers."""
    found = cached_arrays("tar", 1, Counted())
    (file,) = cache.iterdir()
    if change == "deleted":
        file.unlink()
    else:
        cached_arrays("tar", 1, lambda: {"names": np.arange(100), "offsets": np.ones(9)}, is_valid=lambda _: False)
    again = pickle.loads(pickle.dumps(found))
    assert {name: array.tolist() for name, array in again.items()} == {
        name: array.tolist() for name, array in Counted()().items()
    }


def test_another_version_of_npy_files_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(4))
    content = bytearray((tmp_path / "a.npy").read_bytes())
    content[6] = 3
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match="its format has the unknown version 3"):
        map_npy(tmp_path / "a.npy")
