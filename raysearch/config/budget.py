"""Sizes of whole models, budgets for them, and both as text."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raysearch.errors import InputError

_UNITS = {"B": 10**9, "M": 10**6, "K": 10**3}
_UNITS |= {"GB": 10**9, "MB": 10**6, "KB": 10**3, "GIB": 2**30, "MIB": 2**20, "KIB": 2**10}
_FORMS = (
    "a share of the dense model (60%), bytes (3.2GB, 900MiB), parameters (3B, 900M), or limits of a device "
    "(memory 3GB, kv_cache 200MB @ {tokens: 4096, batch: 1}), with a name in front if wanted (phone: memory 3GB)"
)
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%|[KMG]i?B|[KMB])", re.IGNORECASE)
_DEVICE_COSTS = ("memory", "kv_cache")
_USE = {"tokens": 4096, "batch": 1}
_NAME = re.compile(r"\s*([A-Za-z][\w.-]{0,40})\s*:(.*)", re.DOTALL)


@dataclass(frozen=True)
class Size:
    """Size of a whole model: vision tower, projector, decoder and embeddings.

    Attributes:
        kv_bytes_per_token: keys and values of one token in all layers; None if it isn't known.
        activation_bytes_per_token: most that a token of a prompt takes at a time beside them; None if it isn't known.
    """

    num_params: int
    size_bytes: int
    kv_bytes_per_token: int | None = None
    activation_bytes_per_token: int | None = None


@dataclass(frozen=True)
class Limit:
    """An upper bound on one cost of a model.

    Attributes:
        cost: `params`; `bytes` as stored; `share` of the dense model's bytes; `kv_cache`, the keys and values in bytes;
            or `memory`: weights as stored, KV cache and the most that activations take in a prefill.
        bound: in parameters or bytes; of a share in (0, 1].
    """

    cost: Literal["params", "bytes", "share", "memory", "kv_cache"]
    bound: float


@dataclass(frozen=True)
class Budget:
    """Upper bounds on a whole model.

    Attributes:
        text: the budget as written, e.g. `60%`, `3.2GB`, `3B`, `memory 3GB @ {tokens: 4096, batch: 1}`; also its key in
            `front.json`.
        limits: all of them hold.
        tokens: of a row, image tokens included, for limits on `memory` and `kv_cache`.
        batch: rows at a time, for the same.
    """

    text: str
    limits: tuple[Limit, ...]
    tokens: int = _USE["tokens"]
    batch: int = _USE["batch"]

    @classmethod
    def parse(cls, written: str | Mapping[str, Any]) -> "Budget":
        """Read `60%`, `3.2GB`, `900MiB`, `3B` or `900M`; limits of a device, `memory 3GB, kv_cache 200MB`, with or
        without `@ {tokens: 4096, batch: 1}`; either with a name in front, `phone: memory 3GB`; or the same as a
        mapping, `{name: phone, memory: 3GB, tokens: 4096}`.

        Raises:
            InputError: anything else, e.g. a number without a unit, or more than 100%.
        """
        text = _text_of(written) if isinstance(written, Mapping) else str(written)
        body, _, use_text = text.partition("@")
        named = _NAME.fullmatch(body)
        name = named[1] if named and named[1] not in _DEVICE_COSTS else ""
        parts = [part.strip() for part in (named[2] if named and name else body).split(",")]
        limits = tuple(_limit(part, text) for part in parts)
        use = _use(use_text, text)
        is_for_device = any(limit.cost in _DEVICE_COSTS for limit in limits)
        if use_text and not is_for_device:
            raise InputError(f"budget {text!r}: tokens and batch are for limits on memory or kv_cache; leave them out")
        canonical = ", ".join(_canonical(part) for part in parts)
        if is_for_device:
            canonical += f" @ {{tokens: {use['tokens']}, batch: {use['batch']}}}"
        return cls(f"{name}: {canonical}" if name else canonical, limits, use["tokens"], use["batch"])

    def admits(self, size: Size, dense: Size) -> bool:
        """Whether a model of `size` is within the budget.

        Raises:
            InputError: a cost of the model isn't known.
        """
        return all(self.cost(limit, size, dense) <= limit.bound for limit in self.limits)

    def cost(self, limit: Limit, size: Size, dense: Size) -> float:
        """What a limit is on, for a model of `size`, in the limit's unit.

        Raises:
            InputError: it isn't known: the study is one of an earlier version.
        """
        if limit.cost == "params":
            return size.num_params
        if limit.cost == "bytes":
            return size.size_bytes
        if limit.cost == "share":
            return size.size_bytes / dense.size_bytes
        if size.kv_bytes_per_token is None or size.activation_bytes_per_token is None:
            raise InputError(f"budget {self.text}: this study is of a version without figures on memory; search again")
        cached = size.kv_bytes_per_token * self.tokens * self.batch
        if limit.cost == "kv_cache":
            return cached
        return size.size_bytes + cached + size.activation_bytes_per_token * self.tokens * self.batch

    def costs_text(self, size: Size, dense: Size) -> str:
        """What a model of `size` costs of each limit, for people."""
        texts = []
        for limit in self.limits:
            cost = self.cost(limit, size, dense)
            if limit.cost in _DEVICE_COSTS:
                texts.append(f"{limit.cost} {size_text(round(cost))}")
        return ", ".join(
            [f"{size_text(size.size_bytes)} ({size.size_bytes / dense.size_bytes:.1%} of the dense model)", *texts]
        )

    def bound_bytes(self, dense: Size) -> float:
        """The bound in bytes; one on another cost is converted by the dense model's bytes per unit of it."""
        return self.size_ratio(dense) * dense.size_bytes

    def size_ratio(self, dense: Size) -> float:
        """The tightest bound as a share of what the dense model costs."""
        return min(limit.bound / self.cost(limit, dense, dense) for limit in self.limits)


