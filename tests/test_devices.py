"""Copies between host and device: the same values, one copy per device, and nothing of a stand-in is kept."""

from unittest import mock

import pytest
import torch
from pretend_gpu.pretended_cuda import pretended_cuda
from torch._subclasses.fake_tensor import FakeTensorMode

from asyncdiff.devices import DeviceConstant, HostCopy, to_device


def test_tensors_that_are_there_are_not_copied():
    x = torch.arange(3)
    assert to_device(x, "cpu") is x
    assert DeviceConstant(x).on("cpu") is x


@pytest.mark.parametrize("x", [torch.arange(3).expand(2, 3), torch.arange(6).reshape(2, 3)[:, ::2], torch.ones(2, 3).T])
def test_tensors_of_all_layouts_are_copied_without_waiting(x):
    """Expanded ones, too, such as one image for many seeds, which `pin_memory` refuses."""
    with pretended_cuda() as watch:
        there = to_device(x, "cuda")
        assert there.device.type == "cuda"
        assert not watch.waits
    assert torch.equal(there.cpu(), x)
    with pretended_cuda(), pytest.raises(RuntimeError, match="more than one element"):
        torch.ones(1).expand(2).pin_memory()


def test_constants_are_copied_once_per_device():
    constant = DeviceConstant(torch.arange(3))
    first = constant.on("meta")
    assert first.device.type == "meta"
    assert constant.on("meta") is first


def test_constants_can_be_used_in_training_though_first_used_in_inference():
    constant = DeviceConstant(torch.ones(3))
    with torch.inference_mode():
        constant.on("meta")
    assert not constant.on("meta").is_inference()


def test_tensors_of_a_fake_mode_are_not_kept():
    constant = DeviceConstant(torch.ones(3))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = constant.on("meta")
    assert type(fake) is not torch.Tensor
    assert type(constant.on("meta")) is torch.Tensor


def test_host_copies_keep_the_value_of_the_moment():
    x = torch.ones(2, requires_grad=True)
    later = HostCopy(x)
    with torch.no_grad():
        x.add_(1)
    assert later.arrived
    assert later.read().tolist() == [1, 1]
    assert not later.read().requires_grad


def test_host_copies_arrive_on_the_stream_of_their_own_device():
    """Which need not be the current one: `--device cuda:1` leaves cuda:0 current."""
    with (
        pretended_cuda(),
        mock.patch.object(torch.cuda, "current_stream") as stream,
        mock.patch.object(torch.cuda.Event, "record") as record,
    ):
        x = torch.ones(2, device="cuda")
        HostCopy(x)
        stream.assert_called_once_with(x.device)
        record.assert_called_once_with(stream.return_value)


def test_host_copies_keep_the_memory_layout():
    """As a checkpoint that is written at once does: channels-last weights and moments have the same."""
    with pretended_cuda():
        x = torch.arange(120.0, device="cuda").view(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
        copied = HostCopy(x)
    assert copied.read().stride() == x.stride()
    assert copied.read().flatten().tolist() == list(range(120))


def test_host_copies_are_on_the_host_whatever_the_default_device():
    with pretended_cuda():
        x = torch.ones(2, device="cuda")
        with torch.device("cuda"):
            copy = HostCopy(x)
        assert copy.read().device.type == "cpu"
