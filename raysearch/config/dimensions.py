"""Dimensions of a search space: values that a recipe field may take, and their conditions."""

import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from raysearch.config.criteria import CRITERIA, LAYER_CRITERIA, WIDTH_CRITERIA
from raysearch.config.problems import first_problem, known_names
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

    choices: list[Scalar] = Field(min_length=1, max_length=1000)
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
    return Range.__name__ if bounded else Choices.__name__  # no key of a space


Dimension = Annotated[Annotated[Choices, Tag("Choices")] | Annotated[Range, Tag("Range")], Discriminator(_kind)]
_MODE_CRITERIA = {"layerwise": (LAYER_CRITERIA,), "widthwise": (WIDTH_CRITERIA,)}


def criteria_kinds(mode: str) -> tuple[tuple[str, ...], ...]:
    """The known criteria that a mode needs one of: layer criteria, width criteria, or both kinds."""
    return _MODE_CRITERIA.get(mode, (LAYER_CRITERIA, WIDTH_CRITERIA))


def read_dimension(field: str, spec: Any) -> list[Any]:
    """A dimension as written in a space, as a list of cases; every value is checked against the recipe field, and read
    as it: YAML takes 5e-2 for text.

    Args:
        spec: a value, a list of values, a mapping with choices or low and high, or a list of such mappings.

    Raises:
        ValueError: no such recipe field, an invalid value, or a condition on a later field.
    """
    if field not in Recipe.model_fields:
        raise ValueError(f"recipe.{field}: not a field of a recipe; {known_names(field, Recipe.model_fields)}")
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
    if field == "criterion":
        kind: Any = Literal[tuple(CRITERIA)]
    else:
        info = Recipe.model_fields[field]
        kind = Annotated[info.annotation, info]
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def read(value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            raise ValueError(f"recipe.{field}: {first_problem(error, value)}") from None

    values = {name: read(case[name]) for name in ("low", "high") if name in case}
    if isinstance(choices, list):
        values["choices"] = list(dict.fromkeys(map(read, choices)))
    kinds = () if field == "criterion" else typing.get_args(info.annotation) or (info.annotation,)
    if "choices" not in values and values and not {int, float} & set(kinds):
        raise ValueError(f"recipe.{field}: not a number, so it takes choices, not a range")
    return case | values


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


def field_of(param: str) -> str:
    """The recipe field, or kind of criterion, of a search parameter."""
    return param.partition("#")[0]


class RecipeSuggester:
    """Chooses the values nearest to given ones: of a recipe by its fields, or of earlier choices by their names.

    A value may be a list: the first that the space has is taken.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        if "criterion" in values:
            layer, _, width = str(values["criterion"]).partition("+")
            self._values["layer_criterion"], self._values["width_criterion"] = layer, width or layer

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """The given value if it is among `choices`, else the nearest number or the first of them."""
        preferred = self._value(name)
        listed = preferred if isinstance(preferred, list) else [preferred]
        wanted = next((value for value in listed if value in choices), listed[0])
        numbers = [value for value in choices if _is_number(value)]
        if wanted in choices:
            return next(value for value in choices if value == wanted)
        if _is_number(wanted) and numbers:
            return min(numbers, key=lambda value: abs(value - wanted))  # type: ignore[operator]
        return choices[0]

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """The given value, brought within the bounds and onto the steps; the middle if there is none."""
        wanted = self._value(name)
        middle = (low * high) ** 0.5 if log else (low + high) / 2
        value = min(max(float(wanted) if isinstance(wanted, int | float) else middle, low), high)
        return min(low + step * round((value - low) / step), high) if step else value

    def _value(self, name: str) -> Any:
        return self._values.get(name, self._values.get(field_of(name)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
