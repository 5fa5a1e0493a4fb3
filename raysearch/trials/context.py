"""What all trials of a worker share: the dense model, its data, questions and baselines."""

import functools
import itertools
import logging
import math
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from raysearch import models, progress
from raysearch.config.budget import Size
from raysearch.config.criteria import GREEDY
from raysearch.config.recipe import Recipe
from raysearch.config.settings import NUM_SHAPE_SAMPLES
from raysearch.config.space import SearchSpace
from raysearch.data.bad_rows import BadRow, BadRows
from raysearch.data.encoding import Batch, Encoded, Encoder
from raysearch.data.loading import fraction_order, in_order, load_samples
from raysearch.data.samples import Sample
from raysearch.errors import InputError, first_line
from raysearch.evaluation.benchmarks import Benchmark, load_benchmarks
from raysearch.evaluation.evaluator import Answers, answer, generate_answers, score_answers
from raysearch.evaluation.questions import Question, early_rows
from raysearch.evaluation.retention import Results, at_chance, retention
from raysearch.models.param_count import counts_of
from raysearch.models.precision import in_fast_precision
from raysearch.models.shape_solver import shape_for, size_for
from raysearch.models.vision_cache import VisionCache
from raysearch.pruning import prune
from raysearch.pruning.importance import Importance, importance
from raysearch.pruning.prune import kept_layers
from raysearch.pruning.select_units import Scores
from raysearch.pruning.shape_divergence import ShapeDivergence
from raysearch.recovery.deepspeed_engine import current_device, on_device
from raysearch.recovery.hidden_states import DistillationPoints
from raysearch.recovery.teacher import Teacher
from raysearch.recovery.teacher_cache import GB, CachedTeacher
from raysearch.trials.shared_answers import answer_together

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DenseBaselines:
    """What is measured once per study, on the dense model.

    Attributes:
        search: scores on the questions that trials are compared on.
        early: scores on the part of them for rungs below a trial's end.
        importances: of the removable units, by criterion.
    """

    search: Results
    early: Results
    importances: Mapping[str, Importance]


Measures = Mapping[str, Callable[[], Any]]
"""A function per part of `DenseBaselines` that measures it; the longest first."""


def measured_here(measures: Measures) -> dict[str, Any]:
    """Measure every part in this process."""
    return {name: measure() for name, measure in measures.items()}


