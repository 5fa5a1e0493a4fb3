"""A person's own questions, in the formats that people have; and answers generated in batches."""

import dataclasses
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from raysearch import models, pocket
from raysearch.config.benchmarks import BenchmarkConfig
from raysearch.config.settings import EMBEDDED_BENCHMARKS
from raysearch.config.space import SearchSpace
from raysearch.data.encoding import Encoder
from raysearch.errors import InputError
from raysearch.evaluation.benchmarks import Benchmark, check_benchmarks, load_benchmarks
from raysearch.evaluation.evaluator import evaluate, generate_answers
from raysearch.evaluation.metrics import METRICS
from raysearch.evaluation.questions import MIN_EARLY_QUESTIONS, Question, early_subset
from raysearch.evaluation.retention import Results, at_chance

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def rows_of(num=12):
    """Two questions about each picture."""
    return [
        {
            "id": f"q{index}",
            "image": f"p/{index // 2}.png",
            "question": f"what is {index}?",
            "answer": COLOURS[index % 6],
        }
        for index in range(num)
    ]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "p").mkdir()
    for index in range(6):
        Image.new("RGB", (8, 8), COLOURS[index]).save(tmp_path / "p" / f"{index}.png")
    return tmp_path


def write(folder, rows, name="questions.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def entry(data, **more):
    return BenchmarkConfig(**{"name": "own", "data": str(data), "metric": "normalised", **more})


def both(given):
    search, heldout = (load_benchmarks([given], split)[0] for split in ("search", "heldout"))
    return search, heldout


def ids(benchmark):
    return [question.id for question in benchmark.questions]


def as_dataset(folder, rows):
    pictures = [str(folder / row["image"]) for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("id", "question", "answer")}
    made = datasets.Dataset.from_dict({**columns, "image": pictures}).cast_column("image", datasets.Image())
    return made.map(lambda row: row, load_from_cache_file=False)  # pictures become bytes inside


def test_every_format_holds_the_same_questions(folder, tmp_path_factory):
    """JSON lines with pictures beside them, JSON, Parquet, a folder of Parquet, a data set saved to disk."""
    elsewhere, rows = tmp_path_factory.mktemp("data"), rows_of()
    (folder / "list.json").write_text(json.dumps(rows))
    made = as_dataset(folder, rows)
    (elsewhere / "parquet").mkdir()
    made.to_parquet(elsewhere / "one.parquet")
    made.to_parquet(elsewhere / "parquet" / "test-00000-of-00001.parquet")
    datasets.DatasetDict({"test": made}).save_to_disk(elsewhere / "disk")
    sources = [
        entry(write(folder, rows)),
        entry(folder / "list.json"),
        entry(elsewhere / "one.parquet"),
        entry(elsewhere / "parquet", split="test"),
        entry(elsewhere / "disk", split="test"),
    ]
    found = [both(source) for source in sources]
    for search, heldout in found:
        assert ids(search) == ids(found[0][0])
        assert ids(heldout) == ids(found[0][1])
        first, same = search.questions[0], found[0][0].questions[0]
        assert (first.prompt, first.answers) == (same.prompt, same.answers)
        assert first.prompt.startswith("what is ")
        assert first.prompt.endswith("\nAnswer the question using a single word or phrase.")
        assert [len({q.image_id for q in part.questions}) for part in (search, heldout)] == [3, 3]


def test_no_image_is_in_both_splits_and_smaller_splits_nest(folder):
    path = write(folder, rows_of())
    search, heldout = both(entry(path))
    assert sorted(ids(search) + ids(heldout)) == sorted(row["id"] for row in rows_of())
    assert not {q.image_id for q in search.questions} & {q.image_id for q in heldout.questions}
    small, rest = both(entry(path, num_search=2, num_heldout=4))
    assert len(small.questions) == 2
    assert set(ids(small)) < set(ids(search))
    assert len(rest.questions) == 4
    assert not set(ids(small)) & set(ids(rest))
    check_benchmarks([entry(path), "digits"])


def test_held_out_questions_of_their_own(folder):
    train, test = write(folder, rows_of()[:8], "a.jsonl"), write(folder, rows_of()[8:], "b.jsonl")
    given = entry(train, heldout_data=test, num_search=4)
    search, heldout = both(given)
    assert len(search.questions) == 4
    assert ids(heldout) == ["q8", "q9", "q10", "q11"]
    check_benchmarks([given])
    with pytest.raises(InputError, match=r"own: question q\d+ is in both splits; remove it from one"):
        check_benchmarks([entry(train, heldout_data=train)])


def test_options_images_in_the_text_and_columns_of_other_names(folder):
    row = {
        "question_id": 7,
        "text": "Compare <image 2> with <image 1>: which is red?",
        "choices": "['the first', 'the second']",
        "label": 1,
        "image_1": "p/0.png",
        "image_2": "p/1.png",
        "image_3": None,
        "subject": "art",
    }
    columns = {"question": "text", "options": "choices", "answer": "label", "category": "subject"}
    given = entry(
        write(folder, [row, {**row, "question_id": 8, "image_1": "p/2.png"}]), metric="choice", columns=columns
    )
    for benchmark in both(given):
        (question,) = benchmark.questions
        assert question.answers == ("B",)
        assert question.options == ("the first", "the second")
        assert question.category == "art"
        assert question.prompt == (
            "Compare  with : which is red?\nA. the first\nB. the second\n"
            "Answer with the option's letter from the given choices directly."
        )
        assert next(path.name for path in question.sample.images) == "1.png"
        assert [part["type"] for part in question.sample.messages[0]["content"]][:4] == ["text", "image"] * 2
        assert benchmark.chance == 1.0  # one question: the guess "B" is always right
        bare = question.without_images()
        assert bare.prompt == question.prompt
        assert bare.sample.images == ()


def test_rows_are_chosen_by_their_columns(folder):
    rows = [{**row, "category": "ab"[index // 6], "n": index // 2} for index, row in enumerate(rows_of())]
    search, heldout = both(entry(write(folder, rows), where={"category": "b", "n": [3, 4]}))
    assert sorted(ids(search) + ids(heldout)) == ["q6", "q7", "q8", "q9"]
    with pytest.raises(InputError, match=r"holds no rows where \{'category': 'c'\}"):
        both(entry(write(folder, rows), where={"category": "c"}))


def test_answers_by_number_among_options_that_are_numbers(folder):
    rows = [{**row, "options": ["1", "2"], "answer": "1"} for row in rows_of()]
    path = write(folder, rows)
    with pytest.raises(InputError, match="may be an option's number or its text; set answer_is_number"):
        both(entry(path, metric="choice"))
    search, _ = both(entry(path, metric="choice", answer_is_number=True))
    assert search.questions[0].answers == ("B",)


def test_the_template_takes_columns(folder):
    rows = [{**row, "hint": "look"} for row in rows_of()]
    search, _ = both(entry(write(folder, rows), prompt="{hint}: {question} {{}}", chance=0.3))
    assert search.questions[0].prompt.startswith("look: what is ")
    assert search.questions[0].prompt.endswith("? {}")
    assert search.chance == 0.3


def change(index, **cells):
    """Rows of which one is different; None takes a cell away."""
    rows = rows_of()
    for name, value in cells.items():
        rows[index][name] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([], {}, "own: .*: holds no rows"),
        (rows_of(2), {}, "no question is left for split heldout; it has 2 rows"),
        (change(0, answer=""), {"heldout_data": "same"}, "row 0: the answer is empty"),
        (change(0, answer=[]), {"heldout_data": "same"}, "row 0: no answer in column 'answer'"),
        (change(1, image="p/9.png"), {"heldout_data": "same"}, r"row 1: image p/9\.png not found"),
        (rows_of(), {"metric": "yes_no"}, "answer '[a-z]+' is neither yes nor no"),
        (rows_of(), {"metric": "choice"}, "no options to choose from"),
        (rows_of(), {"columns": {"question": "text"}}, "no column 'text'; name it under columns"),
        (rows_of(), {"prompt": "{hint}"}, r"prompt '\{hint\}' can't be filled in \('hint'\)"),
        (change(0, answer=["a", "b"]), {"heldout_data": "same", "metric": "exact"}, "exact takes one"),
        (rows_of(), {"split": "test"}, "a file has no splits"),
        (change(0, question="<image 3>"), {"heldout_data": "same"}, "the row has 1 images"),
        ([{"question": "is it?", "answer": "yes", "image": "p/0.png"}] * 3, {"metric": "mme"}, "needs two per image"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(folder, rows, more, said):
    path = write(folder, rows)
    more = {**more, **({"heldout_data": path} if "heldout_data" in more else {})}
    with pytest.raises(InputError, match=said):
        check_benchmarks([entry(path, **more)])


def test_a_row_in_a_hundred_may_be_bad(folder):
    rows = [{**rows_of()[0], "id": f"q{index}"} for index in range(200)]
    rows[7]["answer"] = ""
    (benchmark,) = load_benchmarks([entry(write(folder, rows), heldout_data="none")], "search")
    assert len(benchmark.questions) == 199


def test_names_are_checked():
    with pytest.raises(InputError, match="'digits' is named twice"):
        load_benchmarks(["pocket", "digits"], "search")
    with pytest.raises(InputError, match="'vqa' is not known; known are pocket, easy-vqa"):
        load_benchmarks(["vqa"], "search")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metric": "f1"}, r"benchmarks\.0\.metric: .*'anls'.* not 'f1'"),
        ({"splits": 1}, r"benchmarks\.0\.splits: unknown key; known are name, data, split"),
        ({"columns": {"anwser": "x"}}, r"benchmarks\.0\.columns: 'anwser' is not a field of a question; known are"),
        ({"chance": 1.0}, r"benchmarks\.0\.chance: "),
        ({"data": None}, r"benchmarks\.0\.data: "),
        ({"data": "pocket"}, r"benchmarks\.0: 'own' is not embedded; known are easy-vqa, digits"),
        ({"data": "pocket", "name": "digits"}, r"benchmarks\.0: data pocket goes .* change or remove metric"),
        (
            {"data": "pocket", "name": "digits", "metric": "exact", "scale": 10},
            r"benchmarks\.0: data pocket goes .* change or remove scale",
        ),
    ],
)
def test_mistakes_in_a_space_name_their_key(tmp_path, change, said):
    recipe = {"mode": "layerwise", "ratio": 0.1, "criterion": "deepest"}
    own = {"name": "own", "data": "x.jsonl", "metric": "anls", **change}
    (tmp_path / "space.yaml").write_text(
        json.dumps({"name": "a", "model": "pocket", "recipe": recipe, "benchmarks": [own]})
    )
    with pytest.raises(InputError, match=said):
        SearchSpace.load(tmp_path / "space.yaml")


def test_fewer_questions_of_an_embedded_benchmark():
    named = {"name": "lists", "data": "pocket", "metric": "exact"}
    (whole,) = load_benchmarks(["lists"], "heldout")
    (same,) = load_benchmarks([BenchmarkConfig(**named)], "heldout")
    fewer = BenchmarkConfig(**named, num_search=20, num_heldout=50)
    (some,), (search,) = (load_benchmarks([fewer], split) for split in ("heldout", "search"))
    assert ids(same) == ids(whole)
    assert len(some.questions) == 50
    assert len(search.questions) == 20
    assert set(ids(some)) < set(ids(whole))
    assert {question.image_id.split("-")[0] for question in some.questions} == {"digits", "scenes"}
    assert some.chance == whole.chance
    assert BenchmarkConfig.model_validate(fewer.model_dump(mode="json")) == fewer


def test_a_benchmark_alone_and_by_name_are_lists():
    recipe = {"mode": "layerwise", "ratio": 0.1, "criterion": "deepest"}
    space = SearchSpace(name="a", model="pocket", recipe=recipe, benchmarks="digits")
    assert space.benchmarks == ["digits"]
    own = SearchSpace(
        name="a", model="pocket", recipe=recipe, benchmarks={"name": "b", "data": "x.jsonl", "metric": "mme"}
    )
    assert isinstance(own.benchmarks[0], BenchmarkConfig)
    assert SearchSpace.model_validate(own.model_dump(mode="json")) == own


@pytest.fixture(scope="module")
def loaded():
    folder = pocket.weights_folder()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = models.load("pocket")[1]
    return model, Encoder(processor, models.family_for(model), 256)


def sampled(name, num):
    (benchmark,) = load_benchmarks([name], "heldout")
    return dataclasses.replace(benchmark, questions=benchmark.questions[:: len(benchmark.questions) // num][:num])


def test_batches_are_answered_as_one_by_one(loaded):
    model, encoder = loaded
    questions = [q for name in ("lists", "digits", "descriptions") for q in sampled(name, 6).questions]
    assert len({len(encoder.encode_prompt(q.sample)["input_ids"]) for q in questions}) > 3
    together = generate_answers(model, encoder, questions, 48, batch_size=7)
    assert together == generate_answers(model, encoder, questions, 48, batch_size=1)
    assert np.mean([said == q.answer for said, q in zip(together, questions, strict=True)]) > 0.5


def test_generated_answers_score_as_one_forward_pass(loaded):
    model, encoder = loaded
    benchmarks = [sampled(name, 20) for name in ("lists", "scenes")]
    generated = [dataclasses.replace(b, metric="normalised", max_new_tokens=48) for b in benchmarks]
    model.train()
    mixed = evaluate(model, encoder.family, encoder, [benchmarks[0], generated[1]])
    assert model.training
    model.eval()
    forced = evaluate(model, encoder.family, encoder, benchmarks)
    free = evaluate(model, encoder.family, encoder, generated)
    for name in ("lists", "scenes"):
        assert forced.scores[name].tolist() == free.scores[name].tolist() == mixed.scores[name].tolist()
        assert 0 < forced.scores[name].mean() <= 1


def test_a_question_that_cannot_be_asked_is_named(loaded, tmp_path):
    model, encoder = loaded
    (benchmark,) = load_benchmarks(["digits"], "heldout")
    lost = benchmark.questions[0]
    lost = dataclasses.replace(lost, sample=dataclasses.replace(lost.sample, images=(tmp_path / "gone.png",)))
    for metric in ("exact", "normalised"):
        broken = Benchmark("mine", (lost,), 0.0, metric)
        with pytest.raises(InputError, match=rf"mine: more than .* \(question {lost.id}: image .*gone\.png"):
            evaluate(model, encoder.family, encoder, [broken])


def test_a_question_in_a_hundred_that_cannot_be_asked_is_left_out(loaded, tmp_path, caplog):
    model, encoder = loaded
    (benchmark,) = load_benchmarks(["digits"], "heldout")
    questions = list(benchmark.questions[:100])
    whole = evaluate(model, encoder.family, encoder, [Benchmark("mine", tuple(questions), 0.0)])
    lost = dataclasses.replace(questions[7].sample, images=(tmp_path / "gone.png",))
    questions[7] = dataclasses.replace(questions[7], sample=lost)
    found = evaluate(model, encoder.family, encoder, [Benchmark("mine", tuple(questions), 0.0)])
    assert found.scores["mine"].tolist() == np.delete(whole.scores["mine"], 7).tolist()
    assert found.images["mine"].tolist() == np.delete(whole.images["mine"], 7).tolist()
    said = generate_answers(model, encoder, questions, 1, name="mine")
    assert [index for index, text in enumerate(said) if text is None] == [7]
    assert f"benchmarks: mine: left out 1 of 100 rows (question {questions[7].id}: image" in caplog.text


def test_at_chance_is_a_matter_of_noise():
    def dense(right, num, chance):
        scores = {"a": np.arange(num) < right, "b": np.ones(num)}
        images = {name: np.arange(num) for name in scores}
        return Results({n: v.astype(float) for n, v in scores.items()}, images, {"a": chance, "b": 0.5})

    assert at_chance(dense(26, 100, 0.25)) == ["a"]
    assert at_chance(dense(260, 1000, 0.2)) == []
    assert at_chance(dense(10, 100, 0.25)) == ["a"]
    assert at_chance(dense(0, 100, 0.0)) == ["a"]
    assert at_chance(dense(5, 100, 0.0)) == []


def questions_of(num, per_image):
    """Questions about pictures that come round in turn, as in a shuffled file."""
    num_images = num // per_image
    return [Question(str(at), f"p{at % num_images}", None, ("yes",), category="c") for at in range(num)]


@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_early_questions_nest_and_hold_whole_images(per_image):
    questions, before = questions_of(400, per_image), set()
    for share in (0.01, 0.1, 0.2, 0.35, 0.5, 0.9, 1.0):
        part = early_subset(questions, share)
        assert 0 <= len(part) - max(MIN_EARLY_QUESTIONS, round(400 * share)) < per_image
        assert [int(question.id) for question in part] == sorted(int(question.id) for question in part)
        assert len(part) == per_image * len({question.image_id for question in part})
        assert before <= {question.id for question in part}
        before = {question.id for question in part}
    assert early_subset(questions, 1.0) == tuple(questions)


def test_a_benchmark_with_hardly_any_questions_is_asked_whole():
    assert early_subset(questions_of(18, 2), 0.1) == tuple(questions_of(18, 2))
    assert len(early_subset(questions_of(60, 60), 0.1)) == 60  # all about one image


def test_early_pairs_of_mme_stay_pairs():
    questions = questions_of(120, 2)
    part = early_subset(questions, 0.3)
    assert len(part) == 36
    METRICS["mme"].check(part)
    assert METRICS["mme"].values(["yes"] * 36, part).mean() == pytest.approx(1)
    one_image = part[0].image_id
    said = ["yes" if question.image_id != one_image or question is part[0] else "no" for question in part]
    # 35 of 36 answers and 17 of 18 pictures are right
    assert METRICS["mme"].values(said, part).mean() == pytest.approx((35 / 36 + 17 / 18) / 2)


def test_every_embedded_benchmark_is_asked_early():
    parts = [benchmark.early(0.1) for benchmark in load_benchmarks("pocket", "search")]
    assert [len(part.questions) for part in parts] == [20] * len(EMBEDDED_BENCHMARKS)
    assert [part.name for part in parts] == list(EMBEDDED_BENCHMARKS)
