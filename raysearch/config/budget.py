"""Sizes of whole models, budgets for them, and both as text."""

import math
import re
from dataclasses import dataclass

from raysearch.errors import InputError

_UNITS = {"B": 10**9, "M": 10**6, "K": 10**3}
_UNITS |= {"GB": 10**9, "MB": 10**6, "KB": 10**3, "GIB": 2**30, "MIB": 2**20, "KIB": 2**10}
_FORMS = "a share of the dense model (60%), bytes (3.2GB, 900MiB) or parameters (3B, 900M)"


@dataclass(frozen=True)
class Size:
    """Size of a whole model: vision tower, projector, decoder and embeddings."""

    num_params: int
    size_bytes: int


@dataclass(frozen=True)
class Budget:
    """An upper bound on the size of the whole model.

    Attributes:
        text: the budget as written, e.g. `60%`, `3.2GB`, `3B`; also its key in `front.json`.
        num_params: bound in parameters. Exactly one of the three bounds is set, the others are None.
        size_bytes: bound in bytes.
        share: bound as a share of the dense model's bytes, in (0, 1].
    """

    text: str
    num_params: int | None = None
    size_bytes: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read `60%`, `3.2GB`, `900MiB`, `3B` or `900M`.

        Raises:
            InputError: any other text, e.g. a number without a unit, or more than 100%.
        """
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%|[KMG]i?B|[KMB])\s*", text, re.IGNORECASE)
        value = float(match[1]) if match else 0.0
        if not match or not math.isfinite(value) or value <= 0:
            raise InputError(f"budget {text!r}: not a size; write {_FORMS}")
        unit = match[2].upper()
        written = text.replace(" ", "")
        if unit == "%":
            if value > 100:
                raise InputError(f"budget {text!r}: more than the dense model; write a share of at most 100%")
            return cls(written, share=value / 100)
        bound = round(value * _UNITS[unit])
        return cls(written, size_bytes=bound) if len(unit) > 1 else cls(written, num_params=bound)

    def admits(self, size: Size, dense: Size) -> bool:
        """Whether a model of `size` is within the budget."""
        if self.num_params is not None:
            return size.num_params <= self.num_params
        return size.size_bytes <= self.bound_bytes(dense)

    def bound_bytes(self, dense: Size) -> float:
        """The bound in bytes; one in parameters is converted by the dense model's bytes per parameter."""
        if self.size_bytes is not None:
            return self.size_bytes
        if self.num_params is not None:
            return self.num_params * dense.size_bytes / dense.num_params
        assert self.share is not None, self
        return self.share * dense.size_bytes

    def size_ratio(self, dense: Size) -> float:
        """The bound as a share of the dense model's bytes."""
        return self.bound_bytes(dense) / dense.size_bytes


def size_text(size_bytes: int) -> str:
    """Bytes in decimal units, e.g. `3.2 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes} B"


def params_text(num_params: int) -> str:
    """A number of parameters, e.g. `2.9B`."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if num_params >= factor:
            return f"{num_params / factor:.3g}{unit}"
    return str(num_params)


def rate_text(per_second: float) -> str:
    """Tokens per second, e.g. `1,069 tokens/s`."""
    return f"{per_second:,.0f} tokens/s" if per_second >= 100 else f"{per_second:.3g} tokens/s"
