"""A search space: which recipes may be tried on which model, and how the search goes about it. Read from YAML."""

import json
import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from raysearch.errors import InputError
from raysearch.metrics import MetricName
from raysearch.recipe import LAYER_CRITERIA, WIDTH_CRITERIA, Recipe, applies
from raysearch.size import Budget

Scalar = bool | int | float | str


class Ask(Protocol):
    """Whoever chooses the values: a sampler, or a random number generator."""

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """One of `choices`."""

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """A number from `low` to `high`, both included."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choices(_Strict):
    """One of several values."""

    choices: list[Scalar] = Field(min_length=1)
    when: dict[str, Scalar | list[Scalar]] = {}
    """Earlier fields and the values they must have for this dimension to apply."""


class Range(_Strict):
    """A number between two bounds, both included."""

    low: float
    high: float
    log: bool = False
    """Spread the proposals evenly over orders of magnitude."""
    step: float | None = Field(None, gt=0)
    when: dict[str, Scalar | list[Scalar]] = {}
    """Earlier fields and the values they must have for this dimension to apply."""

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}; swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low:g}")
        if self.log and self.step:
            raise ValueError("log and step exclude each other; remove one")
        return self


def _kind(case: Any) -> str:
    bounded = isinstance(case, Range) or (isinstance(case, dict) and {"low", "high"} & set(case))
    return "range" if bounded else "choices"


Dimension = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")], Discriminator(_kind)
]
_MODE_CRITERIA = {"layerwise": (LAYER_CRITERIA,), "widthwise": (WIDTH_CRITERIA,)}


def _absolute(name: str) -> str:
    """A path that is here, from the root, since workers run in folders of their own; other names as they are."""
    return os.path.abspath(name) if name != "pocket" and os.path.exists(name) else name


PathOrName = Annotated[str, AfterValidator(_absolute)]


class BenchmarkEntry(_Strict):
    """A benchmark of one's own: questions in local files, and how they are scored."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names it in scores, reports and MLflow."""
    data: PathOrName
    """Questions: a JSON or JSONL file with its images beside it, a Parquet file, a folder of Parquet files or of the
    datasets library, or a hub id. Columns: question, answer or answers, image or images, and where there are any
    options, category, id, image_id."""
    split: str | None = None
    """Split of `data`, where it has several."""
    heldout_data: PathOrName | None = None
    """Questions to report on. Left out, with `heldout_split`, the rows of `data` are divided, no image in both."""
    heldout_split: str | None = None
    """Split of the held-out questions."""
    metric: MetricName
    """How an answer is scored (docs/benchmarks.md)."""
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
            raise ValueError(
                f"{unknown!r} is no field of a question; known are {', '.join(_QUESTION_FIELDS)}"
            )
        return columns


class TaskEntry(_Strict):
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
    is_task = isinstance(value, TaskEntry) or (isinstance(value, dict) and "task" in value)
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
    Annotated[str, Tag("name")] | Annotated[BenchmarkEntry, Tag("entry")] | Annotated[TaskEntry, Tag("task")],
    Discriminator(_kind_of_benchmark),
]


class SearchSettings(_Strict):
    """How the search goes about it."""

    trials: int = Field(24, ge=1)
    """Trials to run, the stopped ones included."""
    sampler: Literal["tpe", "nsga2", "gp", "random", "quasirandom", "ehvi", "grid"] = "tpe"
    """Who proposes the recipes; grid takes every recipe of a space that has no ranges, in order."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler, of the data order and of the interval estimates."""
    early_stopping: bool = True
    """Stop trials that are behind at a rung (ParetoASHA)."""
    first_rung: float = Field(1 / 9, gt=0, le=1)
    """Where the first verdict falls, as a share of the largest recovery in the space."""
    reduction_factor: float = Field(3, gt=1)
    """The share of trials that goes on from a rung is one in this many."""
    keep_scores: bool = False
    """Keep every finished trial's scores per held-out question, as DIR/scores/KEY.npz."""


