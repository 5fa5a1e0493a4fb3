"""raysearch: the best pruning and recovery recipe of a vision-language model for a size budget.

Importing the package loads neither torch nor ray; the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"raysearch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'raysearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
