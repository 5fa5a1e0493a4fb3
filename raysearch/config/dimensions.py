"""Dimensions of a search space: values that a recipe field may take, and their conditions."""

import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from raysearch.config.criteria import CRITERIA, LAYER_CRITERIA, WIDTH_CRITERIA
from raysearch.config.recipe import Recipe
from raysearch.config.settings import Scalar, Strict


class Suggester(Protocol):
    """Chooses the values of a recipe: a sampler, or a random number generator."""

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """One of `choices` for the parameter `name`."""

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """A number from `low` to `high`, both included, for the parameter `name`."""


class Choices(Strict):
    """One of several values."""

    choices: list[Scalar] = Field(min_length=1)
    when: dict[str, Scalar | list[Scalar]] = {}
    """Earlier fields, and the values that they must have for this case to apply."""


class Range(Strict):
    """A number between two bounds, both included."""

    low: float
    high: float
    log: bool = False
    """Sample uniformly in the logarithm."""
    step: float | None = Field(None, gt=0)
    when: dict[str, Scalar | list[Scalar]] = {}
    """Earlier fields, and the values that they must have for this case to apply."""

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}; swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low:g}")
        if self.log and self.step:
            raise ValueError("log and step exclude each other; remove one")
        return self


def _kind(case: Any) -> str:
    bounded = isinstance(case, Range) or (isinstance(case, dict) and {"low", "high"} & set(case))
    return "range" if bounded else "choices"


Dimension = Annotated[Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")], Discriminator(_kind)]
_MODE_CRITERIA = {"layerwise": (LAYER_CRITERIA,), "widthwise": (WIDTH_CRITERIA,)}


def criteria_kinds(mode: str) -> tuple[tuple[str, ...], ...]:
    """The known criteria that a mode needs one of: layer criteria, width criteria, or both kinds."""
    return _MODE_CRITERIA.get(mode, (LAYER_CRITERIA, WIDTH_CRITERIA))


def read_dimension(field: str, spec: Any) -> list[Any]:
    """A dimension as written in a space, as a list of cases; every value is checked against the recipe field.

    Args:
        spec: a value, a list of values, a mapping with choices or low and high, or a list of such mappings.

    Raises:
        ValueError: no such recipe field, an invalid value, or a condition on a later field.
    """
    if field not in Recipe.model_fields:
        raise ValueError(f"recipe.{field}: not a field of a recipe; known are {', '.join(Recipe.model_fields)}")
    cases = spec if isinstance(spec, list) and spec and all(isinstance(case, dict) for case in spec) else [spec]
    return [_read_case(field, case) for case in cases]


def _read_case(field: str, case: Any) -> Any:
    if isinstance(case, Choices | Range):
        return case
    if not isinstance(case, dict):
        case = {"choices": case if isinstance(case, list) else [case]}
    # Other types than a mapping and a list are refused by `Choices` and `Range`.
    conditions, choices = case.get("when"), case.get("choices")
    for condition in conditions if isinstance(conditions, dict) else ():
        names = list(Recipe.model_fields)
        if condition not in names or names.index(condition) >= names.index(field):
            earlier = ", ".join(names[: names.index(field)]) or "none"
            raise ValueError(
                f"recipe.{field}: when names {condition!r}, but conditions may only name earlier fields: {earlier}"
            )
    bounds = [case[key] for key in ("low", "high") if key in case]
    if field == "criterion":
        kind: Any = Literal[tuple(CRITERIA)]
    else:
        info = Recipe.model_fields[field]
        kind = Annotated[info.annotation, info]
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    for value in [*(choices if isinstance(choices, list) else ()), *bounds]:
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            raise ValueError(f"recipe.{field}: {error.errors()[0]['msg']}, not {value!r}") from None
    kinds = () if field == "criterion" else typing.get_args(info.annotation) or (info.annotation,)
    if bounds and not {int, float} & set(kinds):
        raise ValueError(f"recipe.{field}: not a number, so it takes choices, not a range")
    return dict(case)


def param_name(name: str, cases: Sequence[Dimension], index: int) -> str:
    """A case's search parameter: one name per case, since samplers need fixed bounds per name."""
    return name if len(cases) == 1 else f"{name}#{index}"


def choose(suggester: Suggester, name: str, cases: Sequence[Dimension], values: Mapping[str, Any]) -> Any:
    """A value of the first case whose conditions hold for `values`; None if there is none."""
    for index, case in enumerate(cases):
        if matches(values, case.when):
            param = param_name(name, cases, index)
            if isinstance(case, Choices):
                return case.choices[0] if len(case.choices) == 1 else suggester.choice(param, case.choices)
            if case.low == case.high:
                return case.low
            value = suggester.number(param, case.low, case.high, case.log, case.step)
            return int(value) if Recipe.model_fields[name].annotation in (int, int | None) else value
    return None


def matches(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether every value that is `wanted` by name is there, or one of them if it is a list."""
    return all(values.get(name) in (one if isinstance(one, list) else [one]) for name, one in wanted.items())
