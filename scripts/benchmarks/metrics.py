"""Scores of the embedded LVLM's answers by raysearch's metrics, next to those of lmms-eval and the COCO evaluation.

    pip install --no-deps --target references lmms-eval==0.7.3 pycocoevalcap==1.2
    python scripts/benchmarks/metrics.py references              # half a minute of one core; CIDEr needs java

The dense model and a pruned one answer the same questions, up to 200 per metric, in the forms that a metric is for:
letters of options, several annotators, captions with several references. What lmms-eval imports and these functions
don't use needs not be installed. Exit status 1 if a row is scored differently.
"""

import argparse
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np

from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.evaluation.benchmarks import Benchmark
from raysearch.evaluation.evaluator import generate_answers
from raysearch.evaluation.metrics import METRICS
from raysearch.evaluation.responses import LETTERS
from raysearch.trials.context import TrialContext

NUM_ROWS, NUM_ANNOTATORS, NUM_REFERENCES = 200, 10, 3
FORMS = ("{letter}", "({letter})", "{letter}.", "{letter}. {option}", "The answer is ({letter}).")
Scores = np.ndarray | float
"""One per row, or one for all rows."""


@dataclass(frozen=True)
class Row:
    """A question with a model's response to it."""

    response: str
    answers: tuple[str, ...]
    image_id: str
    options: tuple[str, ...] = ()
    category: str = field(default="existence")


def rows_of(benchmark: Benchmark, responses: Sequence[str]) -> list[Row]:
    """The model's answers as they are."""
    pairs = zip(benchmark.questions, responses, strict=True)
    return [Row(response, question.answers, question.image_id) for question, response in pairs]


def one_word(row: Row) -> Row:
    """The first word of the response: lmms-eval's POPE counts any longer one as wrong."""
    return replace(row, response=" ".join(row.response.split()[:1]))


def with_options(rows: Sequence[Row], draw: random.Random) -> list[Row]:
    """Each answer among three others; the response names the letter of what the model said, if it is an option."""
    texts = sorted({answer for row in rows for answer in row.answers})
    made = []
    for row in rows:
        said = [row.response] if row.response in texts and row.response not in row.answers else []
        others = draw.sample([text for text in texts if text not in (*row.answers, *said)], 3 - len(said))
        options = draw.sample([*others, *said, row.answers[0]], 4)
        named = options.index(row.response) if row.response in options else draw.randrange(4)
        response = draw.choice(FORMS).format(letter=LETTERS[named], option=options[named])
        made.append(Row(response, (LETTERS[options.index(row.answers[0])],), row.image_id, tuple(options)))
    return made


def with_annotators(rows: Sequence[Row], draw: random.Random) -> list[Row]:
    """Ten annotators each, some of whom say something else."""
    texts = sorted({answer for row in rows for answer in row.answers})
    made = []
    for row in rows:
        num_others = draw.randrange(NUM_ANNOTATORS)
        others = [draw.choice([row.response, draw.choice(texts)]) or "nothing" for _ in range(num_others)]
        made.append(Row(row.response, (*others, *row.answers * (NUM_ANNOTATORS - num_others)), row.image_id))
    return made


def with_references(rows: Sequence[Row], draw: random.Random) -> list[Row]:
    """Several captions each: the answer, and it again in other words and another order."""
    made = []
    for row in rows:
        words = row.answers[0].split()
        others = tuple(" ".join(draw.sample(words, draw.randint(1, len(words)))) + "." for _ in range(NUM_REFERENCES))
        made.append(Row(f"A picture of {row.response}.", (f"There's {row.answers[0]}.", *others), row.image_id))
    return made


