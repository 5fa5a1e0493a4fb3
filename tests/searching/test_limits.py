"""What ends a search besides a number of trials: exact, by the journal alone, and the same after any interruption."""

import json
import math

import pytest

from raysearch.backend.tuner import resume_search
from raysearch.files import read_json_lines
from raysearch.searching.journaled_search import JOURNAL, STATE
from raysearch.searching.limits import Limits
from raysearch.study.folder import StudyFolder
from scripts.testing import stand_in
from scripts.testing.stand_in import NUM_SAMPLES


def samples_of(study):
    return sum(record.rungs[-1].samples_seen for record in study.records if record.rungs)


def outcome(study):
    return [(record.key, record.end, [score.samples_seen for score in record.rungs]) for record in study.records]


class Interrupt:
    """A callback that ends the driver at its n-th call, as a crash would."""

    def __init__(self, at):
        self.left = at

    def rung(self, trial, score):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    trial_ended = front_changed = trial_started = lambda *args: None


class Times:
    """A deadline that gives these answers one after another, then the last for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def longest_trial(self):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_a_trial_may_exceed_by_half_its_length():
    limits = Limits(num_samples=1000)
    assert [limits.longest_trial(spent) for spent in (0, 900, 999, 1000, 1500)] == [2000, 200, 2, -1, -1]
    assert Limits().longest_trial(10**9) == math.inf


@pytest.mark.parametrize("sampler", ["ehvi", "tpe"])
@pytest.mark.parametrize("num_slots", [1, 4])
@pytest.mark.parametrize("runs", [1, 2.5, 6])
def test_runs_are_met_to_half_a_trial(sampler, num_slots, runs, tmp_path):
    study = stand_in.drive(stand_in.plan(None, sampler, runs=runs), tmp_path / "s", num_slots)
    assert abs(samples_of(study) - runs * NUM_SAMPLES) <= NUM_SAMPLES / 2
    before = sum(r.rungs[-1].samples_seen for r in study.records[:-1] if r.rungs)
    assert num_slots > 1 or before < runs * NUM_SAMPLES


def test_whichever_limit_comes_first(tmp_path):
    few = stand_in.drive(stand_in.plan(3, runs=50), tmp_path / "few")
    assert len(few.records) == 3
    short = stand_in.drive(stand_in.plan(500, runs=2), tmp_path / "short")
    assert samples_of(short) <= 2.5 * NUM_SAMPLES


@pytest.mark.parametrize("limits", [{"runs": 3}, {"until_gain": 30.0}, {"runs": 3, "time": "9h"}])
def test_a_search_interrupted_anywhere_comes_to_the_same_trials(limits, tmp_path):
    plan = stand_in.plan(60 if "until_gain" in limits else None, "ehvi", **limits)
    deadline = {"deadline": Times(600.0)} if "time" in limits else {}
    wanted = outcome(stand_in.drive(plan, tmp_path / "whole", **deadline))
    assert len(wanted) < 60
    for at in (1, 2, 5, 9):
        folder = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            stand_in.drive(plan, folder, name="a", callbacks=lambda study, at=at: [Interrupt(at)], **deadline)
        with pytest.raises(KeyboardInterrupt):
            stand_in.drive(plan, folder, name="b", callbacks=lambda study, at=at: [Interrupt(at)], **deadline)
        assert outcome(stand_in.drive(plan, folder, name="c", **deadline)) == wanted


def test_resuming_with_more_runs_goes_on_and_with_fewer_does_nothing(tmp_path):
    folder = tmp_path / "s"
    first = outcome(stand_in.drive(stand_in.plan(None, runs=2), folder))
    assert outcome(stand_in.drive(stand_in.plan(None, runs=1), folder, name="a")) == first
    more = stand_in.drive(stand_in.plan(None, runs=4), folder, name="b")
    assert outcome(more)[: len(first)] == first
    assert abs(samples_of(more) - 4 * NUM_SAMPLES) <= NUM_SAMPLES / 2
    by_number = stand_in.drive(stand_in.plan(len(more.records) + 2), folder, name="c")
    assert len(by_number.records) == len(more.records) + 2


def test_no_trial_begins_that_is_too_long_and_the_end_of_time_is_an_event(tmp_path):
    plan = stand_in.plan(None, time="2h")
    study = stand_in.drive(plan, tmp_path / "s", deadline=Times(math.inf, 200.0, 200.0, 50.0, 40.0, None))
    lengths = [record.recipe.samples_to_see(NUM_SAMPLES) for record in study.records]
    assert len(lengths) <= 5
    assert all(length <= most for length, most in zip(lengths[1:], (200, 200, 50, 40), strict=False))
    state = json.loads((tmp_path / "s" / STATE).read_text())
    assert state["searcher"]["ended_by"] == "time"
    resumed = stand_in.drive(plan, tmp_path / "s", name="b", deadline=Times(math.inf, None))
    assert len(resumed.records) == len(lengths) + 1


def test_the_journal_tells_of_lengths_and_of_the_end_of_time(tmp_path):
    plan = stand_in.plan(None, time="2h")
    search = resume_search(plan, StudyFolder(tmp_path, plan.space))
    search.begin()
    search.suggest("a", 300.0)
    search.end_time()
    assert search.suggest("b") is None
    rows = [
        {name: value for name, value in row.items() if name != "number"} for row in read_json_lines(tmp_path / JOURNAL)
    ]
    assert rows[0] == {"event": "suggested_within", "trial": "a", "longest": 300.0}
    assert rows[1] == {"event": "limit_reached", "limit": "time"}


def test_while_others_may_be_stopped_a_slot_waits(tmp_path):
    plan = stand_in.plan(None, runs=1)
    search = resume_search(plan, StudyFolder(tmp_path, plan.space))
    names = []
    while not search.must_wait():
        names.append(f"t{len(names)}")
        if search.suggest(names[-1]) is None:
            names.pop()
    searcher = search.searcher
    assert searcher.num_samples >= NUM_SAMPLES or searcher.longest_trial() > 0
    longest = max(names, key=lambda name: searcher.proposals[name].recipe.samples_to_see(NUM_SAMPLES))
    search.report(longest, 10, 0.1)
    searcher.stop(longest)
    assert not search.must_wait()


def test_a_search_ends_when_little_is_expected_but_not_before_five_runs(tmp_path):
    plan = stand_in.plan(300, "ehvi", budgets=("60%", "80%"), until_gain=100.0)
    study = stand_in.drive(plan, tmp_path / "s")
    assert 5 * NUM_SAMPLES <= samples_of(study) < 6 * NUM_SAMPLES + 1
    state = json.loads((tmp_path / "s" / STATE).read_text())
    assert state["searcher"]["ended_by"] == "until_gain"
    longer = stand_in.drive(stand_in.plan(300, "ehvi", budgets=("60%", "80%"), until_gain=3.0), tmp_path / "t")
    assert samples_of(longer) > samples_of(study)


def test_a_grid_that_ran_out_of_time_keeps_what_was_too_long(tmp_path):
    plan = stand_in.plan(None, "grid", runs=1)
    recipe = plan.space.model_dump(mode="json")
    recipe["recipe"] |= {"ratio": [0.3, 0.5], "lr": 1e-3, "logits_kd": 1, "trained": "projector", "criterion": "taylor"}
    recipe["recipe"] |= {"mode": "widthwise", "data_fraction": [1.0, 0.2]}
    recipe["search"] |= {"runs": 0.25}
    recipe["budgets"] = []
    short, long = (
        type(plan)(plan.space.model_validate(recipe | {"search": recipe["search"] | {"runs": runs}}),
                   plan.counts, plan.dense, plan.num_samples, plan.max_samples, ())
        for runs in (0.25, 99)
    )  # fmt: skip
    first = stand_in.drive(short, tmp_path / "s")
    assert [record.recipe.data_fraction for record in first.records] == [0.2]
    every = stand_in.drive(long, tmp_path / "s", name="b")
    assert len(every.records) == 4
