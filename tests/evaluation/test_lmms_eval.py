"""A local task of lmms-eval: its own score for a model, and ours, are the same."""

from importlib.util import find_spec

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from raysearch import models, pocket
from raysearch.config.benchmarks import LmmsEvalConfig
from raysearch.config.space import SearchSpace
from raysearch.data.encoding import Encoder
from raysearch.errors import InputError
from raysearch.evaluation.benchmarks import load_benchmarks
from raysearch.evaluation.evaluator import evaluate, generate_answers
from raysearch.evaluation.lmms_eval import LmmsEvalTask

TASK = """task: drawn
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: "answer"
generation_kwargs: {{max_new_tokens: 6, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}}
metadata:
  - version: 0.0
"""
CODE = """def pictures(doc):
    return [doc["image"].convert("RGB")]
"""


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """The task's folder holds 60 of the embedded questions."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = pocket.questions("scenes", "heldout")[:60]
    columns = {"question": [row["prompt"] for row in rows], "answer": [row["answer"] for row in rows]}
    made = datasets.Dataset.from_dict({**columns, "image": [row["image"] for row in rows]})
    made.cast_column("image", datasets.Image()).to_parquet(folder / "rows.parquet")
    (folder / "drawn.yaml").write_text(TASK.format(rows=folder / "rows.parquet"))
    (folder / "utils.py").write_text(CODE)
    return LmmsEvalConfig(name="drawn", task="drawn", include=str(folder), num_search=20)


@pytest.mark.skipif(find_spec("lmms_eval") is not None, reason="lmms-eval is installed")
def test_without_lmms_eval_one_line_says_so(entry):
    with pytest.raises(InputError, match=r"drawn: task 'drawn': needs lmms-eval .*pip install raysearch\[lmms-eval\]"):
        load_benchmarks([entry], "search")


def test_a_space_takes_it(entry):
    recipe = {"mode": "layerwise", "ratio": 0.1, "criterion": "deepest"}
    space = SearchSpace(name="a", model="pocket", recipe=recipe, benchmarks=[entry.model_dump(), "digits"])
    assert space.benchmarks[0] == entry
    assert SearchSpace.model_validate(space.model_dump(mode="json")) == space


def test_its_own_score_is_ours(entry):
    evaluator = pytest.importorskip("lmms_eval.evaluator")
    from lmms_eval.api.model import lmms
    from lmms_eval.tasks import TaskManager

    model = AutoModelForImageTextToText.from_pretrained(pocket.weights_folder(), dtype=torch.float32).eval()
    family = models.family_for(model)
    encoder = Encoder(models.load("pocket")[1], family, 256)
    splits = [load_benchmarks([entry], split)[0] for split in ("search", "heldout")]
    ours = [evaluate(model, family, encoder, [split]).scores["drawn"] for split in splits]
    assert not {q.image_id for q in splits[0].questions} & {q.image_id for q in splits[1].questions}
    assert sum(map(len, ours)) == 60
    everything = LmmsEvalTask(entry.model_copy(update={"num_search": 60})).questions("search")
    asked = {question.id: question for question in everything}

    class Ours(lmms):
        def generate_until(self, requests):
            return generate_answers(model, encoder, [asked[str(request.args[3])] for request in requests], 6)

        def loglikelihood(self, requests):
            raise NotImplementedError

        def generate_until_multi_round(self, requests):
            raise NotImplementedError

    found = evaluator.simple_evaluate(
        Ours(),
        tasks=["drawn"],
        task_manager=TaskManager("ERROR", include_path=entry.include, include_defaults=False),
        bootstrap_iters=0,
    )
    theirs = found["results"]["drawn"]["exact_match,none"]
    assert theirs == pytest.approx(np.concatenate(ours).mean())
    assert 0.5 < theirs < 1


def test_what_is_no_number_per_row_is_refused(entry):
    pytest.importorskip("lmms_eval")
    with pytest.raises(InputError, match="task 'undrawn': can't be loaded"):
        load_benchmarks([entry.model_copy(update={"task": "undrawn"})], "search")
    with pytest.raises(
        InputError, match="no score 'f1' that is a number per row; it has exact_match; name one as score"
    ):
        load_benchmarks([entry.model_copy(update={"score": "f1"})], "search")
