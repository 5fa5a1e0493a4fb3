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
from raysearch.searching.forecast import Forecast, forecast
from raysearch.searching.judged_shapes import JudgedShape, best_near
from raysearch.searching.limits import Limits
from raysearch.searching.samplers.base import Sampler
from raysearch.searching.samplers.ehvi import EHVISampler
from raysearch.searching.samplers.grid import GridSampler
from raysearch.searching.samplers.openers import SIZE_RATIOS, OpeningSuggester
from raysearch.searching.samplers.optuna_samplers import NSGA2Sampler, QuasiRandomSampler, RandomSampler, TPESampler
from raysearch.searching.samplers.sized_space import Candidate, SizedSpace
from raysearch.searching.samplers.suggesters import suggest
from raysearch.searching.shape_study import study_sizes
from raysearch.searching.trial_history import End, Proposal, TrialHistory

logger = logging.getLogger(__name__)
SCHEMA = 4  # of `Searcher.state`
BETWEEN = 0.03  # distance of openers from each other, as shares of the dense size
MIN_RUNS = 5  # full runs before a small expected gain may end a search
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
        samples_of: samples that a recipe's trial sees if it runs to its end.
        full_run: samples that the longest trial sees.
        limits: what else ends the search.

    Attributes:
        history: the trials so far.
        exhausted: whether nothing new is left.
        shapes: those judged before any was trained.
        ended_by: the field of `SearchSettings` that has ended the search for good; "" while none has.

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
        samples_of: Callable[[Recipe], float] = lambda recipe: 0.0,
        full_run: float = 1.0,
        limits: Limits | None = None,
    ) -> None:
        if isinstance(sampler, str):
            if sampler not in SAMPLERS:
                raise InputError(f"search.sampler {sampler!r}: no such sampler; choose one of {', '.join(SAMPLERS)}")
            sampler = SAMPLERS[sampler]
        self.num_trials, self.limits = num_trials, limits or Limits()
        self.full_run = full_run
        self.history = TrialHistory()
        self.exhausted, self.ended_by = False, ""
        self._samples_of = samples_of
        self._num_first = 0  # trials from the queue, which come before all others
        self._none_fits_at: float | None = None  # samples of all trials when no recipe was short enough
        self._space = SizedSpace(space, size_of, dense, list(budgets))
        self._sampler = sampler(self._space, seed)
        self._queue: list[dict[str, Any] | float] = []  # values of a recipe, or a size ratio that wants an opener
        self.shapes: list[JudgedShape] = []

    @property
    def budgets(self) -> Sequence[Budget]:
        """Sizes that answers are wanted for."""
        return self._space.budgets

    def set_targets(self, budgets: Iterable[Budget], num_trials: int | None, limits: Limits | None = None) -> None:
        """Replace the budgets, the number of recipes to suggest in all, and what else ends the search."""
        self._space.set_budgets(list(budgets))
        self.num_trials, self.limits = num_trials, limits or Limits()

    def go_on(self) -> None:
        """Whatever has ended the search holds no longer: a study may be extended."""
        self.exhausted, self.ended_by, self._none_fits_at = False, "", None

    @property
    def num_samples(self) -> float:
        """Recovery samples of all trials: those seen by the ended ones, and the whole lengths of the running ones."""
        running = sum(self._samples_of(proposal.recipe) for proposal in self.history.running.values())
        return self.history.num_samples_ended + running

    def forecast(self) -> Forecast | None:
        """What further trials are expected to add; None while there are too few to tell."""
        limits = dict(zip((budget.text for budget in self.budgets), self._space.limits, strict=True))
        return forecast(self.history, self.full_run, limits)

    def longest_trial(self) -> float:
        """Samples that the next trial may see; below 0 if there may be no further one now."""
        if self.ended_by or (self.num_trials is not None and len(self.history) >= self.num_trials):
            return -1.0
        return self.limits.longest_trial(self.num_samples) if self.limits.num_samples else math.inf

    def must_wait(self) -> bool:
        """Whether a recipe may be suggested once a running trial has been stopped, but none before."""
        if not self.limits.num_samples or not self.history.running or self.exhausted or self.ended_by:
            return False
        if self.num_trials is not None and len(self.history) >= self.num_trials:
            return False
        return self.longest_trial() < 0 or self.num_samples == self._none_fits_at

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
        queued = map(self._made, self._queue)
        taken = self.history.identities | {candidate.identity for candidate in queued if candidate is not None}
        for recipe in recipes:
            values = recipe.as_dict() if isinstance(recipe, Recipe) else recipe
            candidate = self._space.candidate(RecipeSuggester(values))
            if candidate is not None and candidate.identity not in taken:
                taken.add(candidate.identity)
                self._queue.append(candidate.recipe.as_dict())
        return len(self._queue) - num_before

    def enqueue_openers(self) -> int:
        """Queue the recipes that the space starts with, or one per budget (without budgets, at sizes spread evenly) and
        then at sizes between them.

        The shape of one for a size is the best that is known when its turn comes.

        Returns:
            How many were queued; without a list of the space's at most a quarter of `num_trials`.
        """
        if self._space.search_space.start:
            return self.enqueue(Recipe.model_validate(fields) for fields in self._space.search_space.start)
        sizes = list(self._space.limits or SIZE_RATIOS)
        sizes += [size for size in study_sizes(self._space) if min(abs(size - other) for other in sizes) > BETWEEN]
        most = len(sizes) if self.num_trials is None else max(1, self.num_trials // 4)
        openers = [size for size in sizes[:most] if self._made(size) is not None]
        self._queue += openers
        return len(openers)

    def _made(self, entry: dict[str, Any] | float) -> Candidate | None:
        """What an entry of the queue makes, by what is known now."""
        if isinstance(entry, dict):
            return self._space.candidate(RecipeSuggester(entry))
        shape = best_near(self.shapes, entry)
        return self._space.candidate(OpeningSuggester(entry, {} if shape is None else shape.params), entry)

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

    def suggest(self, trial: str, longest: float = math.inf) -> Recipe | None:
        """The recipe of the next trial; None when a limit is reached or nothing new is left.

        Args:
            longest: samples that its trial may see at most.

        Raises:
            InputError: the space has no recipe that fits the budgets.
        """
        limit = self.longest_trial()
        if self.exhausted or limit < 0:
            return None
        if self._gains_too_little():
            self.ended_by = "until_gain"
            return None
        longest = min(longest, limit)
        queued = self._next_in_queue(longest)
        candidate, is_too_long = (queued, False) if queued else self._next_of_sampler(longest)
        if candidate is None:
            if is_too_long or self._queue:
                self._none_fits_at = self.num_samples
            else:
                self._give_up()
            return None
        proposal = self.history.add(trial, candidate)
        if queued:
            self._num_first += proposal.number == self._num_first
            self._sampler.adopt(proposal)
        return proposal.recipe

    def _next_of_sampler(self, longest: float) -> tuple[Candidate | None, bool]:
        """The sampler's first new candidate that is short enough, and whether one before it was too long.

        A trial without recovery doesn't take the place of one that is too long: such trials would never reach a limit.
        Where the sampler leaves the choice, no trial is longer than all before it together, if there is a shorter one:
        long training is for what short training has shown to be good.
        """
        is_too_long, shortest = False, None
        most = self.num_samples if self._sampler.lengthens_gradually else math.inf
        for candidate in self._sampler.candidates(self.history):
            if candidate.identity in self.history.identities:
                continue
            length = self._samples_of(candidate.recipe)
            if length <= longest and (length or not is_too_long):
                if length <= most:
                    return candidate, is_too_long
                if shortest is None or length < self._samples_of(shortest.recipe):
                    shortest = candidate
                continue
            is_too_long = True
            if self._sampler.proposes_once:
                self._queue.append(candidate.recipe.as_dict())
        return shortest, is_too_long

    def _gains_too_little(self) -> bool:
        """Whether another ten full runs aren't worth it; not before the queued recipes and five full runs are through.

        That a trial runs changes nothing: only ended ones are looked at.
        """
        least = self.limits.gain_points
        first_run = any(proposal.number < self._num_first for proposal in self.history.running.values())
        if least is None or self._queue or first_run:
            return False
        seen = self.history.num_samples_ended
        expected = self.forecast() if seen >= MIN_RUNS * self.full_run else None
        return expected is not None and expected.most_points < least

    def trains_a_leader_longer(self, trial: str) -> bool:
        """Whether a trial's recipe is that of a finished one on the front, but for more data or epochs."""
        recipe = self.history.proposals[trial].recipe
        leaders = (self.history.proposals[name].recipe for name in self.history.front)
        return any(leader.trains_less_than(recipe) for leader in leaders)

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
            "shapes": [shape.model_dump() for shape in self.shapes],
            "smallest": None if math.isinf(self._space.smallest) else self._space.smallest,
            "exhausted": self.exhausted,
            "ended_by": self.ended_by,
            "num_first": self._num_first,
            "none_fits_at": self._none_fits_at,
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
        self._queue = list(state["queue"])
        self.learn_shapes(JudgedShape(**shape) for shape in state["shapes"])
        self._space.smallest = math.inf if state["smallest"] is None else state["smallest"]
        self.exhausted, self.ended_by = state["exhausted"], state.get("ended_by", "")
        self._num_first, self._none_fits_at = state.get("num_first", 0), state.get("none_fits_at")
        self._sampler.set_state(state["sampler"])
        self.history = TrialHistory.from_state(state["history"])

    def _next_in_queue(self, longest: float) -> Candidate | None:
        """The first that is short enough; longer ones stay, for a study that is extended."""
        made = [(entry, self._made(entry)) for entry in self._queue]
        waiting = [(entry, c) for entry, c in made if c is not None and c.identity not in self.history.identities]
        self._queue = [entry for entry, _ in waiting]
        for at, (_, candidate) in enumerate(waiting):
            if self._samples_of(candidate.recipe) <= longest:
                del self._queue[at]
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
