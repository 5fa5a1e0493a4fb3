"""What all trials of a worker share: the dense model, its data, questions, baselines and importance."""

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from raysearch import models
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.data.encoding import Encoded, Encoder
from raysearch.data.loading import fraction_order, in_order, load_samples
from raysearch.data.samples import BadRow, BadRows
from raysearch.errors import InputError
from raysearch.evaluation.benchmarks import Benchmark, load_benchmarks
from raysearch.evaluation.evaluator import evaluate
from raysearch.evaluation.retention import Results, at_chance, retention
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape_solver import shape_for
from raysearch.models.vision_cache import VisionCache
from raysearch.pruning import prune
from raysearch.pruning.importance import Importance, importance
from raysearch.pruning.prune import Scores, kept_layers
from raysearch.recovery.deepspeed_engine import current_device, on_device
from raysearch.recovery.hidden_states import DistillationPoints
from raysearch.recovery.teacher import Teacher
from raysearch.recovery.teacher_cache import GB, CachedTeacher


@dataclass(frozen=True)
class DenseBaselines:
    """What is measured once per study, on the dense model."""

    search: Results
    """Scores on the split that trials are compared on."""
    early: Results
    """Scores on the part of it that is asked below a trial's end."""
    heldout: Results
    """Scores on the split that the search never sees."""
    importances: Mapping[str, Importance]
    """Importance of the removable units, by criterion."""


Measures = Mapping[str, Callable[[], Any]]
"""How to measure each part of `DenseBaselines`, those that take longest first."""


def measured_here(measures: Measures) -> dict[str, Any]:
    """Every part, measured by this process."""
    return {name: measure() for name, measure in measures.items()}


