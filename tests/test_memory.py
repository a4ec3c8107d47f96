"""Memory that can be allocated, and checks against it."""

import pytest

from asyncdiff import memory
from asyncdiff.memory import available_memory, check_memory, format_bytes


def test_the_available_memory_is_part_of_the_physical_memory():
    total = memory.os.sysconf("SC_PAGE_SIZE") * memory.os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= total


def test_a_container_may_have_less_than_the_machine(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text(f"{300 << 20}\n")
    used.write_text(f"{100 << 20}\n")
    # The system can give the latter two up, recently read files too.
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {30 << 20}\nactive_file {10 << 20}\n")
    monkeypatch.setattr(memory, "CONTAINERS", ((tmp_path, "max", "current"),))
    assert available_memory() == 240 << 20
    limit.write_text("max\n")
    assert available_memory() > 240 << 20
    used.write_text("damaged")
    assert available_memory() > 240 << 20


def test_without_the_systems_word_all_memory_counts(monkeypatch):
    monkeypatch.setattr(memory, "_available_on_linux", lambda: None)
    monkeypatch.setattr(memory, "CONTAINERS", ())
    total = memory.os.sysconf("SC_PAGE_SIZE") * memory.os.sysconf("SC_PHYS_PAGES")
    assert available_memory() == total


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "0.977 KiB"), (1536 << 20, "1.5 GiB"), (10**30, "8.67e+11 EiB")],
)
def test_bytes_have_units(count, text):
    assert format_bytes(count) == text


def test_what_fits_is_allowed_and_what_does_not_is_refused():
    check_memory("size", "64x64", 100, "use 32x32", available=100)
    message = r"size must fit into memory, got 64x64, which needs 101 bytes of the 100 bytes available: use 32x32"
    with pytest.raises(ValueError, match=message):
        check_memory("size", "64x64", 101, "use 32x32", available=100)
