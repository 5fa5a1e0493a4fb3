"""A checkpoint's score on held-out questions is the one that its trial would have had."""

import json
import shutil

import numpy as np
import pytest

from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.evaluation.retention import Results
from raysearch.recovery.deepspeed_engine import start_distributed
from raysearch.study.examples import read_examples
from raysearch.trials.context import TrialContext
from raysearch.trials.heldout import score_heldout
from raysearch.trials.trial import Trial
from tests.support.pocket_space import pocket_space

PRUNED = {"mode": "widthwise", "ratio": 0.1, "criterion": "magnitude"}


@pytest.fixture(scope="module")
def context():
    start_distributed()
    recipe = {**PRUNED, "trained": ["nothing", "projector+decoder", "projector+lora"], "lr": 1e-3}
    return TrialContext(pocket_space(recipe, num_samples=16, num_search=40, precision="bf16"))


def texts(folder):
    return {name: (folder / name).read_text() for name in ("scores.json", "README.md", "recipe.yaml", "config.json")}


@pytest.mark.parametrize("trained", ["nothing", "projector+decoder", "projector+lora"])
def test_it_is_the_score_of_the_finished_trial(context, trained, tmp_path):
    at_once, later = tmp_path / "at-once", tmp_path / "later"
    more = {} if trained == "nothing" else {"lr": 1e-3}
    trial = Trial(Recipe(**PRUNED, trained=trained, **more), context)
    *_, last = trial.scores([])
    assert trial.scores_heldout_later
    wanted = trial.finish(at_once)
    trial.close()
    shutil.copytree(at_once, later)
    scores = json.loads((later / "scores.json").read_text())
    assert scores.pop("heldout") == json.loads(wanted.model_dump_json())
    (later / "scores.json").write_text(json.dumps(scores))
    (later / "README.md").write_text("as it was before")
    found = score_heldout(later, context)
    assert (found.retention, found.scores) == (wanted.retention, wanted.scores)
    assert found == wanted
    assert texts(later) == texts(at_once)
    assert scores["search"]["retention"] == last.retention


def test_what_is_exported_without_held_out_scores_says_nothing_of_them(context, tmp_path):
    trial = Trial(Recipe(**PRUNED, trained="nothing"), context)
    list(trial.scores([]))
    trial.export(tmp_path / "made")
    trial.close()
    assert json.loads((tmp_path / "made" / "scores.json").read_text()).keys() == {"search", "pruning"}
    assert "heldout" not in (tmp_path / "made" / "README.md").read_text()
    heldout = score_heldout(tmp_path / "made", context)
    assert f"| heldout.retention | {heldout.retention:.4g} |" in (tmp_path / "made" / "README.md").read_text()


def test_what_is_quantised_or_has_been_asked_is_not_asked_again(context):
    trial = Trial(Recipe(**PRUNED, trained="nothing", quantization="int8"), context)
    assert not trial.scores_heldout_later
    trial.close()
    trial = Trial(Recipe(**PRUNED, trained="nothing"), context)
    assert isinstance(trial.heldout_results(), Results)
    assert not trial.scores_heldout_later
    trial.close()


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_some_differing_answers_are_kept_in_the_study(context, quantization, tmp_path):
    recipe = Recipe(**{**PRUNED, "ratio": 0.5}, trained="nothing", quantization=quantization)
    trial, folder = Trial(recipe, context), tmp_path / "checkpoints" / recipe.key
    list(trial.scores([]))
    if quantization == "none":
        trial.export(folder)
        assert read_examples(tmp_path, recipe.key) is None
        score_heldout(folder, context)
    else:
        trial.export(folder, trial.heldout_quality())
    results, dense = trial.heldout_results(), context.heldout_baseline
    trial.close()
    found = read_examples(tmp_path, recipe.key)
    ahead = np.concatenate([results.scores[name] - dense.scores[name] for name in results.scores])
    assert (found.num_questions, found.num_better, found.num_worse) == (len(ahead), sum(ahead > 0), sum(ahead < 0))
    assert found.num_worse > 10
    assert len(found.examples) == 10
    questions = {(b.name, q.prompt, q.answer) for b in context.heldout for q in b.questions}
    for example in found.examples:
        assert (example.benchmark, example.question, example.expected[0]) in questions
        assert example.picture.startswith("data:image/jpeg;base64,")
        assert example.dense_score != example.pruned_score
        said = example.dense if example.dense_score > example.pruned_score else example.pruned
        assert said == example.expected[0]
        assert example.dense != example.pruned


def test_examples_that_cannot_be_found_cost_no_score(context, tmp_path, monkeypatch, caplog):
    recipe = Recipe(**PRUNED, trained="nothing")
    trial, folder = Trial(recipe, context), tmp_path / "checkpoints" / recipe.key
    list(trial.scores([]))
    trial.export(folder)
    trial.close()

    def fail(*args):
        raise RuntimeError("no room")

    monkeypatch.setattr(TrialContext, "responses", fail)
    assert score_heldout(folder, context).num_questions
    assert "no examples of its answers: no room" in caplog.text


@pytest.mark.parametrize("left", [None, "recipe.yaml"])
def test_a_checkpoint_that_is_gone_is_said_so(context, left, tmp_path):
    folder = tmp_path / "gone"
    if left:
        folder.mkdir()
        (folder / left).write_text("mode: layerwise\nratio: 0.3\ncriterion: deepest\n")
    with pytest.raises(InputError, match=f"^{folder}: no checkpoint of a search"):
        score_heldout(folder, context)


@pytest.mark.parametrize("scores", ["[" * 100_000, "[1, 2]", "{", "3"])
def test_scores_that_are_no_object_are_said_so(context, scores, tmp_path):
    (tmp_path / "recipe.yaml").write_text("mode: layerwise\nratio: 0.3\ncriterion: deepest\n")
    (tmp_path / "scores.json").write_text(scores)
    with pytest.raises(InputError, match=f"^{tmp_path}: no checkpoint of a search") as error:
        score_heldout(tmp_path, context)
    assert "\n" not in str(error.value)