def _canonical(part: str) -> str:
    """A limit with one space behind the cost of a device, and no other."""
    cost, _, rest = part.replace(":", " ", 1).partition(" ")
    return f"{cost} {rest.replace(' ', '')}" if cost in _DEVICE_COSTS else re.sub(r"\s+", "", part)


def _limit(part: str, text: str) -> Limit:
    cost, _, rest = part.replace(":", " ", 1).partition(" ")
    is_device = cost in _DEVICE_COSTS
    match = _AMOUNT.fullmatch((rest if is_device else part).strip())
    value = float(match[1]) if match else 0.0
    if not match or not math.isfinite(value) or value <= 0 or (is_device and len(match[2]) == 1):
        raise InputError(f"budget {text!r}: not a size; write {_FORMS}")
    unit = match[2].upper()
    if unit == "%":
        if value > 100:
            raise InputError(f"budget {text!r}: more than the dense model; write a share of at most 100%")
        return Limit("share", value / 100)
    if is_device:
        return Limit(cost, round(value * _UNITS[unit]))  # type: ignore[arg-type]
    return Limit("bytes" if len(unit) > 1 else "params", round(value * _UNITS[unit]))


def _use(written: str, text: str) -> dict[str, int]:
    """Tokens and batch behind the @."""
    if not written.strip():
        return _USE
    pairs = re.findall(r"(\w+)\s*:\s*([^,{}]*)", written)
    numbers = {name: int(value) if re.fullmatch(r"\s*[0-9]{1,9}\s*", value) else 0 for name, value in pairs}
    is_braced = re.fullmatch(r"\s*\{[^{}]*\}\s*", written) and len(pairs) == written.count(":")
    if not is_braced or set(numbers) - set(_USE) or not all(numbers.values()):
        raise InputError(f"budget {text!r}: write what it is for as @ {{tokens: 4096, batch: 1}}, with image tokens")
    return _USE | numbers


def _text_of(written: Mapping[str, Any]) -> str:
    """A budget's text, from its mapping."""
    known = {"name", "size", *_DEVICE_COSTS, *_USE}
    unknown = next((key for key in written if key not in known), None)
    if unknown is not None:
        raise InputError(f"budget {dict(written)}: {unknown!r} is not known; known are {', '.join(sorted(known))}")
    limits = [f"{key} {written[key]}" for key in _DEVICE_COSTS if key in written]
    text = ", ".join([*(str(written[key]) for key in ("size",) if key in written), *limits])
    use = ", ".join(f"{key}: {written[key]}" for key in _USE if key in written)
    name = f"{written['name']}: " if "name" in written else ""
    return f"{name}{text}" + (f" @ {{{use}}}" if use else "")


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
