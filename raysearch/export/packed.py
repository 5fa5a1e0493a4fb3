"""Quantised weights of the decoder: packed, as a checkpoint stores them, and rounded, as a loaded model uses them.

The format is pack-quantized of compressed-tensors, which transformers reads. The vision tower, the projector, the
embeddings and the language head stay as they are.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.config.quantization import GROUP_SIZE, NUM_BITS, Quantization, check_installed, inputs_per_scale
from raysearch.models import family_for


@contextmanager
def fake_quantized(model: PreTrainedModel, quantization: Quantization, dtype: torch.dtype) -> Iterator[PreTrainedModel]:
    """The model with the decoder's linear weights rounded inside the context; on exit they are restored exactly.

    Args:
        dtype: of the checkpoint; the rounded weights are bit-identical to those of the loaded checkpoint.
    """
    linears = {} if quantization == "none" else linear_layers(model)
    before = [linear.weight.detach().to("cpu", copy=True) for linear in linears.values()]  # no second copy on a GPU
    try:
        for linear in linears.values():
            linear.weight.data.copy_(dequantize(*quantize(linear.weight.detach().to(dtype), quantization)))
        yield model
    finally:
        for linear, weight in zip(linears.values(), before, strict=True):
            linear.weight.data.copy_(weight)


def quantize(weight: torch.Tensor, quantization: Quantization) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to integers times scales.

    A weight that already is such a product, with the largest integer of the format in each group, stays exact.

    Args:
        weight: (outputs, inputs), in the dtype of the scales.

    Returns:
        Integers, int8, (outputs, inputs), and scales, (outputs, inputs / inputs per scale).
    """
    largest = 2 ** (NUM_BITS[quantization] - 1) - 1
    size = inputs_per_scale(quantization, weight.shape[1])
    groups = weight.float().unflatten(1, (-1, size))  # (outputs, groups, inputs per scale)
    scales = torch.maximum(groups.amax(2) / largest, -groups.amin(2) / (largest + 1))
    scales = scales.to(weight.dtype)
    scales = scales.masked_fill(scales == 0, 1)
    numbers = (groups / scales.float().unsqueeze(2)).round().clamp(-largest - 1, largest)
    return numbers.to(torch.int8).flatten(1), scales


def dequantize(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The rounded weight, (outputs, inputs), of `quantize`'s two tensors, in the dtype of the scales."""
    groups = numbers.unflatten(1, (scales.shape[1], -1)).to(scales.dtype)
    return (groups * scales.unsqueeze(2)).flatten(1)


def save_packed(model: PreTrainedModel, quantization: Quantization, folder: Path, **options: Any) -> None:
    """`save_pretrained` with the decoder's linear weights packed, as config.json declares; `model` is unchanged.

    Raises:
        InputError: the package that packs them is missing.
    """
    check_installed()
    model.config.quantization_config = quantization_config(model, quantization)
    try:
        model.save_pretrained(folder, state_dict=packed_tensors(model, quantization), **options)
    finally:
        del model.config.quantization_config


def packed_tensors(model: PreTrainedModel, quantization: Quantization) -> dict[str, torch.Tensor]:
    """A model's tensors by name, with packed integers, scales and shape for each linear weight of the decoder."""
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    tensors: dict[str, torch.Tensor] = model.state_dict()
    for name in linear_layers(model):
        weight = tensors.pop(f"{name}.weight")
        numbers, scales = quantize(weight, quantization)
        tensors[f"{name}.weight_packed"] = pack_to_int32(numbers, NUM_BITS[quantization])
        tensors[f"{name}.weight_scale"] = scales
        tensors[f"{name}.weight_shape"] = torch.tensor(weight.shape)
    return tensors


def quantization_config(model: PreTrainedModel, quantization: Quantization) -> dict[str, Any]:
    """`quantization_config` of config.json: which linear layers are packed, and how many inputs share a scale."""
    packed = linear_layers(model)
    layers = re.escape(family_for(model).layers_name(model))
    targets: dict[str, set[str]] = {}
    for name, linear in packed.items():
        grouped = inputs_per_scale(quantization, linear.in_features) < linear.in_features
        inside = re.sub(rf"^{layers}[.]\d+[.]", "", name)
        targets.setdefault("group" if grouped else "channel", set()).add(f"re:.*[.]{re.escape(inside)}$")
    weights = {"num_bits": NUM_BITS[quantization], "type": "int", "symmetric": True}
    schemes = {"group": weights | {"strategy": "group", "group_size": GROUP_SIZE}}
    schemes["channel"] = weights | {"strategy": "channel"}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {"targets": sorted(names), "weights": schemes[strategy]}
            for number, (strategy, names) in enumerate(sorted(targets.items()))
        },
        "ignore": [name for name in linears if name not in packed],
    }


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder layers by dotted name, without those of LoRA adapters."""
    family = family_for(model)
    prefix = family.layers_name(model)
    return {
        f"{prefix}.{name}": module
        for name, module in family.decoder(model).layers.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    }