class RecoverySettings(_Strict):
    """What all trials share in recovery training."""

    batch_size: int = Field(8, ge=1)
    """Samples per optimizer step, over all workers."""
    max_length: int = Field(2048, ge=8)
    """Longest row in tokens, image tokens included."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto is bf16 where the hardware multiplies it fast, else fp32."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; left out, it is chosen by the memory found."""
    offload: Literal["none", "cpu"] | None = None
    """Where fp32 weights and optimizer state lie: on the GPU, or in the machine's memory, which is slower. Left out,
    on the GPU if they fit."""
    tokens_per_pass: int | None = Field(None, ge=8)
    """Most tokens of one forward pass, padding included; a step takes as many passes as it needs. Left out, it is
    chosen by the memory found."""
    deepspeed: dict[str, Any] | None = None
    """A DeepSpeed configuration of your own, or the path of its JSON file; merged over what raysearch would write."""
    teacher: Literal["cache", "online"] = "cache"
    """Compute the dense model's states once per study and keep them on disk, or at every step of every trial."""
    teacher_quota_gb: float = Field(100, gt=0)
    """The most that these states may take on disk, in 10^9 bytes."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """Learning rate over a trial: warm-up/stable/decay, or cosine."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of a trial's samples spent warming up."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest norm of a step's gradient."""
    gradient_checkpointing: bool = False
    """Always recompute activations; left out, only where memory is short."""
    weight_average: bool = False
    """Evaluate rungs on an exponential average of the weights."""

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _read_deepspeed(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{given}: no JSON file that can be read ({error})") from None


class Slots(_Strict):
    """The workers that take recipes one after another."""

    num: int | None = Field(None, ge=1)
    """Trials at a time; left out, as many as the cluster has room for."""
    workers: int = Field(1, ge=1)
    """Ray Train workers per trial."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores that Ray sets aside for each; also its threads."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs for each: 1, or 0 on machines without."""
    autoscaling: bool = False
    """The cluster adds nodes when asked: ask for `num` slots, whether there is room for them yet or not."""
    timeout_s: float | None = Field(None, gt=0)
    """Seconds without a sign of life after which a slot is replaced; left out, half an hour, or ten times its longest
    step so far if that is more."""

    @model_validator(mode="after")
    def _check(self) -> "Slots":
        if self.autoscaling and self.num is None:
            raise ValueError("autoscaling needs num: the slots to ask for at most")
        return self


class Calibration(_Strict):
    """The samples on which importance is measured."""

    num_samples: int = Field(64, ge=1)
    """How many, from the front of the data's order."""
    batch_size: int = Field(8, ge=1)
    """Samples per pass."""


class SearchSpace(_Strict):
    """A whole study: the model, its data and questions, the recipes that may be tried, and the settings."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study, also of its MLflow experiment."""
    model: PathOrName
    """A Hugging Face folder or hub id of an LVLM, or `pocket` for the embedded one."""
    data: PathOrName = "pocket"
    """Recovery data: `pocket`, or a LLaVA-style JSON or JSONL file with its images beside it."""
    num_samples: int | None = Field(None, ge=1)
    """Rows of `data` that make 100%; left out, all of them."""
    benchmarks: list[OwnOrNamed] = ["pocket"]
    """Questions that measure retention: `pocket`, some of its benchmarks by name, and one's own."""
    retention: Literal["ratio_of_averages", "mean_of_ratios", "chance_corrected"] = "ratio_of_averages"
    """How scores become retention (arXiv 2604.24380 reports the ratio of averages)."""
    stratify: bool = False
    """Let every fraction of the data hold its sources in the same proportion, to a sample or two."""
    budgets: list[str] = []
    """Sizes of the whole model to answer for: 60%, 3.2GB, 3B."""
    recipe: dict[str, list[Dimension]]
    """The dimensions, by field of a recipe: a value, a list of values, {low, high, log, step}, or a list of
    these with `when`."""
    search: SearchSettings = SearchSettings()
    """Settings of the search."""
    calibration: Calibration = Calibration()
    """Settings of importance scores."""
    recovery: RecoverySettings = RecoverySettings()
    """Settings of recovery training."""
    slots: Slots = Slots()
    """Workers and their resources."""

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _listed(cls, benchmarks: Any) -> Any:
        return [benchmarks] if isinstance(benchmarks, str | dict) else benchmarks

    @field_validator("budgets")
    @classmethod
    def _check_budgets(cls, budgets: list[str]) -> list[str]:
        return [Budget.parse(budget).text for budget in budgets]

    @model_validator(mode="before")
    @classmethod
    def _read_dimensions(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "recipe" not in content:
            return content
        dimensions = content["recipe"]
        if not isinstance(dimensions, dict):
            raise ValueError(
                "recipe: must map fields of a recipe to values; search_spaces/pocket.yaml shows how"
            )
        return {
            **content,
            "recipe": {str(field): _read_dimension(str(field), spec) for field, spec in dimensions.items()},
        }

    @model_validator(mode="after")
    def _check_recipe(self) -> "SearchSpace":
        for field in ("mode", "ratio", "criterion"):
            if not self.recipe.get(field):
                raise ValueError(f"recipe.{field}: missing; every space names mode, ratio and criterion")
        for mode in self.values_of("mode"):
            for known in _criteria_kinds(mode):
                if not set(self.values_of("criterion")) & set(known):
                    raise ValueError(
                        f"recipe.criterion: none serves mode {mode}; add one of {', '.join(known)}"
                    )
        return self

    @classmethod
    def load(cls, path: str | Path) -> "SearchSpace":
        """Read and check a YAML file.

        Raises:
            InputError: no such file, not YAML, or a key or value that doesn't fit; one line that names the key.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; spaces to start from are in search_spaces/") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: can't be read ({error}); give a YAML file") from None
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(content, dict):
            raise InputError(f"{path}: holds no space; it must map name, model and recipe to values")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{path}: {first_problem(error, cls)}") from None

    def suggest(self, ask: Ask) -> Recipe:
        """Let `ask` choose a recipe; dimensions that do not apply to it are never asked for.

        Raises:
            pydantic.ValidationError: the values chosen exclude each other (all loss weights 0, say).
        """
        values: dict[str, Any] = {}
        for field in Recipe.model_fields:
            if field == "criterion":
                values[field] = self._suggest_criterion(ask, values)
            elif applies(field, values):
                chosen = _choose(ask, field, self.recipe.get(field, []), values)
                if chosen is not None:
                    values[field] = chosen
        return Recipe(**values)

    def _suggest_criterion(self, ask: Ask, values: Mapping[str, Any]) -> str:
        parts = []
        for known in _criteria_kinds(values["mode"]):
            cases = [
                case.model_copy(update={"choices": [value for value in case.choices if value in known]})
                for case in self.recipe["criterion"]
                if isinstance(case, Choices)
            ]
            name = "layer_criterion" if known is LAYER_CRITERIA else "width_criterion"
            parts.append(str(_choose(ask, name, [case for case in cases if case.choices], values)))
        return "+".join(parts)

    def values_of(self, field: str) -> list[Any]:
        """Every value that a dimension may take; of a range, its two bounds. Empty without such a dimension."""
        cases = self.recipe.get(field, [])
        return [
            v
            for case in cases
            for v in (case.choices if isinstance(case, Choices) else (case.low, case.high))
        ]

    def criteria(self) -> list[str]:
        """The criteria that some recipe of the space may use."""
        kinds = {name for mode in self.values_of("mode") for known in _criteria_kinds(mode) for name in known}
        return [value for value in dict.fromkeys(self.values_of("criterion")) if value in kinds]

    def uses_teacher(self) -> bool:
        """Whether some recipe of the space weighs a distillation loss."""
        weights = [*self.values_of("logits_kd"), *self.values_of("hidden_kd")]
        return any(float(weight) > 0 for weight in weights) and self.values_of("trained") != ["nothing"]

    def largest_recovery(self, num_samples: int) -> int:
        """Samples seen by the longest trial in the space, given the rows of the data; at least 1."""
        fraction, epochs = (max(self.values_of(field) or [1.0]) for field in ("data_fraction", "epochs"))
        return max(1, round(fraction * num_samples * epochs))


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """One line about the first problem: the path of the key, what is wrong, and the keys there are."""
    problem = error.errors()[0]
    location = problem["loc"]  # a case's tag stands behind its index
    where = [str(part) for i, part in enumerate(location) if not (i and isinstance(location[i - 1], int))]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, where[:-1])
        message = f"unknown key; known are {', '.join(known)}" if known else "unknown key; remove it"
    elif problem["type"] not in ("missing", "value_error"):
        message = f"{message}, not {problem['input']!r}"
    path = ".".join(where)
    return f"{path}: {message}" if path else message


def _keys_at(model: Any, path: Sequence[str]) -> list[str]:
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = BenchmarkEntry if part == "benchmarks" else field.annotation if field else model
    return list(getattr(model, "model_fields", {}))


def _criteria_kinds(mode: str) -> tuple[tuple[str, ...], ...]:
    return _MODE_CRITERIA.get(mode, (LAYER_CRITERIA, WIDTH_CRITERIA))


def _read_dimension(field: str, spec: Any) -> list[Any]:
    """A person's short forms as a list of cases, every value checked against the recipe's field."""
    if field not in Recipe.model_fields:
        raise ValueError(f"recipe.{field}: no field of a recipe; known are {', '.join(Recipe.model_fields)}")
    cases = (
        spec if isinstance(spec, list) and spec and all(isinstance(case, dict) for case in spec) else [spec]
    )
    return [_read_case(field, case) for case in cases]


def _read_case(field: str, case: Any) -> Any:
    if isinstance(case, Choices | Range):
        return case
    if not isinstance(case, dict):
        case = {"choices": case if isinstance(case, list) else [case]}
    for condition in case.get("when") or {}:
        names = list(Recipe.model_fields)
        if condition not in names or names.index(condition) >= names.index(field):
            earlier = ", ".join(names[: names.index(field)]) or "none"
            raise ValueError(
                f"recipe.{field}: when names {condition!r}, but only earlier fields decide: {earlier}"
            )
    bounds = [case[key] for key in ("low", "high") if key in case]
    if field == "criterion":
        known = tuple(dict.fromkeys(LAYER_CRITERIA + WIDTH_CRITERIA))
        kind: Any = Literal[known]
    else:
        info = Recipe.model_fields[field]
        kind = Annotated[info.annotation, info]
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    for value in [*(case.get("choices") or []), *bounds]:
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            raise ValueError(f"recipe.{field}: {error.errors()[0]['msg']}, not {value!r}") from None
    kinds = () if field == "criterion" else typing.get_args(info.annotation) or (info.annotation,)
    if bounds and not {int, float} & set(kinds):
        raise ValueError(f"recipe.{field}: no number, so it has choices and no range")
    return dict(case)


def _choose(ask: Ask, name: str, cases: Sequence[Dimension], values: Mapping[str, Any]) -> Any:
    """Ask for the first case whose conditions hold; None when there is none.

    The name told to `ask` is one per case, since a sampler wants the same bounds under the same name.
    """
    for index, case in enumerate(cases):
        if all(values.get(field) in _as_list(wanted) for field, wanted in case.when.items()):
            named = name if len(cases) == 1 else f"{name}#{index}"
            if isinstance(case, Choices):
                return case.choices[0] if len(case.choices) == 1 else ask.choice(named, case.choices)
            if case.low == case.high:
                return case.low
            value = ask.number(named, case.low, case.high, case.log, case.step)
            return int(value) if Recipe.model_fields[name].annotation in (int, int | None) else value
    return None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
