"""Check that the parameters of a network fit into memory before any of them is allocated."""

from collections.abc import Mapping
from typing import Any

import torch

from asyncdiff.memory import available_memory, check_memory, format_bytes

SMALL = 2**28  # bytes up to which the memory is not even looked up
BLOCK = 2**12  # numbers whose memory the Python objects of a block take at least; a block of a DiT takes 40 KB


def check_parameters(network: Any, numbers: Mapping[str, float]) -> None:
    """Raise ValueError if the parameters of a network need more memory than there is.

    On other devices than the CPU, such as the meta device, nothing is checked.

    Args:
        network: network whose attributes are the arguments.
        numbers: how many parameters there are at least, by the argument that most of them are due to.
    """
    size = torch.get_default_dtype().itemsize
    needed = int(size * sum(numbers.values()))
    if needed <= SMALL or torch.get_default_device().type != "cpu":
        return
    free = available_memory()
    alone = [argument for argument, count in numbers.items() if size * count > free]
    name = alone[0] if alone else max(numbers, key=lambda argument: numbers[argument])
    remedy = f"lower it; a network of at most {format_bytes(free)} of parameters fits"
    check_memory(name, getattr(network, name), needed, remedy, available=free)
