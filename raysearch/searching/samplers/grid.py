"""Every recipe of a space that has choices only: a study without search."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from raysearch.config.dimensions import RecipeSuggester
from raysearch.config.recipe import Recipe
from raysearch.config.settings import LIMITS, Scalar
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.searching.samplers.base import Sampler
from raysearch.searching.samplers.sized_space import Candidate, SizedSpace
from raysearch.searching.trial_history import TrialHistory

MAX_COMBINATIONS = 50_000


class GridSampler(Sampler):
    """Every recipe of a space without ranges, in the order of `grid`.

    Raises:
        InputError: as `grid`.
    """

    proposes_once = True

    def __init__(self, space: SizedSpace, seed: int = 0) -> None:
        super().__init__(space, seed)
        self._recipes, self._num_tried = grid(space.search_space), 0

    def candidates(self, history: TrialHistory) -> Iterator[Candidate]:
        """The recipes that have not been tried."""
        while self._num_tried < len(self._recipes):
            candidate = self.space.candidate(RecipeSuggester(self._recipes[self._num_tried].as_dict()))
            self._num_tried += 1
            if candidate is not None:
                yield candidate

    def state(self) -> dict[str, Any]:
        """How many recipes have been tried."""
        return {"num_tried": self._num_tried}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self._num_tried = state["num_tried"]


class _PathSuggester:
    """Follows a path through the choices, and takes the first choice from its end on."""

    def __init__(self, path: Sequence[int]) -> None:
        self.taken = list(path)
        self.num_choices: list[int] = []

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        at = len(self.num_choices)
        self.num_choices.append(len(choices))
        self.taken = [*self.taken, 0] if at == len(self.taken) else self.taken
        return choices[self.taken[at]]

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        field = name.partition("#")[0]
        raise InputError(f"recipe.{field}: a range from {low:g} to {high:g}; a grid needs a list")


def grid(space: SearchSpace) -> list[Recipe]:
    """Every recipe of a space, each once, the last dimensions' values changing fastest.

    Values that exclude each other (all loss weights 0) are left out.

    Raises:
        InputError: a dimension is a range, or there are more than MAX_COMBINATIONS of their values.
    """
    found: dict[str, Recipe] = {}
    path: list[int] = []
    for _ in range(MAX_COMBINATIONS):
        suggester = _PathSuggester(path)
        try:
            recipe = space.suggest(suggester)
            found.setdefault(recipe.key, recipe)
        except ValidationError:
            pass
        further = _next_path(suggester)
        if further is None:
            return list(found.values())
        path = further
    raise InputError(
        f"recipe: more than {MAX_COMBINATIONS:,} combinations of its values; a grid takes all of them, so name fewer"
    )


def as_grid(space: SearchSpace) -> SearchSpace:
    """The space as a study without search: every recipe, whatever its size, runs to its end and keeps its scores.

    Raises:
        InputError: a dimension is a range.
    """
    changes = dict.fromkeys(LIMITS) | {"sampler": "grid", "early_stopping": False, "keep_scores": True}
    changes["trials"] = len(grid(space))
    return space.model_copy(update={"search": space.search.model_copy(update=changes), "budgets": []})


def _next_path(suggester: _PathSuggester) -> list[int] | None:
    """The path after this one; None after the last."""
    for at in reversed(range(len(suggester.num_choices))):
        if suggester.taken[at] + 1 < suggester.num_choices[at]:
            return [*suggester.taken[:at], suggester.taken[at] + 1]
    return None
