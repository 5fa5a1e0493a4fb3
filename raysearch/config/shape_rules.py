"""Which shapes a runtime takes: multiples that the numbers of heads, channels and features must be."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from raysearch.config.problems import first_problem
from raysearch.config.settings import Strict
from raysearch.errors import InputError

MAX_MULTIPLE = 1_000_000


class ShapeRules(Strict):
    """Numbers that every pruned model must have, for runtimes that split or tile it; other shapes are never made."""

    heads_multiple: int = Field(1, ge=1, le=MAX_MULTIPLE)
    """Query heads come in multiples of this."""
    kv_heads_multiple: int = Field(1, ge=1, le=MAX_MULTIPLE)
    """KV heads come in multiples of this."""
    ffn_multiple: int | None = Field(None, ge=1, le=MAX_MULTIPLE)
    """FFN channels come in multiples of this; left out, of 64 where the dense model has 4096 or more."""
    hidden_multiple: int = Field(1, ge=1, le=MAX_MULTIPLE)
    """The hidden size is a multiple of this."""
    tensor_parallel: int = Field(1, ge=1, le=MAX_MULTIPLE)
    """Degree of tensor parallelism: query heads and FFN channels come in multiples of it; so do KV heads, or where the
    dense model has fewer of them they divide it (vLLM copies them then)."""
    quotient_head_dim: bool = False
    """Only shapes whose head size is hidden size // query heads, for runtimes that compute it so in place of reading
    `head_dim`, such as vLLM's own classes for Qwen2 and Phi."""

    @property
    def channels_multiple(self) -> int:
        """That the number of FFN channels must be."""
        return math.lcm(self.ffn_multiple or 1, self.tensor_parallel)

    def admits_heads(self, num_kv_heads: int, num_heads: int, dense_kv_heads: int, head_dim: int, hidden: int) -> bool:
        """Whether a decoder with these heads may be made; `dense_kv_heads` are those of the dense model."""
        degree = self.tensor_parallel
        copied = dense_kv_heads < degree and degree % num_kv_heads == 0
        return (
            num_heads % math.lcm(self.heads_multiple, degree) == 0
            and num_kv_heads % self.kv_heads_multiple == 0
            and (num_kv_heads % degree == 0 or copied)
            and (not self.quotient_head_dim or hidden // num_heads == head_dim)
        )

    def describe(self) -> str:
        """The rules in words of the space's keys, e.g. `heads_multiple 4, ffn_multiple 64`; empty without any."""
        given = self.model_dump(exclude_defaults=True)
        return ", ".join(name if value is True else f"{name} {value}" for name, value in given.items())


def shape_rules(given: ShapeRules | Mapping[str, Any] | None) -> ShapeRules:
    """Rules from a mapping with the keys of `ShapeRules`; none for None.

    Raises:
        InputError: an unknown key or an invalid value.
    """
    if isinstance(given, ShapeRules):
        return given
    try:
        return ShapeRules.model_validate({**(given or {})})
    except ValidationError as error:
        raise InputError(f"shapes.{first_problem(error, given, ShapeRules)}") from None
