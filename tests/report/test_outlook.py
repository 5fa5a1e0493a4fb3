"""What further trials are expected to add, in words and as a file."""

import json
from types import SimpleNamespace

import pytest

from raysearch.report.outlook import Outlook
from raysearch.searching.forecast import Forecast, Gain


def outlook_of(study, forecast, num_slots=2):
    samples = sum(record.rungs[-1].samples_seen for record in study.records if record.rungs)
    searcher = SimpleNamespace(forecast=lambda: forecast, num_samples=samples, full_run=samples / 12)
    return Outlook(study, searcher, num_slots)


def test_too_few_trials_say_nothing(synthetic, tmp_path):
    outlook = outlook_of(synthetic, None)
    assert (outlook.text(), outlook.advice(), outlook.points(), outlook.save()) == ("", "", {}, False)


def test_gains_time_and_command(synthetic, tmp_path, monkeypatch):
    gains = {"60%": Gain(0.8, 3.0), "45%": Gain(2.0, 6.0)}
    study = SimpleNamespace(records=synthetic.records, folder=tmp_path)
    outlook = outlook_of(study, Forecast(10, Gain(1.0, 3.5), gains))
    seconds = sum(record.seconds for record in study.records)  # of twelve full runs on two slots
    assert outlook.seconds() == pytest.approx(seconds / 12 * 10 / 2)
    text = outlook.text()
    assert text.startswith("another 10 full runs (about ")
    assert text.endswith("are expected to add 0.8 points (80%: up to 3.0) at 60%, 2.0 points (80%: up to 6.0) at 45%")
    assert f"go on with raysearch search --resume {tmp_path} --runs 22" in outlook.advice().replace(
        outlook.advice().split("go on with ")[1].split(" search")[0], "raysearch"
    )
    assert outlook.points() == {"hypervolume": 1.0, "60%": 0.8, "45%": 2.0}
    assert outlook.save()
    saved = json.loads((tmp_path / "forecast.json").read_text())
    assert saved["at_budgets"]["60%"] == {"points": 0.8, "high": 3.0}
    assert (saved["num_runs"], saved["num_ended"]) == (10, len(study.records))


def test_without_budgets_it_is_the_hypervolume(synthetic):
    outlook = outlook_of(synthetic, Forecast(10, Gain(1.0, 3.5), {}))
    assert outlook.text().endswith("are expected to add 1.0 points (80%: up to 3.5) of hypervolume")
