"""Count the floating point operations (FLOPs) of a training step, and look up the peak FLOP/s of a device."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from asyncdiff.checkpoints import object_config

# FLOPs of the backward pass relative to the forward pass: each product needs one more for the gradient of each factor.
BACKWARD = 2
DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32, "64": torch.float64}
# Dense FLOP/s in float32, TF32 and 16 bit from NVIDIA's data sheets, for GPUs that Lightning mistakes for others or for
# which it lists the rate with sparsity (Lightning issue 21677). Longer names come before their prefixes.
DENSE = {
    "H200 NVL": (60e12, 417.5e12, 835.5e12),
    "H200": (67e12, 494.5e12, 989.5e12),
    "H100 NVL": (60e12, 417.5e12, 835.5e12),
    "L40S": (91.6e12, 183e12, 362.05e12),
    "L40": (90.5e12, 90.5e12, 181.05e12),
}


def training_flops(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return the FLOPs of a training step that calls `network` with these arguments.

    Counts the multiplications and additions in matrix products, attention and convolutions; a step has three times as
    many as its forward pass (PaLM, arXiv:2204.02311, appendix B). Recomputation by activation checkpointing is not
    counted. The network is called on the meta device: nothing is computed and no random numbers are drawn. If that
    fails, warns and returns None.
    """
    try:
        network = _unshard(network)
        state = {name: _to_meta(tensor) for name, tensor in chain(network.named_parameters(), network.named_buffers())}
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            functional_call(network, state, tree_map(_to_meta, tuple(args)), tree_map(_to_meta, dict(kwargs)))
    except Exception as error:  # custom networks may raise anything on the meta device
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        rank_zero_warn(f"train/tflops is not logged: counting FLOPs on the meta device failed with {reason}")
        return None
    return (1 + BACKWARD) * counter.get_total_flops()


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak dense FLOP/s of `device` in the trainer's `precision`; None if unknown."""
    dtype = DTYPES.get(precision.split("-")[0])
    if device.type != "cuda" or dtype is None:
        return None
    name = torch.cuda.get_device_name(device)
    rates = next((rates for chip, rates in DENSE.items() if f" {chip}" in name), None)
    if rates is None:
        return get_available_flops(device, dtype)
    single, tf32, half = rates
    single = single if torch.get_float32_matmul_precision() == "highest" else tf32
    return {torch.float32: single, torch.float16: half, torch.bfloat16: half}.get(dtype)


def _unshard(network: nn.Module) -> nn.Module:
    """Return the network, or if it is sharded a new unsharded one: its own forward pass would gather parameters."""
    if not any(isinstance(parameter, DTensor) for parameter in network.parameters()):
        return network
    config = object_config.describe(network)
    with torch.device("meta"):
        rebuilt: nn.Module = object_config.build(config, allow=sorted(object_config.named_packages(config)))
    return rebuilt


def _to_meta(value: Any) -> Any:
    """Move tensors to the meta device, including those inside dataclasses; return other values unchanged."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _to_meta(getattr(value, f.name)) for f in fields(value)})
    return value
