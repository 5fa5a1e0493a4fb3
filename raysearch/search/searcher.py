"""Suggests the recipe of each trial: queued recipes first, then what a sampler proposes.

Ray's own OptunaSearch tells the sampler that a stopped trial completed with the value it had when it stopped, and has
no conditional spaces with several objectives; so the driver holds this object, and Ray sees a thin `TuneSearcher`.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from raysearch.config.budget import Budget, Size
from raysearch.config.dimensions import RecipeSuggester
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.search.judged_shapes import JudgedShape, best_near
from raysearch.search.samplers.base import Sampler
from raysearch.search.samplers.ehvi import EHVISampler
from raysearch.search.samplers.grid import GridSampler
from raysearch.search.samplers.openers import SIZE_RATIOS, OpeningSuggester
from raysearch.search.samplers.optuna_samplers import NSGA2Sampler, QuasiRandomSampler, RandomSampler, TPESampler
from raysearch.search.samplers.sized_space import Candidate, SizedSpace
from raysearch.search.samplers.suggesters import suggest
from raysearch.search.trial_history import End, Proposal, TrialHistory

logger = logging.getLogger(__name__)
SCHEMA = 4  # of `Searcher.state`
SAMPLERS: dict[str, type[Sampler]] = {
    "ehvi": EHVISampler,
    "tpe": TPESampler,
    "nsga2": NSGA2Sampler,
    "random": RandomSampler,
    "quasirandom": QuasiRandomSampler,
    "grid": GridSampler,
}
"""By the name that `search.sampler` of a space has for it."""


class Searcher:
    """Suggests recipes that fit a budget, each once, and keeps the history of their trials.

    Args:
        space: where recipes come from.
        size_of: exact size of the whole model that a recipe makes; None if there is no such shape.
        dense: size of the whole dense model.
        budgets: sizes that answers are wanted for; a recipe over all of them is never suggested.
        num_trials: how many recipes to suggest in all; None for no end.
        sampler: a name in `SAMPLERS`, or a function that makes a sampler of a space and a seed.
        seed: of the sampler.

    Attributes:
        history: the trials so far.
        exhausted: whether nothing new is left.
        shapes: those judged before any was trained.

    Raises:
        InputError: no such sampler.
    """

    def __init__(
        self,
        space: SearchSpace,
        size_of: Callable[[Recipe], Size | None],
        dense: Size,
        budgets: Iterable[Budget] = (),
        num_trials: int | None = None,
        sampler: str | Callable[[SizedSpace, int], Sampler] = "ehvi",
        seed: int = 0,
    ) -> None:
        if isinstance(sampler, str):
            if sampler not in SAMPLERS:
                raise InputError(f"search.sampler {sampler!r}: no such sampler; choose one of {', '.join(SAMPLERS)}")
            sampler = SAMPLERS[sampler]
        self.num_trials = num_trials
        self.history = TrialHistory()
        self.exhausted = False
        self._space = SizedSpace(space, size_of, dense, list(budgets))
        self._sampler = sampler(self._space, seed)
        self._queue: list[dict[str, Any]] = []
        self._openers: list[float] = []  # size ratios that an opening recipe is still to be made for
        self.shapes: list[JudgedShape] = []

    @property
    def budgets(self) -> Sequence[Budget]:
        """Sizes that answers are wanted for."""
        return self._space.budgets

    def set_targets(self, budgets: Iterable[Budget], num_trials: int | None) -> None:
        """Replace the budgets and the number of recipes to suggest in all."""
        self._space.set_budgets(list(budgets))
        self.num_trials = num_trials

    @property
    def proposals(self) -> dict[str, Proposal]:
        """The trials so far, by name."""
        return self.history.proposals

    def enqueue(self, recipes: Iterable[Recipe | Mapping[str, Any]]) -> int:
        """Queue recipes, each as the nearest recipe that the space has.

        Returns:
            How many were queued: those that the space has no place for, too large or already there are left out.
        """
        num_before = len(self._queue)
        queued = (self._space.candidate(RecipeSuggester(values)) for values in self._queue)
        taken = self.history.identities | {candidate.identity for candidate in queued if candidate is not None}
        for recipe in recipes:
            values = recipe.as_dict() if isinstance(recipe, Recipe) else recipe
            candidate = self._space.candidate(RecipeSuggester(values))
            if candidate is not None and candidate.identity not in taken:
                taken.add(candidate.identity)
                self._queue.append(candidate.recipe.as_dict())
        return len(self._queue) - num_before

    def enqueue_openers(self) -> int:
        """Queue the recipes that the space starts with, or one per budget (without budgets, at sizes spread evenly).

        The shape of one for a budget is the best that is known when its turn comes.

        Returns:
            How many were queued; without a list of the space's at most a quarter of `num_trials`.
        """
        if self._space.search_space.start:
            return self.enqueue(Recipe.model_validate(fields) for fields in self._space.search_space.start)
        sizes = list(self._space.limits or SIZE_RATIOS)
        most = len(sizes) if self.num_trials is None else max(1, self.num_trials // 4)
        self._openers = [size for size in sizes[:most] if self._opener(size) is not None]
        return len(self._openers)

    def _opener(self, limit: float) -> Candidate | None:
        shape = best_near(self.shapes, limit)
        return self._space.candidate(OpeningSuggester(limit, {} if shape is None else shape.params), limit)

    def learn_shapes(self, shapes: Iterable[JudgedShape]) -> None:
        """Let shapes that were judged without training inform openers and proposals."""
        self.shapes = [shape for shape in shapes if math.isfinite(shape.divergence)]
        self._sampler.learn_shapes(self.shapes)

    def learn_from(self, earlier: Iterable[tuple[Recipe, float]]) -> int:
        """Let finished trials of earlier studies inform the first proposals; call it before the first of them.

        Sizes are those that their recipes have here; the trials of this search override them.

        Args:
            earlier: recipes and their final retention, of whatever model and space.

        Returns:
            How many the space has a place for; a retention that is not finite is left out.
        """
        num = 0
        for recipe, retention in earlier:
            candidate = self._space.candidate(RecipeSuggester(recipe.as_dict()))
            if candidate is not None and math.isfinite(retention):
                self._sampler.add_prior(candidate, retention)
                num += 1
        return num

    def suggest(self, trial: str) -> Recipe | None:
        """The recipe of the next trial; None when there are `num_trials` or nothing new is left.

        Raises:
            InputError: the space has no recipe that fits the budgets.
        """
        if self.exhausted or (self.num_trials is not None and len(self.history) >= self.num_trials):
            return None
        queued = self._next_in_queue()
        proposed = () if queued else self._sampler.candidates(self.history)
        candidate = queued or next((c for c in proposed if c.identity not in self.history.identities), None)
        if candidate is None:
            self._give_up()
            return None
        proposal = self.history.add(trial, candidate)
        if queued:
            self._sampler.adopt(proposal)
        return proposal.recipe

    def adopt(self, trial: str, recipe: Recipe) -> bool:
        """Add a trial that runs, or has run, as if it had been suggested; False if the space has no place for it."""
        size_ratio = self._space.size_ratio(recipe)
        try:
            _, params = suggest(self._space.search_space, RecipeSuggester(recipe.as_dict()))
        except ValidationError:
            return False
        if size_ratio is None:
            return False
        candidate = Candidate(recipe, params, size_ratio)
        if candidate.identity in self.history.identities:
            return False
        self._sampler.adopt(self.history.add(trial, candidate))
        return True

    def report(self, trial: str, samples_seen: float, retention: float) -> None:
        """Note an intermediate value."""
        self.history.report(trial, samples_seen, retention)

    def finish(self, trial: str) -> None:
        """The trial ran to its own end: its last value is its final one."""
        self._end(trial, "finished")

    def stop(self, trial: str) -> None:
        """The trial was stopped early: the sampler is told the value that it would probably have reached."""
        self._end(trial, "stopped")

    def fail(self, trial: str) -> None:
        """The trial failed: the sampler learns nothing from it."""
        self._end(trial, "failed")

    def running(self) -> list[str]:
        """The trials that have not ended, in the order of their proposals."""
        return list(self.history.running)

    def rename(self, trial: str, name: str) -> None:
        """Give a running trial another name."""
        self.history.rename(trial, name)

    def state(self) -> dict[str, Any]:
        """All that later proposals depend on, as plain JSON values."""
        return {
            "schema": SCHEMA,
            "queue": self._queue,
            "openers": self._openers,
            "shapes": [shape.model_dump() for shape in self.shapes],
            "smallest": None if math.isinf(self._space.smallest) else self._space.smallest,
            "exhausted": self.exhausted,
            "sampler": self._sampler.state(),
            "history": self.history.state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of an earlier searcher made with the same arguments.

        Raises:
            ValueError: another version has written it.
        """
        if state["schema"] != SCHEMA:
            raise ValueError(f"state of proposals: schema {state['schema']} where {SCHEMA} is read")
        self._queue = [dict(values) for values in state["queue"]]
        self._openers = list(state["openers"])
        self.learn_shapes(JudgedShape(**shape) for shape in state["shapes"])
        self._space.smallest = math.inf if state["smallest"] is None else state["smallest"]
        self.exhausted = state["exhausted"]
        self._sampler.set_state(state["sampler"])
        self.history = TrialHistory.from_state(state["history"])

    def _next_in_queue(self) -> Candidate | None:
        while self._queue or self._openers:
            if self._queue:
                candidate = self._space.candidate(RecipeSuggester(self._queue.pop(0)))
            else:
                candidate = self._opener(self._openers.pop(0))
            if candidate is not None and candidate.identity not in self.history.identities:
                return candidate
        return None

    def _give_up(self) -> None:
        if len(self.history):
            self.exhausted = True
            logger.info("no new recipe found: the space is used up")
            return
        if math.isinf(self._space.smallest):
            raise InputError("recipe: no values drawn from the space make a model; widen its ranges")
        raise InputError(
            f"budgets {', '.join(b.text for b in self._space.budgets)}: no recipe of the space is small enough; "
            f"the smallest found has {self._space.smallest:.1%} of the dense size; raise the budget or recipe.ratio"
        )

    def _end(self, trial: str, end: End) -> None:
        proposal = self.proposals[trial]
        if proposal.end is None:
            self.history.end(trial, end)
            final = self.history.final(trial)
            self._sampler.tell(proposal, None if final is None else final[0])
