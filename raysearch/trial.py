"""One trial, without ray: prune by a recipe, recover rung by rung, score every rung."""

import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from raysearch import export, families, shape
from raysearch.data.encoding import Encoded, Encoder
from raysearch.data.reading import fraction_order, in_order, load_samples
from raysearch.data.samples import BadRow, BadRows
from raysearch.errors import InputError
from raysearch.evaluation.answers import evaluate
from raysearch.evaluation.benchmarks import Benchmark, load_benchmarks
from raysearch.evaluation.retention import Results, at_chance, retention, score_intervals
from raysearch.export.packed import quantized
from raysearch.families.vision_cache import VisionCache
from raysearch.front import Measured
from raysearch.importance import Importance, importance
from raysearch.prune import prune
from raysearch.prune.count import counts_of
from raysearch.prune.cut import Scores, kept_layers
from raysearch.prune.shape import Shape, shape_of, size_of
from raysearch.recipe import Recipe
from raysearch.recovery import kept
from raysearch.recovery.engine import current_device, is_first_worker, moved, storage_shared
from raysearch.recovery.loop import Recovery
from raysearch.recovery.states import Compared
from raysearch.recovery.teacher import Teacher
from raysearch.recovery.teacher_cache import GB, CachedTeacher
from raysearch.score import Score
from raysearch.size import Size
from raysearch.space import SearchSpace


@dataclass(frozen=True)
class Prepared:
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
"""How to measure each part of `Prepared`, those that take longest first."""


def measured_here(measures: Measures) -> dict[str, Any]:
    """Every part, measured by this process."""
    return {name: measure() for name, measure in measures.items()}


class Workbench:
    """What every trial of a worker shares: the dense model, its data, its questions and its importance scores."""

    def __init__(
        self,
        space: SearchSpace,
        prepared: Prepared | None = None,
        teacher_folder: Path | None = None,
        once: Callable[[Measures], Mapping[str, Any]] = measured_here,
    ) -> None:
        """Load the model and the data.

        Args:
            prepared: left out, it is measured when it is first asked for.
            teacher_folder: where the dense model's states are kept, shared by all workers of a study; left out, a
                folder of this workbench's own.
            once: hands back all parts of `prepared`, having measured those that no other workbench of the study has.

        Raises:
            InputError: the model, the data or the benchmarks can't be used.
        """
        self.space = space
        self.model, self.processor = families.load(space.model)
        self.family = families.family_for(self.model)
        self.dense_size = size_of(self.model.config, shape_of(self.model.config))
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
        self._once = once
        if prepared:
            self.prepared = prepared

    @functools.cached_property
    def prepared(self) -> Prepared:
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
        found = self._once(measures)
        search, heldout, early = found["search"], found["heldout"], found.get("early", found["search"])
        _refuse_at_chance(search, heldout)
        if "early" in found:
            _refuse_too_few(early, self.space)
        if self.space.uses_teacher():
            self.teacher.prepare(1, current_device())
        return Prepared(search, early, heldout, {name: found[f"importance by {name}"] for name in criteria})

    def evaluate(self, model: PreTrainedModel, benchmarks: Iterable[Benchmark]) -> Results:
        """Scores of `model` on `benchmarks`."""
        with moved(model, current_device()), self.vision.serving(model):
            return evaluate(model, self.family, self.encoder, benchmarks)

    def prune(self, recipe: Recipe, importances: Mapping[str, Importance] | None = None) -> PreTrainedModel:
        """A new model without what the recipe removes; the dense one stays as it is.

        Args:
            importances: by criterion; left out, those that were measured once for the study.
        """
        scores = self._scores(recipe, self.prepared.importances if importances is None else importances)
        return prune(self.model, shape_for(self.model.config, recipe), scores)

    def kept_layers(self, recipe: Recipe) -> list[int]:
        """The dense decoder's layers that `prune` leaves."""
        scores = self._scores(recipe, self.prepared.importances)
        return kept_layers(self.model.config, shape_for(self.model.config, recipe), scores)

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
        with moved(self.model, current_device()):
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
        compared = Compared.of(settings, self.family, self.model.config)
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


