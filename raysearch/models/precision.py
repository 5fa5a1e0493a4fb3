"""Precision of forward passes where the hardware multiplies bf16 slowly."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware. A CPU that doesn't takes three times as long as in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fast_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """fp32 instead of bf16 where a CPU multiplies bf16 slowly; any other as it is."""
    slow = dtype == torch.bfloat16 and device.type == "cpu" and not multiplies_bf16_fast(device)
    return torch.float32 if slow else dtype


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model's floating-point parameters a precision, in place. Buffers keep that of a loaded model: rotary
    frequencies in bf16 turn positions wrongly, the more so the farther they are apart."""
    for param in model.parameters():
        if param.is_floating_point():
            param.data = param.data.to(dtype)


@contextmanager
def in_fast_precision(model: nn.Module) -> Iterator[None]:
    """Inside, a bf16 model on a CPU that multiplies bf16 slowly has the same weights in fp32; afterwards its own."""
    tensors = [*model.parameters(), *model.buffers()]
    stored = [(tensor, tensor.data) for tensor in tensors if fast_dtype(tensor.dtype, tensor.device) != tensor.dtype]
    for tensor, data in stored:
        tensor.data = data.float()
    try:
        yield
    finally:
        for tensor, data in stored:
            tensor.data = data
