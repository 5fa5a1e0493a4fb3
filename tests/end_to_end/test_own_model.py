"""An LVLM that isn't ours, with its own data and questions: through a trial, and through the commands."""

import json

import pytest
import yaml

from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.evaluation.evaluator import generate_answers
from raysearch.recovery.deepspeed_engine import start_distributed
from raysearch.trials.context import TrialContext
from raysearch.trials.trial import Trial
from tests.support import own_model


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """The folder, and the space over what is in it."""
    folder = tmp_path_factory.mktemp("own")
    model = own_model.write_model(folder / "model")
    data = own_model.write_data(folder)
    return folder, own_model.space_of(model, data, own_model.write_questions(folder, model))


@pytest.fixture(scope="module")
def context(brought):
    start_distributed()
    return TrialContext(SearchSpace.model_validate(brought[1]))


def test_the_dense_model_knows_its_own_answers(context):
    for results in (context.baselines.search, context.heldout_baseline):
        assert results.means() == {"own": 1.0}
        assert results.chance["own"] < 0.5
    assert not set(context.baselines.search.images["own"]) & set(context.heldout_baseline.images["own"])


def test_its_batches_are_answered_as_one_by_one(context):
    questions = [question for part in (context.questions, context.heldout) for question in part[0].questions]
    alone = generate_answers(context.model, context.encoder, questions, 3, batch_size=1)
    assert generate_answers(context.model, context.encoder, questions, 3, batch_size=5) == alone
    assert len(set(alone)) > 10


def test_a_trial_prunes_recovers_and_exports_it(context, tmp_path):
    recipe = Recipe(mode="widthwise", ratio=0.1, criterion="activation", trained="projector+lora", lora_rank=2, lr=1e-3)
    trial = Trial(recipe, context)
    unrecovered, first, last = trial.scores([8])
    assert unrecovered.samples_seen == 0
    assert (first.samples_seen, last.samples_seen) == (8, 24)
    assert 0 < last.retention < 1
    early, whole = context.baselines.early.scores["own"], context.baselines.search.scores["own"]
    assert (first.num_questions, last.num_questions) == (len(early), len(whole))
    assert 20 <= len(early) < len(whole)
    heldout = trial.finish(tmp_path / "made")
    trial.close()
    assert heldout.scores.keys() == {"own"}
    assert (tmp_path / "made" / "model.safetensors").exists()


def test_a_dense_model_at_chance_is_refused(brought):
    space = SearchSpace.model_validate(brought[1])
    own = space.benchmarks[0].model_copy(update={"metric": "exact"})  # it never ends an answer, so none is right
    with pytest.raises(InputError, match=r"own: the dense model scores 0\.0% where guessing gets"):
        _ = TrialContext(space.model_copy(update={"benchmarks": [own]})).baselines


@pytest.mark.slow
def test_search_best_and_export(run_module, brought, tmp_path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(brought[1]))
    found = run_module("raysearch.pareto", "space.yaml", "--out", "study", cwd=tmp_path)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    best = run_module("raysearch", "best", "study", "--budget", "95%", "--json", cwd=tmp_path)
    assert 0 < json.loads(best.stdout)["retention"] <= 1
    sent = run_module("raysearch", "export", "study", "--budget", "95%", "--to", "small", cwd=tmp_path)
    assert "Loaded by transformers in a fresh process" in sent.stdout, sent.stderr
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]


@pytest.mark.slow
def test_a_benchmark_at_chance_ends_the_search_with_one_line(run_module, brought, tmp_path):
    space = json.loads(json.dumps(brought[1]))
    space["benchmarks"][0]["metric"] = "exact"  # it never ends an answer, so none is right
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    found = run_module("raysearch.pareto", "space.yaml", "--out", "study", cwd=tmp_path)
    assert found.returncode == 2, found.stdout[-2000:] + found.stderr[-4000:]
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith("raysearch: benchmarks: own: the dense model scores 0.0% where guessing gets")
    assert not (tmp_path / "study").exists()
