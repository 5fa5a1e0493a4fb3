"""One trial: prune by a recipe, recover rung by rung, evaluate and score every rung."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from transformers import PreTrainedModel

from raysearch import export
from raysearch.config.recipe import Recipe
from raysearch.evaluation.benchmarks import Benchmark
from raysearch.evaluation.retention import Results, retention, score_intervals
from raysearch.export.packed import fake_quantized
from raysearch.models.param_count import counts_of
from raysearch.models.shape_solver import shape_for
from raysearch.recovery.deepspeed_engine import collective_io, is_rank_zero
from raysearch.recovery.trainer import RecoveryTrainer
from raysearch.study.front import FrontPoint, Measured
from raysearch.study.records import Score
from raysearch.trials import rung_checkpoint
from raysearch.trials.context import TrialContext


class Trial:
    """One recipe in a context. Iterate `scores()`; between two of them the trial may be finished or closed.

    Attributes:
        model: the pruned model.
        kept_layers: the dense decoder's layers in it; None if not known.
        size: of the pruned model.
        end: samples seen at the end of recovery; 0 without any.
        latest_results: scores per question behind the newest of `scores()`.
        seconds: `seconds_training` and `seconds_evaluating` that this object has spent.
    """

    def __init__(
        self, recipe: Recipe, context: TrialContext, model: object = None, kept_layers: Sequence[int] | None = None
    ) -> None:
        """Prune, or use `model`, which the recipe pruned before, with `kept_layers`; nothing is trained yet."""
        self.recipe, self.context = recipe, context
        self.model = context.prune(recipe) if model is None else model
        self.kept_layers = context.kept_layers(recipe) if model is None else kept_layers
        counts = counts_of(context.model.config)
        self.size = counts.size(shape_for(counts, recipe), quantization=recipe.quantization)
        self.end = recipe.samples_to_see(len(context.samples))
        self.latest_results: Results | None = None
        self.seconds = {"seconds_training": 0.0, "seconds_evaluating": 0.0}
        self._trainer: RecoveryTrainer | None = None
        self._latest: Score | None = None
        self._heldout: Results | None = None

    def scores(self, rungs: Iterable[int], keep_in: Path | None = None) -> Iterator[Score]:
        """Recover up to each rung and score the model there; the last score is at the recipe's own end.

        Args:
            rungs: samples seen at which trials are compared; those at or beyond the recipe's end are left out.
            keep_in: folder of the checkpoint of the latest rung. If it has one, its scores are yielded again and the
                trial resumes from there; all scores are those of an uninterrupted trial.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if self.recipe.trained == "nothing":
            yield self._score(0, {})
            return
        self._trainer = self._start_trainer()
        scores = self._restore(keep_in) if keep_in else []
        for score in scores:
            self._latest = score
            yield score
        for rung in [*(rung for rung in sorted(rungs) if rung < self.end), self.end]:
            if rung > self._trainer.samples_seen:
                with self._timed("seconds_training"):
                    losses = self._trainer.train_until(rung)
                scores.append(self._score(rung, losses))
                if keep_in:
                    rung_checkpoint.save(self._trainer, scores, keep_in)
                yield scores[-1]

    @property
    def samples_seen(self) -> int:
        """Samples seen by recovery so far."""
        return self._trainer.samples_seen if self._trainer else 0

    def _start_trainer(self) -> RecoveryTrainer:
        context = self.context
        data = (context.samples, context.encoder, context.teacher, context.space.recovery)
        shared = (self.kept_layers, context.bad_rows, context.vision)
        return RecoveryTrainer(self.model, context.family, self.recipe, *data, *shared)

    def _restore(self, folder: Path) -> list[Score]:
        """Resume from the checkpoint in `folder`; its scores. Restart if it can't be used on every worker."""
        assert self._trainer is not None
        scores = rung_checkpoint.restore(self._trainer, folder)
        if scores is None:
            self._trainer.close()
            self.model = self.context.prune(self.recipe)
            self._trainer = self._start_trainer()
        return scores or []

    def evaluate(self, benchmarks: Iterable[Benchmark]) -> Results:
        """Scores of the model as it is now, with the weights that an export would have."""
        context, quantization = self.context, self.recipe.quantization
        with (
            self._timed("seconds_evaluating"),
            self._weights() as model,
            fake_quantized(model, quantization, context.model.dtype),
        ):
            return context.evaluate(model, benchmarks)

    def _weights(self) -> AbstractContextManager[PreTrainedModel]:
        return self._trainer.weights_for_evaluation() if self._trainer else nullcontext(self.model)

    def heldout_results(self) -> Results:
        """Scores on the held-out questions, measured at the first call, which is at the trial's end."""
        if self._heldout is None:
            self._heldout = self.evaluate(self.context.heldout)
        return self._heldout

    def finish(self, folder: Path) -> Measured:
        """Score the model on held-out questions and export it to `folder`. Every worker must call it."""
        context = self.context
        results = self.heldout_results()
        heldout = quality_of(results, context.baselines.heldout, context.space.retention)
        scores = {
            "search": self._latest and self._latest.model_dump(),
            "heldout": heldout.model_dump(),
            "pruning": {"layers_kept": self.kept_layers},
        }
        card = {
            "base_model": context.space.model,
            "parameters": f"{self.size.num_params:,} of {context.dense_size.num_params:,}",
            "bytes": f"{self.size.size_bytes:,} of {context.dense_size.size_bytes:,}",
        }
        model = self._trainer.finished_model() if self._trainer else self.model
        with collective_io():
            if is_rank_zero():
                export.save(model, context.processor, folder, recipe=self.recipe, scores=scores, card=card)
        return heldout

    def close(self) -> None:
        """Free the engine and the model."""
        if self._trainer:
            self._trainer.close()
        self._trainer = self.model = None

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - started

    def _score(self, samples_seen: int, losses: Mapping[str, float]) -> Score:
        context, is_early = self.context, samples_seen < self.end
        self.latest_results = results = self.evaluate(context.early_questions if is_early else context.questions)
        dense = context.baselines.early if is_early else context.baselines.search
        retained = retention(results, dense, context.space.retention)
        self._latest = Score(
            samples_seen=samples_seen,
            retention=retained.value,
            retention_se=retained.se,
            num_questions=sum(map(len, results.scores.values())),
            scores=results.means(),
            losses=dict(losses),
        )
        return self._latest


def quality_of(results: Results, dense: Results, form: str) -> Measured:
    """Retention and scores with their intervals, given the dense model's results on the same questions."""
    retained, intervals = retention(results, dense, form), score_intervals(results)
    return Measured(
        retention=retained.value, retention_ci=retained.interval, scores=results.means(), scores_ci=intervals
    )


def with_checkpoint(point: FrontPoint, checkpoint: str, quality: Measured, heldout: Measured) -> FrontPoint:
    """A front point with another checkpoint of its recipe, and that checkpoint's scores."""
    scored = {"retention": quality.retention, "retention_ci": quality.retention_ci, "scores": quality.scores}
    return point.model_copy(update={**scored, "checkpoint": checkpoint, "heldout": heldout, "measured": None})
