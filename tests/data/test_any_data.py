"""Whatever rows, templates, questions and responses hold, nothing but a bad row or one line comes of it."""

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from raysearch.config.benchmarks import BenchmarkConfig
from raysearch.data.bad_rows import BadRow
from raysearch.data.encoding import Encoder
from raysearch.data.labels import IGNORED
from raysearch.data.loading import load_samples
from raysearch.errors import InputError
from raysearch.evaluation.metrics import METRICS
from raysearch.evaluation.questions import read_questions
from raysearch.evaluation.stored_answers import answers_of, options_of
from tests.support.fuzzing import DATA_ROWS, QUESTION, QUESTIONS, VALUES, damaged
from tests.support.recovery_setup import processor, tiny_encoder, tiny_family

FOLDER = Path(tempfile.mkdtemp(prefix="raysearch-any-data-"))
Image.new("RGB", (8, 8)).save(FOLDER / "a.png")
SIGNS = st.sampled_from(
    [
        "{%",
        "%}",
        "{{",
        "}}",
        " for m in messages ",
        " endfor ",
        "m.content",
        "m['role']",
        "messages[0]",
        "loop.last",
        " if ",
    ]
)
TEMPLATES = st.one_of(
    st.just(processor().chat_template),
    st.lists(st.one_of(SIGNS, st.text(max_size=5)), max_size=12).map("".join),
    st.sampled_from(["{{ messages }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ 1 / 0 }}", ""]),
)
QUICK = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))


def _write(rows: list[Any], name: str) -> Path | None:
    """None for rows that JSON has no text for."""
    try:
        (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    except (ValueError, TypeError):
        return None
    return FOLDER / name


@QUICK
@given(st.lists(damaged(DATA_ROWS), min_size=1, max_size=3), TEMPLATES)
def test_a_row_is_encoded_whole_or_bad(rows: list[Any], template: str) -> None:
    path = _write(rows, "rows.jsonl")
    if path is None:
        return
    made = processor()
    encoder = Encoder(made, tiny_family(), 512, cache_bytes=0)
    before, made.chat_template = made.chat_template, template
    try:
        for sample in load_samples(path):
            try:
                encoded = encoder.encode(sample)
                assert (encoded["labels"] != IGNORED).any()
                assert encoded["labels"].shape == encoded["input_ids"].shape
            except BadRow as error:
                said = str(error)
                assert said.isprintable()
                assert len(said) <= 300
    finally:
        made.chat_template = before


@QUICK
@given(st.lists(damaged(QUESTIONS), min_size=1, max_size=2), st.sampled_from(sorted(METRICS)))
def test_questions_are_read_or_one_line(rows: list[Any], metric: Any) -> None:
    path = _write([QUESTION] * 3 + rows, "questions.jsonl")
    if path is None:
        return
    try:
        for split in ("search", "heldout"):
            for question in read_questions(BenchmarkConfig(name="b", data=str(path), metric=metric), split):
                tiny_encoder().encode_prompt(question.sample)
                values = METRICS[metric].values([question.answer], [question])
                assert 0 <= values[0] <= 2
    except (InputError, ValidationError) as error:
        said = str(error)
        assert "\n" not in said


@QUICK
@given(VALUES)
def test_options_and_answers_are_read_or_refused(value: Any) -> None:
    for read in (options_of, answers_of):
        try:
            found = read(value)
        except ValueError as error:
            refused = str(error)
            assert refused
            continue
        texts = found[0] if read is options_of else found
        assert not any(isinstance(text, list | dict | tuple) for text in texts)


@QUICK
@given(st.text(max_size=60), st.text(min_size=1, max_size=10), st.lists(st.text(min_size=1, max_size=8), max_size=30))
def test_any_response_has_a_score(response: str, answer: str, options: list[str]) -> None:
    for name, metric in METRICS.items():
        gold = {"choice": "A", "relaxed": "A" if options else answer, "yes_no": "yes", "yes_no_f1": "yes", "mme": "yes"}
        question = type(
            "Gold",
            (),
            {"answers": (gold.get(name, answer),), "options": tuple(options), "image_id": "1", "category": ""},
        )
        (value,) = metric.values([response], [question])
        assert 0 <= value <= 1, name