def in_pairs(rows: Sequence[Row]) -> list[Row]:
    """Two questions per picture, as MME has them, in two categories."""
    num = len(rows) // 2 * 2
    kinds = ("existence", "count")
    return [
        Row(row.response, row.answers, str(at // 2), category=kinds[at // 2 % 2]) for at, row in enumerate(rows[:num])
    ]


def module(path: Path, others: Mapping[str, Any] | None = None) -> Any:
    """A file of lmms-eval alone: of what it imports, `others` is real."""
    unused = ("sacrebleu", "loguru", "lmms_eval", "lmms_eval.api", "lmms_eval.tasks", "lmms_eval.tasks._task_utils")
    stand_ins = {name: MagicMock() for name in (*unused, "lmms_eval.tasks._task_utils.file_utils")}
    stand_ins["lmms_eval.api.registry"] = MagicMock(
        register_metric=lambda **named: lambda function: function,
        register_aggregation=lambda name: lambda function: function,
    )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    found = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, {**stand_ins, **(others or {})}):
        spec.loader.exec_module(found)
    return found


def references(folder: Path) -> dict[str, Callable[[Sequence[Row]], Scores]]:
    """The others' scores by the name of raysearch's metric."""
    sys.path.insert(0, str(folder.resolve()))
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tasks = folder / "lmms_eval" / "tasks"
    metrics = module(folder / "lmms_eval" / "api" / "metrics.py")
    mcq, chartqa = module(tasks / "_task_utils" / "mmmu_mcq_utils.py"), module(tasks / "chartqa" / "utils.py")
    mmes, pope = module(tasks / "mme" / "utils.py"), module(tasks / "pope" / "utils.py")
    processor = {"lmms_eval.tasks._task_utils.vqa_eval_metric": module(tasks / "_task_utils" / "vqa_eval_metric.py")}
    textvqa = module(tasks / "textvqa" / "utils.py", processor)

    def each(score: Callable[[Row], float]) -> Callable[[Sequence[Row]], np.ndarray]:
        return lambda rows: np.array([score(row) for row in rows], float)

    def exact(row: Row, **form: bool) -> float:
        return max(
            metrics.exact_match_hf_evaluate([row.response], [answer], **form)["exact_match"] for answer in row.answers
        )

    def choice(row: Row) -> float:
        letters = list(LETTERS[: len(row.options)])
        named = mcq.parse_mmmu_multi_choice_response(
            row.response, letters, dict(zip(letters, row.options, strict=True))
        )
        return float(named in row.answers)

    def popes(rows: Sequence[Row]) -> list[dict]:
        docs = [{"answer": row.answers[0], "question_id": at} for at, row in enumerate(rows)]
        return [
            pope.pope_process_results(doc, [row.response])["pope_accuracy"] for doc, row in zip(docs, rows, strict=True)
        ]

    def mme(rows: Sequence[Row]) -> float:
        docs = [{"answer": r.answers[0], "question_id": r.image_id, "category": r.category} for r in rows]
        found = [mmes.mme_process_results(doc, [row.response]) for doc, row in zip(docs, rows, strict=True)]
        given = mmes.mme_aggregate_results([result["mme_perception_score"] for result in found])
        return given / (200 * len({row.category for row in rows}))

    def vqa(row: Row) -> float:
        return textvqa.textvqa_process_results({"answers": list(row.answers), "question_id": 0}, [row.response])[
            "exact_match"
        ]

    def cider(rows: Sequence[Row]) -> np.ndarray:
        gold = {at: [{"caption": answer} for answer in row.answers] for at, row in enumerate(rows)}
        said = {at: [{"caption": row.response}] for at, row in enumerate(rows)}
        tokenize = PTBTokenizer().tokenize
        return Cider().compute_score(tokenize(gold), tokenize(said))[1] / 10

    return {
        "exact": each(exact),
        "normalised": each(lambda row: exact(row, ignore_case=True, ignore_punctuation=True)),
        "choice": each(choice),
        "yes_no": lambda rows: np.array([result["score"] for result in popes(rows)]),
        "yes_no_f1": lambda rows: float(pope.pope_aggregate_f1_score(popes(rows))),
        "mme": mme,
        "anls": each(lambda row: metrics.anls(list(row.answers), [row.response])["anls"]),
        "relaxed": each(lambda row: float(chartqa.relaxed_correctness(row.response, row.answers[0]))),
        "vqa": each(vqa),
        "cider": cider,
    }


def answered() -> Iterator[tuple[str, dict[str, list[Row]]]]:
    """For two models, the rows of each metric."""
    context = TrialContext(SearchSpace.load(EMBEDDED_SPACE))
    recipe = Recipe(mode="widthwise", ratio=0.3, criterion="random")
    models = {
        "dense": context.model,
        "30% of widths less": context.prune(recipe, {"random": context.importance("random", 0)}),
    }
    benchmarks = {benchmark.name: benchmark for benchmark in context.questions}
    for name, model in models.items():
        given = {}
        for benchmark in benchmarks.values():
            responses = generate_answers(model, context.encoder, benchmark.questions, 24)
            given[benchmark.name] = rows_of(benchmark, [response or "" for response in responses])
        draw = random.Random(0)
        yes_no = [one_word(row) for rows in given.values() for row in rows if set(row.answers) <= {"yes", "no"}]
        yield (
            name,
            {
                "exact": given["scenes"],
                "normalised": given["digits"],
                "choice": with_options(given["scenes"], draw),
                "yes_no": yes_no,
                "yes_no_f1": yes_no,
                "mme": in_pairs(yes_no),
                "anls": given["lists"],
                "relaxed": given["digits"],
                "vqa": with_annotators(given["digits"], draw),
                "cider": with_references(given["descriptions"], draw),
            },
        )


def main() -> None:
    """Print a row per model and metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", type=Path, help="folder with both packages")
    theirs = references(parser.parse_args().references)
    num_different = 0
    print("| model | metric | rows | raysearch | reference | largest difference of a row |\n|---|---|---|---|---|---|")
    for model, rows_by_metric in answered():
        for name, rows in rows_by_metric.items():
            rows = rows[:NUM_ROWS]
            ours, reference = METRICS[name].values([row.response for row in rows], rows), theirs[name](rows)
            by_row = isinstance(reference, np.ndarray)
            gap = float(np.abs(ours - reference).max() if by_row else abs(ours.mean() - reference))
            num_different += gap > 1e-9
            print(f"| {model} | `{name}` | {len(rows)} | {ours.mean():.6f} | {np.mean(reference):.6f} | {gap:.1g} |")
    sys.exit(bool(num_different))


if __name__ == "__main__":
    main()