class TrialContext:
    """What every trial of a worker shares: the dense model, its data, its questions and its importance scores."""

    def __init__(
        self,
        space: SearchSpace,
        baselines: DenseBaselines | None = None,
        teacher_folder: Path | None = None,
        measure_once_per_study: Callable[[Measures], Mapping[str, Any]] = measured_here,
    ) -> None:
        """Load the model and the data.

        Args:
            baselines: left out, it is measured when it is first asked for.
            teacher_folder: where the dense model's states are kept, shared by all workers of a study; left out, a
                folder of this workbench's own.
            measure_once_per_study: returns every part of `baselines`; measures those that no other context of the study has.

        Raises:
            InputError: the model, the data or the benchmarks can't be used.
        """
        self.space = space
        self.model, self.processor = models.load(space.model)
        self.family = models.family_for(self.model)
        self.dense_size = counts_of(self.model.config).size(shape_of(self.model.config))
        self.encoder = Encoder(self.processor, self.family, space.recovery.max_length)
        self.vision = VisionCache(self.family, space.recovery.vision_cache_gb * GB)
        rows = load_samples(space.data)
        sources = [row.source for row in rows] if space.stratify else None
        order = fraction_order(len(rows), space.search.seed, sources)[: space.num_samples]
        self.samples = in_order(rows, order)
        self.bad_rows = BadRows(space.data, len(self.samples))
        """Samples that turned out to be of no use when they were needed, of all trials here."""
        self.teacher = self._teacher(teacher_folder)
        self.questions = load_benchmarks(space.benchmarks, "search")
        share = space.search.early_questions if space.search.early_stopping else 1.0
        self.early_questions = self.questions if share == 1 else [b.early(share) for b in self.questions]
        self.heldout = load_benchmarks(space.benchmarks, "heldout")
        self._measure_once_per_study = measure_once_per_study
        if baselines:
            self.baselines = baselines

    @functools.cached_property
    def baselines(self) -> DenseBaselines:
        """Scores of the dense model, and the importance of its units by every criterion that the space names.

        Raises:
            InputError: the dense model is at chance on a benchmark, so that there is nothing to retain, or has
                nothing to retain on the questions below a trial's end; or the teacher's states would not fit on the
                disk.
        """
        measures: dict[str, Callable[[], Any]] = {
            "heldout": partial(self.evaluate, self.model, self.heldout),
            "search": partial(self.evaluate, self.model, self.questions),
        }
        num_samples, criteria = self.space.calibration.num_samples, self.space.criteria()
        for name in criteria:
            measures[f"importance by {name}"] = partial(self.importance, name, num_samples)
        if self.early_questions is not self.questions:
            measures["early"] = partial(self.evaluate, self.model, self.early_questions)
        found = self._measure_once_per_study(measures)
        search, heldout, early = found["search"], found["heldout"], found.get("early", found["search"])
        _refuse_at_chance(search, heldout)
        if "early" in found:
            _refuse_too_few(early, self.space)
        if self.space.uses_teacher():
            self.teacher.prepare(1, current_device())
        return DenseBaselines(search, early, heldout, {name: found[f"importance by {name}"] for name in criteria})

    def evaluate(self, model: PreTrainedModel, benchmarks: Iterable[Benchmark]) -> Results:
        """Scores of `model` on `benchmarks`."""
        with on_device(model, current_device()), self.vision.serving(model):
            return evaluate(model, self.family, self.encoder, benchmarks)

    def prune(self, recipe: Recipe, importances: Mapping[str, Importance] | None = None) -> PreTrainedModel:
        """A new model without what the recipe removes; the dense one stays as it is.

        Args:
            importances: by criterion; left out, those that were measured once for the study.
        """
        scores = self._scores(recipe, self.baselines.importances if importances is None else importances)
        return prune(self.model, shape_for(counts_of(self.model.config), recipe), scores)

    def kept_layers(self, recipe: Recipe) -> list[int]:
        """The dense decoder's layers that `prune` leaves."""
        scores = self._scores(recipe, self.baselines.importances)
        return kept_layers(self.model.config, shape_for(counts_of(self.model.config), recipe), scores)

    def _scores(self, recipe: Recipe, importances: Mapping[str, Importance]) -> Scores:
        scores: dict[Literal["depth", "width"], Importance] = {}
        layer_criterion, width_criterion = recipe.criteria
        if layer_criterion:
            scores["depth"] = importances[layer_criterion]
        if width_criterion:
            scores["width"] = importances[width_criterion]
        return scores

    def importance(self, criterion: str, num_samples: int) -> Importance:
        """Importance of the dense model's units, on the first `num_samples` samples that have an image."""
        chosen = list(itertools.islice(self._to_calibrate(), num_samples))
        size = self.space.calibration.batch_size
        starts = range(0, len(chosen), size)
        batches = (self.encoder.collate(chosen[start : start + size]) for start in starts)
        with on_device(self.model, current_device()):
            return importance(self.model, batches, criterion, seed=self.space.search.seed)

    def _to_calibrate(self) -> Iterator[Encoded]:
        for sample in self.samples:
            if sample.images or not self.family.is_multimodal:
                try:
                    yield self.encoder.encode(sample)
                except BadRow as error:
                    self.bad_rows.add(f"row {sample.id}", str(error))

    def _teacher(self, folder: Path | None) -> Teacher:
        settings = self.space.recovery
        compared = DistillationPoints.of(settings, self.family, self.model.config)
        if settings.teacher == "online":
            return Teacher(self.model, self.family, compared)
        if folder is None:
            self._own_folder = tempfile.TemporaryDirectory(prefix="raysearch-teacher-")
            folder = Path(self._own_folder.name)
        return CachedTeacher(
            self.model,
            self.family,
            self.encoder,
            self.samples,
            folder,
            settings.teacher_quota_gb,
            max(map(float, self.space.values_of("data_fraction")), default=1.0),
            compared,
        )


def _refuse_at_chance(search: Results, heldout: Results) -> None:
    """One split above chance is enough: the other may just be small."""
    for name in set(at_chance(search)) & set(at_chance(heldout)):
        raise InputError(
            f"benchmarks: {name}: the dense model scores {search.means()[name]:.1%} where guessing gets "
            f"{search.chance[name]:.1%}, so retention means nothing there; mend its prompt, answers or metric, ask "
            "more questions, or leave it out"
        )


def _refuse_too_few(early: Results, space: SearchSpace) -> None:
    """See that retention can be told from the questions below a trial's end."""
    try:
        retention(early, early, space.retention)
    except ValueError as error:
        raise InputError(f"search.early_questions: {space.search.early_questions:g}: {error}; raise it") from None
