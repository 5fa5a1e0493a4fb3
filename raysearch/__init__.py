"""raysearch: the best pruning and recovery recipe of a vision-language model for a size budget.

Importing the package loads neither torch nor ray; the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, which can't see through __getattr__
    from raysearch.api import Study as Study
    from raysearch.api import StudyPoint as StudyPoint
    from raysearch.api import prune as prune
    from raysearch.api import search as search
    from raysearch.backend.pareto_asha import ParetoASHA as ParetoASHA
    from raysearch.config.budget import Budget as Budget
    from raysearch.config.budget import Size as Size
    from raysearch.config.recipe import Recipe as Recipe
    from raysearch.config.space import SearchSpace as SearchSpace
    from raysearch.errors import InputError as InputError
    from raysearch.searching.early_stopping.asha import Rungs as Rungs
    from raysearch.study.front import Front as Front
    from raysearch.study.front import FrontPoint as FrontPoint
    from raysearch.study.records import Score as Score

_HOMES = {
    "Study": "api",
    "StudyPoint": "api",
    "search": "api",
    "prune": "api",
    "Front": "study.front",
    "FrontPoint": "study.front",
    "Budget": "config.budget",
    "Size": "config.budget",
    "Recipe": "config.recipe",
    "Score": "study.records",
    "SearchSpace": "config.space",
    "InputError": "errors",
    "ParetoASHA": "backend.pareto_asha",
    "Rungs": "searching.early_stopping.asha",
}
__all__ = [*_HOMES]


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f"raysearch.{_HOMES[name]}"), name)
        raise AttributeError(f"module 'raysearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
