"""A search space, read from YAML: the model, its data, the recipes to search and all settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from raysearch.config.benchmarks import BenchmarkEntry, RetentionForm
from raysearch.config.budget import Budget
from raysearch.config.criteria import LAYER_CRITERIA
from raysearch.config.dimensions import (
    Choices,
    Dimension,
    RecipeSuggester,
    Suggester,
    choose,
    criteria_kinds,
    param_name,
    read_dimension,
)
from raysearch.config.problems import first_problem
from raysearch.config.recipe import DEFAULT_EXPERT_CRITERION, DEFAULT_HIDDEN_CRITERION, LOSS_FIELDS, Recipe, applies
from raysearch.config.settings import (
    Calibration,
    DataSource,
    Name,
    PathOrName,
    RecoverySettings,
    Scalar,
    SearchSettings,
    Slots,
    Strict,
)
from raysearch.config.shape_rules import ShapeRules
from raysearch.errors import InputError
from raysearch.files import parse_json, parse_yaml

MAX_CHARS = 4_000_000  # of a file with a space


class SearchSpace(Strict):
    """A whole study: model, data, benchmarks, the recipes to search, and settings."""

    name: Name
    """Name of the study, also of its MLflow experiment."""
    model: PathOrName
    """Hugging Face folder or hub id of an LVLM; `pocket` or `pocket-smollm2` for an embedded one."""
    data: PathOrName | Annotated[list[DataSource], Field(min_length=1)] = "pocket"
    """Recovery data: `pocket`, a file or folder of conversations with its images beside it (docs/reference/data.md), or
    several of these: a list of {path, weight}."""
    num_samples: int | None = Field(None, ge=1)
    """Rows of `data` that count as 100%; left out, all of them."""
    benchmarks: list[BenchmarkEntry] = ["pocket"]
    """Benchmarks that measure retention: `pocket`, some of its benchmarks by name, and custom ones."""
    retention: RetentionForm = "ratio_of_averages"
    """How scores become retention (arXiv 2604.24380 reports the ratio of averages)."""
    stratify: bool = False
    """Keep the proportions of the data's sources in every fraction of it, up to a sample or two."""
    budgets: list[str] = []
    """Budgets of the whole model: 60%, 3.2GB, 3B; or of a device, `memory 3GB @ {tokens: 4096, batch: 1}`, also as
    {name: phone, memory: 3GB, kv_cache: 200MB, tokens: 4096, batch: 1}."""
    recipe: dict[str, list[Dimension]]
    """Dimensions by recipe field: a value, a list of values, {low, high, log, step}, or a list of these with `when`."""
    start: list[dict[str, Scalar]] = []
    """Recipes to run first, by their fields; they are never stopped early. Left out, one is made for each budget."""
    search: SearchSettings = SearchSettings()
    """Settings of the search algorithm."""
    shapes: ShapeRules = ShapeRules()
    """Numbers that every pruned model must have."""
    calibration: Calibration = Calibration()
    """Settings of importance scores."""
    recovery: RecoverySettings = RecoverySettings()
    """Settings of recovery training."""
    slots: Slots = Slots()
    """Parallel trials and their resources."""

    @property
    def data_text(self) -> str:
        """The recovery data in words."""
        if isinstance(self.data, str):
            return self.data
        return ", ".join(s.path if s.weight == 1 else f"{s.weight:g} x {s.path}" for s in self.data)

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _listed(cls, benchmarks: Any) -> Any:
        return [benchmarks] if isinstance(benchmarks, str | dict) else benchmarks

    @field_validator("budgets", mode="before")
    @classmethod
    def _check_budgets(cls, budgets: Any) -> Any:
        return [Budget.parse(b).text for b in budgets] if isinstance(budgets, list) else budgets

    @model_validator(mode="before")
    @classmethod
    def _read_dimensions(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "recipe" not in content:
            return content
        dimensions = content["recipe"]
        if not isinstance(dimensions, dict):
            raise ValueError("recipe: must map fields of a recipe to values; search_spaces/pocket.yaml is an example")
        cases = {str(field): read_dimension(str(field), spec) for field, spec in dimensions.items()}
        return {**content, "recipe": cases}

    @model_validator(mode="after")
    def _check_recipe(self) -> "SearchSpace":
        for field in ("mode", "ratio", "criterion"):
            if not self.recipe.get(field):
                raise ValueError(f"recipe.{field}: missing; every space needs mode, ratio and criterion")
        for mode in self.values_of("mode"):
            for known in criteria_kinds(mode):
                if not set(self.values_of("criterion")) & set(known):
                    raise ValueError(f"recipe.criterion: none applies to mode {mode}; add one of {', '.join(known)}")
        weights = [weight for name in LOSS_FIELDS for weight in self._weights_of(name)]
        if not any(weights) and set(self.values_of("trained")) != {"nothing"}:
            raise ValueError(f"recipe.{', '.join(LOSS_FIELDS)}: all 0; raise one, or set trained: nothing")
        return self

    @model_validator(mode="after")
    def _check_start(self) -> "SearchSpace":
        for index, fields in enumerate(self.start):
            try:
                recipe = Recipe(**fields)  # type: ignore[arg-type]
            except ValidationError as error:
                raise ValueError(f"start.{index}: {first_problem(error, fields, Recipe)}") from None
            given, nearest = recipe.as_dict(), self.suggest(RecipeSuggester(recipe.as_dict())).as_dict()
            for name in given.keys() | nearest.keys():
                if given.get(name) != nearest.get(name):
                    raise ValueError(
                        f"start.{index}.{name}: {given.get(name)} is outside of the space; the nearest inside is "
                        f"{nearest.get(name)}"
                    )
        return self

    @classmethod
    def load(cls, path: str | Path) -> "SearchSpace":
        """Read and check a YAML file, or a JSON file if `path` ends in .json.

        Raises:
            InputError: no such file, not YAML, or an invalid key or value; one line that names the key.
        """
        content = _read_yaml(path, "examples are in search_spaces/")
        if not isinstance(content, dict):
            raise InputError(f"{path}: not a search space; it must map name, model and recipe to values")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{path}: {first_problem(error, content, cls)}") from None
        except UnicodeEncodeError as error:
            surrogate = error.object[error.start : error.end]
            raise InputError(f"{path}: contains {surrogate!a}, which is not text") from None
        except RecursionError:
            raise InputError(f"{path}: nested too deeply to be a search space") from None

    def suggest(self, suggester: Suggester) -> Recipe:
        """A recipe of values from `suggester`, which is only called for dimensions that apply.

        Raises:
            pydantic.ValidationError: the values exclude each other, e.g. all loss weights are 0.
        """
        values: dict[str, Any] = {}
        for field in Recipe.model_fields:
            if field not in self.recipe:
                continue
            if field == "criterion":
                kinds = self._criterion_cases(values["mode"]).items()
                values[field] = "+".join(str(choose(suggester, name, cases, values)) for name, cases in kinds)
            elif applies(field, values):
                chosen = choose(suggester, field, self.recipe[field], values)
                if chosen is not None:
                    values[field] = chosen
        return Recipe(**values)

    def search_params(self) -> dict[str, Dimension]:
        """Every parameter that `suggest` may ask a suggester for, by name; those with one value are left out."""
        by_name: dict[str, Sequence[Dimension]] = {}
        for field in Recipe.model_fields:
            if field in self.recipe:
                by_name |= self._criterion_cases("both") if field == "criterion" else {field: self.recipe[field]}
        return {
            param_name(name, cases, index): case
            for name, cases in by_name.items()
            for index, case in enumerate(cases)
            if (len(case.choices) > 1 if isinstance(case, Choices) else case.low < case.high)
        }

    def _criterion_cases(self, mode: str) -> dict[str, list[Dimension]]:
        """Choices of the criterion in a mode, by parameter: `layer_criterion`, `width_criterion` or both."""
        found: dict[str, list[Dimension]] = {}
        for known in criteria_kinds(mode):
            cases = found["layer_criterion" if known is LAYER_CRITERIA else "width_criterion"] = []
            for case in self.recipe["criterion"]:
                assert isinstance(case, Choices), case
                choices: list[Scalar] = [value for value in case.choices if value in known]
                if choices:  # validated when the space was read
                    cases.append(Choices.model_construct(choices=choices, when=case.when))
        return found

    def fixed_to(self, recipe: Recipe) -> "SearchSpace":
        """This space with `recipe` as its only one."""
        values = {name: [value] for name, value in recipe.as_dict().items()}
        values["criterion"] = [name for name in recipe.criteria if name]
        dimensions: dict[str, list[Dimension]] = {name: [Choices(choices=choices)] for name, choices in values.items()}
        return self.model_copy(update={"recipe": dimensions})

    def values_of(self, field: str) -> list[Any]:
        """Every value that a dimension may take; the two bounds of a range. Empty without such a dimension."""
        cases = self.recipe.get(field, [])
        return [v for case in cases for v in (case.choices if isinstance(case, Choices) else (case.low, case.high))]

    def _weights_of(self, loss: str) -> list[Any]:
        return self.values_of(loss) or [LOSS_FIELDS[loss].default]

    def criteria(self) -> list[str]:
        """The criteria that some recipe of the space may use."""
        kinds = {name for mode in self.values_of("mode") for known in criteria_kinds(mode) for name in known}
        named = [value for value in self.values_of("criterion") if value in kinds]
        if any(self.values_of("expert_ratio")):
            named += self.values_of("expert_criterion") or [DEFAULT_EXPERT_CRITERION]
        if any(self.values_of("hidden_ratio")):
            named += self.values_of("hidden_criterion") or [DEFAULT_HIDDEN_CRITERION]
        return list(dict.fromkeys(named))

    def uses_teacher(self) -> bool:
        """Whether some recipe of the space has a distillation loss."""
        needed = [name for name, loss in LOSS_FIELDS.items() if loss.needs_teacher]
        weights = [weight for name in needed for weight in self._weights_of(name)]
        return any(float(weight) > 0 for weight in weights) and self.values_of("trained") != ["nothing"]

    def largest_recovery(self, num_samples: int) -> int:
        """Samples that the longest trial of the space sees, of a data set of `num_samples`; at least 1."""
        fraction, epochs = (max(self.values_of(field) or [1.0]) for field in ("data_fraction", "epochs"))
        return max(1, round(fraction * num_samples * epochs))


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe: the `recipe.yaml` of a checkpoint, or what `raysearch best --json` prints.

    Raises:
        InputError: no such file, not YAML or JSON, or no recipe.
    """
    content = _read_yaml(path, "give a recipe.yaml, or the output of raysearch best --json")
    if isinstance(content, dict) and isinstance(content.get("recipe"), dict):
        content = content["recipe"]
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a recipe; it must map mode, ratio and criterion to values")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, content, Recipe)}") from None


def _read_yaml(path: str | Path, way_out: str) -> Any:
    """The content of a YAML file, or of a JSON file if `path` ends in .json."""
    try:
        with Path(path).open(encoding="utf-8") as stream:
            text = stream.read(MAX_CHARS + 1)
        if len(text) > MAX_CHARS:
            raise InputError(f"{path}: longer than {MAX_CHARS:,} characters; {way_out}")
        return parse_json(text) if Path(path).suffix == ".json" else parse_yaml(text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {way_out}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error}); give a YAML file") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
