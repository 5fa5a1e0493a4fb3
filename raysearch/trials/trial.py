"""One trial: prune by a recipe, recover rung by rung, evaluate and score every rung."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from raysearch.config.recipe import Recipe
from raysearch.evaluation.benchmarks import Benchmark
from raysearch.evaluation.retention import Results, retention, score_intervals
from raysearch.export.packed import fake_quantized
from raysearch.export.save_checkpoint import save_checkpoint
from raysearch.models.shape_solver import shape_for
from raysearch.recovery.deepspeed_engine import all_reduce_min, collective_io, is_rank_zero
from raysearch.recovery.trainer import RecoveryTrainer
from raysearch.study.front import FrontPoint, Measured
from raysearch.study.records import Score
from raysearch.trials import rung_checkpoint
from raysearch.trials.context import TrialContext
from raysearch.trials.differing_answers import keep_examples


class Trial:
    """One recipe in a context. Iterate `scores()`; between two of them the trial may be finished or closed.

    Attributes:
        model: the pruned model.
        kept_layers: the dense decoder's layers in it; None if not known.
        size: of the pruned model.
        end: samples seen at the end of recovery; 0 without any.
        keeps_best: whether the best of the states that `scores()` has measured is handed over, not always the last: as
            a rule where trials are stopped early, which is where earlier states are measured.
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
        counts = context.counts
        self.size = counts.size(shape_for(counts, recipe), quantization=recipe.quantization)
        self.end = recipe.samples_to_see(len(context.samples))
        self.keeps_best = model is None and context.space.search.early_stopping
        self.latest_results: Results | None = None
        self.seconds = {"seconds_training": 0.0, "seconds_evaluating": 0.0}
        self._trainer: RecoveryTrainer | None = None
        self._latest: Score | None = None
        self._heldout: Results | None = None

    def scores(self, rungs: Iterable[int], keep_in: Path | None = None) -> Iterator[Score]:
        """Recover up to each rung and score the model there; the last score is at the recipe's own end.

        If `keeps_best`, the first score is of the pruned model before recovery. At the end the final state is compared
        on the early questions with each state scored before; one that is better there is scored on all questions, and
        if it is better there too, it takes the place of the final one, for the last score and all that follows.

        Args:
            rungs: samples seen at which trials are compared; those at or beyond the recipe's end are left out.
            keep_in: folder of the checkpoint of the latest rung. If it has one, its scores are yielded again and the
                trial resumes from there; all scores are those of an uninterrupted trial. It also takes the weights of
                the best rung; without it only the state before recovery competes with the final one.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if self.recipe.trained == "nothing":
            yield self._score_search({})[0]
            return
        scores = self._resume(keep_in) if keep_in else []
        losses = scores.pop().losses if scores and scores[-1].samples_seen >= self.end else None
        for score in scores:
            self._latest = score
            yield score
        if self._trainer is None:
            if self.keeps_best:
                scores.append(self._score_early(0, {}))
                yield scores[-1]
            self._trainer = self._start_trainer()
        for rung in sorted(rung for rung in set(rungs) if self.samples_seen < rung < self.end):
            scores.append(self._score_early(rung, self._train_until(rung)))
            if keep_in:
                self._keep_if_best(scores, keep_in)
                rung_checkpoint.save(self._trainer, scores, keep_in)
            yield scores[-1]
        is_new = losses is None
        final, early = self._score_search(self._train_until(self.end) if losses is None else losses)
        if keep_in and is_new:
            rung_checkpoint.save(self._trainer, [*scores, final], keep_in)
        yield self._best_of(final, early, scores, keep_in) if self.keeps_best else final

    @property
    def samples_seen(self) -> int:
        """Samples seen by recovery so far."""
        trainer = self._trainer
        return trainer.samples_seen if trainer else self._latest.samples_seen if self._latest else 0

    def _train_until(self, samples_seen: int) -> dict[str, float]:
        assert self._trainer is not None
        with self._timed("seconds_training"):
            return self._trainer.train_until(samples_seen)

    def _start_trainer(self) -> RecoveryTrainer:
        context = self.context
        data = (context.samples, context.encoder, context.teacher, context.space.recovery)
        shared = (self.kept_layers, context.bad_rows, context.vision)
        return RecoveryTrainer(self.model, context.family, self.recipe, *data, *shared)

    def _resume(self, folder: Path) -> list[Score]:
        """Start the trainer from the checkpoint in `folder`; its scores. Where every worker can't use it, nothing is
        started and there are no scores."""
        if not rung_checkpoint.exists(folder):
            return []
        self._trainer = self._start_trainer()
        scores = rung_checkpoint.restore(self._trainer, folder)
        if scores is None:
            self._trainer.close()
            self._trainer, self.model = None, self.context.prune(self.recipe)
        return scores or []

    def _keep_if_best(self, scores: Sequence[Score], folder: Path) -> None:
        """Keep the weights behind the last of `scores` if it is the best."""
        assert self._trainer is not None
        *earlier, last = scores
        is_best = all(last.retention > score.retention for score in earlier)
        if self.keeps_best and all_reduce_min(is_best):
            rung_checkpoint.save_best(self._trainer, folder)

    def _best_of(self, final: Score, early: Results, earlier: Sequence[Score], keep_in: Path | None) -> Score:
        """The final score, or that of an earlier state, which then is the model. All workers choose the same.

        Args:
            early: the final state's results on the early questions.
            earlier: scores on the early questions.
        """
        now = retention(early, self.context.baselines.early, self.context.space.retention).value
        better = sorted((s for s in earlier if s.retention > now), key=lambda s: (-s.retention, s.samples_seen))
        for number in range(all_reduce_min(len(better))):
            samples_seen = all_reduce_min(better[number].samples_seen)
            found = self._state_at(samples_seen, keep_in)
            if found is not None:
                return self._better_of(final, found, samples_seen)
        return final

    def _state_at(self, samples_seen: int, keep_in: Path | None) -> PreTrainedModel | None:
        """The model as it was after so many samples; None if its weights weren't kept."""
        if samples_seen == 0:
            return self.context.prune(self.recipe)
        if keep_in is None:
            return None
        model = self.context.prune(self.recipe)
        return model if rung_checkpoint.load_best(model, samples_seen, keep_in) else None

    def _better_of(self, final: Score, model: PreTrainedModel, samples_seen: int) -> Score:
        """The better of the final state and `model`, of `samples_seen`, on all of the search's questions."""
        assert self._trainer is not None
        results, trained = self.latest_results, self._trainer.finished_model().to("cpu")
        self._trainer.close()
        self._trainer, self.model = None, model
        score, _ = self._score_search(final.losses, best_at=samples_seen)
        if all_reduce_min(score.retention > final.retention):
            return score
        self.model, self.latest_results, self._latest = trained, results, final
        return final

    def evaluate(self, benchmarks: Iterable[Benchmark]) -> Results:
        """Scores of the model as it is now, with the weights that an export would have."""
        with self._evaluated() as model:
            return self.context.evaluate(model, benchmarks)

    @contextmanager
    def _evaluated(self) -> Iterator[PreTrainedModel]:
        quantization, dtype = self.recipe.quantization, self.context.model.dtype
        with self._timed("seconds_evaluating"), self._weights() as model, fake_quantized(model, quantization, dtype):
            yield model

    def _weights(self) -> AbstractContextManager[PreTrainedModel]:
        return self._trainer.weights_for_evaluation() if self._trainer else nullcontext(self.model)

    def heldout_results(self) -> Results:
        """Scores on the held-out questions, measured at the first call, which is at the trial's end."""
        if self._heldout is None:
            self._heldout = self.evaluate(self.context.heldout)
        return self._heldout

    def heldout_quality(self) -> Measured:
        """Retention and scores on the held-out questions."""
        return quality_of(self.heldout_results(), self.context.heldout_baseline, self.context.space.retention)

    @property
    def scores_heldout_later(self) -> bool:
        """Whether held-out questions need not be asked before `export`: they aren't yet, and the checkpoint, which is
        read as it was written, answers the same. Packed weights are not read here."""
        return self._heldout is None and self.recipe.quantization == "none"

    def finish(self, folder: Path) -> Measured:
        """Score the model on held-out questions and export it to `folder`. Every worker must call it."""
        heldout = self.heldout_quality()
        self.export(folder, heldout)
        return heldout

    def export(self, folder: Path, heldout: Measured | None = None) -> None:
        """Export the model to `folder`, with the scores that are known. It ends training; every worker must call it."""
        context = self.context
        if self._heldout is not None and folder.name == self.recipe.key:
            with self._evaluated() as evaluated:
                keep_examples(folder, context, evaluated, self._heldout)
        model = self._trainer.finished_model() if self._trainer else self.model
        scores = checkpoint_scores(self._latest.model_dump() if self._latest else None, heldout, self.kept_layers)
        card = card_rows(context, self.recipe)
        with collective_io():
            if is_rank_zero():
                save_checkpoint(
                    model, context.processor, folder, recipe=self.recipe, scores=scores, card=card, replaces=True
                )

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

    def _score_early(self, samples_seen: int, losses: Mapping[str, float]) -> Score:
        """Score the model on the early questions."""
        self.latest_results = self.evaluate(self.context.early_questions)
        return self._score(samples_seen, self.latest_results, self.context.baselines.early, losses)

    def _score_search(self, losses: Mapping[str, float], best_at: int | None = None) -> tuple[Score, Results]:
        """Score the model at the end on the search's questions; also its results on the early ones among them."""
        with self._evaluated() as model:
            self.latest_results, early = self.context.evaluate_search(model)
        return self._score(self.end, self.latest_results, self.context.baselines.search, losses, best_at), early

    def _score(
        self,
        samples_seen: int,
        results: Results,
        dense: Results,
        losses: Mapping[str, float],
        best_at: int | None = None,
    ) -> Score:
        retained = retention(results, dense, self.context.space.retention)
        self._latest = Score(
            samples_seen=samples_seen,
            retention=retained.value,
            retention_se=retained.se,
            num_questions=sum(map(len, results.scores.values())),
            scores=results.means(),
            losses=dict(losses),
            best_at=best_at,
        )
        return self._latest


