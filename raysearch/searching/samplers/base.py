"""The interface of a sampler: who decides which recipe to try next."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raysearch.searching.judged_shapes import JudgedShape
from raysearch.searching.samplers.sized_space import Candidate, SizedSpace
from raysearch.searching.trial_history import Proposal, TrialHistory


class Sampler(ABC):
    """Proposes the recipes of one search; same arguments and trials, same proposals.

    `candidates` is all that a sampler must have. One that keeps anything between two proposals saves it in `state`; one
    with records of its own hears of every trial by `adopt` and `tell`.

    Args:
        space: recipes and their exact sizes.
        seed: of all that is random.

    Attributes:
        proposes_once: whether a candidate that was refused never comes again.
        lengthens_gradually: whether a candidate that is longer than all trials so far together gives way to a shorter
            one.
    """

    proposes_once = False
    lengthens_gradually = False

    def __init__(self, space: SizedSpace, seed: int = 0) -> None:
        self.space, self.seed = space, seed

    @abstractmethod
    def candidates(self, history: TrialHistory) -> Iterator[Candidate]:
        """Candidates for trial number `len(history)`, best first; at some point they must end.

        `self.space.candidate` makes them. The searcher takes the first whose model has not been tried, and reads no
        further: when it asks for the next one, the last was refused.
        """

    def add_prior(self, candidate: Candidate, retention: float) -> None:  # noqa: B027
        """Learn from a finished trial of an earlier study, by its final retention; comes before the first proposal."""

    def learn_shapes(self, shapes: Sequence[JudgedShape]) -> None:  # noqa: B027
        """Learn from shapes that were judged without training, of many sizes."""

    def adopt(self, proposal: Proposal) -> None:  # noqa: B027
        """A trial has begun that did not come from `candidates`: it was queued, or runs since an earlier process."""

    def tell(self, proposal: Proposal, retention: float | None) -> None:  # noqa: B027
        """A trial has ended: with its final retention, the expected one if it was stopped, or None if it failed."""

    def state(self) -> dict[str, Any]:
        """What later proposals depend on beside the arguments and the history, as plain JSON values."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Continue from a `state`; priors are part of it."""
