"""Precisions: settings hold within the context only, and devices are asked for what their hardware has."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asyncdiff import precision as module
from asyncdiff.precision import (
    PRECISIONS,
    auto_precision,
    check_precision,
    computing_in,
    each_within,
    emulation_warning,
    fast_bfloat16,
    full_float32,
    precision_of_run,
)

ROOT = Path(__file__).resolve().parents[1]
OLD_TORCH = not hasattr(torch.backends, "fp32_precision")


def settings():
    """All that a context may change, by the old and the new names of PyTorch."""
    old = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()]
    backends = torch.backends
    parts = [] if OLD_TORCH else [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
    return [
        *old,
        *(part.fp32_precision for part in parts),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    ]


def tf32():
    """Whether matrix products and convolutions of GPUs are in TF32."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def restored():
    """Settings of PyTorch, restored after the test."""
    before = module._tf32_settings()
    yield
    module._restore_tf32(before)


@pytest.mark.parametrize(("name", "on"), [("float32", False), ("tf32", True), ("bf16", True)])
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")  # autocast of a GPU that is not there
def test_settings_of_a_gpu_hold_within_the_context(name, on):
    before = settings()
    with computing_in(name, "cuda"):
        assert tf32() == (on, on)
    assert settings() == before


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_cpu_never_computes_in_tf32_and_autocasts_in_bf16_only(name):
    x = torch.ones(2, 2)
    with computing_in(name, "cpu"):
        assert tf32() == (False, False)
        assert (x @ x).dtype == (torch.bfloat16 if name == "bf16" else torch.float32)
    assert (x @ x).dtype == torch.float32


def test_the_innermost_context_holds_and_each_is_restored():
    x = torch.ones(2, 2)
    before = settings()
    with computing_in("bf16", "cpu"):
        middle = settings()
        with full_float32("cpu"):
            assert (x @ x).dtype == torch.float32
            with computing_in("bf16", "cpu"):
                assert (x @ x).dtype == torch.bfloat16
            assert (x @ x).dtype == torch.float32
        assert settings() == middle
    assert settings() == before


def test_settings_are_restored_after_an_error():
    before = settings()
    with pytest.raises(ZeroDivisionError), computing_in("bf16", "cpu"):
        raise ZeroDivisionError
    assert settings() == before


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.usefixtures("restored")
def test_full_float32_overrides_what_the_user_set_and_gives_it_back(matmul, convolutions):
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions
    before = settings()
    with full_float32("cuda"):
        assert tf32() == (False, False)
        assert torch.get_float32_matmul_precision() == "highest"
    assert settings() == before


@pytest.mark.skipif(OLD_TORCH, reason="PyTorch 2.8 has the old settings only")
@pytest.mark.parametrize("value", ["ieee", "tf32", "none"])
@pytest.mark.usefixtures("restored")
def test_settings_by_their_new_names_neither_fail_nor_change(value):
    """Reading the old names then raises an error, so nothing may read them."""
    backends = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    for part in parts:
        part.fp32_precision = value
    with computing_in("tf32", "cuda"):
        assert tf32() == (True, True)
    with full_float32("cuda"):
        assert tf32() == (False, False)
        assert backends.cudnn.conv.fp32_precision == "ieee"
    assert [part.fp32_precision for part in parts] == [value] * 4


CODE = """
import warnings; warnings.simplefilter("error")
import torch
from asyncdiff.precision import computing_in
for name in ("float32", "tf32", "bf16"):
    with computing_in(name, "cpu"):
        torch.ones(2, 2) @ torch.ones(2, 2)
torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
"""


@pytest.mark.slow
def test_nothing_warns():
    """In a fresh interpreter: PyTorch gives some warnings once."""
    result = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture
def cpu(monkeypatch):
    """Function that sets the machine and its instructions."""

    def pretend(machine="x86_64", **instructions):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
        module._cpu_has_bfloat16.cache_clear()

    yield pretend
    module._cpu_has_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("instructions", "fast"),
    [
        ({"avx2": True}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_tile": True, "amx_bf16": True}, True),
        ({"neon": True, "bf16": False}, False),  # Apple M1
        ({"neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_a_cpu_has_bfloat16_by_its_instructions(cpu, instructions, fast):
    cpu(**instructions)
    assert fast_bfloat16("cpu") is fast
    assert auto_precision("cpu") == ("bf16" if fast else "float32")


@pytest.mark.parametrize(
    ("machine", "avx512", "amx", "fast"),
    [
        ("x86_64", False, False, False),
        ("AMD64", True, False, True),
        ("x86_64", False, True, True),
        ("arm64", True, True, False),
    ],
)
def test_pytorch_2_8_reports_the_instructions_of_x86(cpu, monkeypatch, machine, avx512, amx, fast):
    cpu(machine)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fast_bfloat16("cpu") is fast


def test_the_cpu_is_asked_once(cpu, monkeypatch):
    cpu(avx512_bf16=True)
    assert fast_bfloat16("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert fast_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_a_gpu_has_bfloat16_by_its_compute_capability(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fast_bfloat16("cuda:1") is fast


def test_devices_that_are_not_there_or_not_known_have_none(monkeypatch):
    def missing(device):
        raise RuntimeError("no NVIDIA driver")

    monkeypatch.setattr(torch.cuda, "get_device_capability", missing)
    assert not fast_bfloat16("cuda")
    assert not fast_bfloat16("mps")


@pytest.mark.parametrize(
    ("trained", "fast", "slow"),
    [
        (None, "float32", "float32"),
        ("32-true", "float32", "float32"),
        ("64-true", "float32", "float32"),
        ("bf16-mixed", "bf16", "float32"),
        ("bf16-true", "bf16", "float32"),
        ("16-mixed", "bf16", "float32"),
    ],
)
def test_a_run_draws_in_its_own_precision_where_the_device_has_it(cpu, trained, fast, slow):
    cpu(avx512_bf16=True)
    assert precision_of_run(trained, "cpu") == fast
    cpu(avx2=True)
    assert precision_of_run(trained, "cpu") == slow


def test_a_device_is_refused_what_it_lacks_and_warned_of_what_it_emulates(cpu, monkeypatch):
    cpu(avx2=True)
    with pytest.raises(ValueError, match=r"^--precision tf32 needs an NVIDIA GPU .*, got cpu: use float32$"):
        check_precision("--precision", "tf32", "cpu")
    warning = emulation_warning("--precision", "bf16", "cpu")
    assert warning == "--precision is bf16, which cpu emulates: float32 is several times faster and exact"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cpu(amx_bf16=True)
    for device, names in (("cpu", ("float32", "bf16")), ("cuda", PRECISIONS)):
        for name in names:
            check_precision("--precision", name, device)
            assert not emulation_warning("--precision", name, device)


def test_a_generator_computes_in_a_context_that_its_caller_does_not_share():
    x = torch.ones(2, 2)

    def products():
        for _ in range(2):
            yield (x @ x).dtype

    before = settings()
    for dtype in each_within(lambda: computing_in("bf16", "cpu"), products()):
        assert dtype == torch.bfloat16
        assert settings() == before


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"^precision must be one of float32, tf32, bf16, got fp16: use float32$"):
        check_precision("precision", "fp16", "cpu")