def quality_of(results: Results, dense: Results, form: str) -> Measured:
    """Retention and scores with their intervals, given the dense model's results on the same questions."""
    retained, intervals = retention(results, dense, form), score_intervals(results)
    return Measured(
        retention=retained.value,
        retention_ci=retained.interval,
        scores=results.means(),
        scores_ci=intervals,
        num_questions=sum(map(len, results.scores.values())),
    )


def checkpoint_scores(
    search: Mapping[str, Any] | None, heldout: Measured | None, kept_layers: Sequence[int] | None
) -> dict[str, Any]:
    """`scores.json` of a checkpoint.

    Args:
        search: the last `Score` as plain values.
        heldout: left out until held-out questions have been asked.
        kept_layers: the dense decoder's layers in it.
    """
    asked = {} if heldout is None else {"heldout": heldout.model_dump()}
    return {"search": search, **asked, "pruning": {"layers_kept": kept_layers}}


def card_rows(context: TrialContext, recipe: Recipe) -> dict[str, str]:
    """Rows of a checkpoint's model card: the dense model, and the sizes of both."""
    counts, dense = context.counts, context.dense_size
    size = counts.size(shape_for(counts, recipe), quantization=recipe.quantization)
    return {
        "base_model": context.space.model,
        "parameters": f"{size.num_params:,} of {dense.num_params:,}",
        "bytes": f"{size.size_bytes:,} of {dense.size_bytes:,}",
    }


def with_checkpoint(
    point: FrontPoint, checkpoint: str, quality: Measured, heldout: Measured, best_at: int | None = None
) -> FrontPoint:
    """A front point with another checkpoint of its recipe, that checkpoint's scores and its state (`Score.best_at`)."""
    scored: dict[str, Any] = {name: getattr(quality, name) for name in ("retention", "retention_ci", "scores")}
    scored["num_questions"] = quality.num_questions
    scored["best_at"] = best_at
    return point.model_copy(update={**scored, "checkpoint": checkpoint, "heldout": heldout, "measured": None})
