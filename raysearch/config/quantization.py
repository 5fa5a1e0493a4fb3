"""Weight-only quantisation of the decoder's linear layers: its formats, and their size in bytes.

Symmetric, rounded to nearest: w = q s, with integers q from -2^(b-1) to 2^(b-1) - 1. int8 has one scale s per output.
int4 has one per output and GROUP_SIZE inputs; if the number of inputs is no multiple of that, one per output.
"""

import math
from importlib.util import find_spec
from typing import Literal

from raysearch.errors import InputError

Quantization = Literal["none", "int8", "int4"]
NUM_BITS = {"int8": 8, "int4": 4}
GROUP_SIZE = 32
SHAPE_BYTES = 16
"""Bytes of the shape that is stored with every packed weight: two 64-bit integers."""


def inputs_per_scale(quantization: Quantization, num_inputs: int) -> int:
    """Number of neighbouring inputs of one output that share a scale."""
    return GROUP_SIZE if quantization == "int4" and num_inputs % GROUP_SIZE == 0 else num_inputs


def stored_bytes(quantization: Quantization, num_outputs: int, num_inputs: int, bytes_per_scale: int = 2) -> int:
    """Bytes of one linear layer's saved weight: values packed into 32-bit words, scales, and its shape."""
    words = math.ceil(num_inputs * NUM_BITS[quantization] / 32)
    scales = num_inputs // inputs_per_scale(quantization, num_inputs)
    return num_outputs * (4 * words + scales * bytes_per_scale) + SHAPE_BYTES


def check_installed() -> None:
    """Check that quantised weights can be written.

    Raises:
        InputError: the package compressed-tensors is missing.
    """
    if find_spec("compressed_tensors") is None:
        raise InputError(
            "quantization: the package compressed-tensors is missing; run pip install 'raysearch[quantization]', or "
            "leave quantization out"
        )


def describe(quantization: Quantization) -> str:
    """The format in one sentence."""
    per = f"output and {GROUP_SIZE} inputs" if quantization == "int4" else "output"
    return f"The decoder's linear layers have {quantization} weights, rounded to nearest, with one scale per {per}"
