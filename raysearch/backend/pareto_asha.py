"""ParetoASHA for any Ray Tune program: early stopping on size against quality.

`AshaBracket` decides; this class reads Ray's results, and keeps a journal that survives `Tuner.restore`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raysearch.files import write_text
from raysearch.searching.early_stopping.asha import AshaBracket, Decision, Rule
from raysearch.searching.early_stopping.decision_log import DecisionLog
from raysearch.searching.journal import RungArgs, TrialArgs, append_event, apply_event, read_events


class ParetoASHA(FIFOScheduler):
    """Stop trials that are behind at a rung, where ahead means smaller or better.

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

    Raises:
        InputError: the rungs contradict each other.

    Ray saves no scheduler with an experiment. So this one keeps a journal of its own beside Ray's experiment state,
    which travels and comes back with it, and `Tuner.restore` goes on as if there had been no break.
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
        self.bracket = AshaBracket(max_t, grace_period, reduction_factor, budgets, rule)
        self._keys = (size, retention, retention_se, time_attr)
        self._log = DecisionLog(Path(log)) if log else None
        self._journal: Path | None = None
        self._resumed, self._num_events = False, 0

    @property
    def levels(self) -> list[float]:
        """Progress at each rung; a trial is best evaluated exactly there."""
        return self.bracket.levels

    def was_stopped(self, trial_id: str) -> bool:
        """Whether this scheduler stopped the trial, as against its coming to its own end."""
        return self.bracket.was_stopped(trial_id)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Refuse a single metric: the two result keys were given at construction."""
        return metric is None and mode is None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A new trial, one that is tried again after a failure, or one of a restored experiment."""
        if self._journal is None:
            self._open_journal(trial)
        self._do("added", TrialArgs(trial=trial.trial_id))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Decide at rungs; results that lack a key are passed over."""
        if self._resumed:
            self.bracket.fail_all_but({known.trial_id for known in tune_controller.get_trials()})
            self._resumed = False
        args = self._read(trial, result)
        if args is None:
            return TrialScheduler.CONTINUE
        if args.samples_seen >= self.bracket.max_t:
            self._do("end_reached", args)
            return TrialScheduler.STOP
        decision = self._do("rung_reached", args)
        assert decision is not None, trial
        if self._log:
            self._log.write(self.bracket.num_decisions, decision)
        return TrialScheduler.CONTINUE if decision.go_on else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> None:
        """The trial came to its own end, or Ray has carried out our stop."""
        args = self._read(trial, result)
        if args is not None:
            self._do("end_reached", args)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A failed trial holds back no other; Ray adds it again if it is to be retried."""
        self._do("lost", TrialArgs(trial=trial.trial_id))

    def debug_string(self) -> str:
        """One line per rung."""
        lines = [
            f"{rung.level:g}: {rung.num_trials} trials, {len(rung.ranks.as_lists()[0])} on the front"
            for rung in self.bracket.rungs
            if rung.num_trials
        ]
        return "ParetoASHA\n" + "\n".join(lines)

    def save(self, checkpoint_path: str) -> None:
        """Write everything that later decisions depend on, as JSON."""
        write_text(Path(checkpoint_path), json.dumps(self.bracket.state()))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a saved state, with the budgets of this scheduler; later lines of the decision log are deleted.

        Raises:
            ValueError: another version has written it.
        """
        budgets = self.bracket.budgets
        self.bracket = AshaBracket.from_state(json.loads(Path(checkpoint_path).read_text()))
        self.bracket.set_budgets(budgets)
        if self._log:
            self._log.cut(self.bracket.num_decisions)

    def _open_journal(self, trial: Trial) -> None:
        storage = getattr(trial, "storage", None)
        if storage is None:
            return
        # Lines of JSON under a name in .json, since Ray brings back no files of other names.
        self._journal = Path(storage.experiment_driver_staging_path) / "pareto-asha-events.json"
        self._journal.parent.mkdir(parents=True, exist_ok=True)  # Ray makes it with its first save
        for number, event, args in read_events(self._journal):
            apply_event(None, self.bracket, event, args)
            self._num_events, self._resumed = number, True

    def _do(self, event: str, args: TrialArgs) -> Decision | None:
        """Write an event to the journal, then apply it; one that comes twice changes nothing."""
        if self._journal is not None:
            self._num_events += 1
            append_event(self._journal, self._num_events, event, args)
        return apply_event(None, self.bracket, event, args)

    def _read(self, trial: Trial, result: Mapping[str, Any]) -> RungArgs | None:
        size, retention, retention_se, time_attr = self._keys
        if not all(key in result for key in (size, retention, time_attr)):
            return None
        return RungArgs(
            trial=trial.trial_id,
            size=result[size],
            retention=math.nan if result[retention] is None else result[retention],
            retention_se=(result.get(retention_se) if retention_se else None) or 0.0,
            samples_seen=result[time_attr],
        )
