"""Entries of a search space's `benchmarks`, and the names of the metrics."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raysearch.config.problems import known_names
from raysearch.config.settings import EMBEDDED_BENCHMARKS, Name, PathOrName, Scalar, Strict

MetricName = Literal[
    "exact", "normalised", "choice", "yes_no", "yes_no_f1", "mme", "anls", "relaxed", "vqa", "list_f1", "cider"
]
"""One name per row of `evaluation.metrics.METRICS`, in its order."""
RetentionForm = Literal["ratio_of_averages", "mean_of_ratios", "chance_corrected"]
_QUESTION_FIELDS = ("question", "answer", "answers", "image", "images", "options", "category", "id", "image_id")


class BenchmarkConfig(Strict):
    """A custom benchmark: its questions, and how they are scored."""

    name: Name
    """Name in scores, reports and MLflow."""
    data: PathOrName
    """Questions: a file or folder of any format that data may have (docs/reference/data.md), or a hub id. Columns:
    question, answer or answers, image or images, and optionally options,
    category, id, image_id. `pocket` for fewer questions of the embedded benchmark `name`."""
    split: str | None = None
    """Split of `data`, if it has several."""
    heldout_data: PathOrName | None = None
    """Questions to report on. Without it and `heldout_split`, the rows of `data` are split, no image in both parts."""
    heldout_split: str | None = None
    """Split of the held-out questions."""
    metric: MetricName
    """How an answer is scored (docs/reference/questions.md)."""
    prompt: str | None = None
    """Template with {question}, {options} and columns; left out, the default of the metric."""
    columns: dict[str, str] = {}
    """Names of the columns that hold the fields, by field: question, answer, ..."""
    where: dict[str, Scalar | list[Scalar]] = {}
    """Row filter: columns, and the values that they must have."""
    answer_is_number: bool = False
    """Answers are indices of options, from 0, even if the options are numbers themselves."""
    num_search: int | None = Field(None, ge=1)
    """Most questions to compare trials on; the same ones for all trials."""
    num_heldout: int | None = Field(None, ge=1)
    """Most questions to report on."""
    chance: float | None = Field(None, ge=0, lt=1)
    """Score of guessing, from 0 to 1; left out, that of the commonest answer or of a random choice."""
    max_new_tokens: int = Field(32, ge=1, le=100_000)
    """Most tokens of a generated answer."""
    scale: float = Field(100.0, gt=0)
    """A perfect score as published: 100; 2000 and 800 for the two parts of MME; 1000 for CIDEr."""

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        unknown = next((field for field in columns if field not in _QUESTION_FIELDS), None)
        if unknown:
            raise ValueError(f"{unknown!r} is not a field of a question; {known_names(unknown, _QUESTION_FIELDS)}")
        return columns

    @model_validator(mode="after")
    def _check_embedded(self) -> "BenchmarkConfig":
        if self.data != "pocket":
            return self
        if self.name not in EMBEDDED_BENCHMARKS:
            raise ValueError(f"{self.name!r} is not embedded; known are {', '.join(EMBEDDED_BENCHMARKS)}")
        plain = BenchmarkConfig.model_construct(
            name=self.name, data="pocket", metric="exact", num_search=self.num_search, num_heldout=self.num_heldout
        )
        other = [field for field in type(self).model_fields if getattr(self, field) != getattr(plain, field)]
        if other:
            raise ValueError(
                f"data pocket goes only with metric exact, num_search and num_heldout; change or remove {other[0]}"
            )
        return self


class LmmsEvalConfig(Strict):
    """A task of lmms-eval: its rows, prompt and scoring."""

    name: Name
    """Name in scores, reports and MLflow."""
    task: str
    """Name of a task of lmms-eval whose score is a mean over rows."""
    include: str | None = None
    """A folder of custom tasks, instead of those of lmms-eval."""
    score: str | None = None
    """Which of the task's numbers is the score; left out, the only one."""
    num_search: int | None = Field(None, ge=1)
    """Most questions to compare trials on; the same ones for all trials."""
    num_heldout: int | None = Field(None, ge=1)
    """Most questions to report on."""
    chance: float | None = Field(None, ge=0, lt=1)
    """Score of guessing, from 0 to 1; left out, that of the commonest answer."""
    scale: float = Field(100.0, gt=0)
    """A perfect score as published."""


def _kind_of_benchmark(value: Any) -> str:
    if isinstance(value, str):
        return str.__name__  # no key of a space, as the others
    is_task = isinstance(value, LmmsEvalConfig) or (isinstance(value, dict) and "task" in value)
    return (LmmsEvalConfig if is_task else BenchmarkConfig).__name__


BenchmarkEntry = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[BenchmarkConfig, Tag("BenchmarkConfig")]
    | Annotated[LmmsEvalConfig, Tag("LmmsEvalConfig")],
    Discriminator(_kind_of_benchmark),
]
"""An embedded benchmark by name, a custom one, or a task of lmms-eval."""
