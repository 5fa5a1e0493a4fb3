"""`raysearch evaluate` and `raysearch inspect` on the embedded model."""

import json
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from raysearch import pocket
from raysearch.cli.app import app
from raysearch.errors import InputError

RECIPE = {"mode": "layerwise", "ratio": 0.1, "criterion": "deepest"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions of the embedded model, of which one has a wrong answer, by two metrics; and 200 rows of data."""
    folder = tmp_path_factory.mktemp("evaluate")
    questions = []
    for index, row in enumerate(pocket.questions("digits", "search")[:12]):
        row["image"].save(folder / f"{row['image_id']}.png")
        answer = "purple [b]" if index == 3 else row["answer"]
        questions.append({"id": index, "image": f"{row['image_id']}.png", "question": row["prompt"], "answer": answer})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    entries = [
        {"name": metric, "data": str(folder / "questions.jsonl"), "heldout_data": str(folder / "questions.jsonl")}
        | {"metric": metric, "prompt": "{question}"}
        for metric in ("exact", "normalised")
    ]
    space = {"name": "s", "model": "pocket", "recipe": RECIPE, "benchmarks": entries}
    (folder / "space.yaml").write_text(json.dumps(space))
    turns = [{"from": "human", "value": "<image>\nwhat digit is the red digit ?"}, {"from": "gpt", "value": "6"}]
    rows = [{"image": questions[0]["image"], "conversations": turns} for _ in range(200)]
    rows[7]["image"], rows[9]["conversations"] = "gone.png", [*turns] * 40
    rows[9]["image"] = [questions[0]["image"]] * 40  # type: ignore[assignment]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.output


def test_answers_are_shown_next_to_what_was_expected(folder: Path) -> None:
    code, said = run("evaluate", "pocket", "--space", folder / "space.yaml", "--to", folder / "a.json")
    assert code == 0, said
    rows = json.loads((folder / "a.json").read_text())
    assert len(rows) == 24
    forced, generated = rows[:12], rows[12:]
    assert [row["response"] for row in forced] == [row["response"] for row in generated]
    assert [row["score"] for row in forced] == [row["score"] for row in generated]
    assert (rows[3]["expected"], rows[3]["score"]) == (["purple [b]"], 0.0)
    assert rows[3]["response"]
    mean = sum(row["score"] for row in forced) / 12
    assert f"{mean:.1%} [" in said
    assert "purple [b]" in said


def test_a_model_compared_with_itself_differs_by_nothing(folder: Path) -> None:
    weights = pocket.weights_folder()
    arguments = ("--space", folder / "space.yaml", "--answers", 0, "--to", folder / "a.parquet")
    code, said = run("evaluate", "pocket", "--compare", weights, *arguments)
    assert code == 0, said
    assert said.count("+0.0% [+0.0%, +0.0%]") == 2
    table = parquet.read_table(folder / "a.parquet").to_pylist()
    assert {row["model"] for row in table} == {"pocket", str(weights)}
    assert len(table) == 48


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pocket", "--space", "x.yaml", "--benchmarks", "digits"), "leave one out"),
        (("pocket", "--benchmarks", "gqa"), "'gqa' is not known"),
        (("pocket", "--to", "a.csv"), r"written as \.json or \.parquet"),
        (("no-such-folder/x", "--benchmarks", "digits"), "no-such-folder/x"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(app, ["evaluate", *arguments], catch_exceptions=False)


def test_data_are_shown_as_the_model_gets_them(folder: Path) -> None:
    code, said = run("inspect", folder / "rows.json", "--model", "pocket", "--rows", 8, "--max-length", 200)
    assert code == 0, said
    assert "<image> x 36" in said
    assert "what digit is the red digit ? <assistant>6 <eos>" in said
    assert "1 rows are longer than max_length 200; 1 can't be used" in said
    assert "left out: image gone.png not found" in said
    assert "left out: 1 rows as row 7: image gone.png not found" in said