class Trial:
    """One recipe on a workbench. Iterate `scores()`; between two of them the trial may be exported or closed."""

    def __init__(
        self,
        recipe: Recipe,
        bench: Workbench,
        model: object = None,
        kept_layers: Sequence[int] | None = None,
    ) -> None:
        """Prune, or take `model`, which was made by the same recipe before; nothing is trained yet.

        Args:
            kept_layers: of the dense decoder, in `model`; left out, all of them.
        """
        self.recipe, self.bench = recipe, bench
        self.model = bench.prune(recipe) if model is None else model
        self.kept_layers = bench.kept_layers(recipe) if model is None else kept_layers
        self.size = size_for(bench.model.config, recipe)
        self.end = recipe.samples_to_see(len(bench.samples))
        self._recovery: Recovery | None = None
        self._latest: Score | None = None
        self._heldout: Results | None = None
        self.latest_results: Results | None = None
        """Scores per question behind the newest of `scores()`."""
        self.seconds = {"seconds_training": 0.0, "seconds_evaluating": 0.0}
        """What this object has spent on either."""

    def scores(self, rungs: Iterable[int], keep_in: Path | None = None) -> Iterator[Score]:
        """Recover up to each rung and score it there; the last score is at the recipe's own end.

        Args:
            rungs: samples seen at which other trials are compared too; those at or beyond the recipe's end are
                left out.
            keep_in: folder that takes the state at every rung. If one is there already, its scores come again and
                the trial goes on from there; they are those of an unbroken trial.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if self.recipe.trained == "nothing":
            yield self._score(0, {})
            return
        self._recovery = self._start_recovery()
        known = self._restore(keep_in) if keep_in else []
        for score in known:
            self._latest = score
            yield score
        for rung in [*(rung for rung in sorted(rungs) if rung < self.end), self.end]:
            if rung > self._recovery.samples_seen:
                with self._timed("seconds_training"):
                    losses = self._recovery.train_until(rung)
                known.append(self._score(rung, losses))
                if keep_in:
                    kept.keep(self._recovery, known, keep_in)
                yield known[-1]

    @property
    def samples_seen(self) -> int:
        """Samples seen by recovery so far."""
        return self._recovery.samples_seen if self._recovery else 0

    def _start_recovery(self) -> Recovery:
        bench = self.bench
        return Recovery(
            self.model,
            bench.family,
            self.recipe,
            bench.samples,
            bench.encoder,
            bench.teacher,
            bench.space.recovery,
            self.kept_layers,
            bench.bad_rows,
            bench.vision,
        )

    def _restore(self, folder: Path) -> list[Score]:
        """Bring back what was kept; the scores so far. Nothing, if it can't be used on every worker."""
        assert self._recovery is not None
        known = kept.restore(self._recovery, folder)
        if known is None:
            self._recovery.close()
            self.model = self.bench.prune(self.recipe)
            self._recovery = self._start_recovery()
        return known or []

    def evaluate(self, benchmarks: Iterable[Benchmark]) -> Results:
        """Scores of the model as it stands, with the weights that an export would have."""
        bench, quantization = self.bench, self.recipe.quantization
        with (
            self._timed("seconds_evaluating"),
            self._weights() as model,
            quantized(model, quantization, bench.model.dtype),
        ):
            return bench.evaluate(model, benchmarks)

    def _weights(self) -> AbstractContextManager[PreTrainedModel]:
        if self._recovery is None:
            return nullcontext(self.model)
        return self._recovery.weights_for_evaluation()

    def heldout_results(self) -> Results:
        """Scores on the held-out questions, of the model at its end."""
        if self._heldout is None:
            self._heldout = self.evaluate(self.bench.heldout)
        return self._heldout

    def finish(self, folder: Path) -> Measured:
        """Score the model on held-out questions, and write it as a stock checkpoint. Every worker must call it."""
        bench = self.bench
        results = self.heldout_results()
        heldout = quality_of(results, bench.prepared.heldout, bench.space.retention)
        scores = {
            "search": self._latest and self._latest.model_dump(),
            "heldout": heldout.model_dump(),
            "pruning": {"layers_kept": self.kept_layers},
        }
        card = {
            "base_model": bench.space.model,
            "parameters": f"{self.size.num_params:,} of {bench.dense_size.num_params:,}",
            "bytes": f"{self.size.size_bytes:,} of {bench.dense_size.size_bytes:,}",
        }
        model = self._recovery.finished_model() if self._recovery else self.model
        with storage_shared():
            if is_first_worker():
                export.save(model, bench.processor, folder, recipe=self.recipe, scores=scores, card=card)
        return heldout

    def close(self) -> None:
        """Free the engine and the model."""
        if self._recovery:
            self._recovery.close()
        self._recovery = self.model = None

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - started

    def _score(self, samples_seen: int, losses: Mapping[str, float]) -> Score:
        bench, is_early = self.bench, samples_seen < self.end
        self.latest_results = results = self.evaluate(bench.early_questions if is_early else bench.questions)
        dense = bench.prepared.early if is_early else bench.prepared.search
        kept = retention(results, dense, bench.space.retention)
        self._latest = Score(
            samples_seen=samples_seen,
            retention=kept.value,
            retention_se=kept.se,
            num_questions=sum(map(len, results.scores.values())),
            scores=results.means(),
            losses=dict(losses),
        )
        return self._latest


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
        raise InputError(
            f"search.early_questions: {space.search.early_questions:g}: {error}; raise it"
        ) from None


def quality_of(results: Results, dense: Results, form: str) -> Measured:
    """Retention and scores with their intervals, given what the dense model scored on the same questions."""
    kept = retention(results, dense, form)
    intervals = score_intervals(results)
    return Measured(
        retention=kept.value, retention_ci=kept.interval, scores=results.means(), scores_ci=intervals
    )


def shape_for(config: object, recipe: Recipe) -> Shape:
    """The shape that a recipe gives a dense model of `config`.

    Raises:
        InputError: no model of this family can be that small.
    """
    return shape.shape_for(counts_of(config), recipe)


def size_for(config: object, recipe: Recipe) -> Size:
    """The exact size of the whole model that a recipe makes, by counting alone."""
    return shape.size_for(counts_of(config), recipe)
