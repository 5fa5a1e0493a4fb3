"""Benchmarks as a search space names them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raysearch import pocket
from raysearch.config.settings import PathOrName, Scalar, Strict

MetricName = Literal["exact", "normalised", "choice", "yes_no", "yes_no_f1", "mme", "anls", "relaxed"]


class BenchmarkConfig(Strict):
    """A benchmark of one's own: questions in local files, and how they are scored."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names it in scores, reports and MLflow."""
    data: PathOrName
    """Questions: a JSON or JSONL file with its images beside it, a Parquet file, a folder of Parquet files or of the
    datasets library, or a hub id. Columns: question, answer or answers, image or images, and where there are any
    options, category, id, image_id. `pocket` for fewer questions of the embedded benchmark `name`."""
    split: str | None = None
    """Split of `data`, where it has several."""
    heldout_data: PathOrName | None = None
    """Questions to report on. Left out, with `heldout_split`, the rows of `data` are divided, no image in both."""
    heldout_split: str | None = None
    """Split of the held-out questions."""
    metric: MetricName
    """How an answer is scored (docs/reference/questions.md)."""
    prompt: str | None = None
    """Template with {question}, {options} and columns; left out, the metric's own."""
    columns: dict[str, str] = {}
    """What the data call these fields, by field: question, answer, ..."""
    where: dict[str, Scalar | list[Scalar]] = {}
    """Columns and the values that a row must have there to be asked at all."""
    answer_is_number: bool = False
    """The answer is an option's number, from 0, even where the options are numbers themselves."""
    num_search: int | None = Field(None, ge=1)
    """At most so many questions to compare trials on; the same ones for all."""
    num_heldout: int | None = Field(None, ge=1)
    """At most so many questions to report on."""
    chance: float | None = Field(None, ge=0, lt=1)
    """Score of guessing, of 1; left out, that of the commonest answer or of a blind choice."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest answer that is generated."""
    scale: float = Field(100.0, gt=0)
    """What publications call a perfect score: 100; 2000 and 800 for the two of MME."""

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        unknown = next((field for field in columns if field not in _QUESTION_FIELDS), None)
        if unknown:
            raise ValueError(f"{unknown!r} is no field of a question; known are {', '.join(_QUESTION_FIELDS)}")
        return columns

    @model_validator(mode="after")
    def _check_embedded(self) -> "BenchmarkConfig":
        if self.data != "pocket":
            return self
        if self.name not in pocket.BENCHMARKS:
            raise ValueError(f"{self.name!r} is not embedded; known are {', '.join(pocket.BENCHMARKS)}")
        plain = BenchmarkConfig.model_construct(
            name=self.name,
            data="pocket",
            metric="exact",
            num_search=self.num_search,
            num_heldout=self.num_heldout,
        )
        other = [field for field in type(self).model_fields if getattr(self, field) != getattr(plain, field)]
        if other:
            raise ValueError(
                f"data pocket goes with metric exact, num_search and num_heldout alone; change or remove {other[0]}"
            )
        return self


class LmmsEvalConfig(Strict):
    """A benchmark of lmms-eval: its rows, prompt and scoring."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names it in scores, reports and MLflow."""
    task: str
    """Name of a task of lmms-eval whose score is a mean over rows."""
    include: str | None = None
    """A folder of tasks of your own, in the place of lmms-eval's."""
    score: str | None = None
    """Which of the task's numbers counts; left out, the only one."""
    num_search: int | None = Field(None, ge=1)
    """At most so many questions to compare trials on; the same ones for all."""
    num_heldout: int | None = Field(None, ge=1)
    """At most so many questions to report on."""
    chance: float | None = Field(None, ge=0, lt=1)
    """Score of guessing, of 1; left out, that of the commonest answer."""
    scale: float = Field(100.0, gt=0)
    """What publications call a perfect score."""


def _kind_of_benchmark(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    is_task = isinstance(value, LmmsEvalConfig) or (isinstance(value, dict) and "task" in value)
    return "task" if is_task else "entry"


_QUESTION_FIELDS = (
    "question",
    "answer",
    "answers",
    "image",
    "images",
    "options",
    "category",
    "id",
    "image_id",
)
OwnOrNamed = Annotated[
    Annotated[str, Tag("name")] | Annotated[BenchmarkConfig, Tag("entry")] | Annotated[LmmsEvalConfig, Tag("task")],
    Discriminator(_kind_of_benchmark),
]