class TrialContext:
    """The dense model, its data, questions and baselines, for any number of trials.

    Attributes:
        bad_rows: the samples that turned out to be unusable, over all trials.
        counts: of the dense model, within the space's rules on shapes.
        questions, early_questions, heldout: benchmarks of the search, of rungs below a trial's end, and held out.
        first_of_study: returns a part of what is known of the dense model by its name, and calls the function that
            measures it unless another context of the study has done so.
    """

    def __init__(
        self,
        space: SearchSpace,
        baselines: DenseBaselines | None = None,
        teacher_folder: Path | None = None,
        measure_once_per_study: Callable[[Measures], Mapping[str, Any]] = measured_here,
    ) -> None:
        """Load the model and the data.

        Args:
            baselines: None to measure them at their first use.
            teacher_folder: cache of the dense model's states, shared by all workers of a study; None for a temporary
                folder.
            measure_once_per_study: returns every part of `baselines`, and measures those that no other context of the
                study has measured.

        Raises:
            InputError: the model, the data or the benchmarks can't be used.
        """
        self.space = space
        self.model, self.processor = models.load(space.model)
        self.family = models.family_for(self.model)
        self.counts = counts_of(self.model.config).under(space.shapes)
        self.dense_size = self.counts.size(self.counts.dense)
        self.encoder = Encoder(self.processor, self.family, space.recovery.max_length)
        self.vision = VisionCache(self.family, space.recovery.vision_cache_gb * GB)
        rows = load_samples(space.data)
        sources = rows.sources() if space.stratify else None
        order = fraction_order(len(rows), space.search.seed, sources)[: space.num_samples]
        self.samples = in_order(rows, order)
        self.bad_rows = BadRows(space.data_text, len(self.samples))
        self.teacher = self._make_teacher(teacher_folder)
        self.questions = load_benchmarks(space.benchmarks, "search")
        share = space.search.early_questions if space.search.early_stopping else 1.0
        self.early_questions = self.questions if share == 1 else [b.early(share) for b in self.questions]
        self._early_rows = {b.name: early_rows(b.questions, share) for b in self.questions}
        self.heldout = load_benchmarks(space.benchmarks, "heldout")
        self._measure_once_per_study = measure_once_per_study
        self.first_of_study: Callable[[str, Callable[[], Any]], Any] = lambda name, measure: measure()
        if baselines:
            self.baselines = baselines

    @functools.cached_property
    def baselines(self) -> DenseBaselines:
        """Scores of the dense model, and the importance of its units by every criterion that the space names.

        Raises:
            InputError: the dense model is at chance on a benchmark, or scores nothing on the early questions; or the
                teacher's states don't fit on the disk.
        """
        num_samples, criteria = self.space.calibration.num_samples, self.space.criteria()
        measures: dict[str, Callable[[], Any]] = {
            f"importance by {name}": partial(self.importance, name, num_samples)
            for name in sorted(criteria, key=lambda name: name not in GREEDY)  # the longest first
        }
        measures["search"] = partial(self.evaluate_search, self.model, together=False)
        if self.space.search.keep_scores:  # else only what is handed over is compared with them
            measures["heldout"] = partial(self.evaluate, self.model, self.heldout, together=False)
        found = self._measure_once_per_study(measures)
        search, early = found["search"]
        if "heldout" in found:
            self.heldout_baseline = found["heldout"]
        self._check_above_chance(search)
        if self.early_questions is not self.questions:
            check_early_questions(early, self.space)
        if self.space.uses_teacher():
            self.teacher.prepare(1, current_device())
        return DenseBaselines(search, early, {name: found[f"importance by {name}"] for name in criteria})

    @functools.cached_property
    def heldout_baseline(self) -> Results:
        """Scores of the dense model on the questions that the search never sees; measured when first needed."""
        return self.first_of_study("heldout", partial(self.evaluate, self.model, self.heldout, together=False))

    def _check_above_chance(self, search: Results) -> None:
        """Raise an error for a benchmark at chance on both splits; on one alone, the split may just be small."""
        doubtful = at_chance(search)
        for name in sorted(set(doubtful) & set(at_chance(self.heldout_baseline) if doubtful else ())):
            raise InputError(
                f"benchmarks: {name}: the dense model scores {search.means()[name]:.1%} where guessing gets "
                f"{search.chance[name]:.1%}, so retention means nothing there; see its answers by raysearch "
                f"evaluate {self.space.model}; mend its prompt, answers or metric, ask more questions, or leave it out"
            )

    def evaluate(self, model: PreTrainedModel, benchmarks: Iterable[Benchmark], together: bool = True) -> Results:
        """Scores of `model` on `benchmarks`.

        Args:
            together: all workers of the slot call it, and answer a part of the questions each.
        """
        benchmarks = list(benchmarks)
        return score_answers(self._answers(model, benchmarks, together), benchmarks)

    def evaluate_search(self, model: PreTrainedModel, together: bool = True) -> tuple[Results, Results]:
        """Scores of `model` on the search's questions, and on the early ones among them, each answered once; `together`
        as for `evaluate`."""
        answers = self._answers(model, self.questions, together)
        early = {name: given[self._early_rows[name]] for name, given in answers.items()}
        return score_answers(answers, self.questions), score_answers(early, self.early_questions)

    def _answers(self, model: PreTrainedModel, benchmarks: Sequence[Benchmark], together: bool) -> Answers:
        answers = partial(answer, model, self.family, self.encoder)
        with on_device(model, current_device()), in_fast_precision(model), self.vision.serving(model):
            return answer_together(answers, benchmarks) if together else answers(benchmarks)

    def responses(self, model: PreTrainedModel, asked: Iterable[tuple[Benchmark, Question]]) -> list[str]:
        """What `model` says to a few questions of benchmarks; empty to one that can't be asked."""
        with on_device(model, current_device()), in_fast_precision(model), self.vision.serving(model):
            said = [
                generate_answers(model, self.encoder, [question], benchmark.max_new_tokens, name=benchmark.name)[0]
                for benchmark, question in asked
            ]
        return [text or "" for text in said]

    def prune(self, recipe: Recipe, importances: Mapping[str, Importance] | None = None) -> PreTrainedModel:
        """A new model without what the recipe removes; the dense one stays as it is.

        Args:
            importances: by criterion; None for those of `baselines`.
        """
        scores = self._scores(recipe, self.baselines.importances if importances is None else importances)
        return prune(self.model, shape_for(self.counts, recipe), scores)

    def size_of(self, recipe: Recipe) -> Size | None:
        """The exact size of a recipe's model; None if the family has no such shape."""
        return size_for(self.counts, recipe)

    def pruned_identity(self, recipe: Recipe) -> Hashable:
        """The same for recipes that make the same pruned model."""
        return shape_for(self.counts, recipe), tuple(recipe.scored_by.items())

    @contextmanager
    def judging_shapes(self) -> Iterator[Callable[[Recipe], float]]:
        """Inside, a function tells how far a recipe's pruned model, without recovery, is from the dense one (KL per
        answer token; infinite where there is no such model)."""

        @functools.cache
        def divergence() -> ShapeDivergence | None:
            try:
                return ShapeDivergence(self.model, self._calibration_batches(NUM_SHAPE_SAMPLES))
            except Exception as error:  # of whatever class the model is: the search goes on without judgements
                logger.warning("shapes can't be judged before training: %s", first_line(error))
                return None

        def judge(recipe: Recipe) -> float:
            judged = divergence()
            if judged is None:
                return math.inf
            shape = shape_for(self.counts, recipe)
            try:
                return judged(shape, self._scores(recipe, self.baselines.importances))
            except Exception as error:
                logger.info("%s: no judgement of its shape: %s", recipe.describe(), first_line(error))
                return math.inf

        with on_device(self.model, current_device()), in_fast_precision(self.model):
            yield judge

    def kept_layers(self, recipe: Recipe) -> list[int]:
        """The dense decoder's layers that `prune` leaves."""
        scores = self._scores(recipe, self.baselines.importances)
        return kept_layers(self.model.config, shape_for(self.counts, recipe), scores)

    def _scores(self, recipe: Recipe, importances: Mapping[str, Importance]) -> Scores:
        return {part: importances[name] for part, name in recipe.scored_by.items()}

    def importance(self, criterion: str, num_samples: int) -> Importance:
        """Importance of the dense model's units, on the first `num_samples` samples that have an image."""
        with on_device(self.model, current_device()), in_fast_precision(self.model):
            batches = self._calibration_batches(num_samples)
            return importance(self.model, batches, criterion, seed=self.space.search.seed)

    def _calibration_batches(self, num_samples: int) -> Iterator[Batch]:
        """The first `num_samples` samples that have an image, on the model's device."""
        usable = calibration_rows(self.samples, self.encoder, self.bad_rows)
        chosen, size = list(itertools.islice(usable, num_samples)), self.space.calibration.batch_size
        for start in range(0, len(chosen), size):
            batch = self.encoder.collate(chosen[start : start + size])
            yield {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            progress.step()

    def _make_teacher(self, folder: Path | None) -> Teacher:
        settings = self.space.recovery
        points = DistillationPoints.of(settings, self.family, self.model.config)
        if settings.teacher == "online":
            return Teacher(self.model, self.family, points)
        if folder is None:
            self._own_folder = tempfile.TemporaryDirectory(prefix="raysearch-teacher-")
            folder = Path(self._own_folder.name)
        largest_fraction = max(map(float, self.space.values_of("data_fraction")), default=1.0)
        given = (self.model, self.family, self.encoder, self.samples, folder, settings.teacher_quota_gb)
        return CachedTeacher(*given, largest_fraction, points)


def calibration_rows(samples: Iterable[Sample], encoder: Encoder, bad_rows: BadRows) -> Iterator[Encoded]:
    """The usable samples, in order, without those that have no image if the model takes images."""
    for sample in samples:
        if sample.images or sample.problem or not encoder.family.is_multimodal:
            try:
                yield encoder.encode(sample)
            except BadRow as error:
                bad_rows.add(f"row {sample.id}", str(error))


def check_early_questions(early: Results, space: SearchSpace) -> None:
    """Check that the dense model's results on the early questions allow retention to be computed.

    Raises:
        InputError: they don't.
    """
    try:
        retention(early, early, space.retention)
    except ValueError as error:
        raise InputError(f"search.early_questions: {space.search.early_questions:g}: {error}; raise it") from None
