"""One trial, without ray: prune by a recipe, recover rung by rung, score every rung."""

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
from raysearch.study.front import Measured
from raysearch.study.records import Score
from raysearch.trials import rung_checkpoint
from raysearch.trials.context import TrialContext


class Trial:
    """One recipe on a workbench. Iterate `scores()`; between two of them the trial may be exported or closed."""

    def __init__(
        self, recipe: Recipe, context: TrialContext, model: object = None, kept_layers: Sequence[int] | None = None
    ) -> None:
        """Prune, or take `model`, which was made by the same recipe before; nothing is trained yet.

        Args:
            kept_layers: of the dense decoder, in `model`; left out, all of them.
        """
        self.recipe, self.context = recipe, context
        self.model = context.prune(recipe) if model is None else model
        self.kept_layers = context.kept_layers(recipe) if model is None else kept_layers
        counts = counts_of(context.model.config)
        self.size = counts.size(shape_for(counts, recipe), quantization=recipe.quantization)
        self.end = recipe.samples_to_see(len(context.samples))
        self._recovery: RecoveryTrainer | None = None
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
                    rung_checkpoint.keep(self._recovery, known, keep_in)
                yield known[-1]

    @property
    def samples_seen(self) -> int:
        """Samples seen by recovery so far."""
        return self._recovery.samples_seen if self._recovery else 0

    def _start_recovery(self) -> RecoveryTrainer:
        context = self.context
        return RecoveryTrainer(
            self.model,
            context.family,
            self.recipe,
            context.samples,
            context.encoder,
            context.teacher,
            context.space.recovery,
            self.kept_layers,
            context.bad_rows,
            context.vision,
        )

    def _restore(self, folder: Path) -> list[Score]:
        """Bring back what was kept; the scores so far. Nothing, if it can't be used on every worker."""
        assert self._recovery is not None
        known = rung_checkpoint.restore(self._recovery, folder)
        if known is None:
            self._recovery.close()
            self.model = self.context.prune(self.recipe)
            self._recovery = self._start_recovery()
        return known or []

    def evaluate(self, benchmarks: Iterable[Benchmark]) -> Results:
        """Scores of the model as it stands, with the weights that an export would have."""
        context, quantization = self.context, self.recipe.quantization
        with (
            self._timed("seconds_evaluating"),
            self._weights() as model,
            fake_quantized(model, quantization, context.model.dtype),
        ):
            return context.evaluate(model, benchmarks)

    def _weights(self) -> AbstractContextManager[PreTrainedModel]:
        if self._recovery is None:
            return nullcontext(self.model)
        return self._recovery.weights_for_evaluation()

    def heldout_results(self) -> Results:
        """Scores on the held-out questions, of the model at its end."""
        if self._heldout is None:
            self._heldout = self.evaluate(self.context.heldout)
        return self._heldout

    def finish(self, folder: Path) -> Measured:
        """Score the model on held-out questions, and write it as a stock checkpoint. Every worker must call it."""
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
        model = self._recovery.finished_model() if self._recovery else self.model
        with collective_io():
            if is_rank_zero():
                export.save(model, context.processor, folder, recipe=self.recipe, scores=scores, card=card)
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
        context, is_early = self.context, samples_seen < self.end
        self.latest_results = results = self.evaluate(context.early_questions if is_early else context.questions)
        dense = context.baselines.early if is_early else context.baselines.search
        kept = retention(results, dense, context.space.retention)
        self._latest = Score(
            samples_seen=samples_seen,
            retention=kept.value,
            retention_se=kept.se,
            num_questions=sum(map(len, results.scores.values())),
            scores=results.means(),
            losses=dict(losses),
        )
        return self._latest


def quality_of(results: Results, dense: Results, form: str) -> Measured:
    """Retention and scores with their intervals, given what the dense model scored on the same questions."""
    kept = retention(results, dense, form)
    intervals = score_intervals(results)
    return Measured(retention=kept.value, retention_ci=kept.interval, scores=results.means(), scores_ci=intervals)
