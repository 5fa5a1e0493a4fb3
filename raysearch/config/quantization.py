"""Weight-only quantisation of the decoder's linear layers: its two forms, and the bytes that they take.

Symmetric and rounded to nearest: w = q s, with whole numbers q from -2^(b-1) to 2^(b-1) - 1. int8 has a scale s per
output. int4 has one per output and GROUP_SIZE inputs; a layer whose inputs are no multiple of that has one per output.
"""

import math
from importlib.util import find_spec
from typing import Literal

from raysearch.errors import InputError

Quantization = Literal["none", "int8", "int4"]
NUM_BITS = {"int8": 8, "int4": 4}
GROUP_SIZE = 32
SHAPE_BYTES = 16
"""Of the shape that the format keeps beside every packed weight: two whole numbers of 64 bits."""


def inputs_per_scale(quantization: Quantization, num_inputs: int) -> int:
    """How many neighbouring inputs of one output share a scale."""
    return GROUP_SIZE if quantization == "int4" and num_inputs % GROUP_SIZE == 0 else num_inputs


def stored_bytes(quantization: Quantization, num_outputs: int, num_inputs: int, bytes_per_scale: int = 2) -> int:
    """Bytes of one linear layer's weight as it is saved: values packed into words of 32 bits, scales, and its shape."""
    words = math.ceil(num_inputs * NUM_BITS[quantization] / 32)
    scales = num_inputs // inputs_per_scale(quantization, num_inputs)
    return num_outputs * (4 * words + scales * bytes_per_scale) + SHAPE_BYTES


def check_installed() -> None:
    """Check that quantised weights can be written here.

    Raises:
        InputError: the package that packs them is missing.
    """
    if find_spec("compressed_tensors") is None:
        raise InputError(
            "quantization: the package compressed-tensors is missing; run pip install 'raysearch[quantization]', or "
            "leave quantization out"
        )


def describe(quantization: Quantization) -> str:
    """How the weights are kept, in words."""
    per = f"output and {GROUP_SIZE} inputs" if quantization == "int4" else "output"
    return f"The decoder's linear layers have {quantization} weights, rounded to nearest, with one scale per {per}"
