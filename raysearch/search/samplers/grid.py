"""Every recipe of a space that has choices only: a study without search."""

from collections.abc import Sequence

from pydantic import ValidationError

from raysearch.config.recipe import Recipe
from raysearch.config.settings import Scalar
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError


class _Branch:
    """An `Ask` that follows a path through the choices, and the first choice from its end on."""

    def __init__(self, path: Sequence[int]) -> None:
        self.taken = list(path)
        self.num_choices: list[int] = []

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """The choice that the path takes here."""
        at = len(self.num_choices)
        self.num_choices.append(len(choices))
        self.taken = [*self.taken, 0] if at == len(self.taken) else self.taken
        return choices[self.taken[at]]

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """Never: a range has no end of values."""
        raise InputError(f"recipe.{name.partition('#')[0]}: a range from {low:g} to {high:g}; a grid wants a list")


def grid(space: SearchSpace) -> list[Recipe]:
    """Every recipe of a space, each once, the dimensions' last values changing fastest.

    Values that exclude each other (all loss weights 0) are passed over.

    Raises:
        InputError: a dimension is a range.
    """
    found: dict[str, Recipe] = {}
    path: list[int] | None = []
    while path is not None:
        branch = _Branch(path)
        try:
            recipe = space.suggest(branch)
            found.setdefault(recipe.key, recipe)
        except ValidationError:
            pass
        path = _next(branch)
    return list(found.values())


def as_grid(space: SearchSpace) -> SearchSpace:
    """The space as a study without search: every recipe, whatever its size, to its own end, its scores kept.

    Raises:
        InputError: a dimension is a range.
    """
    changes = {"sampler": "grid", "early_stopping": False, "keep_scores": True, "trials": len(grid(space))}
    return space.model_copy(update={"search": space.search.model_copy(update=changes), "budgets": []})


def _next(branch: _Branch) -> list[int] | None:
    """The path after this one; None behind the last."""
    for at in reversed(range(len(branch.num_choices))):
        if branch.taken[at] + 1 < branch.num_choices[at]:
            return [*branch.taken[:at], branch.taken[at] + 1]
    return None
