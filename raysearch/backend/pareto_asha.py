"""ParetoASHA for Ray Tune: early stopping on size against retention. All deciding is done in `rungs.py`."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raysearch.files import append_json, read_json_lines, write_text
from raysearch.search.early_stopping.asha import AshaBracket, Decision, Rule


class ParetoASHA(FIFOScheduler):
    """Stop trials that are behind at a rung, where ahead means smaller or better retained.

    Names and meanings are those of Ray's `ASHAScheduler` where it has them; there is no `metric` and no `mode`, since
    `size` is minimised and `retention` maximised. Leave both empty in `TuneConfig`, too.

    Args:
        size: result key of the model size, above 0, the same in all results of a trial.
        retention: result key of the quality.
        time_attr: result key of the progress; rungs are counted in it.
        max_t: a trial is ended when it gets there.
        grace_period: the first rung.
        reduction_factor: one trial in this many goes on from a rung, and rungs lie this factor apart.
        budgets: sizes that answers are wanted for; the best trial within one is not stopped while it is better than
            every finished one.
        retention_se: result key of the standard error of `retention`, if the trials report one.
        rule: which parts of the rule are in use.
        log: file that takes one JSON line per decision, with its reason.

    Ray saves no scheduler with an experiment. So this one keeps a journal of its own beside Ray's experiment state,
    which travels and comes back with it, and `Tuner.restore` goes on as if there had been no break. Where `on_event` is
    set, whoever set it keeps the journal: it is called with each event before the event is applied.
    """

    def __init__(
        self,
        size: str = "size_ratio",
        retention: str = "retention",
        time_attr: str = "samples_seen",
        max_t: float = 81,
        grace_period: float = 1,
        reduction_factor: float = 3,
        budgets: Iterable[float] = (),
        retention_se: str | None = None,
        rule: Rule | None = None,
        log: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.rungs = AshaBracket(max_t, grace_period, reduction_factor, budgets, rule)
        self._keys = (size, retention, retention_se, time_attr)
        self._log = Path(log) if log else None
        if self._log:
            self._log.parent.mkdir(parents=True, exist_ok=True)
        self.on_event: Callable[..., None] | None = None
        self._journal: Path | None = None
        self._resumed = False

    @property
    def levels(self) -> list[float]:
        """Progress at each rung; a trial is best evaluated exactly there."""
        return self.rungs.levels

    def was_stopped(self, trial_id: str) -> bool:
        """Whether this scheduler stopped the trial, as against its coming to its own end."""
        return self.rungs.was_stopped(trial_id)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Refuse a single metric: the two result keys were given at construction."""
        return metric is None and mode is None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A new trial, one that is tried again after a failure, or one of a restored experiment."""
        if self._journal is None and self.on_event is None:
            self._open_journal(trial)
        self._apply("revive", trial.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Decide at rungs; results that lack a key are passed over."""
        if self._resumed:
            self.rungs.fail_all_but({known.trial_id for known in tune_controller.get_trials()})
            self._resumed = False
        facts = self._read(result)
        if facts is None:
            return TrialScheduler.CONTINUE
        if facts[-1] >= self.rungs.max_t:
            self._apply("finish", trial.trial_id, *facts)
            return TrialScheduler.STOP
        decision = self._apply("decide", trial.trial_id, *facts)
        return TrialScheduler.CONTINUE if decision.go_on else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> None:
        """The trial came to its own end, or Ray has carried out our stop."""
        facts = self._read(result)
        if facts is not None:
            self._apply("finish", trial.trial_id, *facts)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A failed trial holds back no other; Ray adds it again if it is to be retried."""
        self._apply("fail", trial.trial_id)

    def debug_string(self) -> str:
        """One line per rung."""
        lines = [
            f"{rung.level:g}: {rung.num_trials} trials, {len(rung.ranks.as_lists()[0])} on the front"
            for rung in self.rungs.rungs
            if rung.num_trials
        ]
        return "ParetoASHA\n" + "\n".join(lines)

    def save(self, checkpoint_path: str) -> None:
        """Write everything that later decisions depend on, as JSON."""
        write_text(Path(checkpoint_path), json.dumps(self.rungs.state()))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a saved state; lines of the decision log that came after it are taken back."""
        self.set_state(json.loads(Path(checkpoint_path).read_text()))

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `rungs.state()` of an earlier scheduler; the budgets are those of this one."""
        self.rungs = AshaBracket.from_state({**state, "budgets": self.rungs.budgets})
        if self._log and self._log.exists():
            rows = [row for row in read_json_lines(self._log) if row["decision"] <= self.rungs.num_decisions]
            write_text(self._log, "".join(json.dumps(row) + "\n" for row in rows))

    def _open_journal(self, trial: Trial) -> None:
        storage = getattr(trial, "storage", None)
        if storage is None:
            return
        # Lines of JSON under a name in .json, since Ray brings back no files of other names.
        self._journal = Path(storage.experiment_driver_staging_path) / "pareto-asha-events.json"
        self._journal.parent.mkdir(parents=True, exist_ok=True)  # Ray makes it with its first save
        if self._journal.exists():
            for event, name, *facts in read_json_lines(self._journal):
                getattr(self.rungs, event)(name, *(math.nan if fact is None else fact for fact in facts))
            self._resumed = True

    def _apply(self, event: str, trial_id: str, *facts: float) -> Any:
        """Note an event, then hand it to the rungs; one that comes twice changes nothing."""
        if self.on_event is not None:
            self.on_event(event, trial_id, *facts)
        elif self._journal is not None:
            plain = [fact if math.isfinite(fact) else None for fact in facts]
            append_json(self._journal, [event, trial_id, *plain], flush=False)
        return self.apply(event, trial_id, *facts)

    def apply(self, event: str, trial_id: str, *facts: Any) -> Any:
        """Hand an event to the rungs, and log what they decide."""
        answer = getattr(self.rungs, event)(trial_id, *facts)
        if isinstance(answer, Decision) and (answer.rung is not None or not math.isfinite(answer.retention)):
            self._write(answer)
        return answer

    def _read(self, result: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
        size, retention, retention_se, time_attr = self._keys
        if not all(key in result for key in (size, retention, time_attr)):
            return None
        error = result.get(retention_se) if retention_se else None
        return (
            float(result[size]),
            math.nan if result[retention] is None else float(result[retention]),
            0.0 if error is None else float(error),
            float(result[time_attr]),
        )

    def _write(self, decision: Decision) -> None:
        if self._log is None:
            return
        line: dict[str, Any] = {"decision": self.rungs.num_decisions}
        for key, value in asdict(decision).items():
            line[key] = None if isinstance(value, float) and not math.isfinite(value) else value
        append_json(self._log, line, flush=False)
